"""The bad network does what it says, or a fault that was never made would prove nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from support.server import RedisServer

from chaos.proxy import DELAY_S, Mode, Proxies

PATIENCE_S = 0.3
"""What does not come within this time does not come."""


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Proxies]:
    server = RedisServer(tmp_path / "redis")
    server.start()
    proxies = Proxies(server.socket, ["one", "two"])
    yield proxies
    proxies.stop()
    server.stop()


def client(net: Proxies, name: str = "one") -> Redis:
    return Redis.from_url(
        net.url(name), protocol=2, retry=Retry(NoBackoff(), 0), single_connection_client=True
    )


async def answers(redis: Redis, within_s: float = 20) -> bool:
    with anyio.move_on_after(within_s):
        return await redis.ping()
    return False


async def has(redis: Redis, value: bytes | None) -> None:
    """Waits until the server has that under `k`."""
    with anyio.fail_after(20):
        while await redis.get("k") != value:  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def test_it_passes_what_is_large(net: Proxies) -> None:
    async with client(net) as redis:
        value = bytes(range(256)) * 10_000
        await redis.set("k", value)
        assert await redis.get("k") == value


async def test_what_is_held_comes_later(net: Proxies) -> None:
    async with client(net) as redis, client(net, "two") as other:
        await redis.ping()
        net.set("one", "hold")
        async with anyio.create_task_group() as group:
            group.start_soon(redis.set, "k", "late")
            await anyio.sleep(PATIENCE_S)
            assert await other.get("k") is None
            net.set("one", "pass")
        assert await other.get("k") == b"late"


async def test_what_is_swallowed_never_comes_and_the_connection_is_dead(net: Proxies) -> None:
    async with client(net) as redis, client(net, "two") as other:
        await redis.ping()
        net.set("one", "swallow")
        assert not await answers(redis, PATIENCE_S)
        assert await answers(other)
        net.set("one", "pass")
        async with client(net) as fresh:
            assert await answers(fresh)


@pytest.mark.parametrize(("mode", "arrived"), [("swallow_up", None), ("swallow_down", b"v")])
async def test_one_direction(net: Proxies, mode: Mode, arrived: bytes | None) -> None:
    async with client(net) as redis, client(net, "two") as other:
        await redis.ping()
        net.set("one", mode)
        with anyio.move_on_after(PATIENCE_S) as scope:
            await redis.set("k", "v")
        assert scope.cancelled_caught
        await has(other, arrived)


async def test_a_connection_that_lost_bytes_is_cut_when_the_network_is_back(net: Proxies) -> None:
    async with client(net) as redis, client(net, "two") as other:
        await redis.ping()
        net.set("one", "swallow_down")
        async with anyio.create_task_group() as group:

            async def ask() -> None:
                with pytest.raises(RedisConnectionError):
                    await redis.set("k", "v")

            group.start_soon(ask)
            await has(other, b"v")  # and its answer went the same way just before
            net.set("one", "pass")


async def test_delay(net: Proxies) -> None:
    async with client(net) as redis:
        await redis.ping()
        net.set("one", "delay")
        began = anyio.current_time()
        await redis.ping()
        assert anyio.current_time() - began >= DELAY_S * 2


async def test_cut_ends_connections_and_takes_new_ones(net: Proxies) -> None:
    async with client(net) as redis:
        await redis.ping()
        net.set("one", "cut")
        with pytest.raises(RedisConnectionError):
            await redis.ping()
    async with client(net) as fresh:
        assert await answers(fresh)


async def test_refuse_and_back(net: Proxies) -> None:
    net.set("one", "refuse")
    with pytest.raises(RedisConnectionError):
        async with client(net) as redis:
            await redis.ping()
    net.set("one", "pass")
    async with client(net) as redis:
        assert await answers(redis)
