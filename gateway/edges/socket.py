"""What uvicorn's protocols lack against a peer that means no good, or that is merely broken.

Nothing here knows frames of ours: it is about bytes, time and memory, below the application.

- An application that is told when its peer reads needs no task that waits for it: frames are
  written by calls, many at once (`write`), and a callback tells when the socket takes more.
- A WebSocket whose peer does not read must end all the same. In ASGI, closing waits like any other
  send until the peer takes what was written before, and uvicorn closes the transport in order,
  which waits for the same: such a peer could hold its socket for ever.
- 256 KiB of the smallest frames take the better part of a second to parse. They are parsed in
  slices, between which other connections have their turn, and frames that the application never
  sees are counted.
- A head that never ends, or never comes, is bounded in bytes and in time.
"""

import asyncio
import struct
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.protocol import State

from gateway.session.limits import TokenBucket
from protocol.codes import CloseCode

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

EXTENSION = "nooble.socket"
"""The extension in the ASGI scope: `scope["extensions"][EXTENSION]["socket"]` is the connection's
`WebSocketProtocol`, for its `write`, `close` and `on_writable` once it is accepted."""

LINGER_S = 5.0
"""How long a peer may take to read what is left, once the connection is to end."""

SLICE_BYTES = 4096
"""So much of what a peer sent is parsed in one turn of the event loop."""

FRAMES_PER_S = 100
FRAME_BURST = 400
"""How many pings, pongs and continuations a peer may send: no client in its right mind comes near.
(The application itself limits messages.)"""

DEAF_PAUSE_S = 0.01
"""Between two reads of what is thrown away."""

HEAD_BYTES = 64 * 1024
"""Bound of a request without its body: request line, headers, chunk sizes, trailers."""

HEAD_TIMEOUT_S = 10.0
"""From the connection, or the first byte of a further request, to the end of its headers."""

BODY_TIMEOUT_S = 30.0
"""From the end of the headers to the end of the body."""

MAX_PIPELINED = 16
"""How many requests may wait on one connection for the answer to the one before."""

_TEXT = 0x81  # the only frame, of text: RFC 6455, section 5.2
_SHORT_HEADERS = [bytes((_TEXT, length)) for length in range(126)]

_INVALID_DATA = 1007  # RFC 6455, section 7.4.1


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol, with the extension above, and never outliving its application for long.

    To be given to uvicorn as `ws=WebSocketProtocol`, without compression.

    Attributes:
        on_writable: called when the socket takes more, after it did not.
    """

    def __init__(
        self,
        config: "Config",
        server_state: "ServerState",
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """As uvicorn calls it."""
        super().__init__(config, server_state, app_state, _loop)
        self.on_writable: Callable[[], None] = _ignore
        self._linger: asyncio.TimerHandle | None = None
        self._backlog = bytearray()  # received, not yet parsed; reading is paused meanwhile
        self._next_slice: asyncio.Handle | None = None
        self._bucket = TokenBucket(FRAMES_PER_S, FRAME_BURST, self.loop.time)
        self._deaf = False
        self._unread_bytes = 0

    # --- as asyncio calls it ----------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parses it, a slice per turn of the loop."""
        if self._deaf:
            self.transport.pause_reading()
            self._next_slice = self.loop.call_later(DEAF_PAUSE_S, self._parse_slice)
        elif not self.handshake_initiated:
            self._shake_hands(data)
        elif self.handshake_complete and not self._backlog and len(data) <= SLICE_BYTES:
            super().data_received(data)
        else:  # a frame before our answer to the handshake waits for that, too
            self._backlog += data
            self.transport.pause_reading()
            self._read_on()

    def resume_writing(self) -> None:
        """The socket has taken most of what was written."""
        super().resume_writing()
        self.on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """Lets go of everything."""
        for handle in (self._linger, self._next_slice):
            if handle is not None:
                handle.cancel()
        self._backlog.clear()
        super().connection_lost(exc)

    # --- as the application calls it --------------------------------------------------------------

    async def run_asgi(self) -> None:
        """Runs the application for this connection."""
        extensions: dict[str, dict[object, object]] = self.scope.get("extensions") or {}
        extensions[EXTENSION] = {"socket": self}
        await super().run_asgi()
        self.on_writable = _ignore
        self._cut_off_soon()

    @property
    def is_open(self) -> bool:
        """True from the handshake until one of the two wants to close."""
        return self.conn.state is State.OPEN and not self.transport.is_closing()

    @property
    def is_writable(self) -> bool:
        """False while the peer has so much to read that more would have to be kept."""
        return self.writable.is_set()

    @property
    def unread_bytes(self) -> int:
        """What was written and is not in the hands of the kernel yet."""
        return self.transport.get_write_buffer_size()

    def write(self, texts: Iterable[bytes]) -> None:
        """Sends text messages in one write, or none when the connection is not open any more.

        Never waits: whoever writes without looking at `is_writable` fills memory.
        """
        if self.is_open:
            pieces: list[bytes] = []
            for text in texts:
                pieces.append(_header(len(text)))
                pieces.append(text)
            self.transport.write(b"".join(pieces))

    def close(self, code: int) -> None:
        """Ends the connection: a close frame behind what was written, and the application gets its
        `websocket.disconnect`. Who does not answer, or does not read, is cut off soon.
        """
        if self.is_open:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": ""})
            self.conn.send_close(code)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self.writable.set()  # nobody has anything to wait for
            # The peer's answer is awaited, else it could find the connection reset before it has
            # read ours.
            self.close_timer = self.loop.call_later(LINGER_S, self.transport.abort)
            if self.read_paused:
                self.read_paused = False
                self._read_on()
        self._cut_off_soon()

    async def wait_writable(self) -> None:
        """Returns when the socket takes more, or will never."""
        await self.writable.wait()

    async def send(self, message: Any) -> None:
        """Sends, once the peer has taken enough of what was sent before.

        Raises:
            OSError: the connection is gone or closed.
        """
        await self.writable.wait()
        if self.close_sent:  # by ourselves; uvicorn would blame the application
            raise ClientDisconnected
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True  # denied; else uvicorn complains that it never was
        if self._backlog:
            self._read_on()

    async def receive(self) -> Any:
        """The next message; the peer is read on when there is none."""
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self._read_on()
        return message

    # --- reading ----------------------------------------------------------------------------------

    def _shake_hands(self, request: bytes) -> None:
        super().data_received(request)
        if self.conn.handshake_exc is None:
            return
        # Not even a request to `websockets`: uvicorn would leave it without answer, and open.
        answer = b"".join(self.conn.data_to_send())
        if not answer:
            answer = self.conn.reject(HTTPStatus.BAD_REQUEST, "Not a handshake.\n").serialize()
        self.handshake_initiated = self.handshake_complete = self.close_sent = True
        self.transport.write(answer)
        self.transport.close()

    def _read_on(self) -> None:
        """Arranges for the next slice, or for more to be read, unless somebody is to be awaited."""
        if self.transport.is_closing():
            self._backlog.clear()
        elif self.read_paused or not self.handshake_complete or self._next_slice is not None:
            return
        elif self._backlog:
            self._next_slice = self.loop.call_soon(self._parse_slice)
        else:
            self.transport.resume_reading()

    def _parse_slice(self) -> None:
        self._next_slice = None
        piece = bytes(self._backlog[:SLICE_BYTES])
        del self._backlog[:SLICE_BYTES]
        if piece and not self.transport.is_closing():
            super().data_received(piece)
        self._read_on()

    def handle_ping(self) -> None:
        """A ping; whoever does not read gets no pong, which would have to be kept."""
        pong = b"".join(self.conn.data_to_send())
        if self._count() and not self.close_sent and self.writable.is_set():
            self.transport.write(pong)

    def handle_pong(self, event: Frame) -> None:
        """A pong, asked for or not."""
        if self._count():
            super().handle_pong(event)

    def handle_cont(self, event: Frame) -> None:
        """A fragment; joined at once, since a thousand empty ones are no bytes but much memory."""
        if self._count():
            self.frames = [b"".join((*self.frames, event.data))]
            if event.fin:
                self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        """A message is complete."""
        if self.close_sent:
            self._count()  # nobody else does any more
        elif self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:  # uvicorn logs a traceback for it
                self.frames = []
                self._fail(_INVALID_DATA)
                return
        super().send_receive_event_to_app()

    def _count(self) -> bool:
        """Counts a frame that the application does not. False when it is one too many."""
        if not self._deaf and self._bucket.take():
            self.close(CloseCode.TOO_MANY)
            if self.close_sent:
                self._stop_listening()
        return not self._deaf

    # --- ends -------------------------------------------------------------------------------------

    def send_keepalive_ping(self) -> None:
        """Asks whether the peer lives."""
        super().send_keepalive_ping()
        self._unread_bytes = self.unread_bytes

    def keepalive_timeout(self) -> None:
        """No pong came. A peer that still has the bytes before our ping to read is given more time;
        else this closes with our code for it, and does not wait for who may be dead.
        """
        before, self._unread_bytes = self._unread_bytes, self.unread_bytes
        if self._unread_bytes < before and self.ping_timeout is not None:
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            return
        self.pong_timer = None
        self.pending_ping_payload = None
        self._fail(CloseCode.NO_OPEN_OR_PONG)

    def _fail(self, code: int) -> None:
        """Ends the connection without waiting for the peer's answer."""
        self.close(code)
        self.transport.close()

    def _stop_listening(self) -> None:
        """Throws away unparsed what still comes. Closing at once would reset the connection, and a
        peer in the middle of sending would not find the close frame.
        """
        self._deaf = True
        self._backlog.clear()
        if self.transport.is_closing():
            return
        self.read_paused = False
        self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _cut_off_soon(self) -> None:
        if self._linger is None and not self.disconnected:
            self._linger = self.loop.call_later(LINGER_S, self.transport.abort)


def _header(length: int) -> bytes:
    """RFC 6455, section 5.2; a server does not mask."""
    if length < len(_SHORT_HEADERS):
        return _SHORT_HEADERS[length]
    if length < 1 << 16:
        return struct.pack("!BBH", _TEXT, 126, length)
    return struct.pack("!BBQ", _TEXT, 127, length)


def _ignore() -> None:
    """Nobody waits."""


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with bounds on what precedes and surrounds a request's body.

    To be given to uvicorn as `http=HttpProtocol`.
    """

    def __init__(
        self,
        config: "Config",
        server_state: "ServerState",
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """As uvicorn calls it."""
        super().__init__(config, server_state, app_state, _loop)
        self._head_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._upgraded = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        """As asyncio calls it."""
        super().connection_made(transport)
        self._expect_within(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio calls it."""
        self._expect_nothing()
        super().connection_lost(exc)

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

    # --- as the parser calls it -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._head_bytes = 0
        self._expect_within(HEAD_TIMEOUT_S)

    def on_headers_complete(self) -> None:
        """A head is complete.

        Raises:
            ConnectionError: too many wait already; the parser makes it a bad request.
        """
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ConnectionError("too many requests on one connection")
        self._expect_within(BODY_TIMEOUT_S)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body, which is the application's to bound."""
        self._head_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is complete."""
        self._head_bytes = 0
        self._expect_nothing()
        super().on_message_complete()

    # --- bounds -----------------------------------------------------------------------------------

    def _refuse_head(self) -> None:
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-length: 0\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n")
        self.transport.close()

    def _expect_within(self, timeout_s: float) -> None:
        self._expect_nothing()
        self._deadline = self.loop.call_later(timeout_s, self._give_up)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if self.flow.read_paused:  # by ourselves: the peer is not late
            self._expect_within(HEAD_TIMEOUT_S)
        else:
            self.transport.abort()
