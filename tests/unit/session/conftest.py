"""A hub on a little bus, with clients that say what reached them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from support.following import Client
from support.little_archive import LittleArchive
from support.little_bus import KEY, CountingProbe, LittleBus, ManualClock

from gateway.session.endings import Endings
from gateway.session.eraser import Eraser
from gateway.session.hub import Hub, HubTimes
from gateway.session.model import RunRef, SessionKey
from gateway.session.tracing import NO_SPAN, UNTRACED
from gateway.session.wheel import Wheel
from protocol.frames import Cursor


class Made(type(NO_SPAN)):
    """What a message on its way came to."""

    def __init__(self, traceparent: str, heard: list[tuple[str, str]]) -> None:
        super().__init__(traceparent)
        self.heard = heard

    def accepted(self) -> None:
        self.heard.append(("accepted", ""))

    def made_none(self, status: str, run_id: str) -> None:
        self.heard.append((status, run_id))


class Ends(type(UNTRACED)):
    """Hears what messages come to, and how the spans of runs end."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []
        self.heard: list[tuple[str, str]] = []

    def accepting(self, *_: object, traceparent: str, **__: object) -> Made:
        return Made(traceparent, self.made)

    def run_ended(self, run_id: str, kind: str, code: str) -> None:
        self.heard.append((run_id, kind))

    def runs_lost(self, run_ids: Iterable[str]) -> None:
        self.heard += [(run_id, "lost") for run_id in run_ids]


class World:
    def __init__(self, times: HubTimes) -> None:
        self.bus = LittleBus()
        self.cut: list[tuple[RunRef, str]] = []
        self.archive = LittleArchive()
        self.probe = CountingProbe()
        self.ends = Ends()
        self.clock = ManualClock()
        self.now_ms = 5000
        self.errors: list[Exception] = []
        self.wheel = Wheel(self.clock, self.report, tick_s=0.1)
        self.times = times
        self.endings = Endings(
            sessions=self.bus,
            erasure=self.bus,
            probe=self.probe,
            clock=self.clock,
            report=self.report,
        )
        self.hub = self.make_hub("n1")
        self.tasks: asyncio.TaskGroup | None = None
        self.started: list[asyncio.Task] = []

    def report(self, _message: str, error: Exception) -> None:
        self.errors.append(error)

    def make_hub(self, node: str) -> Hub:
        return Hub(
            sessions=self.bus,
            notices=self.bus,
            recall=self.archive.recall,
            eraser=Eraser(history=self.archive, journal=self.bus, endings=self.endings),
            probe=self.probe,
            node=node,
            clock=self.clock,
            now_ms=lambda: self.now_ms,
            wheel=self.wheel,
            report=self.report,
            on_run_cut=lambda ref, agent: self.cut.append((ref, agent)),
            times=self.times,
            tracer=self.ends,
        )

    def start(self, coroutine) -> asyncio.Task:
        assert self.tasks is not None
        self.started.append(self.tasks.create_task(coroutine))
        return self.started[-1]

    async def join(
        self,
        after: Cursor | None = None,
        *,
        key: SessionKey = KEY,
        hub: Hub | None = None,
        limit_bytes: int = 1 << 20,
    ) -> Client:
        hub = hub or self.hub
        client = Client(hub, limit_bytes)
        node = "n1" if hub is self.hub else "n2"
        view = await self.bus.open(key, "anonymous", node=node)
        attachment = await hub.attach(view, after, client.outbox)
        attachment.start()
        client.attachment = attachment
        client.writer = self.start(client.write())
        return client

    async def settle(self) -> None:
        """Lets everything run that can run without time passing."""
        for _ in range(60):
            await asyncio.sleep(0)

    async def pass_time(self, seconds: float) -> None:
        """Lets time pass in steps, so that timers arm timers."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now += 0.5
            self.wheel.advance()
            await self.settle()


@asynccontextmanager
async def make_world(times: HubTimes | None = None) -> AsyncIterator[World]:
    world = World(times or HubTimes())
    async with asyncio.TaskGroup() as tasks:
        world.tasks = tasks
        world.start(world.hub.run())
        try:
            yield world
        finally:
            for task in world.started:
                task.cancel()
    assert world.errors == []


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with make_world() as made:
        yield made


@pytest.fixture
def world_of() -> Callable[[HubTimes], AbstractAsyncContextManager[World]]:
    """A world with times of its own."""
    return make_world
