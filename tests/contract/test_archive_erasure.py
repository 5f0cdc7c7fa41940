"""What a user wants erased is gone, and nothing that comes late brings it back."""

import asyncio
from uuid import uuid4

import pytest
from sqlalchemy import text
from support.databases import PostgresServer
from support.history import T0, begun, ended, everything, over, rows, some_session

from gateway.archive.database import Database
from gateway.archive.erasure import BATCH
from gateway.archive.migrate import migrate
from gateway.archive.reader import Reader
from gateway.archive.schema import tombstones, usage_daily
from gateway.archive.writer import Writer
from gateway.session.archive import Record
from gateway.session.errors import Refused
from gateway.session.model import SessionKey
from protocol.codes import ErrorCode


def reader_of(database: Database, now_ms: int = T0 + 1000) -> Reader:
    return Reader(
        database, now_ms=lambda: now_ms, transcript_messages=200, transcript_bytes=1024 * 1024
    )


async def left(database: Database) -> dict[str, int]:
    """How many rows still hold something of anybody."""
    found = await everything(database)
    return {name: len(found[name]) for name in ("sessions", "runs", "messages")}


NOTHING = {"sessions": 0, "runs": 0, "messages": 0}


async def test_one_session_is_erased_and_stays_so(database: Database) -> None:
    key, other = some_session(), some_session()
    writer, reader = Writer(database), reader_of(database)
    batch: list[Record] = [begun(key), ended(key)]
    await writer.write([*batch, begun(other), ended(other)])
    assert await reader.erase("acme", "ann", key.session_id) == 1
    assert await reader.recall(key, "ann") is None
    assert await reader.messages(key, before=None, limit=9) == []
    # A late entry, one that comes again, and the end of a run that was under way.
    await writer.write([*batch, ended(key, T0 + 9_000), over(key, "expired", T0 + 10_000)])
    assert await left(database) == {"sessions": 1, "runs": 1, "messages": 2}
    assert await reader.session(other, "ann") is not None
    assert await reader.erase("acme", "ann", key.session_id) == 0


async def test_an_erased_session_is_not_created_again(database: Database) -> None:
    """Its id comes from an idempotency key: what was made anew would never be archived."""
    key, reader = some_session(), reader_of(database)
    await Writer(database).write([begun(key)])
    await reader.erase("acme", "ann", key.session_id)
    with pytest.raises(Refused) as caught:
        await reader.recall(key, "ann", creating=True)
    assert caught.value.code is ErrorCode.SESSION_ENDED
    assert await reader.recall(key, "ann") is None, "who looks for it finds none"
    assert await reader.recall(key, "bob", creating=True) is None
    # All of a user is erased up to a moment: what is begun by a key later is archived.
    await reader.erase("acme", "ann")
    assert await reader.recall(some_session(), "ann", creating=True) is None


async def test_all_of_a_user_is_erased_and_others_keep_theirs(database: Database) -> None:
    writer, reader = Writer(database), reader_of(database)
    mine = [some_session() for _ in range(3)]
    his, elsewhere = some_session(), some_session("other")
    for key, user in [*((key, "ann") for key in mine), (his, "bob"), (elsewhere, "ann")]:
        await writer.write([begun(key, user=user), ended(key, user=user)])
    assert await reader.erase("acme", "ann") == 3
    assert await left(database) == {"sessions": 2, "runs": 2, "messages": 4}
    assert await reader.session(his, "bob") is not None
    assert await reader.session(elsewhere, "ann") is not None


async def test_what_the_journals_bring_later_of_an_erased_user_is_dropped(
    database: Database,
) -> None:
    """Sessions that the archive did not know yet, too: their entries waited in Redis."""
    writer, reader = Writer(database), reader_of(database, T0 + 1000)
    assert await reader.erase("acme", "ann") == 0
    known, unknown = some_session(), some_session()
    await writer.write([begun(known), ended(known, T0 + 500)])
    await writer.write([ended(unknown, T0 + 900), over(unknown, "expired", T0 + 5000)])
    # Of a session that began before, what ends after is dropped with it.
    await writer.write([begun(known), ended(known, T0 + 5000)])
    assert await left(database) == NOTHING
    assert await rows(database, usage_daily) == []


async def test_a_user_who_comes_back_has_a_history_again(database: Database) -> None:
    writer, reader = Writer(database), reader_of(database, T0 + 1000)
    await reader.erase("acme", "ann")
    key = some_session()
    await writer.write([begun(key, T0 + 1001)])
    await writer.write([ended(key, T0 + 2000), over(key, "expired", T0 + 3000)])
    found = await reader.session(key, "ann")
    assert found is not None
    assert (found.status, found.runs) == ("expired", 1)
    # Before its beginning is known, too: that one may be a dead letter.
    early = some_session()
    await writer.write([ended(early, T0 + 2000)])
    assert await reader.session(early, "ann") is not None


async def test_what_a_tombstone_names_is_not_recalled(
    database: Database,
) -> None:
    """Its rows may still be there: an erasure takes a while, and may fail half-way."""
    writer, reader = Writer(database), reader_of(database)
    erased, old, young = (some_session() for _ in range(3))
    await writer.write(
        [begun(erased, T0), begun(old, T0), begun(young, T0 + 101), ended(young, T0 + 200)]
    )
    assert await reader.recall(erased, "ann") is not None
    for name, at_ms in ((erased.session_id, T0), ("", T0 + 100)):
        async with database.writing() as connection:
            await connection.execute(
                tombstones.insert().values(
                    tenant_id="acme", user_id="ann", session_id=name, at_ms=at_ms
                )
            )
        assert await reader.recall(erased, "ann") is None
        assert (await reader.recall(old, "ann") is None) == (name == "")
        assert await reader.is_erased(old, "ann", T0) == (name == "")
    recalled = await reader.recall(young, "ann")
    assert recalled is not None
    assert recalled.begun_ms == T0 + 101
    assert await reader.is_erased(erased, "ann", T0 + 500)
    assert not await reader.is_erased(young, "ann", T0 + 101)
    assert not await reader.is_erased(old, "bob", T0)
    assert not await reader.is_erased(SessionKey("other", old.session_id), "ann", T0)


async def test_a_clock_ahead_of_ours_does_not_save_anything(database: Database) -> None:
    """Sessions have the time of Redis, the erasure that of a node."""
    key = some_session()
    await Writer(database).write([begun(key, T0 + 60_000), ended(key, T0 + 61_000)])
    reader = reader_of(database, T0)
    assert await reader.erase("acme", "ann") == 1
    await Writer(database).write([begun(key, T0 + 60_000)])
    assert await left(database) == NOTHING


async def test_our_clock_ahead_does_not_lose_what_begins_after_an_erasure(
    database: Database,
) -> None:
    await reader_of(database, T0 + 600_000).erase("acme", "ann", at_ms=T0)
    before, after = some_session(), some_session()
    await Writer(database).write([begun(before, T0), begun(after, T0 + 1)])
    reader = reader_of(database)
    assert await reader.session(before, "ann") is None
    assert await reader.session(after, "ann") is not None


async def test_a_foreign_session_cannot_be_erased(database: Database) -> None:
    """Guarantee 6; nor does the tombstone stop its owner's history."""
    key, writer, reader = some_session(), Writer(database), reader_of(database)
    await writer.write([begun(key)])
    assert await reader.erase("acme", "bob", key.session_id) == 0
    assert await reader.erase("other", "ann", key.session_id) == 0
    await writer.write([ended(key)])
    found = await reader.session(key, "ann")
    assert found is not None
    assert found.runs == 1


async def test_usage_outlives_erasure(database: Database) -> None:
    """It names nobody, and is what the tenant pays for."""
    key = some_session()
    run = ended(key, usage=[{"model": "m", "outputTokens": 5}])
    await Writer(database).write([run])
    await reader_of(database).erase("acme", "ann")
    [day] = await rows(database, usage_daily)
    assert (day["runs"], day["output_tokens"]) == (1, 5)


async def test_much_goes_in_steps(database: Database) -> None:
    """A long session, and many short ones."""
    key, writer = some_session(), Writer(database)
    await writer.write([ended(key, T0 + n) for n in range(BATCH * 2)])
    await writer.write([ended(some_session(), T0 + n) for n in range(120)])
    assert await reader_of(database).erase("acme", "ann") == 121
    assert await left(database) == NOTHING


async def test_no_entry_slips_between_tombstone_and_removal(postgres: PostgresServer) -> None:
    """A writer that has looked for tombstones and not yet written holds the erasure up.

    (SQLite has one writer at a time.)
    """
    name = f"test_{uuid4().hex}"
    database = Database(postgres.create(name))
    await migrate(database)
    key, other = some_session(), some_session()
    await Writer(database).write([begun(other, user="bob")])
    # Whoever inserts a run stops there until the test lets go of lock 42.
    postgres.sql(
        "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NEW; END';"
        "CREATE TRIGGER stop BEFORE INSERT ON runs FOR EACH ROW EXECUTE FUNCTION stop()",
        name,
    )

    async def waiting() -> int:
        async with database.reading() as connection:
            count = text(
                "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database"
                " WHERE NOT granted AND locktype = 'advisory' AND datname = current_database()"
            )
            return await connection.scalar(count) or 0

    async with asyncio.TaskGroup() as group, database.writing() as connection:
        await connection.execute(text("SELECT pg_advisory_xact_lock(42)"))
        group.create_task(Writer(database).write([begun(key), ended(key)]))
        while not await waiting():
            pass
        erasing = group.create_task(reader_of(database).erase("acme", "ann"))
        while await waiting() < 2 and not erasing.done():
            pass
    found = await everything(database)
    await database.close()
    assert [row["user_id"] for row in found["sessions"]] == ["bob"]
    assert found["runs"] == found["messages"] == []
