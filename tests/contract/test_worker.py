"""The worker on the real engine: claims, slots, cancels, fences, stops, and what dies around it."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from loguru import logger
from support.talk import Talk

from gateway.agents import Agent, Run
from gateway.agents.worker import Worker
from gateway.bus.bus import Bus
from gateway.session.errors import Unavailable
from gateway.session.model import AgentStatus, RunRef
from protocol.frames import Cursor

Function = Callable[[Run], Awaitable[None]]


class Faulty:
    """A part of the bus, some of whose methods answer `Unavailable` or wait when a test says so."""

    def __init__(self, part: Any) -> None:
        self._part = part
        self.down: set[str] = set()
        self.gates: dict[str, asyncio.Event] = {}
        self._tried: Counter[str] = Counter()
        self._called = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._part, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            self._tried[name] += 1
            self._called.set()
            if name in self.down:
                raise Unavailable
            if name in self.gates:
                await self.gates[name].wait()
            return await method(*arguments, **options)

        return call

    async def tries(self, name: str, count: int) -> None:
        """Waits until the method was called so many times more."""
        count += self._tried[name]
        while self._tried[name] < count:
            self._called.clear()
            await self._called.wait()


class LateControl:
    """Notices whose control channel is subscribed to only when the test says so."""

    def __init__(self, notices: Any) -> None:
        self._notices = notices
        self.agent_ring = notices.agent_ring
        self.gate = asyncio.Event()

    @asynccontextmanager
    async def session_control(self, *arguments: Any) -> AsyncIterator[None]:
        await self.gate.wait()
        async with self._notices.session_control(*arguments):
            yield


def worker_of(
    talk: Talk, function: Function, *, restartable: bool = False, **options: Any
) -> Worker:
    agent = Agent(talk.agent, description="for tests", restartable=restartable)
    agent.run(function)
    bus = talk.bus
    parts = {"queue": bus.runs, "directory": bus.directory, "notices": bus.notices}
    return Worker(agent, **{**parts, "worker_id": f"w-{uuid4().hex[:6]}", **options})


@asynccontextmanager
async def working(talk: Talk, function: Function, **options: Any) -> AsyncIterator[Worker]:
    worker = worker_of(talk, function, **options)
    async with asyncio.timeout(45), asyncio.TaskGroup() as group:
        group.create_task(worker.run())
        yield worker
        worker.stop()


async def send(talk: Talk, text: str = "hi") -> RunRef:
    accepted = await talk.message(text)
    if accepted.dispatch is not None:
        await talk.bus.runs.dispatch(accepted.dispatch, accepted.agent)
    return talk.ref(accepted.run_id)


async def log_of(talk: Talk, pattern: str) -> str:
    """Waits until the log's kinds end like this; all of them as a string."""
    changed = asyncio.Event()

    def on_push(_data: bytes) -> None:
        changed.set()

    async with talk.bus.notices.session_events(talk.key, on_push, changed.set):
        while True:
            changed.clear()
            kinds = await talk.kinds()
            if kinds.endswith(pattern):
                return kinds
            await changed.wait()


async def messages_of(talk: Talk) -> list[dict[str, Any]]:
    source = await talk.bus.sessions.snapshot(talk.key)
    assert source is not None
    return [json.loads(message) for message in source.messages]


@pytest.fixture
async def talk(bus: Bus) -> Talk:
    talk = Talk(bus)
    await talk.open()
    return talk


async def echo(run: Run) -> None:
    async with run.message() as message:
        for word in run.text.split():
            await message.write(word + " ", tokens=1)


async def until_cancelled() -> None:
    await asyncio.Event().wait()


async def test_a_message_is_answered_and_the_next_one_follows(talk: Talk) -> None:
    async with working(talk, echo):
        # One word each: several are one delta or more, as fast as they come.
        await send(talk, "one")
        await send(talk, "three")
        assert await log_of(talk, "FSEEEF") == "SEEEFSEEEF"
    contents = [message["content"] for message in await messages_of(talk)]
    assert contents == ["one", "one ", "three", "three "]
    assert await talk.state() == "idle"


async def test_slots_bound_how_many_run_at_once(talk: Talk) -> None:
    talks = [Talk(talk.bus, agent=talk.agent) for _ in range(5)]
    running = most = 0
    both = asyncio.Event()

    async def count(run: Run) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 2:
            both.set()
        await both.wait()  # the first one has the second beside it, however slowly that comes
        await run.say("x")
        await asyncio.sleep(0.01)
        running -= 1

    for each in talks:
        await each.open()
        await send(each)
    async with working(talk, count, slots=2):
        for each in talks:
            await log_of(each, "F")
    assert most == 2


async def test_a_cancel_is_heard_at_once(talk: Talk) -> None:
    async def stay(run: Run) -> None:
        async with run.message() as message:
            await message.write("until you stop me")
            await until_cancelled()

    async with working(talk, stay, lease_s=3600):  # no renewal brings it
        await send(talk)
        await log_of(talk, "EE")
        await talk.cancel()
        assert await log_of(talk, "C") == "SEEEC"
    assert (await messages_of(talk))[-1]["content"] == "until you stop me"


async def test_a_cancel_ahead_of_the_control_channel_is_heard(talk: Talk) -> None:
    """The race between claim and subscription: without a look afterwards nobody hears it."""
    notices = LateControl(talk.bus.notices)

    async def stay(run: Run) -> None:
        await run.say("here")
        await until_cancelled()

    async with working(talk, stay, notices=notices, lease_s=3600):
        await send(talk)
        await log_of(talk, "E")
        await talk.cancel()
        notices.gate.set()
        await log_of(talk, "C")


async def test_a_run_dispatched_twice_is_run_once(talk: Talk) -> None:
    """`claim` answers the same worker with the same attempt again: two would share it."""
    calls = 0
    called, proceed = asyncio.Event(), asyncio.Event()

    async def slow(run: Run) -> None:
        nonlocal calls
        calls += 1
        called.set()
        await proceed.wait()
        await run.say("once")

    runs = Faulty(talk.bus.runs)
    async with working(talk, slow, queue=runs, poll_s=0.01):
        ref = await send(talk)
        await called.wait()
        await talk.bus.runs.dispatch(ref, talk.agent)
        await runs.tries("take", 3)
        proceed.set()
        assert await log_of(talk, "F") == "SEEEF"
    assert calls == 1


async def test_leases_are_renewed_while_the_agent_thinks(quick_bus: Bus) -> None:
    talk = Talk(quick_bus)
    await talk.open()
    lease_s = quick_bus.limits.lease_s

    runs = Faulty(quick_bus.runs)

    async def think(run: Run) -> None:
        await runs.tries("renew", 3)
        await run.say("thought")

    async with working(talk, think, queue=runs, lease_s=lease_s):
        ref = await send(talk)
        assert await log_of(talk, "F") == "SEEEF"
    due = [item for item in await quick_bus.deadlines.due(1000) if item.ref == ref]
    assert due == []


async def test_who_lost_the_lease_is_silent(quick_bus: Bus) -> None:
    """Guarantee 3: the agent of a stale attempt is stopped, and nothing of it is in the log."""
    talk = Talk(quick_bus)
    await talk.open()
    thinking, proceed, stopped = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stale(run: Run) -> None:
        thinking.set()
        await proceed.wait()
        try:
            await run.say("I am late")
            await until_cancelled()
        finally:
            stopped.set()

    async with working(talk, stale, lease_s=3600):
        ref = await send(talk)
        await thinking.wait()
        await talk.advance("lease")
        other = await quick_bus.runs.claim(ref, "another")
        assert other is not None
        assert other.attempt == 2
        proceed.set()
        await stopped.wait()
    assert await talk.kinds() == "S"
    await talk.append(other, 0, "CUSTOM")


async def test_a_renewal_that_is_refused_stops_the_agent(quick_bus: Bus) -> None:
    """An agent that says nothing would hear of it nowhere else."""
    talk = Talk(quick_bus)
    await talk.open()
    thinking, stopped = asyncio.Event(), asyncio.Event()

    async def silent(_run: Run) -> None:
        try:
            thinking.set()
            await until_cancelled()
        finally:
            stopped.set()

    async with working(talk, silent, lease_s=1.5):
        ref = await send(talk)
        await thinking.wait()
        await talk.advance("lease")
        assert await quick_bus.runs.claim(ref, "another") is not None
        await stopped.wait()
    assert await talk.kinds() == "S"


async def test_an_outage_longer_than_the_lease_ends_no_run(talk: Talk) -> None:
    """Nobody's lease is judged while Redis is away, so its worker must not give it up either."""
    begun, away, back = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(run: Run) -> None:
        await run.say("before ")
        begun.set()
        await away.wait()
        await run.say("meanwhile ")
        await back.wait()
        await run.say("after")

    runs = Faulty(talk.bus.runs)
    lease_s = 0.2
    async with working(talk, slow, queue=runs, lease_s=lease_s):
        await send(talk)
        await begun.wait()
        runs.down.update({"renew", "append", "finish", "take", "dispatch"})
        away.set()
        long_over = time.monotonic() + 3 * lease_s
        while time.monotonic() < long_over:
            await runs.tries("renew", 1)
        runs.down.clear()
        back.set()
        assert (await log_of(talk, "F")).endswith("F")
    [_, *said] = await messages_of(talk)
    assert "".join(message["content"] for message in said) == "before meanwhile after"


async def test_redis_away_and_back_is_one_line_each(talk: Talk) -> None:
    lines: list[str] = []
    handler = logger.add(lambda line: lines.append(str(line)), format="{extra[what]}: {message}",
                         filter=lambda record: "what" in record["extra"])  # fmt: skip
    runs, directory = Faulty(talk.bus.runs), Faulty(talk.bus.directory)
    try:
        async with working(talk, echo, queue=runs, directory=directory, poll_s=0.01):
            await send(talk, "before")
            await log_of(talk, "F")
            runs.down.add("take")
            directory.down.add("announce")
            await runs.tries("take", 1)  # none that began before is still under way
            await send(talk, "meanwhile")
            await runs.tries("take", 3)
            runs.down.clear()
            directory.down.clear()
            await log_of(talk, "FSEEEF")
    finally:
        logger.remove(handler)
    assert lines == ["Redis: no answer; trying again\n", "Redis: answers again\n"]


async def test_an_outage_in_the_middle_of_an_answer_loses_and_doubles_nothing(talk: Talk) -> None:
    runs = Faulty(talk.bus.runs)

    async def talkative(run: Run) -> None:
        async with run.message() as message:
            for i in range(40):
                if i == 10:
                    runs.down.update({"append", "renew", "take"})
                if i == 30:
                    runs.down.clear()
                await message.write(f"{i} ")
                await asyncio.sleep(0.005)

    async with working(talk, talkative, queue=runs, window_s=0.01):
        await send(talk)
        await log_of(talk, "F")
    assert (await messages_of(talk))[-1]["content"] == "".join(f"{i} " for i in range(40))


async def test_stop_hands_back_what_has_not_begun(talk: Talk) -> None:
    """Guarantee 3: the agent's code may start twice, never answer twice."""
    thinking = asyncio.Event()

    async def think(run: Run) -> None:
        thinking.set()
        await until_cancelled()

    async with working(talk, think):
        await send(talk)
        await thinking.wait()
    assert await talk.kinds() == "S"
    async with working(talk, echo):
        assert await log_of(talk, "F") == "SEEEF"


async def test_a_claim_that_comes_through_after_stop_is_handed_back(talk: Talk) -> None:
    runs = Faulty(talk.bus.runs)
    runs.gates["claim"] = asyncio.Event()

    async def never(_run: Run) -> None:
        pytest.fail("called")

    async with working(talk, never, queue=runs) as worker:
        async with asyncio.TaskGroup() as group:
            group.create_task(runs.tries("claim", 1))
            await send(talk)
        worker.stop()
        runs.gates["claim"].set()
    async with working(talk, echo):
        assert await log_of(talk, "F") == "SEEEF"


async def test_stop_lets_the_begun_finish_and_takes_nothing_new(talk: Talk) -> None:
    proceed = asyncio.Event()

    async def answer(run: Run) -> None:
        async with run.message() as message:
            await message.write("first ")
            await proceed.wait()
            await message.write("last")

    other = Talk(talk.bus, agent=talk.agent)
    await other.open()
    directory = Faulty(talk.bus.directory)
    async with working(talk, answer, directory=directory, poll_s=0.01) as worker:
        await send(talk)
        await log_of(talk, "EE")
        worker.stop()
        await directory.tries("retire", 1)
        await send(other)
        proceed.set()
    assert (await messages_of(talk))[-1]["content"] == "first last"
    assert await other.kinds() == ""


async def test_what_is_not_done_after_the_grace_ends_worker_lost(talk: Talk) -> None:
    async def stay(run: Run) -> None:
        async with run.message() as message:
            await message.write("so far")
            await until_cancelled()

    async with working(talk, stay) as worker:
        await send(talk)
        await log_of(talk, "EE")
        worker.stop(grace_s=3600)
        worker.stop(grace_s=0.05)
        assert await log_of(talk, "X") == "SEEEX"
    page = await talk.bus.sessions.read(talk.key, Cursor(talk.epoch, 0), 100)
    assert b'"code":"worker_lost"' in page.entries[-1]
    last = (await messages_of(talk))[-1]
    assert (last["content"], last["metadata"]) == ("so far", {"incomplete": True})


async def test_a_restartable_run_that_its_worker_cannot_finish_is_made_anew(talk: Talk) -> None:
    """A deploy does not cost an answer: the next worker gives it, from the start."""
    attempts: list[int] = []

    async def slow_at_first(run: Run) -> None:
        attempts.append(run.attempt)
        async with run.message() as message:
            await message.write(f"{run.text} {len(run.messages)}")
            if run.attempt == 1:
                await until_cancelled()

    async with working(talk, slow_at_first, restartable=True) as worker:
        await send(talk, "question")
        await log_of(talk, "EE")
        worker.stop(grace_s=0.05)
        await log_of(talk, "X")
    async with working(talk, slow_at_first, restartable=True):
        assert await log_of(talk, "F") == "SEEEXSEEEF"
    assert attempts == [1, 2]
    contents = [message["content"] for message in await messages_of(talk)]
    assert contents == ["question", "question 1", "question 1"]


async def test_the_directory_knows_the_worker_while_it_serves(talk: Talk) -> None:
    directory = Faulty(talk.bus.directory)
    async with working(talk, echo, directory=directory, slots=3, presence_s=0.01) as worker:
        await directory.tries("announce", 2)  # the first one is there when the second is made
        info = worker._agent.info
        assert await talk.bus.directory.status(info) == AgentStatus(info, 1, 3, 0, 0)
        found = await talk.bus.directory.find(talk.agent)
        assert found is not None
        assert found.description == "for tests"
    assert (await talk.bus.directory.status(info)).workers == 0


async def test_one_run_that_cannot_be_read_does_not_end_the_others(talk: Talk) -> None:
    class Corrupting(Faulty):
        def __getattr__(self, name: str) -> Any:
            call = super().__getattr__(name)
            if name != "claim":
                return call

            async def claim(ref: RunRef, worker_id: str, **options: Any) -> Any:
                got = await call(ref, worker_id, **options)
                return replace(got, run_input=b"{") if ref.session == broken.key else got

            return claim

    broken = Talk(talk.bus, agent=talk.agent)
    await broken.open()
    async with working(talk, echo, queue=Corrupting(talk.bus.runs), slots=1):
        await send(broken)
        await log_of(broken, "S")
        await send(talk)
        await log_of(talk, "F")


async def test_an_agent_that_does_not_stop_frees_its_slot(quick_bus: Bus) -> None:
    """It is cut off after the grace, for its client; and soon after that for its worker, too."""
    talk = Talk(quick_bus)
    await talk.open()
    turns = 0

    async def stubborn(run: Run) -> None:
        nonlocal turns
        await run.say("you cannot stop me")
        while run.text == "stay":
            turns += 1
            try:
                await until_cancelled()
            except asyncio.CancelledError:
                continue

    async with working(talk, stubborn, slots=1, lease_s=0.3, patience_s=0.05):
        await send(talk, "stay")
        await log_of(talk, "EEE")
        await talk.cancel()
        advanced = await talk.advance("grace")
        [first] = [entry.run_id for entry in await talk.log() if entry.kind == "S"]
        await talk.end_by_force(first, advanced, code=advanced.end)
        await send(talk, "next")
        assert await log_of(talk, "F") == "SEEEXSEEEF"
    assert turns > 1, "it did swallow its cancellation"
