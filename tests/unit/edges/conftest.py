"""A node under a real uvicorn."""

from collections.abc import AsyncIterator

import pytest
from support.edges import Node, serving


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with serving() as made:
        yield made
