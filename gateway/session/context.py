"""Whose work the running code does: the ids that stand on every log line.

One context variable holds one frozen value, so that tasks inherit it as a whole:

    with log_context(tenant_id=principal.tenant, session_id=key.session_id):
        logger.info("session opened")
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class LogIds:
    """The ids of a log line; None when unknown."""

    trace_id: str | None = None
    span_id: str | None = None
    tenant_id: str | None = None
    session_id: str | None = None
    request_id: str | None = None


_UNKNOWN = LogIds()
_ids: ContextVar[LogIds] = ContextVar("log_ids", default=_UNKNOWN)

current_ids = _ids.get
"""The ids of the running code."""


@contextmanager
def log_context(**ids: str | None) -> Generator[None]:
    """Sets the given ids for the body and for tasks started in it; the others stay.

    Raises:
        TypeError: a name that is no field of `LogIds`.
    """
    before = _ids.get()
    put_ids(**ids)
    try:
        yield
    finally:
        put_ids(**{name: getattr(before, name) for name in ids})


def put_ids(**ids: str | None) -> None:
    """Sets the given ids from now on; the others stay."""
    _ids.set(replace(_ids.get(), **ids))
