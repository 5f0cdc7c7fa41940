"""One WebSocket: how it is opened, and why it ended, as a close code with a policy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.client import process_exception
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from protocol import SUBPROTOCOL
from protocol.codec import ProtocolError, decode_server
from protocol.codes import CloseCode, ErrorCode
from protocol.frames import ServerFrame

MAX_FRAME_BYTES = 32 * 1024 * 1024
"""One event of an agent may be as large as a whole run may be."""
OPEN_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 1.0
PING_INTERVAL_S = 20.0
MAX_RETRY_AFTER_S = 3600.0
NO_CLOSE_FRAME = 1006
PROTOCOL_ERROR = 1002

# What the handshake's refusal means, said as a close code; every other 4xx is final.
_STATUS = {
    401: CloseCode.UNAUTHENTICATED,
    403: CloseCode.FORBIDDEN,
    408: NO_CLOSE_FRAME,
    426: CloseCode.UNSUPPORTED_VERSION,
    429: CloseCode.TOO_MANY,
}

LINK_ERRORS = (OSError, WebSocketException)
"""Whatever opening and using a link may raise; `ended_by` tells what it means."""

Dial = Callable[[], open_websocket]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a connection, or the attempt to make one, ended.

    Attributes:
        code: the close code, or the one that says the same.
        reason: for a person.
        retry_after_s: from `Retry-After`.
        reached: False when no server answered at all.
        attached_s: for how long the session was attached.
    """

    code: int
    reason: str
    retry_after_s: float | None = None
    reached: bool = True
    attached_s: float = 0.0


def dialer(url: str, headers: Mapping[str, str]) -> Dial:
    """What opens a new connection, as often as it is called."""

    def dial() -> open_websocket:
        return open_websocket(
            url,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            additional_headers=headers,
            # No proxy stands between a machine and itself, whatever the environment says.
            proxy=None if is_loopback(url) else True,
            compression=None,
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=PING_INTERVAL_S,
            ping_timeout=PING_INTERVAL_S,
            max_size=MAX_FRAME_BYTES,
        )

    return dial


def speaks_our_protocol(connection: ClientConnection) -> bool:
    """True when the server chose our version of the wire."""
    return connection.subprotocol == SUBPROTOCOL


def decode(data: bytes) -> ServerFrame | None:
    """The frame, or None for a type that a later server may send.

    Raises:
        ProtocolError: for what is no frame.
    """
    try:
        return decode_server(data)
    except ProtocolError as error:
        if error.code is ErrorCode.UNKNOWN_TYPE:
            return None
        raise


def ended_by(error: Exception) -> Ended:
    """What one of `LINK_ERRORS` means for the next attempt."""
    match error:
        case ConnectionClosed(rcvd=close) if close is not None:
            return Ended(close.code, close.reason)
        case ConnectionClosed():
            return Ended(NO_CLOSE_FRAME, "the connection was lost")
        case InvalidStatus(response=response):
            status = response.status_code
            code = _STATUS.get(status, NO_CLOSE_FRAME if status >= 500 else PROTOCOL_ERROR)
            retry_after = response.headers.get("Retry-After")
            return Ended(int(code), f"HTTP {status}", _seconds(retry_after))
        case _ if process_exception(error) is None:
            return Ended(NO_CLOSE_FRAME, str(error) or type(error).__name__, reached=False)
        case _:
            return Ended(PROTOCOL_ERROR, str(error) or type(error).__name__)


def _seconds(retry_after: str | None) -> float | None:
    """`Retry-After` in seconds (RFC 9110 section 10.2.3); we do not wait for a date."""
    if retry_after is None or not (retry_after.isascii() and retry_after.isdigit()):
        return None
    return min(float(retry_after), MAX_RETRY_AFTER_S)


def is_loopback(url: str) -> bool:
    """True for an address of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
