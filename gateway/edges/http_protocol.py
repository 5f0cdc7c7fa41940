"""What uvicorn's HTTP protocol lacks against a peer that means no good, or is merely broken: a head
that never ends, or never comes, is bounded in bytes and in time, and so is what it does not read.
And what the application never hears of, since it is refused here, is counted here.
"""

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.edges.http_metrics import REFUSED, UNMATCHED, Served
from gateway.edges.socket import SLICE_BYTES, keep_little_in_kernel

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

HEAD_BYTES = 64 * 1024
"""Bound of a request without its body: request line, headers, chunk sizes, trailers."""

HEAD_TIMEOUT_S = 10.0
"""From the connection, or the first byte of a further request, to the end of its headers."""

BODY_TIMEOUT_S = 30.0
"""From the end of the headers to the end of the body."""

UNREAD_TIMEOUT_S = 30.0
"""How long a client may leave a response unread, once no more of it can be kept or none follows."""

MAX_PIPELINED = 16
"""How many requests may wait on one connection for the answer to the one before."""


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with bounds on what precedes and surrounds a request's body.

    To be given to uvicorn as `http=partial(HttpProtocol, served=...)`.
    """

    def __init__(
        self,
        config: "Config",
        server_state: "ServerState",
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        served: Served,
    ) -> None:
        """As uvicorn calls it, and `served`, which hears of what is refused here."""
        super().__init__(config, server_state, app_state, _loop)
        self._served = served
        self._part: Literal["none", "head", "body"] = "none"  # of a request: what is awaited
        self._method = ""
        self._began_at = self.loop.time()
        self._head_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._upgraded = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        """As asyncio calls it."""
        super().connection_made(transport)
        keep_little_in_kernel(transport)
        self._expect_within(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio calls it."""
        self._expect_nothing()
        self._stop_unread()
        self.pipeline.clear()  # nobody is left to be answered
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """As asyncio calls it: the client does not read."""
        super().pause_writing()
        self._cut_off_unread()

    def resume_writing(self) -> None:
        """As asyncio calls it: it has read."""
        super().resume_writing()
        if not self.transport.is_closing():  # else a rest may be left, for which nobody waits
            self._stop_unread()

    def timeout_keep_alive_handler(self) -> None:
        """No further request came: closes, also when the last response is not read."""
        super().timeout_keep_alive_handler()
        self._cut_off_unread()

    def data_received(self, data: bytes) -> None:
        """As asyncio calls it; a head is parsed no further than it may be long."""
        if self.timeout_keep_alive_task is not None:  # the next request begins, if only by a CRLF
            self._expect_within(HEAD_TIMEOUT_S)
        for start in range(0, len(data), SLICE_BYTES):
            if self._upgraded or self.transport.is_closing():
                return
            piece = data[start : start + SLICE_BYTES]
            self._head_bytes += len(piece)
            super().data_received(piece)
            if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
                self._refuse_head()

    def handle_websocket_upgrade(self) -> None:
        """The connection is another protocol's from now on."""
        self._upgraded = True
        self._expect_nothing()
        super().handle_websocket_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """As uvicorn calls it; it would say that a library is missing. Answered as plain HTTP."""

    # --- as the parser calls it -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._part, self._method = "head", ""
        self._began_at = self.loop.time()
        self._head_bytes = 0
        self._expect_within(HEAD_TIMEOUT_S)

    def on_url(self, url: bytes) -> None:
        """Some of its path; before that, the parser's method is none of this request."""
        super().on_url(url)
        parser: Any = self.parser
        self._method = parser.get_method().decode()

    def on_headers_complete(self) -> None:
        """A head is complete.

        Raises:
            ConnectionError: too many wait already; the parser makes it a bad request.
        """
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ConnectionError("too many requests on one connection")
        self._expect_within(BODY_TIMEOUT_S)
        super().on_headers_complete()
        self._part = "body"

    def on_body(self, body: bytes) -> None:
        """A piece of a body, which is the application's to bound."""
        self._head_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is complete."""
        self._part = "none"
        self._head_bytes = 0
        self._expect_nothing()
        super().on_message_complete()

    # --- refusals ---------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """As uvicorn calls it: what came is no request."""
        self._count_refused(HTTPStatus.BAD_REQUEST)
        super().send_400_response(msg)

    def _refuse_head(self) -> None:
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        self._count_refused(status)
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-length: 0\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n")
        self.transport.close()

    def _count_refused(self, status: HTTPStatus) -> None:
        """Once: a request that ends in its body is counted behind the application, unless it waits
        for the one before; then it never comes there.
        """
        waits = bool(self.pipeline) and self.pipeline[0][0] is self.cycle
        if self._part == "body" and not waits:
            scope: Any = self.scope
            scope[REFUSED] = status.value
        else:
            took_s = self.loop.time() - self._began_at
            self._served(self._method, UNMATCHED, status.value, took_s)

    # --- bounds -----------------------------------------------------------------------------------

    def _expect_within(self, timeout_s: float) -> None:
        self._expect_nothing()
        self._deadline = self.loop.call_later(timeout_s, self._give_up)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut_off_unread(self) -> None:
        if self._unread is None:
            self._unread = self.loop.call_later(UNREAD_TIMEOUT_S, self.transport.abort)

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _give_up(self) -> None:
        if self.flow.read_paused:  # by ourselves: the peer is not late
            self._expect_within(HEAD_TIMEOUT_S)
            return
        if self._part != "none":  # else it is a connection that nobody used
            self._count_refused(HTTPStatus.REQUEST_TIMEOUT)
        self.transport.abort()
