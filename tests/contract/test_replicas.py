"""`GATEWAY_ACK_REPLICAS`: what a client is told to be accepted, so many replicas have.

On a real primary with a real replica. The last test is what happens without: the loss is told.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from support import following
from support.bus import QUICK, connected_bus
from support.replicas import Server, cluster_pair, primary_and_replica, until
from support.talk import Talk

from gateway.bus import scripts
from gateway.bus.bus import Bus
from gateway.session.errors import Fenced, Refused, Unavailable
from protocol.frames import Cursor

Pair = tuple[Server, Server]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replica is there, and confirms as soon as the machine lets it."""
    monkeypatch.setattr(scripts, "_CONFIRM_MS", 20_000)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """A pair that the test may destroy."""
    with primary_and_replica(tmp_path) as servers:
        yield servers


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with primary_and_replica(tmp_path_factory.mktemp("pair")) as servers:
        yield servers


@pytest.fixture
def stuck(lasting: Pair) -> Iterator[Pair]:
    """A pair whose replica is stopped."""
    primary, replica = lasting
    replica.pause()
    yield lasting
    replica.go_on()
    until(lambda: replica.in_step_with(primary))


async def opened(bus: Bus) -> Talk:
    talk = Talk(bus)
    await talk.open()
    return talk


async def say(command: str, talk: Talk) -> None:
    if command == "message":
        await talk.message(frame_id="m")
    elif command == "cancel":
        await talk.cancel(frame_id="c")
    else:
        await talk.bus.sessions.close(talk.key, talk.user)


def promote(primary: Server, replica: Server) -> None:
    """The primary dies, and its replica takes its place."""
    primary.kill()
    replica.ask("REPLICAOF", "NO", "ONE")


@pytest.mark.usefixtures("patient")
async def test_what_was_acknowledged_survives_the_primary(pair: Pair) -> None:
    primary, replica = pair
    async with connected_bus(primary.url, ack_replicas=1) as bus:
        talk = await opened(bus)
        accepted = [await talk.message(f"message {n}", frame_id=f"m{n}") for n in range(5)]
        promote(primary, replica)
    async with connected_bus(replica.url) as bus:
        talk = replace(talk, bus=bus)
        view = await talk.open(agent=None)
        assert [run.run_id for run in view.runs] == [each.run_id for each in accepted]
        for number, first in enumerate(accepted):
            again = await talk.message(f"message {number}", frame_id=f"m{number}")
            assert (again.status, again.run_id) == ("duplicate", first.run_id)


@pytest.mark.usefixtures("patient")
async def test_every_command_of_a_client_survives_the_primary(pair: Pair) -> None:
    primary, replica = pair
    async with connected_bus(primary.url, ack_replicas=1) as bus:
        asked, closed, cancelled, called = [await opened(bus) for _ in range(4)]
        await asked.asked()
        await cancelled.running()
        await called.finish(await called.running(), kind="I", pending_tools=["t1"])
        answer = await asked.answer("q1", "q2", frame_id="a")
        await cancelled.cancel(frame_id="c")
        result = await called.tool_result("t1", frame_id="t")
        await closed.bus.sessions.close(closed.key, closed.user)
        promote(primary, replica)
    async with connected_bus(replica.url) as bus:
        asked, closed, cancelled, called = (
            replace(talk, bus=bus) for talk in (asked, closed, cancelled, called)
        )
        assert (await asked.answer("q1", "q2", frame_id="a")).run_id == answer.run_id
        assert await cancelled.state() == "cancelling"
        assert (await called.tool_result("t1", frame_id="t")).run_id == result.run_id
        with pytest.raises(Refused, match="over"):
            await closed.open(agent=None)


async def test_nothing_is_acknowledged_while_the_replica_is_away(stuck: Pair) -> None:
    primary, _ = stuck
    async with connected_bus(primary.url, ack_replicas=1) as bus:

        async def refused(command: str) -> None:
            talk = await opened(bus)
            for _ in range(2):  # a repetition has nothing to write, and is not believed either
                began = time.monotonic()
                with pytest.raises(Unavailable):
                    await say(command, talk)
                assert 0.9 < time.monotonic() - began < 15

        await asyncio.gather(*(refused(each) for each in ("message", "cancel", "close")))


async def test_once_it_is_confirmed_a_repetition_is_a_duplicate(
    stuck: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, replica = stuck
    async with connected_bus(primary.url, ack_replicas=1) as bus:
        talk = await opened(bus)
        with pytest.raises(Unavailable):
            await talk.message(frame_id="m1")
        replica.go_on()
        until(lambda: replica.in_step_with(primary))
        monkeypatch.setattr(scripts, "_CONFIRM_MS", 20_000)
        assert (await talk.message(frame_id="m1")).status == "duplicate"
        assert len((await talk.open(agent=None)).runs) == 1


async def test_a_repetition_on_a_fresh_connection_waits_too(stuck: Pair) -> None:
    """A connection that wrote nothing has nothing to wait for: WAIT would answer at once."""
    primary, _ = stuck
    async with connected_bus(primary.url) as bus:
        messaged, cancelled, closed = [await opened(bus) for _ in range(3)]
        await say("message", messaged)
        await say("cancel", cancelled)
        await say("close", closed)

    async def refused(command: str, talk: Talk) -> None:
        async with connected_bus(primary.url, ack_replicas=1) as fresh:
            with pytest.raises(Unavailable):
                await say(command, replace(talk, bus=fresh))

    await asyncio.gather(
        refused("message", messaged),
        refused("cancel", cancelled),
        refused("close", closed),
        refused("cancel", closed),
    )


async def test_an_unconfirmed_message_runs_all_the_same(stuck: Pair) -> None:
    """It is written, and the client repeats it: its deadline brings it to a worker meanwhile."""
    primary, _ = stuck
    async with connected_bus(primary.url, QUICK, ack_replicas=1) as bus:
        talk = await opened(bus)
        with pytest.raises(Unavailable):
            await talk.message(frame_id="m1")
        assert (await talk.advance("dispatch")).dispatch is not None


async def test_reads_and_runs_do_not_wait_for_replicas(stuck: Pair) -> None:
    primary, _ = stuck
    async with (
        connected_bus(primary.url) as bus,
        connected_bus(primary.url, ack_replicas=1) as sure,
    ):
        talk = await opened(bus)
        claim = await talk.running()
        waits = primary.waits()
        sure_talk = replace(talk, bus=sure)
        await sure_talk.append(claim, 0, "A")
        await sure_talk.finish(claim, 1)
        assert await sure_talk.kinds() == "SEF"
        assert primary.waits() == waits
        with pytest.raises(Unavailable):
            await sure_talk.message()
        assert primary.waits() > waits
        assert not sure.scripts.breaker.failures, "Redis answers; its breaker is not concerned"


async def test_slow_replicas_leave_connections_to_the_others(stuck: Pair) -> None:
    """Each call that waits for a replica holds a connection; reads must not wait behind them."""
    primary, _ = stuck
    async with connected_bus(primary.url, ack_replicas=1) as bus:
        talk = await opened(bus)
        waits = primary.waits()

        async def message() -> None:
            with suppress(Refused):
                await talk.message()

        async with asyncio.TaskGroup() as group:
            writers = [group.create_task(message()) for _ in range(200)]
            await following.until(lambda: primary.waits() > waits)
            await bus.sessions.snapshot(talk.key)
            done = sum(writer.done() for writer in writers)
            assert done < 100, "behind them all it would have been two thirds of them"
            for writer in writers:
                writer.cancel()


async def test_a_cluster_confirms_in_the_partition_and_follows_a_failover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_ms = scripts._CONFIRM_MS
    monkeypatch.setattr(scripts, "_CONFIRM_MS", 20_000)
    with cluster_pair(tmp_path) as (primary, replica):
        async with connected_bus(
            f"redis+cluster://127.0.0.1:{primary.port}", ack_replicas=1
        ) as bus:
            talk = await opened(bus)
            assert (await talk.message(frame_id="m1")).status == "accepted"
            replica.ask("CLUSTER", "FAILOVER")
            until(lambda: replica.ask("ROLE")[0] == b"master")
            until(lambda: primary.in_step_with(replica))
            # The slot has moved; the call is sent on.
            assert (await talk.message(frame_id="m2")).status == "queued"
            primary.pause()  # the replica now
            monkeypatch.setattr(scripts, "_CONFIRM_MS", at_ms)
            with pytest.raises(Unavailable):
                await talk.message(frame_id="m3")
            primary.go_on()


async def test_connections_to_a_primary_that_was_demoted_are_given_up(pair: Pair) -> None:
    """It keeps them and refuses writes; where one address stands for both, new ones are right."""
    primary, replica = pair
    async with connected_bus(primary.url) as bus:
        talk = await opened(bus)
        before = await bus.client.client_id()
        primary.ask("REPLICAOF", "127.0.0.1", replica.port)
        with pytest.raises(Unavailable):
            await talk.message()
        assert await bus.client.client_id() > before
        assert not bus.scripts.breaker.failures, "it answers"


async def test_writes_that_a_failover_lost_are_told(pair: Pair) -> None:
    """Without waiting for replicas: who has seen more than the new primary has learns of it."""
    primary, replica = pair
    async with connected_bus(primary.url) as bus:
        talk = await opened(bus)
        claim = await talk.running()
        await talk.append(claim, 0, "A")
        until(lambda: replica.in_step_with(primary))
        replica.ask("REPLICAOF", "NO", "ONE")
        await talk.append(claim, 1, "B", "C")
        seen = Cursor(talk.epoch, (await talk.log())[-1].seq)
        primary.kill()
    async with connected_bus(replica.url) as bus:
        heard: asyncio.Queue[bytes] = asyncio.Queue()
        async with bus.notices.session_events(talk.key, heard.put_nowait, lambda: None):
            page = await bus.sessions.read(talk.key, seen, 10)
            assert page.status == "ahead"
            assert page.epoch != talk.epoch
            assert await heard.get() == b"!reset " + page.epoch.encode()
        with pytest.raises(Fenced):  # its worker cannot go on as if nothing were missing
            await replace(talk, bus=bus).append(claim, 3, "D")
