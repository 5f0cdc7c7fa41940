"""All parts of the archive on one database."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from loguru import logger

from gateway.archive.database import Database, old_schema, schema_version
from gateway.archive.errors import HistoryAway, UnusableDatabase
from gateway.archive.reader import Reader
from gateway.archive.schema import VERSION
from gateway.archive.writer import Writer
from gateway.session.model import Limits


class Archive:
    """The way in and the way out."""

    def __init__(self, database: Database, limits: Limits, *, now_ms: Callable[[], int]) -> None:
        """`database` stays the caller's. A session is made live again within its `limits`."""
        self.database = database
        self.writer = Writer(database)
        self.history = Reader(
            database,
            now_ms=now_ms,
            transcript_messages=limits.transcript_messages,
            transcript_bytes=limits.transcript_bytes,
        )


@asynccontextmanager
async def open_archive(
    url: str, limits: Limits, *, migrates: bool, now_ms: Callable[[], int]
) -> AsyncGenerator[Archive]:
    """The archive on a database, which may be away now and come later.

    An older schema is brought up to date where that is wanted.

    Raises:
        UnusableDatabase: it cannot be used as it is; one line for a person.
    """
    database = Database(url)
    try:
        await _prepare(database, migrates=migrates)
        yield Archive(database, limits, now_ms=now_ms)
    finally:
        await database.close()


async def _prepare(database: Database, *, migrates: bool) -> None:
    try:
        async with database.reading() as connection:
            version = await schema_version(connection)
    except HistoryAway as error:
        logger.bind(error=error.why).warning(
            "the database does not answer; history waits in Redis until it does"
        )
        return
    if version >= VERSION:
        return
    if not migrates:
        raise UnusableDatabase(f"{database.where}: {old_schema(version)}")
    from gateway.archive.migrate import migrate  # and Alembic with it, which is seldom needed

    await migrate(database)
