"""What a node says of its dependencies, its queues and itself is what happens to them.

One stack for all of it: its Redis goes away and comes back, its worker has two slots.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import psutil
import pytest
from support.books import Series, read, series
from support.server import RedisServer
from support.socket import TERMINAL, Socket, socket
from support.stack import COUNTING, Stack

PATIENCE_S = 60.0
QUEUE = {"tenant_id": "default", "queue": "counting"}
DEPTH = series("queue_depth", **QUEUE)
LAG = series("queue_lag_seconds", **QUEUE)
BUSY = series("agent_slots", agent_id="counting", state="busy")
FREE = series("agent_slots", agent_id="counting", state="free")
COMMANDS_UP = series("redis_up", role="commands")
PUBSUB_UP = series("redis_up", role="pubsub")


class World:
    """A stack whose Redis can be stopped, and what its node shows."""

    def __init__(self, folder: Path) -> None:
        self.redis = RedisServer(folder / "redis")
        self.redis.start()
        self.stack = Stack(f"unix://{self.redis.socket}", folder, {})
        self.stack.add_worker(COUNTING, "--slots", "2")
        self.stack.add_node()
        self.stack.wait_until_ready()

    def stop(self) -> None:
        try:
            self.stack.stop()
        finally:
            self.redis.stop()

    def look(self) -> dict[Series, float]:
        return read(httpx.get(self.stack.url + "/metrics", timeout=PATIENCE_S).text)

    async def until(self, condition: Callable[[dict[Series, float]], bool]) -> dict[Series, float]:
        """What is shown when the condition holds: some of it is as of the last look at Redis."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = self.look()
            if condition(found):
                return found
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("infrastructure"))
    yield world
    world.stop()


def call(service: str, operation: str, tenant: str = "_all") -> dict[str, str]:
    return {"tenant_id": tenant, "service": service, "operation": operation}


async def talk(world: World, sockets: AsyncExitStack, text: str) -> Socket:
    """A session of its own, in which somebody said something."""
    client = await sockets.enter_async_context(socket(world.stack.ws_of()))
    await client.open(agent="counting")
    await client.ask("message", content=text)
    return client


async def test_calls_of_services_are_counted_and_timed(world: World) -> None:
    before = world.look()
    async with AsyncExitStack() as sockets:
        client = await talk(world, sockets, "count 3 0")
        await client.until_event(*TERMINAL)
    for operation, count, tenant in (
        ("open", 1, "default"),
        ("accept", 1, "default"),
        ("dispatch", 1, "_all"),
    ):
        labels = call("redis", operation, tenant)
        name = series("service_call_total", **labels)
        now = await world.until(lambda found, name=name: found.get(name, 0) >= 1)
        assert now[name] - before.get(name, 0) >= count
        timed = now[series("service_call_seconds_count", **labels)]
        assert timed == now[name], "each call took its time"
        assert 0 < now[series("service_call_seconds_sum", **labels)] < 60 * timed
    # What waits for the archive is written, and readiness reads.
    for operation in ("read", "write"):
        name = series("service_call_total", **call("database", operation))
        await world.until(lambda found, name=name: found.get(name, 0) >= 1)
    pushes = series("pubsub_delivery_seconds_count")
    # A run's start and end, at least.
    await world.until(lambda found: found[pushes] - before[pushes] >= 2)


async def test_what_waits_for_workers_and_who_they_are(world: World) -> None:
    start = await world.until(lambda found: found.get(FREE) == 2)
    assert start[series("agent_workers", agent_id="counting")] == 1
    async with AsyncExitStack() as sockets:
        busy = [await talk(world, sockets, "silent") for _ in range(2)]
        for client in busy:
            await client.until_event("RUN_STARTED")
        waiting = [await talk(world, sockets, "count 3 0") for _ in range(3)]
        seen = await world.until(lambda found: found.get(DEPTH) == 3)
        assert seen[LAG] > 0
        later = await world.until(lambda found: found[LAG] > seen[LAG])
        assert later[DEPTH] == 3, "the lag grows by itself"
        await world.until(lambda found: (found[BUSY], found[FREE]) == (2, 0))

        # One is cancelled while it waits. Nobody claims it, and it counts no more.
        await waiting[0].ask("cancel")
        await waiting[0].until_event(*TERMINAL)
        await world.until(lambda found: found[DEPTH] == 2)

        for client in busy:
            await client.ask("cancel")
        for client in (*busy, *waiting[1:]):
            await client.until_event(*TERMINAL)
        over = await world.until(lambda found: found[DEPTH] == 0)
        assert over[LAG] == 0
        await world.until(lambda found: (found[BUSY], found[FREE]) == (0, 2))


async def test_the_process_shows_itself(world: World) -> None:
    process = psutil.Process(world.stack.nodes[0].popen.pid)
    lag = series("event_loop_lag_seconds_count")
    first = world.look()
    now = await world.until(lambda found: found[lag] >= first[lag] + 5)
    with process.oneshot():
        spent = sum(process.cpu_times()[:2])
        memory = process.memory_info().rss
    assert first[series("process_cpu_seconds_total")] <= now[series("process_cpu_seconds_total")]
    assert 0 < now[series("process_cpu_seconds_total")] <= spent
    assert now[series("process_resident_memory_bytes")] == pytest.approx(memory, rel=0.5)
    assert now[series("process_start_time_seconds")] == pytest.approx(process.create_time(), abs=2)
    fds = now[series("process_open_fds")]
    assert 0 < fds < now[series("process_max_fds")]
    assert now[series("log_messages_total", level="INFO")] >= 1, "that it is ready"
    assert now[series("logs_dropped_total")] == 0


async def test_redis_goes_away_and_comes_back(world: World) -> None:
    before = await world.until(lambda found: (found[COMMANDS_UP], found[PUBSUB_UP]) == (1, 1))
    world.redis.kill()
    gone = await world.until(lambda found: (found[COMMANDS_UP], found[PUBSUB_UP]) == (0, 0))
    assert gone[series("process_cpu_seconds_total")] > 0, "a scrape asks nobody"
    failed = series("service_call_failures_total", **call("redis", "beat"), error_code="connection")
    await world.until(lambda found: found.get(failed, 0) >= 1)
    refused = series(
        "service_call_failures_total", **call("redis", "due"), error_code="circuit_open"
    )
    await world.until(lambda found: found.get(refused, 0) >= 1)
    world.redis.start()
    reconnects = [series("redis_reconnects_total", role=role) for role in ("commands", "pubsub")]
    warnings = series("log_messages_total", level="WARNING")  # that it was away
    await world.until(
        lambda found: (
            (found[COMMANDS_UP], found[PUBSUB_UP]) == (1, 1)
            and all(found[name] > before[name] for name in (*reconnects, warnings))
        )
    )
