"""A real WebSocket server on loopback whose every frame is written by the test."""

import asyncio
import http
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

Json = dict[str, Any]

WAIT_S = 45.0
"""What does not come within this time will not come: a failed test, not a hung one."""


class Peer:
    """The server's end of one connection. `hello` is the client's `open` frame."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self.hello: Json = {}

    async def recv(self, kind: str) -> Json:
        """The next frame, which must be of this type."""
        async with asyncio.timeout(WAIT_S):
            frame: Json = json.loads(await self.socket.recv())
        assert frame["type"] == kind, frame
        return frame

    async def send(self, kind: str, **fields: Any) -> None:
        await self.send_raw(json.dumps({"type": kind, **fields}))

    async def send_raw(self, text: str) -> None:
        await self.socket.send(text)

    async def opened(self, **fields: Any) -> None:
        """Answers `open`."""
        await self.send(
            "opened",
            **{
                "re": self.hello["id"],
                "session_id": "s1",
                "agent": "demo",
                "state": "idle",
                "cursor": {"epoch": "e1", "seq": 0},
                "resumed": False,
                **fields,
            },
        )

    async def snapshot(self, *events: Json, epoch: str = "e1", seq: int = 0) -> None:
        await self.send("snapshot", cursor={"epoch": epoch, "seq": seq}, events=list(events))

    async def event(self, seq: int, event: Json, run: str = "r1", **fields: Any) -> None:
        await self.send("event", seq=seq, ts=1, run_id=run, event=event, **fields)

    async def take_message(self, run: str = "r1", status: str = "accepted") -> Json:
        """Reads a message and acknowledges it."""
        frame = await self.recv("message")
        await self.ack(frame, run, status)
        return frame

    async def ack(self, frame: Json, run: str | None = None, status: str = "accepted") -> None:
        await self.send("ack", re=frame["id"], status=status, run_id=run)

    async def error(self, re: str | None, code: str, **fields: Any) -> None:
        await self.send(
            "error", re=re, code=code, **{"message": "no", "retryable": False, **fields}
        )

    async def close(self, code: int, reason: str = "") -> None:
        await self.socket.close(code, reason)

    def abort(self) -> None:
        """Cuts the connection, as a dead node or network does."""
        self.socket.transport.abort()

    async def gone(self) -> int | None:
        """Waits for the client to end the connection; its close code."""
        await self.socket.wait_closed()
        return self.socket.close_code


async def greet(peer: Peer) -> None:
    """What a healthy gateway does: resume from a cursor, else send a snapshot."""
    if "after" in peer.hello:
        await peer.opened(resumed=True, cursor=peer.hello["after"])
    else:
        await peer.opened()
        await peer.snapshot()


class ScriptedServer:
    """Greets each connection with `greeting`, then hands it to the test.

    Attributes:
        pages: what a plain GET is answered, status and JSON by path and query.
    """

    def __init__(self) -> None:
        self.url = ""
        self.port = 0
        self.greeting: Callable[[Peer], Awaitable[None]] = greet
        self.refusals: list[tuple[int, dict[str, str]]] = []
        self.requests: list[Request] = []
        self.pages: dict[str, tuple[int, Json]] = {}
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()

    async def accept(self) -> Peer:
        """The next connection, greeted."""
        async with asyncio.timeout(WAIT_S):
            return await self._peers.get()

    async def handle(self, socket: ServerConnection) -> None:
        peer = Peer(socket)
        peer.hello = await peer.recv("open")
        await self.greeting(peer)
        self._peers.put_nowait(peer)
        await socket.wait_closed()

    def check(self, socket: ServerConnection, request: Request) -> Response | None:
        del socket
        self.requests.append(request)
        if "Upgrade" not in request.headers:
            status, page = self.pages.get(request.path, (404, {"title": "Not Found"}))
            body = json.dumps(page).encode()
            length = {"Content-Length": str(len(body)), "Connection": "close"}
            return Response(status, http.HTTPStatus(status).phrase, Headers(length), body)
        if not self.refusals:
            return None
        status, headers = self.refusals.pop(0)
        return Response(status, http.HTTPStatus(status).phrase, Headers(headers), b"no")


@asynccontextmanager
async def scripted_server(
    subprotocol: str | None = "nooble.v1",
) -> AsyncGenerator[ScriptedServer]:
    script = ScriptedServer()
    server: Server
    async with serve(
        script.handle,
        "127.0.0.1",
        0,
        subprotocols=[subprotocol] if subprotocol else None,  # type: ignore[list-item]
        process_request=script.check,
        compression=None,
        ping_interval=None,
        close_timeout=1,
        write_limit=1024,
    ) as server:
        script.port = next(iter(server.sockets)).getsockname()[1]
        script.url = f"ws://127.0.0.1:{script.port}/ws"
        yield script
