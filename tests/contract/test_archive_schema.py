"""The way of the schema: up and down, on both kinds of database, by whoever comes first."""

import asyncio
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection
from support.history import T0, begun, ended, rows, some_session

import gateway.archive
from gateway.archive.database import Database
from gateway.archive.errors import HistoryAway, UnusableDatabase
from gateway.archive.migrate import migrate, prepare
from gateway.archive.schema import VERSION, metadata, runs
from gateway.archive.writer import Writer


async def tables(database: Database) -> set[str]:
    async with database.reading() as connection:
        return set(await connection.run_sync(lambda plain: inspect(plain).get_table_names()))


@pytest.fixture
async def empty(database_url: str):  # type: ignore[no-untyped-def]
    database = Database(database_url)
    yield database
    await database.close()


async def test_up_down_and_up_again(empty: Database) -> None:
    expected = {*metadata.tables, "alembic_version"}
    assert await migrate(empty) == ("", VERSION)
    assert await tables(empty) == expected
    assert await migrate(empty) == (VERSION, VERSION)
    await Writer(empty).write([ended(some_session())])
    assert await migrate(empty, "base") == (VERSION, "")
    assert await tables(empty) == {"alembic_version"}
    assert await migrate(empty) == ("", VERSION)
    assert await rows(empty, runs) == []


async def test_the_tables_are_those_that_the_code_uses(database: Database) -> None:
    def differences(plain: Connection) -> object:
        return compare_metadata(MigrationContext.configure(plain), metadata)

    async with database.reading() as connection:
        assert await connection.run_sync(differences) == []


def test_the_version_that_is_needed_is_the_newest() -> None:
    folder = Path(gateway.archive.__file__).parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(folder))
    script = ScriptDirectory.from_config(config)
    assert script.get_current_head() == VERSION
    names = [step.revision for step in script.walk_revisions()]
    assert names == sorted(names, reverse=True)


async def test_those_who_migrate_at_once_do_it_once(database_url: str) -> None:
    """Several nodes start at the same moment."""
    databases = [Database(database_url) for _ in range(4)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(migrate(database)) for database in databases]
    assert sorted(task.result() for task in tasks) == [("", VERSION), *[(VERSION, VERSION)] * 3]
    for database in databases:
        await database.close()


async def test_a_step_that_fails_leaves_nothing_behind(empty: Database) -> None:
    async with empty.writing() as connection:
        await connection.execute(text("CREATE TABLE tombstones (id INTEGER)"))  # in the way
    with pytest.raises(UnusableDatabase) as caught:
        await migrate(empty)
    assert len(str(caught.value).splitlines()) == 1
    assert "sessions" not in await tables(empty)


async def test_an_unknown_version_is_one_clear_line(database: Database) -> None:
    with pytest.raises(UnusableDatabase) as caught:
        await migrate(database, "7777")
    assert "7777" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


async def test_a_configured_database_is_not_migrated_unasked(empty: Database) -> None:
    with pytest.raises(UnusableDatabase) as caught:
        await prepare(empty, migrates=False)
    assert "has no tables" in str(caught.value)
    assert "gateway migrate" in str(caught.value)
    assert await tables(empty) == set()
    with pytest.raises(HistoryAway):
        await empty.check()
    await prepare(empty, migrates=True)
    await empty.check()


async def test_a_newer_schema_is_good_enough(database: Database) -> None:
    """In a deploy the migration comes first, then one node after the other."""
    async with database.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await prepare(database, migrates=False)
    await database.check()
    await Writer(database).write([begun(some_session(), T0)])
