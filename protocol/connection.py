"""Which client frame is legal in which state of a connection. The table is the rule."""

from enum import Enum
from typing import Final

from protocol.codec import ProtocolError
from protocol.codes import ErrorCode
from protocol.frames import (
    Answer,
    Cancel,
    ClientFrame,
    Close,
    Message,
    Open,
    Ping,
    Refresh,
    ToolResult,
)


class ConnectionState(Enum):
    """Where a connection stands."""

    NEW = "new"
    """Accepted; the first frame must be `open`."""
    OPEN = "open"
    """Attached to a session."""
    CLOSING = "closing"
    """The client ended the session; nothing more may follow."""


_NEW, _OPEN, _CLOSING = ConnectionState.NEW, ConnectionState.OPEN, ConnectionState.CLOSING

TRANSITIONS: Final[dict[tuple[ConnectionState, type[ClientFrame]], ConnectionState]] = {
    (_NEW, Open): _OPEN,
    (_NEW, Ping): _NEW,
    (_OPEN, Message): _OPEN,
    (_OPEN, Answer): _OPEN,
    (_OPEN, ToolResult): _OPEN,
    (_OPEN, Cancel): _OPEN,
    (_OPEN, Refresh): _OPEN,
    (_OPEN, Ping): _OPEN,
    (_OPEN, Close): _CLOSING,
}
"""A pair that is not in the table is illegal."""


def next_state(state: ConnectionState, frame: ClientFrame) -> ConnectionState:
    """The state after `frame`.

    Raises:
        ProtocolError: fatal, when the frame is illegal in this state.
    """
    following = TRANSITIONS.get((state, type(frame)))
    if following is None:
        tag = type(frame).__struct_config__.tag
        hint = "the first frame must be `open`" if state is _NEW else f"in state {state.value}"
        raise ProtocolError(
            ErrorCode.BAD_FRAME,
            f"`{tag}` is not allowed here: {hint}",
            re=getattr(frame, "id", None),
            fatal=True,
        )
    return following
