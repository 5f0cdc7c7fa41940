"""The fleet at a glance: what nodes record of their metrics, and what comes of it together."""

import asyncio
from typing import Any

import msgspec
import pytest

from gateway.session.fleet import Others
from gateway.telemetry.console import Console
from gateway.telemetry.metrics import Telemetry
from gateway.telemetry.overview import (
    LATENCIES,
    SHOWN,
    SLOTS,
    Agent,
    Overview,
    Queue,
    Service,
    Summary,
    merge,
    quantile,
)
from gateway.telemetry.recorder import Recorder


class Clocked:
    """A node's telemetry and its recorder, on a clock that the test moves."""

    def __init__(self, node: str = "n1") -> None:
        self.now_ms = 1_000_000
        self.refresh_fault: Exception | None = None
        self.reported = asyncio.Queue[Exception]()
        self.telemetry = Telemetry(version="1")
        self.recorder = Recorder(
            self.telemetry.registry,
            node=node,
            url=f"http://{node}",
            address=node,
            version="1",
            checks=lambda: {"redis": "ok"},
            refresh=self.refresh,
            now_ms=lambda: self.now_ms,
            report=lambda _what, error: self.reported.put_nowait(error),
        )

    def refresh(self) -> None:
        if self.refresh_fault is not None:
            raise self.refresh_fault
        self.telemetry.refresh()

    async def pass_slots(self, count: int = 1) -> None:
        self.now_ms += 2000 * count
        await self.recorder.record()

    def overview(self, *others: Summary, silent_s: float = 0.0) -> Overview:
        return merge(self.recorder.summary(), others, silent_s)


async def test_what_came_in_a_slot_stands_in_it() -> None:
    """Also when the node slept: what was counted meanwhile is in the last slot, not in each."""
    node = Clocked()
    session = node.telemetry.session("acme", "demo")
    session.message_accepted("user", 0.004)
    session.tokens(7, 100)
    await node.pass_slots()
    session.tokens(5, 0)
    await node.pass_slots(3)
    await node.pass_slots()
    seen = node.overview()
    assert seen.plots["tokens"][-6:] == [0, 7, 0, 0, 5, 0], "input tokens are not among them"
    assert seen.plots["messages"][-6:] == [0, 1, 0, 0, 0, 0]
    assert seen.totals == {"messages": 1, "tokens": 12, "failures": 0}
    assert (seen.messages_per_minute, seen.tokens_per_second) == (1, 1.2)
    assert {len(plot) for plot in seen.plots.values()} == {SLOTS}


async def test_a_record_that_fails_ends_nothing() -> None:
    """It is a task of the node's group, which a fault would end; the next one is made."""
    node = Clocked()
    node.refresh_fault = fault = OSError(24, "Too many open files")
    node.now_ms = 1_001_999  # a slot ends within a millisecond
    async with asyncio.TaskGroup() as group:
        recording = group.create_task(node.recorder.run())
        assert [await node.reported.get(), await node.reported.get()] == [fault, fault]
        node.refresh_fault = None
        node.now_ms += 2000
        while node.recorder.summary().slot != 500:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        recording.cancel()


async def test_gauges_are_as_of_now_and_plots_as_of_the_slot() -> None:
    node = Clocked()
    node.telemetry.connection_opened("acme")
    node.telemetry.session("acme", "demo").home_taken()
    node.telemetry.session("beta", "demo").home_taken()
    node.telemetry.session("beta", "other").home_taken()
    seen = node.overview()
    assert (seen.connections, seen.active, seen.plots["connections"][-1]) == (1, 3, 0)
    assert list(seen.sessions.items()) == [("beta", 2), ("acme", 1)], "the largest first"
    await node.pass_slots(2)
    assert node.overview().plots["connections"][-3:] == [0, 1, 1]


async def test_latencies_are_of_the_last_five_minutes() -> None:
    node = Clocked()
    session = node.telemetry.session("acme", "demo")
    for _ in range(10):
        session.message_accepted("user", 0.004)  # in (0.0025, 0.005]
        session.message_accepted("tool", 9.0)
    assert node.overview().latencies["accepted"].count == 0, "the slot has not ended"
    await node.pass_slots()
    accepted = node.overview().latencies["accepted"]
    assert (accepted.count, accepted.p50) == (10, pytest.approx(0.00375))
    await node.pass_slots(SHOWN - 1)
    assert node.overview().latencies["accepted"].count == 10
    await node.pass_slots()
    accepted = node.overview().latencies["accepted"]
    assert (accepted.count, accepted.p99) == (0, None)


@pytest.mark.parametrize(
    ("counts", "share", "value"),
    [
        ([0, 0, 0], 0.5, None),
        ([4, 0, 0], 0.5, 0.5),
        ([0, 4, 0], 0.25, 1.25),
        ([2, 2, 0], 0.5, 1.0),
        ([0, 0, 1], 0.99, 2.0),
    ],
)
def test_quantiles_are_those_of_prometheus(
    counts: list[int], share: float, value: float | None
) -> None:
    """Linear within a bucket; above the last bound, that bound."""
    assert quantile((1, 2), counts, share) == value


def summary(node: str, slot: int, **fields: Any) -> Summary:
    return Summary(node, slot=slot, **fields)


def test_what_counts_once_is_added_and_what_all_see_alike_is_not() -> None:
    """Guarantee 9, as in the queries: sessions are summed over nodes, a queue is the same queue."""
    buckets = [1] + [0] * len(LATENCIES["accepted"][0].buckets)
    first = summary(
        "a",
        10,
        started_ms=2,
        connections=2,
        active=3,
        capacity=100,
        sessions={"acme": 3},
        plots={"tokens": [1, 2, 3]},
        agents={"demo": Agent(workers=2, busy=1, free=7, breaker=0)},
        queues=[Queue("acme", "demo", 5, 1.5)],
        services={"redis": Service(0, 0)},
        latencies={"accepted": buckets},
    )
    second = summary(
        "b",
        9,
        started_ms=1,
        connections=1,
        active=1,
        capacity=100,
        sessions={"acme": 1, "beta": 1},
        plots={"tokens": [10, 20]},
        agents={"demo": Agent(workers=2, busy=2, free=6, breaker=2, failures=9)},
        queues=[Queue("acme", "demo", 4, 2.5), Queue("_all", "archive", 1)],
        services={"redis": Service(2, 8)},
        latencies={"accepted": buckets, "delivered": [1]},
    )
    seen = merge(first, [second, summary("a", 3, connections=50)], 0.0)
    assert (seen.connections, seen.active, seen.capacity) == (3, 4, 200)
    assert seen.sessions == {"acme": 4, "beta": 1}
    assert seen.plots["tokens"][-3:] == [0, 11, 22], "slot 10 is not told of by all yet"
    assert seen.end_s == 20
    [agent] = seen.agents
    assert (agent.workers, agent.busy, agent.free, agent.waiting) == (2, 2, 7, 5)
    assert (agent.breaker, agent.failures) == (2, 9)
    assert seen.queues == [Queue("acme", "demo", 5, 2.5), Queue("_all", "archive", 1)]
    assert seen.services == {"redis": Service(2, 8)}
    assert seen.latencies["accepted"].count == 2
    assert seen.latencies["delivered"].count == 0, "other buckets, as of another version"
    assert [row.node for row in seen.nodes] == ["b", "a"], "the oldest first"


def test_a_node_that_hangs_does_not_hold_up_the_plots() -> None:
    seen = merge(summary("a", 100, plots={"tokens": [7]}), [summary("b", 60)], 0.0)
    assert seen.plots["tokens"][-1] == 7


class LittleFleet:
    """What other nodes said; counts who asks."""

    def __init__(self, *said: bytes) -> None:
        self.said = {str(number): each for number, each in enumerate(said)}
        self.asked = 0

    async def ask(self) -> Others:
        self.asked += 1
        await asyncio.sleep(0)
        return Others(self.said, 0.0)


async def test_however_many_look_the_fleet_is_asked_once_a_second() -> None:
    """Pages cost Redis nothing; and what another version says is left out, not fatal."""
    node, now = Clocked(), [0.0]
    fleet = LittleFleet(msgspec.json.encode(Summary("n2", connections=4)), b'{"x":1}', b"\xff")
    console = Console(fleet, node.recorder.summary, lambda: now[0])  # type: ignore[arg-type]
    answers = await asyncio.gather(*(console.state() for _ in range(20)))
    assert fleet.asked == 1
    assert len(set(answers)) == 1
    seen = msgspec.json.decode(answers[0], type=Overview)
    assert (seen.connections, [row.node for row in seen.nodes]) == (4, ["n2", "n1"])
    now[0] = 0.9
    assert await console.state() == answers[0]
    now[0] = 1.0
    node.telemetry.connection_opened("acme")
    assert msgspec.json.decode(await console.state(), type=Overview).connections == 5
    assert fleet.asked == 2


async def test_a_summary_is_small_whatever_the_node_holds() -> None:
    """It is written to Redis once a second, and read by every node that somebody looks at."""
    node = Clocked()
    for number in range(300):
        node.telemetry.session(f"tenant-{number:058}", f"agent-{number:057}").home_taken()
    for _ in range(SLOTS + 5):
        await node.pass_slots()
    summary = node.recorder.summary()
    assert summary.active == 300
    assert len(summary.sessions) == 50
    assert len(msgspec.json.encode(summary)) < 24_000
