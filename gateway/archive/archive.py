"""All parts of the archive on one database."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.archive.database import Database
from gateway.archive.errors import HistoryAway, OldSchema, UnusableDatabase
from gateway.archive.migrate import migrate, prepare
from gateway.archive.reader import Reader
from gateway.archive.retention import Retention
from gateway.archive.writer import Writer
from gateway.session.model import Limits
from gateway.session.tracing import UNTRACED, CallTracer


class Archive:
    """The way in, the way out, and what is thrown away."""

    def __init__(
        self,
        database: Database,
        limits: Limits,
        retention: Retention,
        *,
        migrates: bool,
        now_ms: Callable[[], int],
    ) -> None:
        """`database` stays the caller's. A session is made live again within its `limits`."""
        self._migrates = migrates
        self.database = database
        self.retention = retention
        self.writer = Writer(database)
        self.history = Reader(
            database,
            now_ms=now_ms,
            transcript_messages=limits.transcript_messages,
            transcript_bytes=limits.transcript_bytes,
        )

    async def prepare(self) -> None:
        """What the start could not do, when the database was away then: the schema that is needed.

        Raises:
            HistoryAway: it is away, or its schema is old and stays so.
        """
        try:
            await self.database.check()
        except OldSchema:
            if not self._migrates:
                raise
            try:
                await migrate(self.database)
            except UnusableDatabase as error:
                raise HistoryAway(str(error)) from None


@asynccontextmanager
async def open_archive(
    url: str | Path,
    limits: Limits,
    *,
    migrates: bool,
    now_ms: Callable[[], int],
    report: Callable[[str, Exception], None],
    retention_days: int | None = None,
    retention_tenants: Mapping[str, int] | None = None,
    tracer: CallTracer = UNTRACED,
) -> AsyncGenerator[Archive]:
    """The archive on a database, which may be away now and come later.

    An older schema is brought up to date where that is wanted.

    Raises:
        UnusableDatabase: it cannot be used as it is; one line for a person.
    """
    database = Database(url, tracer)
    try:
        await prepare(database, migrates=migrates)
        retention = Retention(
            database,
            days=retention_days,
            tenants=retention_tenants or {},
            now_ms=now_ms,
            report=report,
        )
        yield Archive(database, limits, retention, migrates=migrates, now_ms=now_ms)
    finally:
        await database.close()
