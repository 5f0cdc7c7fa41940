"""Whose work the running code does, and which process it is: what stands on every log line.

One context variable holds one frozen value, so that tasks inherit it as a whole:

    with log_context(tenant_id=principal.tenant, session_id=key.session_id):
        logger.info("session opened")

What a request merely comes upon, as that Redis is away, is of nobody:

    logger.bind(**OF_NOBODY).warning("Redis does not answer")
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class LogIds:
    """The ids of a log line; None when unknown."""

    trace_id: str | None = None
    span_id: str | None = None
    tenant_id: str | None = None
    session_id: str | None = None
    request_id: str | None = None


OF_NOBODY = {field.name: "" for field in fields(LogIds)}
"""Bound to a line, it keeps the running code's ids off it."""

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


_process: str | None = None


def current_process() -> str | None:
    """What this process is, once it is known: `node:<id>` or `worker:<id>`."""
    return _process


@contextmanager
def process_named(name: str) -> Generator[None]:
    """Names the process for the body, whichever task or thread logs."""
    global _process  # noqa: PLW0603 - there is one process
    before, _process = _process, name
    try:
        yield
    finally:
        _process = before
