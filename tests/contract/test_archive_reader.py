"""What the archive answers: whole, in order, page by page, and to its owner only."""

from typing import Any

import pytest
from sqlalchemy import event, text
from support.databases import PostgresServer
from support.history import T0, begun, ended, message, over, some_session

from gateway.archive.database import Database
from gateway.archive.reader import Reader
from gateway.archive.writer import Writer
from gateway.session.archive import (
    MessagePosition,
    Record,
    SessionFilter,
    SessionPosition,
)
from gateway.session.errors import Refused
from protocol.codes import ErrorCode


def reader_of(database: Database, **bounds: int) -> Reader:
    bounds = {"transcript_messages": 200, "transcript_bytes": 1024 * 1024} | bounds
    return Reader(database, now_ms=lambda: T0, **bounds)


async def test_a_session_is_recalled_with_all_that_it_was(database: Database) -> None:
    key = some_session()
    first = ended(key, T0 + 10, state=b'{"n":1}')
    second = ended(
        key,
        T0 + 20,
        state=b'{"n":2}',
        said=[message("assistant", "a"), b"{}"],
    )
    await Writer(database).write(
        [begun(key, on_detach="cancel"), second, first, over(key, "expired", T0 + 30)]
    )
    recalled = await reader_of(database).recall(key, "ann")
    assert recalled is not None
    assert recalled.agent == "helper"
    assert recalled.metadata == b'{"topic":"tea"}'
    assert recalled.on_detach == "cancel"
    assert recalled.state == b'{"n":2}'
    expected = [
        (run.ref.run_id, json) for run in (first, second) for json in [*run.asked, *run.said]
    ]
    assert recalled.messages == expected
    assert recalled.last_end_ms == second.ended_ms > first.ended_ms


async def test_who_is_not_its_owner_learns_nothing(database: Database) -> None:
    """Guarantee 6: not even that it has ended."""
    key = some_session()
    await Writer(database).write([begun(key), ended(key), over(key, "completed", T0 + 30)])
    reader = reader_of(database)
    elsewhere = key._replace(tenant="other")
    assert await reader.recall(key, "bob") is None
    assert await reader.recall(elsewhere, "ann") is None
    assert await reader.session(key, "bob") is None
    assert await reader.session(elsewhere, "ann") is None
    for tenant, user in (("acme", "bob"), ("other", "ann")):
        found = await reader.sessions(tenant, user, SessionFilter(), after=None, limit=9)
        assert found == []
    assert await reader.messages(elsewhere, before=None, limit=9) == []
    assert await reader.usage("other", first_day="2000-01-01", last_day="2100-01-01") == []
    with pytest.raises(Refused) as caught:
        await reader.recall(key, "ann")
    assert caught.value.code is ErrorCode.SESSION_ENDED


async def test_a_session_of_which_only_its_end_is_known_is_not_shown(database: Database) -> None:
    """Its beginning is a dead letter: there is nothing to make it live again from."""
    key = some_session()
    await Writer(database).write([over(key, "expired", T0)])
    reader = reader_of(database)
    assert await reader.recall(key, "ann") is None
    assert await reader.session(key, "ann") is None
    assert await reader.sessions("acme", "ann", SessionFilter(), after=None, limit=9) == []
    await Writer(database).write([begun(key, T0 - 5)])
    found = await reader.session(key, "ann")
    assert found is not None
    assert (found.status, found.agent) == ("expired", "helper")


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        ({"transcript_messages": 3}, 3),
        ({"transcript_bytes": 2500}, 2),
        ({"transcript_bytes": 2000}, 2),  # to the byte
        ({"transcript_bytes": 1999}, 1),
        ({"transcript_bytes": 10}, 1),  # the newest stays, as it does in a live session
    ],
)
async def test_as_much_is_recalled_as_lives(
    database: Database, bounds: dict[str, int], kept: int
) -> None:
    key = some_session()
    # Two bytes for each letter: bytes count, not characters.
    said = [b'{"c":"' + "é".encode() * 496 + b'"}', b'{"c":"' + b"x" * 992 + b'"}']
    assert [len(json) for json in said] == [1000, 1000]
    batch = [ended(key, T0 + n, asked=[], said=said) for n in range(5)]
    await Writer(database).write([begun(key), *batch])
    recalled = await reader_of(database, **bounds).recall(key, "ann")
    assert recalled is not None
    everything = [json for _ in range(5) for json in said]
    assert [json for _, json in recalled.messages] == everything[-kept:]


async def test_messages_come_in_pages_newest_first_and_in_order_within(database: Database) -> None:
    key, other = some_session(), some_session()
    batch = [ended(key, T0 + n, said=[message("assistant", f"{n}")] * 2) for n in range(10)]
    lost = ended(key, T0 + 10, kind="X", code="worker_lost")
    await Writer(database).write([begun(key), *batch, lost, ended(other, T0 + 3)])
    expected = [
        (run.ref.run_id, json, run.kind, run.code)
        for run in [*batch, lost]
        for json in [*run.asked, *run.said]
    ]
    reader = reader_of(database)
    found: list[Any] = []
    before: MessagePosition | None = None
    while page := await reader.messages(key, before=before, limit=7):
        assert [m.position for m in page] == sorted(m.position for m in page)
        found = [(m.run_id, m.json, m.kind, m.code) for m in page] + found
        before = page[0].position
    assert found == expected


async def test_sessions_come_in_pages_by_creation_or_activity(database: Database) -> None:
    keys = [some_session() for _ in range(9)]
    batch: list[Record] = []
    for n, key in enumerate(keys):
        batch += [begun(key, T0 + n // 2), ended(key, T0 + 100 - n)]  # pairs at one moment
    await Writer(database).write([*batch, begun(some_session(), user="bob")])
    reader = reader_of(database)
    for order, at in (("created", "created_ms"), ("active", "active_ms")):
        chosen = SessionFilter(order=order)  # type: ignore[arg-type]
        found: list[Any] = []
        after: SessionPosition | None = None
        while page := await reader.sessions("acme", "ann", chosen, after=after, limit=4):
            found += page
            after = SessionPosition(getattr(page[-1], at), page[-1].key.session_id)
        places = [(getattr(s, at), s.key.session_id) for s in found]
        assert places == sorted(places, reverse=True)
        assert {s.key for s in found} == set(keys)
        assert len(found) == len(keys)
    assert (found[0].runs, found[0].messages) == (1, 2)


async def test_sessions_are_filtered(database: Database) -> None:
    a, b, c = (some_session() for _ in range(3))
    await Writer(database).write(
        [
            begun(a, T0),
            begun(b, T0 + 10, agent="other"),
            begun(c, T0 + 20),
            over(a, "completed", T0 + 30),
            over(b, "expired", T0 + 30),
        ]
    )
    reader = reader_of(database)

    async def chosen(**fields: Any) -> list[Any]:
        found = await reader.sessions("acme", "ann", SessionFilter(**fields), after=None, limit=10)
        return [session.key for session in found]

    assert await chosen() == [c, b, a]
    assert await chosen(agent="helper") == [c, a]
    assert await chosen(status="expired") == [b]
    assert await chosen(status="active") == [c]
    assert await chosen(status="completed", agent="other") == []
    assert await chosen(created_from_ms=T0 + 10) == [c, b]
    assert await chosen(created_to_ms=T0 + 10) == [a]
    assert await chosen(created_from_ms=T0 + 1, created_to_ms=T0 + 20) == [b]


async def test_one_session_is_told_as_it_is(database: Database) -> None:
    key = some_session()
    await Writer(database).write(
        [begun(key, T0), ended(key, T0 + 5), over(key, "completed", T0 + 9)]
    )
    found = await reader_of(database).session(key, "ann")
    assert found is not None
    assert (found.created_ms, found.active_ms, found.ended_ms) == (T0, T0 + 5, T0 + 9)
    assert (found.status, found.runs, found.messages) == ("completed", 1, 2)
    assert (found.metadata, found.on_detach) == (b'{"topic":"tea"}', "continue")


async def test_runs_that_are_archived_are_known(database: Database) -> None:
    key = some_session()
    run, foreign = ended(key), ended(some_session("other"))
    await Writer(database).write([run, foreign])
    reader = reader_of(database)
    asked = [run.ref.run_id, foreign.ref.run_id, "nothing"]
    assert await reader.archived(key, asked) == {run.ref.run_id}
    assert await reader.archived(key, []) == set()


async def test_usage_is_told_from_one_day_to_another(database: Database) -> None:
    key = some_session()
    days = [
        ended(key, T0 + n * 86_400_000, agent=agent, usage=[{"model": "m", "inputTokens": n}])
        for n in range(4)
        for agent in ("helper", "other")
    ]
    await Writer(database).write([*days, ended(key, T0, usage=[{"model": "n"}])])
    reader = reader_of(database)
    found = await reader.usage("acme", first_day="2025-06-16", last_day="2025-06-17")
    assert [(u.day, u.agent, u.input_tokens) for u in found] == [
        ("2025-06-16", "helper", 1),
        ("2025-06-16", "other", 1),
        ("2025-06-17", "helper", 2),
        ("2025-06-17", "other", 2),
    ]
    [only] = await reader.usage(
        "acme", first_day="2025-06-15", last_day="2025-06-15", agent="helper", model="n"
    )
    assert (only.runs, only.input_tokens, only.output_tokens) == (1, None, None)


async def test_what_no_database_could_hold_is_not_there(database: Database) -> None:
    """A hostile query is an empty answer, not an outage."""
    key = some_session()
    await Writer(database).write([begun(key), ended(key)])
    reader = reader_of(database)
    far = MessagePosition(2**70, 0)
    assert await reader.messages(key, before=far, limit=5) == []
    strange = SessionFilter(agent="a\0b")
    assert await reader.sessions("acme", "ann", strange, after=None, limit=5) == []
    assert await reader.usage("acme", first_day="\0", last_day="\0") == []
    await database.check()


async def test_pages_are_read_by_the_index_that_they_are_sorted_by(
    database: Database, database_url: str, request: pytest.FixtureRequest
) -> None:
    """A page costs the same wherever it stands: no more is read than it shows.

    Nor when the database has planned ahead for sessions as they mostly are, and this one is long.
    """
    key = some_session()
    batch: list[Record] = []
    for n in range(1000):
        other, user = some_session(), "ann" if n % 20 == 0 else f"user {n}"
        batch += [begun(other, T0 + n, user=user), ended(other, T0 + n, user=user)]
    batch += [ended(key, T0 + n) for n in range(1000)]
    await Writer(database).write(batch)
    asked: list[tuple[str, Any]] = []

    def note(*call: Any) -> None:
        asked.append((call[2], call[3]))

    engine = database._engine.sync_engine
    reader = reader_of(database)
    event.listen(engine, "before_cursor_execute", note)
    behind = SessionPosition(T0 + 100, "x")
    for order in ("created", "active"):
        chosen = SessionFilter(order=order)  # type: ignore[arg-type]
        await reader.sessions("acme", "ann", chosen, after=behind, limit=20)
    await reader.messages(key, before=MessagePosition(T0 + 700, 0), limit=20)
    event.remove(engine, "before_cursor_execute", note)

    async with database.writing() as connection:
        await connection.execute(text("ANALYZE"))
    asked = [(statement, values) for statement, values in asked if statement.startswith("SELECT")]
    if database_url.startswith("sqlite"):
        async with database.reading() as connection:
            plans = [
                "\n".join(
                    str(tuple(row))
                    for row in await connection.exec_driver_sql(
                        f"EXPLAIN QUERY PLAN {statement}", values
                    )
                )
                for statement, values in asked
            ]
    else:
        postgres: PostgresServer = request.getfixturevalue("postgres")
        name = database_url.partition("@/")[2].partition("?")[0]
        # Our tables are small, so that reading all of them would be the best plan.
        explain = "SET enable_seqscan = off; SET enable_bitmapscan = off; EXPLAIN (GENERIC_PLAN) "
        plans = [postgres.sql(explain + statement, name) for statement, _ in asked]
    indexes = ["sessions_by_creation", "sessions_by_activity", "messages_in_order"]
    for plan, index in zip(plans, indexes, strict=True):
        assert index in plan, plan
        assert "Sort" not in plan, plan
        assert "Hash" not in plan, plan
        assert "TEMP B-TREE" not in plan, plan
        if "JOIN" in plan or "Nested" in plan:
            assert plan.index("Limit") > plan.index("Nested"), plan
