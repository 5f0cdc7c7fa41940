"""What a database's errors mean: it is away, it cannot now, or it will never take the data."""

import sqlite3
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.exc import DBAPIError

from gateway.archive.errors import BadRecord, HistoryAway
from gateway.session.probe import ServiceError


def _driver_faults() -> tuple[type[Exception], ...]:
    try:
        import asyncpg  # pyright: ignore[reportMissingTypeStubs]
    except ModuleNotFoundError:
        return ()
    return (asyncpg.PostgresError, asyncpg.InterfaceError)


class NoTransaction(Exception):
    """It could not be begun, or not be committed: its cause says why. No record is to blame."""


FAULTS: tuple[type[Exception], ...] = (
    NoTransaction,
    DBAPIError,
    sqlite3.Error,
    OSError,
    # What sqlite3 says of a number of more than 64 bits, and of half a character.
    OverflowError,
    UnicodeError,
    *_driver_faults(),
)
"""Whatever a call of the database may raise. (TimeoutError is an OSError.)"""

_ENCODING = (OverflowError, UnicodeError)
"""The driver cannot encode what it was given. (Other kinds of ValueError are not about that:
ssl.SSLCertVerificationError is one.)"""

_NEVER = ("22", "23", "54")
"""Classes of SQLSTATE: data exception, integrity, a limit of the program exceeded."""
_NO_ANSWER = ("08", "57", "58", "XX")
"""Connection, operator's intervention (shutting down, starting), system error."""
_TOO_MANY_CONNECTIONS = "53300"
_PROTOCOL = "08P01"

_SQLITE_NEVER = (sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH)
_SQLITE_ANSWERS = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_ERROR)


@dataclass(frozen=True, slots=True)
class Fault:
    """An error, understood.

    Attributes:
        why: the database's words, in one line.
        code: telemetry's word for it.
        answered: the database is there, and says no.
        for_ever: it will never take this.
        only_writes: reading may well go on.
    """

    why: str
    code: ServiceError
    answered: bool
    for_ever: bool = False
    only_writes: bool = False

    def error(self) -> Exception:
        """What is raised instead."""
        return BadRecord(self.why) if self.for_ever else HistoryAway(self.why)


def understand(error: Exception) -> Fault:
    """What an error of `FAULTS` means; what is not known to be the data's fault is the database's,
    so that nothing is set aside that might be written later.
    """
    if isinstance(error, NoTransaction) and isinstance(error.__cause__, Exception):
        return replace(understand(error.__cause__), for_ever=False)
    origin: Any = error
    if isinstance(error, DBAPIError) and error.orig is not None:
        origin = error.orig
    cause: BaseException | None = origin
    while cause is not None:
        if isinstance(cause, _ENCODING):
            # What asyncpg says of it quotes it, and may be a message.
            return Fault(type(cause).__name__, "rejected", answered=True, for_ever=True)
        cause = cause.__cause__
    why = _one_line(origin)
    state = getattr(origin, "sqlstate", None)
    if state:
        if state.startswith(_NEVER):
            return Fault(why, "rejected", answered=True, for_ever=True)
        away = state.startswith(_NO_ANSWER) or state == _TOO_MANY_CONNECTIONS
        code = "protocol" if state == _PROTOCOL else "connection" if away else "rejected"
        return Fault(why, code, answered=not away, only_writes=not away)
    number = getattr(origin, "sqlite_errorcode", None)
    if number is not None:
        number &= 0xFF
        if number in _SQLITE_NEVER:
            return Fault(why, "rejected", answered=True, for_ever=True)
        answers = number in _SQLITE_ANSWERS
        code = "rejected" if answers else "connection"
        return Fault(why, code, answered=answers, only_writes=True)
    if isinstance(origin, sqlite3.DataError):  # larger than a string may be
        return Fault(why, "rejected", answered=True, for_ever=True)
    code = "timeout" if isinstance(origin, TimeoutError) else "connection"
    return Fault(why, code, answered=False)


def _one_line(error: BaseException) -> str:
    # The first line: PostgreSQL's details are below, and quote the data.
    return str(error).partition("\n")[0].strip()[:300] or type(error).__name__
