"""The engines that the contract holds on: a single server, and the same binary as a cluster."""

from collections.abc import AsyncIterator, Iterator

import pytest
from support.bus import QUICK, connected_bus, running_server

from gateway.bus.bus import Bus


@pytest.fixture(scope="session", params=["single", "cluster"])
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A running server, shared by all tests; each uses sessions and agents of its own."""
    with running_server(cluster=request.param == "cluster") as url:
        yield url


@pytest.fixture
async def bus(redis_url: str) -> AsyncIterator[Bus]:
    """A bus with the documented limits."""
    async with connected_bus(redis_url) as connected:
        yield connected


@pytest.fixture
async def quick_bus(redis_url: str) -> AsyncIterator[Bus]:
    """A bus whose deadlines pass within the test."""
    async with connected_bus(redis_url, QUICK) as connected:
        yield connected
