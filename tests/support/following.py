"""A connection at the level of the hub: what a client reads, and how fast."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from gateway.bus.bus import Bus
from gateway.session.endings import Endings
from gateway.session.eraser import Eraser
from gateway.session.feed import Attachment
from gateway.session.hub import Hub, HubTimes
from gateway.session.model import SessionKey
from gateway.session.outbox import LIMIT_BYTES, Outbox
from gateway.session.wheel import Wheel
from protocol.frames import Cursor
from protocol.transcript import Transcript
from support.little_archive import LittleArchive
from support.little_bus import CountingProbe


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
    def resets(self) -> list[str]:
        """The reasons of the resets."""
        return [frame["reason"] for frame in self.frames if frame["type"] == "reset"]

    @property
    def cursor(self) -> Cursor:
        """How far this client has read."""
        [*_, last] = [f for f in self.frames if f["type"] == "snapshot"]
        seqs = self.seqs
        return Cursor(last["cursor"]["epoch"], seqs[-1] if seqs else last["cursor"]["seq"])

    def has_read(self, cursor: Cursor) -> bool:
        """True when its last event, or snapshot, is that one."""
        assert self.attachment is not None
        read = (f for f in reversed(self.frames) if f["type"] in {"event", "snapshot"})
        last = next(read, {"seq": None})
        seq = last["cursor"]["seq"] if "cursor" in last else last["seq"]
        return (self.attachment.epoch, seq) == (cursor.epoch, cursor.seq)

    def text(self) -> str:
        """What the agent said, as the frames since the last reset tell it."""
        said = Transcript()
        for frame in self.frames:
            if frame["type"] == "snapshot":
                said = Transcript()
            for event in frame.get("events") or [frame.get("event", {})]:
                said.apply(event)
        return "".join(m["content"] for m in said.messages if m["role"] == "assistant")

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


class Following:
    """A hub on a real bus, and the clients that follow sessions through it."""

    def __init__(self, bus: Bus, node: str, tasks: asyncio.TaskGroup, times: HubTimes) -> None:
        self.bus = bus
        self.node = node
        self.probe = CountingProbe()
        self.errors: list[Exception] = []
        self.wheel = Wheel(time.monotonic, self._report, tick_s=0.02)
        archive = LittleArchive()
        endings = Endings(
            sessions=bus.sessions,
            erasure=bus.erasure,
            probe=self.probe,
            clock=time.monotonic,
            report=self._report,
        )
        self.hub = Hub(
            sessions=bus.sessions,
            notices=bus.notices,
            recall=archive.recall,
            eraser=Eraser(history=archive, journal=bus.journal, endings=endings),
            probe=self.probe,
            node=node,
            clock=time.monotonic,
            now_ms=lambda: time.time_ns() // 1_000_000,
            wheel=self.wheel,
            report=self._report,
            times=times,
        )
        self._tasks = tasks
        self.started = [tasks.create_task(self.hub.run()), tasks.create_task(self.wheel.run())]

    def _report(self, _message: str, error: Exception) -> None:
        self.errors.append(error)

    async def join(
        self,
        key: SessionKey,
        after: Cursor | None = None,
        *,
        user: str = "ann",
        limit_bytes: int = LIMIT_BYTES,
    ) -> Client:
        client = Client(self.hub, limit_bytes)
        view = await self.bus.sessions.open(key, user, node=self.node)
        client.attachment = await self.hub.attach(view, after, client.outbox)
        client.attachment.start()
        client.writer = self._tasks.create_task(client.write())
        self.started.append(client.writer)
        return client

    def leave(self, client: Client) -> None:
        """The client's socket is gone, with what it has not read."""
        assert client.attachment is not None
        assert client.writer is not None
        self.hub.detach(client.attachment)
        client.writer.cancel()


@asynccontextmanager
async def following(
    bus: Bus, node: str = "n1", times: HubTimes | None = None
) -> AsyncIterator[Following]:
    """A node as far as following goes, on a real bus."""
    async with asyncio.TaskGroup() as tasks:
        made = Following(bus, node, tasks, times or HubTimes())
        try:
            yield made
        finally:
            await made.hub.close()
            for task in made.started:
                task.cancel()
    assert made.errors == []


async def until(condition: Callable[[], object], patience_s: float = 45) -> None:
    """Waits for a state that nobody announces."""
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
