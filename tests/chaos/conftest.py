"""The run itself comes last: what is simply broken shall be seen before."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("chaos") is not None)
