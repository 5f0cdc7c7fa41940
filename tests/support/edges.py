"""A node's edges on a little bus, and under a real uvicorn where sockets matter."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import httpx
import msgspec
import uvicorn
from starlette.middleware import Middleware
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gateway.edges import console, health, metrics, pages, websocket
from gateway.edges.api.routes import Parts
from gateway.edges.api.routes import routes as api_routes
from gateway.edges.applications import Applications, compose
from gateway.edges.edge import ConnectionLimits
from gateway.edges.http_metrics import HttpMetrics
from gateway.edges.http_protocol import HttpProtocol
from gateway.edges.socket import WebSocketProtocol
from gateway.session.endings import Endings
from gateway.session.eraser import Eraser
from gateway.session.hub import Hub
from gateway.session.ports import Clock
from gateway.session.service import SessionService
from gateway.session.wheel import Wheel
from support.little_archive import LittleArchive
from support.little_bus import CountingProbe, LittleBus


async def up() -> tuple[bytes, str]:
    """The metrics."""
    return b"up 1\n", "text/plain; version=0.0.4; charset=utf-8"


class Node:
    """The edges, composed as the gateway composes them."""

    def __init__(
        self, limits: ConnectionLimits | None = None, clock: Clock = time.monotonic
    ) -> None:
        self.bus = LittleBus()
        self.archive = LittleArchive()
        self.probe = CountingProbe()
        self.errors: list[Exception] = []
        self.served: list[tuple[str, str, int]] = []
        self.wheel = Wheel(clock, self.report, tick_s=0.02)
        endings = Endings(
            sessions=self.bus,
            erasure=self.bus,
            probe=self.probe,
            clock=time.monotonic,
            report=self.report,
        )
        eraser = Eraser(history=self.archive, journal=self.bus, endings=endings)
        self.hub = Hub(
            sessions=self.bus,
            notices=self.bus,
            recall=self.archive.recall,
            eraser=eraser,
            probe=self.probe,
            node="n1",
            clock=time.monotonic,
            now_ms=lambda: 5000,
            wheel=self.wheel,
            report=self.report,
        )
        service = SessionService(
            sessions=self.bus,
            queue=self.bus,
            directory=self.bus,
            hub=self.hub,
            endings=endings,
            history=self.archive,
            eraser=eraser,
            erasure=self.bus,
            journal=self.bus,
            node="n1",
            now_ms=lambda: 5000,
        )
        self.parts = Parts(
            service=service,
            sessions=self.bus,
            archive=self.archive,
            directory=self.bus,
            probe=self.probe,
            clock=time.monotonic,
            now_ms=lambda: 1_700_000_000_000,
        )
        self.edge = websocket.WebSocketEdge(
            service=service,
            hub=self.hub,
            probe=self.probe,
            sockets=self.probe,
            wheel=self.wheel,
            clock=clock,
            limits=limits,
        )
        self.readiness = health.Readiness({"redis": self.ping}, interval_s=0.01)
        self.app, _ = self.compose(admin_port=False)
        self.port = 0
        self.server: uvicorn.Server | None = None

    def compose(self, *, admin_port: bool) -> Applications:
        """The applications of the node."""
        return compose(
            clients=[
                *websocket.routes(self.edge),
                *api_routes(self.parts, version="1.2.3"),
                *pages.routes(),
            ],
            operators=[
                *metrics.routes(
                    up,
                    lambda: {"n1": "127.0.0.1:8000"},
                ),
                *console.routes(self.overview),
            ],
            probes=health.routes(self.readiness),
            admin_port=admin_port,
            middleware=[Middleware(HttpMetrics, served=self.heard, clock=time.monotonic)],
        )

    async def overview(self) -> bytes:
        return b"{}"

    def heard(self, method: str, endpoint: str, status: int, seconds: float) -> None:
        """A request was answered, or refused."""
        assert 0 <= seconds < 60
        self.served.append((method, endpoint, status))

    def report(self, _message: str, error: Exception) -> None:
        self.errors.append(error)

    async def ping(self) -> None:
        if self.bus.down:
            raise ConnectionError("no Redis")

    @property
    def protocols(self) -> list[WebSocketProtocol]:
        """The server's side of the WebSockets, to look at what they hold."""
        assert self.server is not None
        every = self.server.server_state.connections
        return [one for one in every if isinstance(one, WebSocketProtocol)]

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"


@asynccontextmanager
async def serving(
    limits: ConnectionLimits | None = None, clock: Clock = time.monotonic, **options: object
) -> AsyncIterator[Node]:
    """The node under a real uvicorn on loopback; `options` are uvicorn's."""
    node = Node(limits, clock)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        node.port = listener.getsockname()[1]
        server = uvicorn.Server(
            uvicorn.Config(
                node.app,
                http=partial(HttpProtocol, served=node.heard),  # type: ignore[arg-type]
                ws=partial(WebSocketProtocol, probe=node.probe),
                ws_max_size=64 * 1024,
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                timeout_graceful_shutdown=5,
                **options,  # type: ignore[arg-type]
            )
        )
        node.server = server
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(node.wheel.run()), tasks.create_task(node.hub.run())]
            running = tasks.create_task(server.serve(sockets=[listener]))
            while not server.started:  # noqa: ASYNC110 - uvicorn offers no event
                await asyncio.sleep(0.005)
            try:
                yield node
            finally:
                server.should_exit = True
                await running
                await node.hub.close()
                for task in background:
                    task.cancel()
    assert node.errors == []
    assert node.edge.open_sockets == 0, "a connection was left behind"
    assert node.probe.facts["connections default"] == 0
    assert node.probe.facts["active"] == 0


class Talk:
    """One client connection, frame by frame."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.unread: list[dict] = []

    async def send(self, **frame: object) -> None:
        await self.socket.send(msgspec.json.encode(frame).decode())

    async def receive(self) -> dict:
        async with asyncio.timeout(20):
            return msgspec.json.decode(await self.socket.recv())

    async def ask(self, **frame: object) -> dict:
        await self.send(**frame)
        return await self.receive()

    async def closed(self) -> int:
        """Waits for the end, and answers its code; what came before is in `unread`."""
        with contextlib.suppress(ConnectionClosed):
            async with asyncio.timeout(20):
                while True:
                    self.unread.append(msgspec.json.decode(await self.socket.recv()))
        assert self.socket.close_code is not None
        return self.socket.close_code


@asynccontextmanager
async def talking(node: Node, **options: object) -> AsyncIterator[Talk]:
    options.setdefault("subprotocols", ["nooble.v1"])
    async with connect(node.url, **options) as socket:  # type: ignore[arg-type]
        yield Talk(socket)


@asynccontextmanager
async def in_session(node: Node, **options: object) -> AsyncIterator[Talk]:
    """A client in a new session, snapshot read."""
    async with talking(node, **options) as talk:
        assert (await talk.ask(type="open", id="o", agent="demo"))["type"] == "opened"
        assert (await talk.receive())["type"] == "snapshot"
        yield talk


def assert_problem(
    response: httpx.Response, status: int, code: str, param: str | None = None
) -> None:
    """It is a problem document of that status and code."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["type"] == "about:blank"
    assert body["title"]
    assert body["detail"]
    assert body["code"] == code
    assert body.get("param") == param
