"""Error codes and close codes, each with what the other side should do about it.

An error names a failed *frame*; a close code names the end of a *connection*. The same error codes
stand in the `code` of AG-UI's `RUN_ERROR`.
"""

from enum import Enum, IntEnum, StrEnum


class ErrorCode(StrEnum):
    """What went wrong; the value is what stands on the wire."""

    BAD_FRAME = "bad_frame"
    UNKNOWN_TYPE = "unknown_type"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    SESSION_NOT_FOUND = "session_not_found"
    SESSION_ENDED = "session_ended"
    AGENT_NOT_FOUND = "agent_not_found"
    RUN_NOT_FOUND = "run_not_found"
    BUSY = "busy"
    ID_CONFLICT = "id_conflict"
    INTERRUPT_PENDING = "interrupt_pending"
    INTERRUPT_EXPIRED = "interrupt_expired"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXCEEDED = "quota_exceeded"
    TOO_LARGE = "too_large"
    NO_WORKER = "no_worker"
    CIRCUIT_OPEN = "circuit_open"
    WORKER_LOST = "worker_lost"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    UNAVAILABLE = "unavailable"
    UNSUPPORTED = "unsupported"
    INTERNAL = "internal"

    @property
    def retryable(self) -> bool:
        """True when the same request may succeed later, unchanged."""
        return self in _RETRYABLE


_RETRYABLE = frozenset(
    {
        ErrorCode.BUSY,
        ErrorCode.RATE_LIMITED,
        ErrorCode.QUOTA_EXCEEDED,
        ErrorCode.NO_WORKER,
        ErrorCode.CIRCUIT_OPEN,
        ErrorCode.WORKER_LOST,
        ErrorCode.TIMEOUT,
        ErrorCode.UNAVAILABLE,
        ErrorCode.INTERNAL,
    }
)


class Reconnect(Enum):
    """What a client does after a close."""

    NO = "no"
    YES = "yes"
    NEW_TOKEN = "after a new token"
    NEW_SESSION = "with a new session"
    AFTER_DELAY = "after retry_after_ms"


class CloseCode(IntEnum):
    """Why the connection ended (RFC 6455 section 7.4; 4000 to 4999 are the application's)."""

    DONE = 1000
    TOO_BIG = 1009
    RESTART = 1012
    BAD_FRAME = 4400
    UNAUTHENTICATED = 4401
    FORBIDDEN = 4403
    UNKNOWN_SESSION = 4404
    NO_OPEN_OR_PONG = 4408
    SESSION_ENDED = 4410
    UNSUPPORTED_VERSION = 4426
    TOO_MANY = 4429
    OVERLOADED = 4503

    @property
    def reconnect(self) -> Reconnect:
        """The reconnect policy of this code."""
        return _RECONNECT[self]


_RECONNECT = {
    CloseCode.DONE: Reconnect.NO,
    CloseCode.TOO_BIG: Reconnect.NO,
    CloseCode.RESTART: Reconnect.YES,
    CloseCode.BAD_FRAME: Reconnect.NO,
    CloseCode.UNAUTHENTICATED: Reconnect.NEW_TOKEN,
    CloseCode.FORBIDDEN: Reconnect.NO,
    CloseCode.UNKNOWN_SESSION: Reconnect.NEW_SESSION,
    CloseCode.NO_OPEN_OR_PONG: Reconnect.YES,
    CloseCode.SESSION_ENDED: Reconnect.NEW_SESSION,
    CloseCode.UNSUPPORTED_VERSION: Reconnect.NO,
    CloseCode.TOO_MANY: Reconnect.AFTER_DELAY,
    CloseCode.OVERLOADED: Reconnect.YES,
}


def reconnect_policy(code: int) -> Reconnect:
    """The policy for any close code, those that the network makes included.

    A code that is not ours (1006 no close frame, 1001 going away, 1011 server error, 1013 try again
    later, ...) says nothing about the session, so the client comes back. Only 1002, 1003 and 1007,
    by which a peer says that it cannot understand us, are final.
    """
    try:
        return CloseCode(code).reconnect
    except ValueError:
        return Reconnect.NO if code in (1002, 1003, 1007) else Reconnect.YES
