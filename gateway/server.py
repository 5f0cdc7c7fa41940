"""A node as a process: uvicorn's server on a socket that we bound, with signals that are ours."""

import asyncio
import ipaddress
import socket
import time
from collections.abc import AsyncGenerator, Callable, Collection, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import uvicorn
from loguru import logger
from starlette.types import ASGIApp

from gateway.app import Node
from gateway.archive.archive import Archive
from gateway.bus.bus import Bus
from gateway.edges.http_protocol import HttpProtocol
from gateway.edges.socket import WebSocketProtocol
from gateway.session.context import process_named
from gateway.session.errors import CannotStart
from gateway.session.model import Limits
from gateway.session.tracing import UNTRACED, Tracer
from protocol.codec import MAX_CLIENT_FRAME_BYTES

PING_INTERVAL_S = 25.0
PING_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 5
_FAREWELL_S = 1.0
"""So long clients may take to answer the close frame, before sockets are closed without that."""
_BACKLOG = 2048


class CannotListen(CannotStart):
    """The address cannot be served; the message is one line for a person."""


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """The address to serve, as `socket.bind` takes it.

    Raises:
        CannotListen: when there is no such address, or it is not loopback.
    """
    where = f"GATEWAY_HOST={host}"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise CannotListen(f"{where}: no such address ({error.strerror})") from None
    if not ipaddress.ip_address(address[0]).is_loopback:
        raise CannotListen(
            f"{where}: without authentication only a loopback address is served, such as 127.0.0.1"
        )
    return family, address


def bind(host: str, port: int, *, variable: str = "GATEWAY_PORT") -> socket.socket:
    """A listening socket on a loopback address; port 0 takes any free one.

    Raises:
        CannotListen: when the address is not loopback, busy or not permitted; `variable` names the
            port there.
    """
    family, address = resolve(host, port)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        option = variable.removeprefix("GATEWAY_").replace("_", "-").lower()
        raise CannotListen(
            f"GATEWAY_HOST={host}, {variable}={port}: cannot be served ({error.strerror});"
            f" another port: --{option}"
        ) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, which drains its node before it ends.

    uvicorn closes all sockets at one moment, and only then tells the application, by its lifespan,
    that the end has come. So it is told to exit when the node has been drained, not before.
    """

    def __init__(self, config: uvicorn.Config, node: Node, drain_s: float) -> None:
        """`drain_s` bounds the time for which clients may go on with what they do."""
        super().__init__(config)
        self._node = node
        self._drain_s = drain_s
        self._drains_until: float | None = None
        self._exits_at: float | None = None

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leaves the signals alone."""
        yield

    def stop(self) -> None:
        """Drains the node, then ends the sockets and returns from `serve`.

        A second call ends the draining, a third does not wait for anybody.
        """
        now = time.monotonic()
        if self._drains_until is None:
            self._drains_until = now + self._drain_s
            self._node.drain(self._drain_s)
            logger.bind(sockets=self._node.open_sockets, window_s=self._drain_s).info(
                "gateway is stopping"
            )
        elif self._exits_at is None:
            self._drains_until = now
        else:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second: exits when the draining is over."""
        if self._drains_until is not None and self._is_drained(self._drains_until):
            self.should_exit = True
        return await super().on_tick(counter)

    def _is_drained(self, until: float) -> bool:
        now = time.monotonic()
        if not self._node.open_sockets:
            return True
        if self._exits_at is None and now >= until:
            self._exits_at = now + _FAREWELL_S
            self._node.evacuate()
        return self._exits_at is not None and now >= self._exits_at


class _AdminServer(uvicorn.Server):
    """The server of the admin port, in the same process and loop: it ends when the other has."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leaves the signals alone."""
        yield


def _config(app: ASGIApp, node: Node, sockets: Any) -> uvicorn.Config:
    http: Any = partial(HttpProtocol, served=node.telemetry.http.served)
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=http,
        ws=sockets,
        ws_max_size=MAX_CLIENT_FRAME_BYTES,
        ws_ping_interval=PING_INTERVAL_S,
        ws_ping_timeout=PING_TIMEOUT_S,
        ws_per_message_deflate=False,
        proxy_headers=False,  # who sends is who is connected, not what a header says
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_CLOSE_TIMEOUT_S,
    )


def create_server(node: Node, drain_s: float) -> Server:
    """A server for the node, to be given a bound socket."""
    # uvicorn calls it, but wants to see a class.
    sockets: Any = partial(WebSocketProtocol, probe=node.telemetry.sockets)
    return Server(_config(node.app, node, sockets), node, drain_s)


@asynccontextmanager
async def _serving_admin(node: Node, listener: socket.socket | None) -> AsyncGenerator[None]:
    """The admin port, where there is one; until the very end, so that it shows the draining too."""
    if listener is None or node.admin_app is None:
        yield
        return
    server = _AdminServer(_config(node.admin_app, node, "none"))
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve(sockets=[listener]))
        yield
        server.should_exit = True


async def serve_node(
    bus: Bus,
    archive: Archive,
    limits: Limits,
    listener: socket.socket,
    on_stop: Callable[[Callable[[], None]], None],
    *,
    drain_s: float,
    requires: Collection[str],
    admin: socket.socket | None = None,
    tracer: Tracer = UNTRACED,
) -> None:
    """Serves a node until it is told to stop; `on_stop` is handed the function that does so.

    With an `admin` listener, metrics and console are there alone.
    """
    url = url_of(listener)
    admin_url = None if admin is None else url_of(admin)
    node = Node(
        bus, archive, limits, requires=requires, url=url, admin_url=admin_url, tracer=tracer
    )
    server = create_server(node, drain_s)
    on_stop(server.stop)
    with process_named(f"node:{node.node_id}"):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in node.background()]
            async with _serving_admin(node, admin):
                logger.bind(url=url, console=f"{admin_url or url}/console", node=node.node_id).info(
                    "gateway is ready"
                )
                await server.serve(sockets=[listener])
                await node.leave()
            for task in tasks:
                task.cancel()
        logger.info("gateway has stopped")
