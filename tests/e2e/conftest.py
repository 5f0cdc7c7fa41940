"""Stacks of real processes, shared by the tests that do not harm them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stack import COUNTING, Stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One node and one worker of the demo agent."""
    with Stack.running(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two nodes and two workers of the counting agent on one Redis."""
    folder = tmp_path_factory.mktemp("pair")
    with Stack.running(folder, nodes=2, workers=2, agent=COUNTING) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the processes of one test log."""
    return tmp_path
