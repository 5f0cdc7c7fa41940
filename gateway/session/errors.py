"""Refusals: what the gateway says no to, with the code that stands on the wire."""

from protocol.codes import ErrorCode


class CannotStart(Exception):
    """The process cannot do its work; the message is for a person: what, where, what to do."""


class Refused(Exception):
    """A request that the gateway refuses.

    Attributes:
        code: the wire code; it carries whether to retry.
        message: for a person; never another tenant's existence or an exception's text.
        param: the offending field, when one is to blame.
        retry_after_ms: when to come back, when known.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        param: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        """See the attributes."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_ms = retry_after_ms


class Unavailable(Refused):
    """Redis does not answer. What was asked may have happened: repeat it with the same id."""

    def __init__(
        self, message: str = "the message store does not answer", *, retry_after_ms: int = 1000
    ) -> None:
        """See the class."""
        super().__init__(ErrorCode.UNAVAILABLE, message, retry_after_ms=retry_after_ms)


class Rejected(Unavailable):
    """Redis answers, and cannot do it now: out of memory, say. Others may have more luck."""


class Fenced(Exception):
    """This claim no longer holds its run: another does, or the run is over."""


class TooLarge(Exception):
    """The run has reached its bound of events or bytes."""
