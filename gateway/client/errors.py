"""What can go wrong for good. Everything else the client repairs."""

from protocol.codes import Reconnect
from protocol.frames import Error


class Refusal(Exception):
    """The server refused a command; nothing has happened.

    Only after `unavailable` it may have: repeat a message with the same `id`, and it is done once.

    Attributes:
        code: the error code of the wire, such as `busy`.
        message: for a person.
        param: the offending field, when one is to blame.
        retryable: True when the same command may succeed later.
        retry_after_s: when, if the server said so.
    """

    def __init__(self, error: Error) -> None:
        super().__init__(f"{error.code}: {error.message}")
        self.code = error.code
        self.message = error.message
        self.param = error.param
        self.retryable = error.retryable
        self.retry_after_s = None if error.retry_after_ms is None else error.retry_after_ms / 1000


class Disconnected(Exception):
    """The session is out of reach, and trying again would not help.

    Attributes:
        code: the WebSocket close code, 1006 when the server could not be reached at all.
        reason: for a person.
        policy: what would have to change first, such as `Reconnect.NEW_TOKEN`.
        error: what the server said before it closed, such as `agent_not_found`.
    """

    def __init__(
        self, code: int, reason: str, policy: Reconnect, error: Error | None = None
    ) -> None:
        said = f"{error.code}: {error.message}" if error else reason
        super().__init__(f"{said} (close code {code})" if said else f"close code {code}")
        self.code = code
        self.reason = reason
        self.policy = policy
        self.error = error


class HistoryReset(Exception):
    """The events of this run cannot be continued without a gap.

    The server replaced the history (the cursor was too old, or Redis lost writes), or the run was
    not read until long after its buffer was full. `session.messages` is right; whether the run is
    still open, `session.events()` tells.

    Attributes:
        reason: as the server gave it, or `lagged`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the run's events cannot be continued ({reason})")
        self.reason = reason
