"""A session's two sides at the level of the bus: what a node does, and what a worker does."""

import json
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import anyio

from gateway.bus import keys
from gateway.bus.bus import Bus
from gateway.session.archive import JournalEntry, Record, RunEnded
from gateway.session.entry import Entry, parse_entry
from gateway.session.model import (
    Accepted,
    Advanced,
    AgentEvent,
    Claim,
    Due,
    Ending,
    NewAnswer,
    NewMessage,
    NewToolResult,
    RunRef,
    SessionKey,
    SessionView,
)
from protocol.frames import Cursor


def event(kind: str, **fields: Any) -> bytes:
    """An AG-UI event as JSON."""
    return json.dumps({"type": kind, **fields}).encode()


def record_key(record: Record | None) -> SessionKey | None:
    """Whose record it is."""
    match record:
        case None:
            return None
        case RunEnded():
            return record.ref.session
        case _:
            return record.key


@dataclass
class Talk:
    """One session on a bus."""

    bus: Bus
    key: SessionKey = field(default_factory=lambda: SessionKey("acme", uuid4().hex))
    user: str = "ann"
    agent: str = field(default_factory=lambda: f"agent-{uuid4().hex[:8]}")
    node: str = "node-a"
    epoch: str = ""

    async def open(self, **options: Any) -> SessionView:
        options = {"node": self.node, "agent": self.agent, **options}
        view = await self.bus.sessions.open(self.key, options.pop("user", self.user), **options)
        self.epoch = view.cursor.epoch
        return view

    async def state(self) -> str:
        return (await self.bus.sessions.open(self.key, self.user, node="")).state

    async def message(
        self, text: str = "hi", *, frame_id: str = "", when_busy: Any = "enqueue", digest: str = ""
    ) -> Accepted:
        frame_id = frame_id or uuid4().hex
        message = {"id": frame_id, "role": "user", "content": text}
        return await self.bus.sessions.accept(
            NewMessage(
                self.key,
                self.user,
                frame_id,
                f"run-{uuid4().hex}",
                digest or text.replace(" ", "_"),
                json.dumps(message).encode(),
                b"",
                when_busy,
                "",
            )
        )

    async def answer(self, *interrupt_ids: str, frame_id: str = "") -> Accepted:
        entries = [{"interruptId": name, "status": "resolved"} for name in interrupt_ids]
        return await self.bus.sessions.accept(
            NewAnswer(
                self.key,
                self.user,
                frame_id or uuid4().hex,
                f"run-{uuid4().hex}",
                "digest",
                list(interrupt_ids),
                json.dumps(entries).encode(),
                "",
            )
        )

    async def tool_result(self, call_id: str, *, frame_id: str = "") -> Accepted:
        frame_id = frame_id or uuid4().hex
        message = {"id": frame_id, "role": "tool", "toolCallId": call_id, "content": "42"}
        return await self.bus.sessions.accept(
            NewToolResult(
                self.key,
                self.user,
                frame_id,
                f"run-{uuid4().hex}",
                "digest",
                call_id,
                json.dumps(message).encode(),
                "",
            )
        )

    async def cancel(self, run_id: str | None = None, *, frame_id: str = "") -> Accepted:
        return await self.bus.sessions.cancel(
            self.key, self.user, run_id, frame_id=frame_id or uuid4().hex
        )

    def ref(self, run_id: str) -> RunRef:
        return RunRef(*self.key, run_id)

    async def claim(self, run_id: str, worker: str = "w1") -> Claim | None:
        return await self.bus.runs.claim(self.ref(run_id), worker)

    async def running(self, text: str = "hi") -> Claim:
        """A message that a worker has claimed."""
        claim = await self.claim((await self.message(text)).run_id)
        assert claim is not None
        return claim

    async def append(self, claim: Claim, ordinal: int, *kinds: str) -> None:
        events = [AgentEvent(event(kind), tokens=1) for kind in kinds]
        await self.bus.runs.append(claim.ref, claim.claim_id, ordinal, events)

    async def finish(self, claim: Claim, ordinal: int = 0, **fields: Any) -> str | None:
        """Ends the run; answers the next run's id."""
        ending = Ending(**{"kind": "F", "event": event("RUN_FINISHED"), **fields})
        following = await self.bus.runs.finish(claim.ref, claim.claim_id, ordinal, ending)
        return following[0].run_id if following else None

    async def asked(self) -> Claim:
        """A run that ended with the interrupts `q1` and `q2`."""
        claim = await self.running()
        await self.finish(claim, kind="I", interrupts=b'[{"id":"q1"},{"id":"q2"}]')
        return claim

    async def log(self) -> list[Entry]:
        """The whole log, page by page."""
        entries: list[Entry] = []
        while True:
            after = Cursor(self.epoch, entries[-1].seq if entries else 0)
            page = await self.bus.sessions.read(self.key, after, 1000)
            assert page.status == "ok", page
            entries += [parse_entry(*raw.split(b"\n", 1)) for raw in page.entries]
            if not page.entries or entries[-1].seq == page.last_seq:
                return entries

    async def events(self, run_id: str) -> list[str]:
        """The types of a run's events."""
        return [
            json.loads(entry.frame)["event"]["type"]
            for entry in await self.log()
            if entry.run_id == run_id
        ]

    async def kinds(self) -> str:
        """The log's kinds, one letter an event."""
        return "".join(entry.kind for entry in await self.log())

    async def entries(self) -> list[JournalEntry]:
        """What the journal has of this session, oldest first."""
        read = await self.bus.journal.read([keys.partition(self.key)], 100_000)
        return [entry for entry in read if record_key(entry.record) == self.key]

    async def journal(self) -> list[Record]:
        """The same, as records."""
        return [entry.record for entry in await self.entries() if entry.record is not None]

    async def archive(self) -> None:
        """As if the archive had taken it all."""
        await self.bus.journal.forget([entry.id for entry in await self.entries()])

    async def due(self, kind: str) -> Due:
        """Waits until a due time of this session has passed."""
        deadline = time.monotonic() + 30
        while True:
            for item in await self.bus.deadlines.due(1000):
                if item.kind == kind and item.ref.session == self.key:
                    return item
            assert time.monotonic() < deadline, f"{kind} never became due"
            await anyio.sleep(0.01)

    async def advance(self, kind: str) -> Advanced:
        """Waits for a due time and acts on it."""
        return await self.bus.deadlines.advance(await self.due(kind))

    async def end_by_force(self, run_id: str, advanced: Advanced, **fields: Any) -> RunRef | None:
        ending = Ending(**{"kind": "X", "event": event("RUN_ERROR", code=advanced.end), **fields})
        return await self.bus.deadlines.end_by_force(
            self.ref(run_id), advanced.claim_id, advanced.ordinal, advanced.end, ending
        )
