"""How a connection says no: the frame, and the close code where nothing is left to stay for."""

from gateway.session.errors import Refused
from gateway.session.model import Role
from protocol.codec import ProtocolError, encode
from protocol.codes import CloseCode, ErrorCode
from protocol.frames import Answer, ClientFrame, Error, Message, Ping, ToolResult

_CLOSE_CODES = {
    ErrorCode.BAD_FRAME: CloseCode.BAD_FRAME,
    ErrorCode.UNAUTHENTICATED: CloseCode.UNAUTHENTICATED,
    ErrorCode.FORBIDDEN: CloseCode.FORBIDDEN,
    ErrorCode.SESSION_NOT_FOUND: CloseCode.UNKNOWN_SESSION,
    ErrorCode.AGENT_NOT_FOUND: CloseCode.UNKNOWN_SESSION,
    ErrorCode.SESSION_ENDED: CloseCode.SESSION_ENDED,
    ErrorCode.RATE_LIMITED: CloseCode.TOO_MANY,
    ErrorCode.QUOTA_EXCEEDED: CloseCode.TOO_MANY,
    ErrorCode.TOO_LARGE: CloseCode.TOO_BIG,
}


def close_code_of(code: ErrorCode, otherwise: CloseCode = CloseCode.OVERLOADED) -> CloseCode:
    """How a connection ends whose `open` or `close` is refused; by default it may come again."""
    return _CLOSE_CODES.get(code, otherwise)


def complaint(error: ProtocolError) -> bytes:
    """The answer to what is no frame, or is not allowed here."""
    code = error.code
    return encode(Error(code, error.message, code.retryable, re=error.re, param=error.param))


def refusal(frame: ClientFrame, refused: Refused) -> bytes:
    """The answer to a frame that is refused."""
    return encode(
        Error(
            refused.code,
            refused.message,
            refused.code.retryable,
            re=None if isinstance(frame, Ping) else frame.id,
            param=refused.param,
            retry_after_ms=refused.retry_after_ms,
        )
    )


def role_of(frame: ClientFrame) -> Role:
    """Whose words the frame carries; `system` where it carries none."""
    if isinstance(frame, Message | Answer):
        return "user"
    return "tool" if isinstance(frame, ToolResult) else "system"
