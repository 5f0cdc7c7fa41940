"""`/ws`: the handshake, and the connections that it lets in."""

import random
from functools import partial

from starlette.routing import WebSocketRoute
from starlette.types import Receive, Scope, Send

from gateway.edges.connection import Connection
from gateway.edges.edge import ConnectionLimits, Edge
from gateway.edges.principal import Authenticate, anonymous
from gateway.edges.problem import problem
from gateway.session.errors import Refused
from gateway.session.hub import Hub
from gateway.session.ports import Clock
from gateway.session.probe import Probe, SocketProbe
from gateway.session.service import SessionService
from gateway.session.tracing import UNTRACED, Tracer
from gateway.session.wheel import Wheel
from protocol import SUBPROTOCOL
from protocol.codes import CloseCode, ErrorCode
from protocol.frames import GoAway

BRIEFLY_S = 0.5
"""Within this time a client comes back that was sent away at a moment of its own."""

REFUSED_S = 5.0
"""Within this time a client comes again that was refused by a node which stops."""


class WebSocketEdge:
    """The ASGI application behind `/ws`, and its connections."""

    def __init__(
        self,
        *,
        service: SessionService,
        hub: Hub,
        probe: Probe,
        sockets: SocketProbe,
        wheel: Wheel,
        clock: Clock,
        limits: ConnectionLimits | None = None,
        authenticate: Authenticate = anonymous,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._edge = Edge(
            service=service,
            hub=hub,
            probe=probe,
            sockets=sockets,
            wheel=wheel,
            clock=clock,
            limits=limits or ConnectionLimits(),
            authenticate=authenticate,
            tracer=tracer,
        )
        self._connections: set[Connection] = set()
        self._draining = False

    @property
    def open_sockets(self) -> int:
        """Connections that are not gone, those before `open` included."""
        return len(self._connections)

    def outbound(self) -> tuple[int, int]:
        """How many connections are slow, and the bytes that wait for all of them."""
        connections = self._connections
        return sum(c.is_slow for c in connections), sum(c.buffered_bytes for c in connections)

    def drain(self, spread_s: float) -> None:
        """Refuses new sockets, and sends each client away at a moment of its own within that time:
        then, or when the run ends that is open in its session.
        """
        self._draining = True
        for connection in self._connections:
            # They leave spread already, so they may come back at once, or nearly so.
            frame = _go_away(BRIEFLY_S)
            self._edge.wheel.after(
                random.random() * spread_s,
                partial(connection.send_away_between_runs, frame),
            )

    def evacuate(self, spread_s: float) -> None:
        """Sends away everybody at once, in mid-answer, to come back spread over that time."""
        self._draining = True
        for connection in self._connections:
            connection.send_away(_go_away(spread_s))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if self._draining:
            # Another node takes it, once whoever distributes clients knows; not all at one moment.
            retry_ms = int(random.random() * REFUSED_S * 1000) + 1
            refused = Refused(
                ErrorCode.UNAVAILABLE, "this node is stopping", retry_after_ms=retry_ms
            )
            await problem(refused)(scope, receive, send)
            return
        await receive()  # websocket.connect
        offered = [name for name in scope["subprotocols"] if name]
        if offered and SUBPROTOCOL not in offered:
            # Browsers drop a connection whose offers were all declined, and would not see the code.
            await send({"type": "websocket.accept", "subprotocol": offered[0]})
            await send({"type": "websocket.close", "code": CloseCode.UNSUPPORTED_VERSION})
            return
        await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL if offered else None})
        connection = Connection(self._edge, scope, receive)
        self._connections.add(connection)
        if self._draining:  # since we asked
            connection.send_away(_go_away(BRIEFLY_S))
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)


def _go_away(spread_s: float) -> GoAway:
    return GoAway("stopping", int(random.random() * spread_s * 1000))


def routes(edge: WebSocketEdge) -> list[WebSocketRoute]:
    """`/ws`."""
    return [WebSocketRoute("/ws", edge, name="websocket")]
