"""What uvicorn's WebSocket protocol lacks against a peer that means no good, or is merely broken.

Nothing here knows frames of ours: it is about bytes, time and memory, below the application.

- An application that is told when its peer reads needs no task that waits for it: frames are
  written by calls, many at once (`write`), and a callback tells when the socket takes more.
- A WebSocket whose peer does not read must end all the same. In ASGI, closing waits like any other
  send until the peer takes what was written before, and uvicorn closes the transport in order,
  which waits for the same: such a peer could hold its socket for ever.
- 256 KiB of the smallest frames take the better part of a second to parse. They are parsed in
  slices, between which other connections have their turn, and frames that the application never
  sees are counted.
- A message in endless fragments is bounded in time.
"""

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from asyncio.transports import BaseTransport
from collections.abc import Callable, Iterable
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.utils import ClientDisconnected
from websockets.frames import Frame
from websockets.protocol import State

from gateway.edges.counted_socket import CountedProtocol
from gateway.session.limits import TokenBucket
from gateway.session.probe import Disconnect, SocketProbe
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

KERNEL_BYTES = 128 * 1024
"""So much may wait in the kernel to be sent. It would take 4 MiB, which is memory, too, and
would hide for minutes that a slow peer does read."""

MESSAGE_TIMEOUT_S = 30.0
"""From the first fragment of a message to the last."""

DEAF_PAUSE_S = 0.01
"""Between two reads of what is thrown away."""

_TEXT = 0x81  # the only frame, of text: RFC 6455, section 5.2
_SHORT_HEADERS = [bytes((_TEXT, length)) for length in range(126)]

_INVALID_DATA = 1007  # RFC 6455, section 7.4.1


class WebSocketProtocol(CountedProtocol):
    """uvicorn's protocol, with the extension above, and never outliving its application for long.

    To be given to uvicorn as `ws=partial(WebSocketProtocol, probe=...)`, without compression.

    Attributes:
        on_writable: called when the socket takes more, after it did not.
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
        super().__init__(config, server_state, app_state, _loop, probe=probe)
        self.on_writable: Callable[[], None] = _ignore
        self._linger: asyncio.TimerHandle | None = None
        self._backlog = bytearray()  # received, not yet parsed; reading is paused meanwhile
        self._next_slice: asyncio.Handle | None = None
        self._bucket = TokenBucket(FRAMES_PER_S, FRAME_BURST, self.loop.time)
        self._deaf = False
        self._written_bytes = 0
        self._drained_bytes = 0
        self._before_ping = 0
        self._message_began_at = 0.0

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

    def eof_received(self) -> None:
        """The peer sends no more. What it was sent is still delivered, if it reads soon."""
        self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006, "reason": ""})
        self._cut_off_soon()

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

    @property
    def drained_bytes(self) -> int:
        """What the peer's side has acknowledged of all that was written (where the kernel cannot be
        asked for that: what the kernel has taken). It grows while the peer reads.
        """
        return self._written_bytes - self.unread_bytes - _unacknowledged_bytes(self.transport)

    def write(self, texts: Iterable[bytes]) -> None:
        """Sends text messages in one write, or none when the connection is not open any more.

        Never waits: whoever writes without looking at `is_writable` fills memory.
        """
        if self.is_open:
            pieces: list[bytes] = []
            for text in texts:
                pieces.append(_header(len(text)))
                pieces.append(text)
            data = b"".join(pieces)
            self._written_bytes += len(data)
            self.transport.write(data)

    def close(self, code: int, reason: Disconnect | None = None) -> None:
        """Ends the connection: a close frame behind what was written, and the application gets its
        `websocket.disconnect`. Who does not answer, or does not read, is cut off soon. The `reason`
        is what is counted, by default the code's own.
        """
        if self.is_open:
            self.ends_with(code, reason)
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
        self.probe.handshake("bad_request")
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

    def handle_text(self, event: Frame) -> None:
        """A message, or its beginning."""
        self._message_began_at = self.loop.time()
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        """A message, or its beginning."""
        self._message_began_at = self.loop.time()
        super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        """A fragment; joined at once, since a thousand empty ones are no bytes but much memory."""
        if self.loop.time() - self._message_began_at > MESSAGE_TIMEOUT_S:
            self._hear_no_more(CloseCode.NO_OPEN_OR_PONG, "stalled")
        elif self._count():
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
            self._hear_no_more(CloseCode.TOO_MANY)
        return not self._deaf

    # --- ends -------------------------------------------------------------------------------------

    def send_keepalive_ping(self) -> None:
        """Asks whether the peer lives."""
        self._before_ping = self._written_bytes
        self._drained_bytes = self.drained_bytes
        super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        """No pong came. A peer that reads, if slowly, has the bytes before our ping to read first,
        and is given more time; else this closes with our code for it, and waits no longer.
        """
        before, self._drained_bytes = self._drained_bytes, self.drained_bytes
        reads = self._drained_bytes > before and before < self._before_ping
        if reads and self.ping_timeout is not None:
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            return
        self.pong_timer = None
        self.pending_ping_payload = None
        self._fail(CloseCode.NO_OPEN_OR_PONG, "no_pong")

    def _fail(self, code: int, reason: Disconnect | None = None) -> None:
        """Ends the connection without waiting for the peer's answer."""
        self.close(code, reason)
        self.transport.close()

    def _hear_no_more(self, code: int, reason: Disconnect | None = None) -> None:
        """Ends the connection, and throws away unparsed what still comes. Closing it at once would
        reset it, and a peer in the middle of sending would not find the close frame.
        """
        self.close(code, reason)
        if not self.close_sent:
            return
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


def keep_little_in_kernel(transport: BaseTransport) -> None:
    """Bounds what the kernel holds unsent for a peer, where it can be told (see `KERNEL_BYTES`)."""
    sock = transport.get_extra_info("socket")
    if sock.family in {socket.AF_INET, socket.AF_INET6} and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_BYTES)


def _unacknowledged_bytes(transport: BaseTransport) -> int:
    """What the kernel has, and the peer's has not; 0 where it cannot be asked."""
    with suppress(OSError, ValueError):  # ValueError: it is closed
        answer = fcntl.ioctl(
            transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4)
        )
        return int.from_bytes(answer, sys.byteorder)
    return 0


def _header(length: int) -> bytes:
    """RFC 6455, section 5.2; a server does not mask."""
    if length < len(_SHORT_HEADERS):
        return _SHORT_HEADERS[length]
    if length < 1 << 16:
        return struct.pack("!BBH", _TEXT, 126, length)
    return struct.pack("!BBQ", _TEXT, 127, length)


def _ignore() -> None:
    """Nobody waits."""
