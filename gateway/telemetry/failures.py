"""Whose fault a code is, and what it says of a service: `error_class` and `error_code`."""

from gateway.session.model import Role
from protocol.codes import ErrorCode

OTHER = "other"
"""A code of an agent's own: there is no end to them. Such an error is its answer, as the breakers
take it, and nothing that we are to mend."""

SERVERS = frozenset(
    {
        ErrorCode.NO_WORKER,
        ErrorCode.CIRCUIT_OPEN,
        ErrorCode.WORKER_LOST,
        ErrorCode.TIMEOUT,
        ErrorCode.UNAVAILABLE,
        ErrorCode.INTERNAL,
    }
)
"""What we are to mend. All else is the sender's,"""

SERVERS_IN_RUNS = SERVERS | {ErrorCode.TOO_LARGE}
"""but not that a run grew too large: its agent made it so, not who asked it."""

_CODES = frozenset(ErrorCode)

_OF_CALLS: dict[str, str] = {
    ErrorCode.INTERNAL: "internal",
    ErrorCode.TIMEOUT: "timeout",
    ErrorCode.WORKER_LOST: "worker_lost",
    ErrorCode.NO_WORKER: "connection",
    ErrorCode.TOO_LARGE: "protocol",
}

CALL_CODES = (
    "internal",
    "timeout",
    "worker_lost",
    "connection",
    "protocol",
    "rejected",
    "circuit_open",
)
"""How the call of an agent can fail: `rejected` where it raised an error of its own, `circuit_open`
where it was not even made."""


def servers(role: Role) -> frozenset[ErrorCode]:
    """What we are to mend of the messages of a role: `assistant` for runs."""
    return SERVERS_IN_RUNS if role == "assistant" else SERVERS


def failure_of(role: Role, code: str) -> tuple[str, str]:
    """`error_class` and `error_code` for a message that was refused, or whose run failed."""
    known = code if code in _CODES else OTHER
    return "server" if known in servers(role) else "client", known


def call_failure_of(code: str) -> str | None:
    """`error_code` for the call of an agent; None for a client's cancel, which is no failure."""
    return None if code == ErrorCode.CANCELLED else _OF_CALLS.get(code, "rejected")
