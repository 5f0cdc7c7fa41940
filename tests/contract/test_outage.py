"""While Redis is away: bounded waits, then no waits; and no answer is ever read as another's."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from loguru import logger
from support.bus import connected_bus
from support.net import free_port
from support.server import RedisServer
from support.talk import Talk

from gateway.bus import connection
from gateway.bus.bus import Bus
from gateway.bus.connection import in_time
from gateway.session.breaker import BreakerState
from gateway.session.errors import Unavailable

ANSWER_TIMEOUT_S = connection._ANSWER_TIMEOUT_S
BOUND_S = 8.0
"""A call is waited for for 3 s; on a busy machine the rest takes long, too."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def bus(server: RedisServer) -> AsyncIterator[Bus]:
    async with connected_bus(f"unix://{server.socket}") as bus:
        yield bus


async def refused(bus: Bus) -> float:
    """How long a call takes to say that Redis is not there."""
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        await bus.runs.take("nobody", 1)
    assert caught.value.retry_after_ms
    assert 0 < caught.value.retry_after_ms <= 5000
    return time.monotonic() - began


async def refused_at_once(bus: Bus) -> bool:
    """Nobody waits, but for the one who now and then asks Redis again."""
    return min([await refused(bus) for _ in range(3)]) < 0.5


async def test_a_stalled_server_is_waited_for_once_and_then_not_at_all(
    server: RedisServer, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bus.deadlines.beat("node")
    server.pause()
    patience_s = connection._ANSWER_TIMEOUT_S
    monkeypatch.setattr(connection, "_ANSWER_TIMEOUT_S", ANSWER_TIMEOUT_S)
    waits = await asyncio.gather(*(refused(bus) for _ in range(200)))  # more than connections
    assert max(waits) < BOUND_S
    assert bus.scripts.breaker.state is BreakerState.OPEN
    assert await refused_at_once(bus)

    with pytest.raises(Unavailable):  # it asks all the same
        await bus.deadlines.beat("node")
    assert await refused_at_once(bus)

    server.resume()
    monkeypatch.setattr(connection, "_ANSWER_TIMEOUT_S", patience_s)
    await bus.deadlines.beat("node")
    assert bus.scripts.breaker.state is BreakerState.CLOSED
    assert await bus.runs.take("nobody", 1) == []


async def test_a_dead_server_is_known_to_be_dead(server: RedisServer, bus: Bus) -> None:
    talk = Talk(bus)
    await talk.open()
    server.kill()
    assert min([await refused(bus) for _ in range(2)]) < ANSWER_TIMEOUT_S
    assert await refused_at_once(bus)
    with pytest.raises(Unavailable):
        await bus.deadlines.due(10)
    with pytest.raises(Unavailable):
        await bus.directory.agents()
    server.start()
    await bus.deadlines.beat("node")
    assert await talk.state() == "idle"


async def test_without_a_beat_somebody_tries_now_and_then(server: RedisServer, bus: Bus) -> None:
    """A worker has no beat: one of its calls is the probe."""
    server.kill()
    for _ in range(2):
        await refused(bus)
    server.start()
    async with asyncio.timeout(20):
        while True:
            try:
                await bus.runs.take("nobody", 1)
                break
            except Unavailable:
                await asyncio.sleep(0.05)
    assert bus.scripts.breaker.state is BreakerState.CLOSED


async def test_a_restart_within_the_repetitions_is_no_outage(server: RedisServer, bus: Bus) -> None:
    """Every pooled connection is dead then; each call makes its own anew."""
    await asyncio.gather(*(bus.runs.take("nobody", 1) for _ in range(30)))
    server.kill()
    server.start()
    assert await asyncio.gather(*(bus.runs.take("nobody", 1) for _ in range(30))) == [[]] * 30
    assert bus.scripts.breaker.failures == 0


async def test_a_process_that_stands_still_when_it_starts_asks_again(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection was not made in time, by its own fault."""
    url = f"unix://{server.socket}"
    monkeypatch.setattr(connection, "_CONNECT_TIMEOUT_S", 0.5)
    client = connection.create_client(url)
    asyncio.get_running_loop().call_later(0, time.sleep, 1)
    assert await connection.check_server(client, url) == 0
    await client.aclose()


async def test_a_cluster_of_which_no_server_answers_is_unavailable() -> None:
    """Redis-py has an exception for it that is none of its own family."""
    async with connected_bus(f"redis+cluster://127.0.0.1:{free_port()}") as bus:
        for _ in range(3):
            await refused(bus)
        assert bus.scripts.breaker.state is BreakerState.OPEN


async def test_refusals_are_answers(bus: Bus) -> None:
    """A server that is full says so with every message; the log need not."""
    talk = Talk(bus)
    await talk.open()
    await bus.client.config_set("maxmemory", "1")
    lines: list[str] = []
    handler = logger.add(lines.append, format="{message}")
    try:
        for _ in range(10):
            with pytest.raises(Unavailable):
                await talk.message()
    finally:
        logger.remove(handler)
    assert bus.scripts.breaker.failures == 0
    assert lines == []


async def test_a_late_answer_is_nobodys(server: RedisServer, bus: Bus) -> None:
    """A call that was given up has its answer still to come, on a connection that others would use.

    It must be thrown away with its answer: another command would take it for its own.
    """
    await asyncio.gather(*(bus.client.echo(f"warm {number}") for number in range(20)))
    server.pause()

    async def give_up(number: int) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await bus.client.echo(f"given up {number}")

    async def give_up_a_pipeline(number: int) -> None:
        pipeline = bus.client.pipeline(transaction=False)
        pipeline.echo(f"given up {number} a").echo(f"given up {number} b")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await pipeline.execute()

    await asyncio.gather(
        *(give_up(number) for number in range(20)),
        *(give_up_a_pipeline(number) for number in range(20)),
    )
    server.resume()

    async def ask(number: int) -> None:
        text = f"asked {number}"
        async with in_time():
            assert await bus.client.echo(text) == text.encode()

    for _ in range(5):
        await asyncio.gather(*(ask(number) for number in range(60)))


async def test_a_call_given_up_while_it_waits_for_replicas_leaves_nothing_behind(
    server: RedisServer,
) -> None:
    async with connected_bus(f"unix://{server.socket}", ack_replicas=1) as bus:
        talks = [Talk(bus) for _ in range(20)]
        for talk in talks:
            await talk.open()
        with pytest.raises(Unavailable):  # the server knows the script from now on
            await talks[0].message()

        async def written(talk: Talk) -> None:
            while await talk.state() == "idle":  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        async def say(talk: Talk) -> None:
            with suppress(Unavailable):  # a second has passed already
                await talk.message()

        async def give_up(talk: Talk) -> None:
            async with asyncio.TaskGroup() as group:
                message = group.create_task(say(talk))
                await written(talk)
                message.cancel()

        await asyncio.gather(*(give_up(talk) for talk in talks[1:]))
        for _ in range(5):
            views = await asyncio.gather(*(talk.open(agent=None) for talk in talks))
            assert [view.key for view in views] == [talk.key for talk in talks]
            assert {len(view.runs) for view in views} == {1}
