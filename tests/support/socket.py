"""A bare client: JSON frames over a real WebSocket, with nothing in between to hide a fault."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import anyio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

TERMINAL = ("RUN_FINISHED", "RUN_ERROR")
PATIENCE_S = 40.0


class Socket:
    """One connection. Received events are kept in `events`, in the order of arrival."""

    def __init__(self, connection: ClientConnection) -> None:
        """`connection` is open."""
        self.connection = connection
        self.events: list[dict[str, Any]] = []
        self._looked_at = 0  # of `events`, by `until_event`
        self.opened: dict[str, Any] = {}
        self.snapshot: dict[str, Any] | None = None

    async def send(self, kind: str, **fields: Any) -> str:
        """Sends a frame; answers its id."""
        frame_id = fields.pop("id", None) or uuid4().hex
        await self.connection.send(json.dumps({"type": kind, "id": frame_id, **fields}))
        return frame_id

    async def receive(self) -> dict[str, Any]:
        """The next frame."""
        with anyio.fail_after(PATIENCE_S):
            frame = json.loads(await self.connection.recv())
        if frame["type"] == "event":
            self.events.append(frame)
        return frame

    async def until(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Receives until a frame of that type, with those fields, has come."""
        while True:
            frame = await self.receive()
            if frame["type"] == kind and all(frame.get(k) == v for k, v in fields.items()):
                return frame

    async def until_event(self, *kinds: str) -> dict[str, Any]:
        """The next event of one of those types.

        The first call begins at the first event of all, each later one after the event that the
        last one answered: an event that came before the answer to a frame is not passed over.
        """
        while True:
            while self._looked_at < len(self.events):
                frame = self.events[self._looked_at]
                self._looked_at += 1
                if frame["event"]["type"] in kinds:
                    return frame
            await self.receive()

    def forget(self) -> None:
        """Forgets the events of before, as after a `reset`."""
        self.events.clear()
        self._looked_at = 0

    async def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Sends a frame and waits for its `ack` or `error`."""
        frame_id = await self.send(kind, **fields)
        while True:
            frame = await self.receive()
            if frame.get("re") == frame_id:
                return frame

    async def open(self, **fields: Any) -> "Socket":
        """Sends `open` and waits until the session stands."""
        frame_id = await self.send("open", **fields)
        self.opened = await self.until("opened", re=frame_id)
        if not self.opened["resumed"]:
            self.snapshot = await self.until("snapshot")
        return self

    async def closed(self) -> int:
        """Waits for the end; answers the close code."""
        try:
            while True:
                await self.receive()
        except ConnectionClosed as end:
            return end.rcvd.code if end.rcvd else 1006

    @property
    def session_id(self) -> str:
        """The session that is open."""
        return self.opened["session_id"]

    @property
    def cursor(self) -> dict[str, Any]:
        """How far this client has read."""
        base = self.snapshot["cursor"] if self.snapshot else self.opened["cursor"]
        seq = self.events[-1]["seq"] if self.events else base["seq"]
        return {"epoch": base["epoch"], "seq": seq}

    def text(self, run_id: str | None = None) -> str:
        """The text deltas received, joined."""
        return "".join(
            e["event"]["delta"]
            for e in self.events
            if e["event"]["type"] == "TEXT_MESSAGE_CONTENT" and run_id in (None, e["run_id"])
        )


@asynccontextmanager
async def socket(url: str, **options: Any) -> AsyncGenerator[Socket]:
    """A connection, closed at the end."""
    options.setdefault("subprotocols", ["nooble.v1"])
    async with connect(url, **options) as connection:
        yield Socket(connection)


def seqs(events: list[dict[str, Any]]) -> list[int]:
    """The sequence numbers of events."""
    return [event["seq"] for event in events]
