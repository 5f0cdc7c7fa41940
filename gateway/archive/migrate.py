"""Brings a database's schema to a version; what is done in one transaction is done or not."""

from pathlib import Path

from loguru import logger
from sqlalchemy.engine import Connection

from gateway.archive.database import Database, schema_version
from gateway.archive.errors import HistoryAway, OldSchema, UnusableDatabase
from gateway.archive.schema import VERSION

_SCRIPTS = Path(__file__).parent / "migrations"


async def migrate(database: Database, version: str = VERSION) -> tuple[str, str]:
    """Goes up or down to a version (`base`: to nothing). Answers where it was, and where it is.

    Others who do the same wait, and find nothing left to do.

    Raises:
        UnusableDatabase: with one line for a person.
    """
    from alembic import command  # which is seldom needed, and slow to come
    from alembic.config import Config
    from alembic.util import CommandError

    async with database.migrating() as connection:
        before = await schema_version(connection)
        down = version == "base" or version < before

        def go(plain: Connection) -> None:
            config = Config(attributes={"connection": plain})
            config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
            (command.downgrade if down else command.upgrade)(config, version)

        try:
            await connection.run_sync(go)
        except CommandError as error:
            raise UnusableDatabase(f"{database.where}: {error}") from None
        after = await schema_version(connection)
    if before != after:
        logger.bind(database=database.where, before=before, after=after).info(
            "the history's schema has been migrated"
        )
    return before, after


async def prepare(database: Database, *, migrates: bool) -> None:
    """What a process does with its database at the start. One that is away is waited for later.

    Args:
        database: may be away.
        migrates: an old schema is brought up to date.

    Raises:
        UnusableDatabase: the schema is old, and stays so.
    """
    try:
        await database.check(writing=True)
    except OldSchema as error:
        if not migrates:
            raise UnusableDatabase(f"{database.where}: {error.why}") from None
        await migrate(database)
    except HistoryAway as error:
        logger.bind(database=database.where, error=error.why).warning(
            "the history does not answer; what comes waits"
        )
