"""A hub on a little bus, with clients that say what reached them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec
import pytest
from support.little_bus import KEY, CountingProbe, LittleBus, ManualClock

from gateway.session.feed import Attachment
from gateway.session.hub import Hub, HubTimes
from gateway.session.model import SessionKey
from gateway.session.outbox import Outbox
from gateway.session.wheel import Wheel
from protocol.frames import Cursor


class Client:
    """A connection: its writer takes frame after frame from the outbox while it is `readable`."""

    def __init__(self, hub: Hub, limit_bytes: int) -> None:
        self.hub = hub
        self.awake = asyncio.Event()
        self.outbox = Outbox(self.awake.set, limit_bytes)
        self.attachment: Attachment | None = None
        self.frames: list[dict] = []
        self.closed: int | None = None
        self.writer: asyncio.Task | None = None
        self.most_bytes = 0
        self.readable = asyncio.Event()
        self.readable.set()

    async def write(self) -> None:
        while True:
            await self.awake.wait()
            self.awake.clear()
            self.most_bytes = max(self.most_bytes, self.outbox.size_bytes)
            while self.outbox.size_bytes:
                await self.readable.wait()
                self.frames += map(msgspec.json.decode, self.outbox.take(1))
            if self.outbox.close_code is not None:
                self.closed = self.outbox.close_code
                return
            if self.outbox.pulling and self.attachment is not None:
                await self.hub.catch_up(self.attachment)

    @property
    def seqs(self) -> list[int]:
        """Seqs of the events that came after the last snapshot."""
        seqs: list[int] = []
        for frame in self.frames:
            if frame["type"] == "snapshot":
                seqs = []
            elif frame["type"] == "event":
                seqs.append(frame["seq"])
        return seqs

    @property
    def kinds(self) -> list[str]:
        return [frame["type"] for frame in self.frames]


class World:
    def __init__(self, times: HubTimes) -> None:
        self.bus = LittleBus()
        self.probe = CountingProbe()
        self.clock = ManualClock()
        self.now_ms = 5000
        self.errors: list[Exception] = []
        self.wheel = Wheel(self.clock, self.report, tick_s=0.1)
        self.times = times
        self.hub = self.make_hub("n1")
        self.tasks: asyncio.TaskGroup | None = None
        self.started: list[asyncio.Task] = []

    def report(self, _message: str, error: Exception) -> None:
        self.errors.append(error)

    def make_hub(self, node: str) -> Hub:
        return Hub(
            sessions=self.bus,
            notices=self.bus,
            probe=self.probe,
            node=node,
            clock=self.clock,
            now_ms=lambda: self.now_ms,
            wheel=self.wheel,
            report=self.report,
            times=self.times,
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
