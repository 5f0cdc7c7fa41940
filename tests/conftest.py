"""What every test shares: the event loop that the gateway runs on in production, and tidiness."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from support import leaks

# Two shared cores make a deadline per example a source of chance.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Asynchronous tests and fixtures run on asyncio with uvloop."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No test leaves a process behind; the last one fails for all."""
    leaks.keep_orphans()
    yield
    assert leaks.left_behind() == []
