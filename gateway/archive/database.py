"""`DATABASE_URL` to a database: bounded calls, one breaker, its faults in our words."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from loguru import logger
from sqlalchemy import func, inspect, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.archive.engines import create_engine
from gateway.archive.errors import HistoryAway, OldSchema, UnusableDatabase
from gateway.archive.faults import FAULTS, Fault, NoTransaction, understand
from gateway.archive.file import OpenFile
from gateway.archive.schema import VERSION
from gateway.session.breaker import Breaker, BreakerState
from gateway.session.context import OF_NOBODY
from gateway.session.patience import Patience
from gateway.session.probe import UNHEARD, ServiceError, ServiceProbe
from gateway.session.tracing import UNTRACED, CallTracer

_CHECK_TIMEOUT_S = 1.8
"""Less than what readiness waits."""
_READ_TIMEOUT_S = 5.0
_WRITE_TIMEOUT_S = 15.0
_THRESHOLD = 2
_PAUSE_S = 1.0
"""After two failures in a row the database is left alone for this; readiness asks all the same."""
_PROBE_S = 6.0
_REFUSAL_S = 15.0
"""So long a write that the database refused speaks for the next ones; then `check` tries one."""

ERASING = 0x6E6F6F62_01
"""Held shared by who writes records, alone by who sets a tombstone: no record slips between."""
RETAINING = 0x6E6F6F62_02
"""Held by the one who removes what is too old."""
MIGRATING = 0x6E6F6F62_03
"""Held by the one who changes the schema."""


class Database:
    """One engine. What is done within `reading` or `writing` is one transaction.

    Attributes:
        where: the setting or the file, for messages; a password is masked.
        breaker: opened by a streak of calls that the database did not answer.
        writes_failed: in a row, whatever was read meanwhile: reading works while the disk is full,
            the file is locked or a standby serves. What it will never take is no failure of it.
        calls: told of each call.
    """

    def __init__(self, place: str | Path, tracer: CallTracer = UNTRACED) -> None:
        """Connects to nothing yet.

        Args:
            place: a `DATABASE_URL`, or the path of an SQLite file.
            tracer: traces each transaction.

        Raises:
            UnusableDatabase: for what cannot be one.
        """
        self.where, self._engine = create_engine(place)
        local = self._engine.dialect.name == "sqlite"
        self._file = OpenFile(Path(self._engine.url.database or "")) if local else None
        self._tracer = tracer
        self._log = logger.bind(database=self.where, **OF_NOBODY)
        self.breaker = Breaker(
            time.monotonic,
            threshold=_THRESHOLD,
            pause_s=_PAUSE_S,
            most_s=_PAUSE_S,
            probe_s=_PROBE_S,
        )
        self.writes_failed = 0
        self._tell: Callable[[], None] = lambda: None
        self.calls: ServiceProbe = UNHEARD
        self._refusal = ""
        self._refused_at = 0.0
        self._away = ""

    async def close(self) -> None:
        """Closes all connections."""
        await self._engine.dispose()

    @property
    def failures(self) -> int:
        """How many calls, or how many writes, failed in a row."""
        return max(self.breaker.failures, self.writes_failed)

    def watch(self, listener: Callable[[BreakerState, int], None]) -> None:
        """`listener` is told the breaker's state and `failures`: now, and when they may have
        changed.
        """
        self._tell = lambda: listener(self.breaker.state, self.failures)
        self.breaker.watch(lambda _: self._tell())
        self._tell()

    @asynccontextmanager
    async def reading(self, tenant: str = "") -> AsyncGenerator[AsyncConnection]:
        """A connection to read with; `tenant` is whose history it is, if one's.

        Raises:
            HistoryAway: the database does not answer, or cannot do it.
        """
        async with self._asking(_READ_TIMEOUT_S, tenant) as connection:
            yield connection

    @asynccontextmanager
    async def writing(self, tenant: str = "") -> AsyncGenerator[AsyncConnection]:
        """A connection to write with; `tenant` as for `reading`. What was asked may have
        happened when it fails.

        Raises:
            HistoryAway: the database does not answer, or cannot do it.
            BadRecord: it will never take what it was given.
        """
        async with self._asking(_WRITE_TIMEOUT_S, tenant, writes=True) as connection:
            await _bound(connection)
            yield connection

    @asynccontextmanager
    async def migrating(self) -> AsyncGenerator[AsyncConnection]:
        """A connection to change the schema with, without a bound in time.

        Raises:
            UnusableDatabase: with one line for a person.
        """
        try:
            async with self._transaction(writes=True) as connection:
                await hold(connection, MIGRATING)
                yield connection
        except FAULTS as error:
            why = understand(error).why
            raise UnusableDatabase(f"{self.where}: no usable answer ({why})") from None

    async def check(self, *, writing: bool = False) -> None:
        """Whether history can be read and written; `writing` tries it, though no write was refused.

        Raises:
            HistoryAway: when not, with the reason in `why`.
        """
        async with self._asking(_CHECK_TIMEOUT_S, probe=True) as connection:
            version = await schema_version(connection)
        if version < VERSION:
            raise OldSchema(version)
        if self._refusal or writing:
            # Reading works when the disk is full, so only a write can tell. While others write and
            # are refused, this is known.
            if self._refusal and time.monotonic() - self._refused_at < _REFUSAL_S:
                raise HistoryAway(self._refusal)
            async with self._asking(_CHECK_TIMEOUT_S, writes=True) as connection:
                await connection.execute(_TOUCH)

    @asynccontextmanager
    async def _asking(
        self, timeout_s: float, tenant: str = "", *, writes: bool = False, probe: bool = False
    ) -> AsyncGenerator[AsyncConnection]:
        operation = "write" if writes else "read"
        with self._tracer.calling("database", operation):
            async with self._told(
                operation, timeout_s, tenant, writes=writes, probe=probe
            ) as connection:
                yield connection

    @asynccontextmanager
    async def _told(
        self, operation: str, timeout_s: float, tenant: str, *, writes: bool, probe: bool
    ) -> AsyncGenerator[AsyncConnection]:
        breaker, began = self.breaker, time.perf_counter()

        def failed(error: ServiceError) -> None:
            self.calls.failed(tenant, operation, time.perf_counter() - began, error)

        if probe:
            breaker.probe()
        elif breaker.admit():
            failed("circuit_open")
            raise HistoryAway(self._away)
        try:
            async with Patience(timeout_s), self._transaction(writes=writes) as connection:
                yield connection
        except PoolTimeoutError:
            breaker.release()  # it is we who are busy
            failed("internal")
            raise HistoryAway("all connections are in use") from None
        except FAULTS as error:
            fault = understand(error)
            self._note(fault, writes=writes)
            failed(fault.code)
            raise fault.error() from None
        except Exception:
            breaker.release()
            failed("internal")
            raise
        except BaseException:
            breaker.release()
            raise
        self._answered(wrote=writes)
        self.calls.called(tenant, operation, time.perf_counter() - began)

    def _note(self, fault: Fault, *, writes: bool) -> None:
        if writes and fault.only_writes:
            if self._refusal != fault.why:
                self._log.bind(error=fault.why).warning(
                    "history cannot be written; it waits in Redis"
                )
            self._refusal, self._refused_at = fault.why, time.monotonic()
        if writes and not fault.for_ever:
            self._count_write(self.writes_failed + 1)
        if fault.answered:
            self._answered()
            return
        self._away = fault.why
        was = self.breaker.state
        self.breaker.fail()
        if was is BreakerState.CLOSED and self.breaker.state is BreakerState.OPEN:
            self._log.bind(error=fault.why).warning("the database does not answer")

    def _count_write(self, failed: int) -> None:
        if failed != self.writes_failed:
            self.writes_failed = failed
            self._tell()

    def _answered(self, *, wrote: bool = False) -> None:
        if wrote:
            self._refusal = ""
            self._count_write(0)
        if self.breaker.state is not BreakerState.CLOSED:
            self._log.info("the database answers again")
        self.breaker.succeed()

    @asynccontextmanager
    async def _transaction(self, *, writes: bool) -> AsyncGenerator[AsyncConnection]:
        asked = False
        try:
            if self._file is not None:
                self._file.check()
            async with self._engine.connect() as connection:
                await connection.execution_options(writes=writes)
                async with connection.begin():
                    asked = True
                    yield connection
                    asked = False
            if self._file is not None:
                self._file.used()  # or what was written would be taken for kept
        except PoolTimeoutError:
            raise
        except Exception as error:
            if asked:
                raise
            # A certificate that is not trusted, a name that cannot be: whatever it is.
            raise NoTransaction from error


_TOUCH = text("UPDATE alembic_version SET version_num = version_num")


async def schema_version(connection: AsyncConnection) -> str:
    """Which migrations the database has seen; empty when none."""

    def read(plain: Connection) -> str:
        if not inspect(plain).has_table("alembic_version"):
            return ""
        return plain.scalar(text("SELECT version_num FROM alembic_version")) or ""

    return await connection.run_sync(read)


async def hold(connection: AsyncConnection, lock: int, *, shared: bool = False) -> None:
    """Waits for a lock and holds it to the transaction's end. (SQLite has one writer anyway.)"""
    if connection.dialect.name == "postgresql":
        take = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
        await connection.execute(select(take(lock)))


async def _bound(connection: AsyncConnection) -> None:
    """What the server ends by itself: the transaction of a node that died or hangs in the middle of
    it, whose rows and locks others wait for. Per transaction, since poolers pass on no settings.
    """
    if connection.dialect.name == "postgresql":
        bounds = ("idle_in_transaction_session_timeout", "statement_timeout")
        milliseconds = str(int(_WRITE_TIMEOUT_S * 1000))
        await connection.execute(
            select(*(func.set_config(name, milliseconds, True) for name in bounds))
        )


async def try_hold(connection: AsyncConnection, lock: int) -> bool:
    """As `hold`, but False instead of waiting."""
    if connection.dialect.name != "postgresql":
        return True
    return bool(await connection.scalar(select(func.pg_try_advisory_xact_lock(lock))))
