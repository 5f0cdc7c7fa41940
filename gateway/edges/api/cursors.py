"""Cursors: where a page ends, as an opaque word. It is no secret and grants nothing."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from gateway.session.archive import MessagePosition, SessionPosition
from gateway.session.errors import Refused
from protocol.codes import ErrorCode
from protocol.frames import Seq, SessionId

Order = Literal["created", "active"]


class _Sessions(NamedTuple):
    kind: Literal["s"]
    order: Order
    at_ms: Seq
    session_id: SessionId


class _Messages(NamedTuple):
    kind: Literal["m"]
    at_ms: Seq
    nth: Annotated[int, Meta(ge=0, le=2**31 - 1)]


CursorT = TypeVar("CursorT", _Sessions, _Messages)


def sessions_cursor(order: Order, position: SessionPosition) -> str:
    """Where a list of sessions goes on; it belongs to its order."""
    return _encode(_Sessions("s", order, *position))


def sessions_position(cursor: str, order: Order) -> SessionPosition:
    """The position in the list of that order.

    Raises:
        Refused: it is no cursor of such a list.
    """
    decoded = _decode(cursor, _Sessions)
    if decoded.order != order:
        raise _refusal(f"this cursor belongs to a list by {decoded.order!r}")
    return SessionPosition(decoded.at_ms, decoded.session_id)


def messages_cursor(position: MessagePosition) -> str:
    """Where older messages follow."""
    return _encode(_Messages("m", *position))


def messages_position(cursor: str) -> MessagePosition:
    """The position.

    Raises:
        Refused: it is no cursor of messages.
    """
    decoded = _decode(cursor, _Messages)
    return MessagePosition(decoded.at_ms, decoded.nth)


def _encode(position: tuple[Any, ...]) -> str:
    return urlsafe_b64encode(msgspec.json.encode(position)).rstrip(b"=").decode()


def _decode(cursor: str, kind: type[CursorT]) -> CursorT:
    try:
        data = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors, too
        raise _refusal("this is no cursor of this list") from None


def _refusal(message: str) -> Refused:
    return Refused(ErrorCode.BAD_FRAME, message, param="cursor")
