"""Guarantee 4: every run ends, and no worker is judged for an absence of Redis."""

import contextlib
from collections import Counter

import msgspec
import pytest
from support.little_bus import CountingProbe, ManualClock

from gateway.session.deadlines import Sweep, forced_ending
from gateway.session.errors import Fenced, Unavailable
from gateway.session.model import Advanced, Due, Ending, RunRef

REF = RunRef("acme", "s1", "r1")
NEXT = RunRef("acme", "s1", "r2")


class Deadlines:
    """Due times that stay due until somebody acts on them."""

    def __init__(self) -> None:
        self.items: dict[Due, Advanced | Exception] = {}
        self.acted: list[Due] = []
        self.ended: list[tuple[RunRef, int, int, str, Ending]] = []
        self.down = False
        self.fenced = False
        self.asked: list[int] = []

    def add(self, kind: str, outcome: Advanced | Exception, run: str = "r1") -> Due:
        due = Due(kind, REF._replace(run_id=run), 0)
        self.items[due] = outcome
        return due

    async def beat(self, node: str) -> dict[str, bool]:
        if self.down:
            raise Unavailable
        return {node: True}

    async def due(self, limit: int) -> list[Due]:
        self.asked.append(limit)
        return list(self.items)[:limit]

    async def advance(self, due: Due) -> Advanced:
        self.acted.append(due)
        outcome = self.items.pop(due)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def end_by_force(self, ref, attempt, ordinal, code, ending):
        if self.fenced:
            raise Fenced
        self.ended.append((ref, attempt, ordinal, code, ending))
        return NEXT


class Queue:
    def __init__(self) -> None:
        self.dispatched: list[tuple[RunRef, str]] = []

    async def dispatch(self, ref: RunRef, agent: str) -> None:
        self.dispatched.append((ref, agent))


class Bench:
    def __init__(self) -> None:
        self.deadlines = Deadlines()
        self.queue = Queue()
        self.probe = CountingProbe()
        self.clock = ManualClock()
        self.reports: list[Exception] = []
        self.heard: list[bool] = []
        self.sweeper = Sweep(
            deadlines=self.deadlines,
            queue=self.queue,
            probe=self.probe,
            node="n1",
            clock=self.clock,
            on_nodes=lambda _alive, interrupted: self.heard.append(interrupted),
            report=lambda _message, error: self.reports.append(error),
            lease_s=30,
        )

    async def sweeps(self, seconds: int) -> None:
        for _ in range(seconds):
            with contextlib.suppress(Unavailable):
                await self.sweeper.sweep()
            self.clock.now += 1

    @property
    def acted(self) -> Counter[str]:
        return Counter(due.kind for due in self.deadlines.acted)


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_new_node_judges_no_lease_before_one_lease_has_passed(bench):
    bench.deadlines.add("lease", Advanced())
    bench.deadlines.add("timeout", Advanced())
    await bench.sweeps(30)
    assert bench.acted == {"timeout": 1}
    await bench.sweeps(1)
    assert bench.acted == {"timeout": 1, "lease": 1}


async def test_an_interruption_postpones_leases_and_nothing_else(bench):
    await bench.sweeps(40)
    bench.deadlines.down = True
    await bench.sweeps(3)
    bench.deadlines.down = False
    bench.deadlines.add("lease", Advanced())
    bench.deadlines.add("dispatch", Advanced())
    await bench.sweeps(30)
    assert bench.acted == {"dispatch": 1}
    await bench.sweeps(1)
    assert bench.acted["lease"] == 1
    assert bench.heard.count(True) == 2


async def test_a_sweep_that_came_late_counts_as_an_interruption(bench):
    """The whole process stood still: so did its view of Redis."""
    await bench.sweeps(40)
    bench.clock.now += 5
    bench.deadlines.add("lease", Advanced())
    await bench.sweeps(30)
    assert bench.acted == {}
    await bench.sweeps(1)
    assert bench.acted == {"lease": 1}


async def test_without_interruption_leases_are_judged_at_once(bench):
    await bench.sweeps(40)
    bench.deadlines.add("lease", Advanced())
    await bench.sweeps(1)
    assert bench.acted == {"lease": 1}


async def test_postponed_leases_do_not_hide_what_else_is_due(bench):
    for number in range(500):
        bench.deadlines.add("lease", Advanced(), f"l{number}")
    bench.deadlines.add("timeout", Advanced())
    await bench.sweeps(10)
    assert bench.acted == {"timeout": 1}
    assert max(bench.deadlines.asked) <= 5000


async def test_one_bad_item_stops_no_other(bench):
    bench.deadlines.add("timeout", ValueError("broken"), "bad")
    bench.deadlines.add("timeout", Advanced(agent="demo", dispatch=NEXT), "good")
    await bench.sweeps(1)
    assert [str(error) for error in bench.reports] == ["broken"]
    assert bench.queue.dispatched == [(NEXT, "demo")]


async def test_an_expired_session_is_counted_by_who_expired_it(bench):
    bench.deadlines.add(
        "expiry", Advanced(agent="demo", completed=True, created_ms=1000, now_ms=5000)
    )
    await bench.sweeps(2)
    assert bench.probe.facts == {"completed expired": 1}
    assert bench.probe.durations == [4.0]


async def test_a_run_is_ended_under_its_fence_and_the_next_one_dispatched(bench):
    advanced = Advanced(agent="demo", end="timeout", attempt=2, ordinal=7)
    bench.deadlines.add("timeout", advanced)
    await bench.sweeps(1)
    [(ref, attempt, ordinal, code, ending)] = bench.deadlines.ended
    assert (ref, attempt, ordinal, code) == (REF, 2, 7, "timeout")
    assert msgspec.json.decode(ending.event)["code"] == "timeout"
    assert bench.queue.dispatched == [(NEXT, "demo")]


async def test_a_worker_that_came_back_keeps_its_run(bench):
    bench.deadlines.fenced = True
    bench.deadlines.add("timeout", Advanced(agent="demo", end="worker_lost", attempt=1))
    await bench.sweeps(1)
    assert bench.queue.dispatched == []
    assert bench.reports == []


def event_frame(event: dict) -> bytes:
    return (
        b'{"type":"event","seq":1,"ts":1,"run_id":"r","event":' + msgspec.json.encode(event) + b"}"
    )


def test_what_was_said_is_kept_and_marked_incomplete():
    frames = [
        {
            "type": "RUN_STARTED",
            "input": {"messages": [{"id": "u", "role": "user", "content": "hi"}]},
        },
        {"type": "TEXT_MESSAGE_START", "messageId": "a1", "role": "assistant"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "a1", "delta": "done"},
        {"type": "TEXT_MESSAGE_END", "messageId": "a1"},
        {"type": "CUSTOM", "name": "x", "value": 1},
        {"type": "TEXT_MESSAGE_START", "messageId": "a2", "role": "assistant"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "a2", "delta": "half"},
    ]
    ending = forced_ending("worker_lost", [event_frame(event) for event in frames])
    messages = [msgspec.json.decode(message) for message in ending.messages]
    assert [message["id"] for message in messages] == ["a1", "a2"], "the user's is there already"
    assert "metadata" not in messages[0]
    assert messages[1]["content"] == "half"
    assert messages[1]["metadata"] == {"incomplete": True}
    assert (ending.kind, ending.code) == ("X", "worker_lost")


def test_a_run_without_words_ends_too():
    ending = forced_ending("no_worker", [])
    assert ending.messages == []
    assert msgspec.json.decode(ending.event) == {
        "type": "RUN_ERROR",
        "message": "no worker serves this agent now",
        "code": "no_worker",
    }
