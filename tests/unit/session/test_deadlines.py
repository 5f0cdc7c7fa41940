"""Guarantee 4: every run ends, and no worker is judged for an absence of Redis."""

import asyncio
import contextlib
from collections import Counter

import msgspec
import pytest
from support.little_bus import KEY, CountingProbe, LittleBus, ManualClock

from gateway.session.beat import Beat
from gateway.session.deadlines import Sweep
from gateway.session.errors import Fenced, Rejected, Unavailable
from gateway.session.model import Advanced, Due, Ending, RunRef, SessionKey
from protocol.frames import Cursor

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
        self.beats = 0
        self.gate: asyncio.Event | None = None
        """Set to an event: `advance` waits for it."""

    def add(self, kind: str, outcome: Advanced | Exception, run: str = "r1") -> Due:
        due = Due(kind, REF._replace(run_id=run), 0)
        self.items[due] = outcome
        return due

    async def beat(self, node: str) -> dict[str, bool]:
        if self.down:
            raise Unavailable
        self.beats += 1
        return {node: True}

    async def due(self, limit: int) -> list[Due]:
        if self.down:
            raise Unavailable
        self.asked.append(limit)
        return list(self.items)[:limit]

    async def advance(self, due: Due) -> Advanced:
        self.acted.append(due)
        if self.gate is not None:
            await self.gate.wait()
        outcome = self.items.pop(due)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def end_by_force(self, ref, claim_id, ordinal, code, ending):
        if self.fenced:
            raise Fenced
        self.ended.append((ref, claim_id, ordinal, code, ending))
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
        self.bus = LittleBus()
        self.probe = CountingProbe()
        self.clock = ManualClock()
        self.reports: list[Exception] = []
        self.heard: list[bool] = []
        self.until: list[float] = []
        self.adopted: list[tuple[SessionKey, str, str]] = []
        self.beat = Beat(
            deadlines=self.deadlines,
            node="n1",
            clock=self.clock,
            on_nodes=self.hear,
            report=lambda _message, error: self.reports.append(error),
            interval_s=0.001,
        )
        self.sweeper = Sweep(
            deadlines=self.deadlines,
            sessions=self.bus,
            queue=self.queue,
            probe=self.probe,
            beat=self.beat,
            adopt=self.adopt,
            report=lambda _message, error: self.reports.append(error),
            lease_s=30,
            interval_s=0.001,
        )

    def hear(self, _alive: dict[str, bool], interrupted: bool, until: float) -> None:
        self.heard.append(interrupted)
        self.until.append(until)

    async def adopt(self, key: SessionKey, user: str, dead_home: str) -> None:
        self.adopted.append((key, user, dead_home))

    async def sweeps(self, seconds: int) -> None:
        for _ in range(seconds):
            with contextlib.suppress(Unavailable):
                await self.beat.beat()
            with contextlib.suppress(Unavailable):
                await self.sweeper.sweep()
            self.clock.now += 1

    @property
    def acted(self) -> Counter[str]:
        return Counter(due.kind for due in self.deadlines.acted)


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_what_redis_refuses_stops_no_other_and_is_no_interruption(bench):
    """Out of memory, say: expiry, which would free some, must go on."""
    bench.deadlines.add("dispatch", Rejected())
    bench.deadlines.add("lease", Advanced(), "r2")
    await bench.sweeps(31)
    assert bench.acted["lease"] == 1


async def test_a_pause_of_redis_alone_ends_no_waiting_run(bench):
    """Workers must have had the time to come back for it."""
    bench.deadlines.add("wait", Advanced())
    await bench.sweeps(5)
    assert bench.acted == {}
    await bench.sweeps(1)
    assert bench.acted == {"wait": 1}


async def test_a_new_node_judges_no_lease_before_one_lease_has_passed(bench):
    bench.deadlines.add("lease", Advanced())
    bench.deadlines.add("timeout", Advanced())
    await bench.sweeps(30)
    assert bench.acted == {"timeout": 1}
    await bench.sweeps(1)
    assert bench.acted == {"timeout": 1, "lease": 1}


async def test_nobody_is_said_to_have_left_before_one_grace_has_passed(bench):
    """Neither after an interruption: while Redis was away no node could speak for its clients."""
    bench.deadlines.add("detach", Advanced())
    await bench.sweeps(120)
    assert bench.acted == {}
    bench.deadlines.down = True
    await bench.sweeps(20)
    bench.deadlines.down = False
    await bench.sweeps(120)
    assert bench.acted == {}
    await bench.sweeps(1)
    assert bench.acted == {"detach": 1}


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
    await bench.sweeps(12)
    assert bench.probe.facts == {"completed expired": 1}
    assert bench.probe.durations == [4.0]


async def test_an_expiry_whose_answer_was_lost_is_counted_all_the_same(bench):
    """Guarantee 9: it is due no more, and nobody else would be told."""
    expired = Advanced(agent="demo", completed=True, created_ms=1000, now_ms=5000)
    advance = bench.deadlines.advance
    lost = 0

    async def lossy(due: Due) -> Advanced:
        nonlocal lost
        if due in bench.deadlines.items:
            lost += 1
            await advance(due)
            raise Unavailable
        return expired

    await bench.sweeps(11)
    bench.deadlines.advance = lossy
    bench.deadlines.add("expiry", expired)
    await bench.sweeps(30)
    assert lost == 1
    assert bench.probe.facts == {"completed expired": 1}


async def test_a_session_whose_home_is_dead_is_adopted_after_others_could_beat(bench):
    bench.deadlines.add("home", Advanced(adopt=True, user="ann", dead_home="n0"))
    await bench.sweeps(10)
    assert bench.adopted == []
    await bench.sweeps(1)
    assert bench.adopted == [(REF.session, "ann", "n0")]


async def test_a_node_knows_for_how_long_it_counts_as_alive(bench):
    """From the beginning of a beat on: the answer may have taken long."""
    began = bench.clock.now
    beat = bench.deadlines.beat

    async def slow(node: str) -> dict[str, bool]:
        bench.clock.now += 3
        return await beat(node)

    bench.deadlines.beat = slow
    await bench.beat.beat()
    assert bench.until == [began + 10]


async def test_a_run_is_ended_under_its_fence_and_the_next_one_dispatched(bench):
    advanced = Advanced(agent="demo", end="timeout", claim_id="2@5", ordinal=7)
    bench.deadlines.add("timeout", advanced)
    await bench.sweeps(1)
    [(ref, claim_id, ordinal, code, ending)] = bench.deadlines.ended
    assert (ref, claim_id, ordinal, code) == (REF, "2@5", 7, "timeout")
    assert msgspec.json.decode(ending.event)["code"] == "timeout"
    assert bench.queue.dispatched == [(NEXT, "demo")]


async def test_a_worker_that_came_back_keeps_its_run(bench):
    bench.deadlines.fenced = True
    bench.deadlines.add("timeout", Advanced(agent="demo", end="worker_lost", attempt=1))
    await bench.sweeps(1)
    assert bench.queue.dispatched == []
    assert bench.reports == []


# --- the beat -------------------------------------------------------------------------------------


async def test_a_long_sweep_delays_no_beat(bench):
    """Or a node that has much to do would count as dead, and lose its homes."""
    bench.deadlines.gate = asyncio.Event()
    bench.deadlines.add("timeout", Advanced())
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(part.run()) for part in (bench.beat, bench.sweeper)]
        while not bench.deadlines.acted or bench.deadlines.beats < 20:
            bench.clock.now += 1
            await asyncio.sleep(0.001)
        assert len(bench.deadlines.acted) == 1, "it is still in its first sweep"
        assert bench.heard.count(True) == 1
        for task in running:
            task.cancel()
    assert bench.reports == []


async def test_a_beat_that_came_late_is_an_interruption(bench):
    """Others may have taken our homes meanwhile: they must be verified."""
    await bench.beat.beat()
    bench.clock.now += 4
    await bench.beat.beat()
    assert bench.heard == [True, False]
    bench.clock.now += 11
    await bench.beat.beat()
    assert bench.heard == [True, False, True]


async def test_a_beat_whose_answer_came_late_is_an_interruption_too(bench):
    await bench.beat.beat()
    bench.clock.now += 1
    beat = bench.deadlines.beat

    async def slowly(node: str) -> dict[str, bool]:
        bench.clock.now += 11
        return await beat(node)

    bench.deadlines.beat = slowly
    await bench.beat.beat()
    assert bench.heard == [True, True]


async def test_a_beat_counts_from_when_it_was_sent(bench):
    """Redis may have had it long before its answer came."""
    beat = bench.deadlines.beat

    async def slowly(node: str) -> dict[str, bool]:
        answer = await beat(node)
        bench.clock.now += 3
        return answer

    bench.deadlines.beat = slowly
    await bench.beat.beat()
    await bench.beat.beat()
    assert bench.heard == [True, True]


async def test_a_lease_is_not_judged_while_beats_are_overdue(bench):
    """Redis is back and the sweep sees it first."""
    await bench.sweeps(40)
    bench.clock.now += 6
    bench.deadlines.add("lease", Advanced())
    await bench.sweeper.sweep()
    assert bench.acted == {}


async def test_an_interruption_within_a_sweep_postpones_what_is_left_of_it(bench):
    await bench.sweeps(40)
    for number in range(2):
        bench.deadlines.add("lease", Advanced(), f"l{number}")
    advance = bench.deadlines.advance

    async def slowly(due: Due) -> Advanced:
        bench.clock.now += 6
        return await advance(due)

    bench.deadlines.advance = slowly
    await bench.beat.beat()
    await bench.sweeper.sweep()
    assert bench.acted == {"lease": 1}


async def test_a_sweep_without_redis_is_an_interruption(bench):
    await bench.sweeps(40)
    due = bench.deadlines.due

    async def down(_limit: int) -> list[Due]:
        raise Unavailable

    bench.deadlines.due = down
    await bench.sweeps(1)
    bench.deadlines.due = due
    bench.deadlines.add("lease", Advanced())
    await bench.sweeps(30)
    assert bench.acted == {}
    await bench.sweeps(1)
    assert bench.acted == {"lease": 1}


async def test_no_session_expires_before_the_node_knows_who_lives(bench):
    """The bus judges by what the last beat was told: with nothing told, every home looks dead."""
    bench.deadlines.add("expiry", Advanced())
    await bench.sweeper.sweep()
    assert bench.acted == {}
    await bench.sweeps(10)
    assert bench.acted == {}, "after an interruption others need time to beat, too"
    await bench.sweeps(1)
    assert bench.acted == {"expiry": 1}


async def test_an_item_that_redis_never_answers_hides_no_other(bench):
    advance = bench.deadlines.advance

    async def partly(due: Due) -> Advanced:
        if due.ref.run_id == "bad":
            raise Unavailable
        return await advance(due)

    bench.deadlines.advance = partly
    bench.deadlines.add("timeout", Advanced(), "bad")
    for number in range(5):
        bench.deadlines.add("timeout", Advanced(), f"r{number}")
    await bench.sweeps(200)
    assert bench.acted == {"timeout": 5}


# --- the end by force -----------------------------------------------------------------------------


async def ended(bench: Bench, code: str, events: list, *, until: int | None = None) -> Ending:
    """How a run with those events is ended."""
    bench.bus.make()
    for event in events:
        bench.bus.append("E", event)
    seq = len(events) if until is None else until
    advanced = Advanced(
        agent="demo", end=code, attempt=1, first_seq=1 if events else 0, cursor=Cursor("e1", seq)
    )
    bench.deadlines.add("timeout", advanced)
    await bench.sweeps(1)
    assert bench.reports == []
    return bench.deadlines.ended[0][-1]


def message(text: str, message_id: str = "a1") -> dict:
    return {"type": "TEXT_MESSAGE_CONTENT", "messageId": message_id, "delta": text}


async def test_what_was_said_is_kept_and_marked_incomplete(bench):
    events = [
        {
            "type": "RUN_STARTED",
            "input": {"messages": [{"id": "u", "role": "user", "content": "hi"}]},
        },
        {"type": "TEXT_MESSAGE_START", "messageId": "a1", "role": "assistant"},
        message("done"),
        {"type": "TEXT_MESSAGE_END", "messageId": "a1"},
        {"type": "CUSTOM", "name": "x", "value": 1},
        ["no", "object"],
        {"type": "TEXT_MESSAGE_START", "messageId": "a2", "role": "assistant"},
        message("half", "a2"),
    ]
    ending = await ended(bench, "worker_lost", events)
    messages = [msgspec.json.decode(message) for message in ending.messages]
    assert [message["id"] for message in messages] == ["a1", "a2"], "the user's is there already"
    assert "metadata" not in messages[0]
    assert messages[1]["content"] == "half"
    assert messages[1]["metadata"] == {"incomplete": True}
    assert (ending.kind, ending.code) == ("X", "worker_lost")


async def test_a_run_without_words_ends_too(bench):
    ending = await ended(bench, "no_worker", [])
    assert ending.messages == []
    assert msgspec.json.decode(ending.event) == {
        "type": "RUN_ERROR",
        "message": "no worker serves this agent now",
        "code": "no_worker",
    }


async def test_a_long_run_is_read_in_pages_and_leaves_the_loop_to_others(bench):
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(other())
        ending = await ended(bench, "timeout", [message("x")] * 5000)
        running.cancel()
    assert msgspec.json.decode(ending.messages[0])["content"] == "x" * 5000
    assert turns > 10


async def test_what_came_after_the_verdict_is_not_read(bench):
    ending = await ended(bench, "timeout", [message("in"), message("out")], until=1)
    assert msgspec.json.decode(ending.messages[0])["content"] == "in"


async def test_a_log_with_a_new_epoch_is_read_at_the_next_sweep(bench):
    """Redis lost writes between the verdict and the reading: the run must end all the same."""
    bench.bus.make()
    bench.bus.append("E", message("word"))
    verdict = Advanced(agent="demo", end="timeout", attempt=1, first_seq=1, cursor=Cursor("e0", 1))
    due = bench.deadlines.add("timeout", verdict)
    await bench.sweeps(1)
    assert bench.deadlines.ended == []
    assert bench.reports == []
    bench.deadlines.items[due] = Advanced(
        agent="demo", end="timeout", attempt=1, first_seq=1, cursor=Cursor("e1", 1)
    )
    await bench.sweeps(1)
    assert len(bench.deadlines.ended) == 1
    assert REF.session == KEY
