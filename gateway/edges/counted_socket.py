"""uvicorn's WebSocket protocol, counted: handshakes, sockets, and how each of them ended.

Here, and not in the application, since much of it never gets there: what is no handshake, what a
middleware refuses, what the parser or the keep-alive ends, what is just gone.
"""

import asyncio
from asyncio.transports import BaseTransport
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from gateway.session.probe import Disconnect, Handshake, SocketProbe
from protocol import SUBPROTOCOL
from protocol.codes import CloseCode

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

_NO_CLOSE_FRAME, _INVALID_DATA, _INTERNAL_ERROR = 1006, 1007, 1011  # RFC 6455, section 7.4.1

_LOST: tuple[int, Disconnect] = (_NO_CLOSE_FRAME, "lost")

_REASONS: dict[int, Disconnect] = {
    CloseCode.DONE: "session_closed",
    CloseCode.TOO_BIG: "too_big",
    CloseCode.RESTART: "draining",
    CloseCode.BAD_FRAME: "bad_frame",
    CloseCode.UNAUTHENTICATED: "unauthenticated",
    CloseCode.FORBIDDEN: "forbidden",
    CloseCode.UNKNOWN_SESSION: "unknown_session",
    CloseCode.NO_OPEN_OR_PONG: "no_open",
    CloseCode.SESSION_ENDED: "session_ended",
    CloseCode.UNSUPPORTED_VERSION: "unsupported_version",
    CloseCode.TOO_MANY: "rate_limited",
    CloseCode.OVERLOADED: "unavailable",
    _INVALID_DATA: "bad_frame",
    _INTERNAL_ERROR: "internal",
}
"""Why we end a connection, where the code alone says so."""

_REFUSALS: dict[int, Handshake] = {
    HTTPStatus.FORBIDDEN: "forbidden",
    HTTPStatus.SERVICE_UNAVAILABLE: "draining",
}
"""Why the application refuses a handshake."""


class CountedProtocol(WebSocketsSansIOProtocol):
    """Tells its probe of one connection.

    Attributes:
        probe: whom it tells.
    """

    def __init__(
        self,
        config: "Config",
        server_state: "ServerState",
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        probe: SocketProbe,
    ) -> None:
        """As uvicorn calls it, and `probe`."""
        super().__init__(config, server_state, app_state, _loop)
        self.probe = probe
        self._accepted = False
        self._end = _LOST

    def ends_with(self, code: int, reason: Disconnect | None = None) -> None:
        """We end it with that code; the reason is by default the code's own."""
        self._end = code, reason or _REASONS.get(code, "protocol_error")

    def connection_made(self, transport: BaseTransport) -> None:
        """A handshake begins."""
        super().connection_made(transport)
        self.probe.socket_opened()

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        super().connection_lost(exc)
        self.probe.socket_closed()
        if self._accepted:
            self.probe.disconnected(*self._end)

    async def send(self, message: Any) -> None:
        """As the application calls it."""
        kind = message["type"]
        if kind == "websocket.accept":
            self._accepted = True
            known = message.get("subprotocol") in (None, SUBPROTOCOL)
            self.probe.handshake("accepted" if known else "unsupported_version")
        elif kind == "websocket.http.response.start":
            self.probe.handshake(_REFUSALS.get(message["status"], "failed"))
        elif kind == "websocket.close" and not self._accepted:
            self.probe.handshake("not_found")
        elif kind == "websocket.close":
            self.ends_with(message.get("code", CloseCode.DONE))
        await super().send(message)

    def handle_close(self, event: Frame) -> None:
        """The peer's close frame: it wants to end the connection, or answers ours."""
        if not self.close_sent and self.conn.close_rcvd is not None:
            self._end = self.conn.close_rcvd.code, "client"
        super().handle_close(event)

    def handle_parser_exception(self) -> None:
        """What came breaks the rules of WebSockets, or is too big."""
        if not self.close_sent and self.conn.close_sent is not None:
            code = self.conn.close_sent.code
            self.ends_with(code)
        super().handle_parser_exception()

    def shutdown(self) -> None:
        """As uvicorn calls it at its end."""
        if not self.close_sent:
            self.ends_with(CloseCode.RESTART)
        super().shutdown()

    def send_500_response(self) -> None:
        """The application broke before it had answered the handshake."""
        if not (self.initial_response or self.handshake_complete):
            self.probe.handshake("failed")
        super().send_500_response()
