"""What is older than its tenant keeps goes; what is younger, and other tenants', stays."""

from typing import Any

import pytest
from sqlalchemy import event
from support.history import DAY_MS, T0, begun, ended, over, rows, some_session

from gateway.archive.database import RETAINING, Database, hold
from gateway.archive.erasure import BATCH
from gateway.archive.retention import Retention
from gateway.archive.schema import messages, runs, sessions, usage_daily
from gateway.archive.writer import Writer


def retention(
    database: Database, *, days: int | None = None, tenants: dict[str, int] | None = None
) -> Retention:
    def report(what: str, error: Exception) -> None:
        raise AssertionError(what) from error

    return Retention(
        database, days=days, tenants=tenants or {}, now_ms=lambda: T0 + 100 * DAY_MS, report=report
    )


def days_ago(days: float) -> int:
    return T0 + int((100 - days) * DAY_MS)


async def test_old_runs_go_then_sessions_with_nothing_left(database: Database) -> None:
    old, long_lived, new = (some_session() for _ in range(3))
    await Writer(database).write(
        [
            begun(old, days_ago(50)),
            ended(old, days_ago(31), usage=[{"inputTokens": 1}]),
            over(old, "expired", days_ago(29)),  # no sign of life
            begun(long_lived, days_ago(50)),
            ended(long_lived, days_ago(40)),
            ended(long_lived, days_ago(30.1)),
            ended(long_lived, days_ago(29.9)),
            begun(new, days_ago(1)),
        ]
    )
    assert await retention(database, days=30).sweep() == 3
    found = {row["session_id"]: row for row in await rows(database, sessions)}
    assert set(found) == {long_lived.session_id, new.session_id}
    kept = found[long_lived.session_id]
    assert (kept["runs"], kept["messages"]) == (1, 2)
    assert [row["ended_ms"] for row in await rows(database, runs)] == [days_ago(29.9)]
    assert len(await rows(database, messages)) == 2
    assert sum(row["runs"] for row in await rows(database, usage_daily)) == 4
    assert await retention(database, days=30).sweep() == 0


@pytest.mark.parametrize(
    ("days", "tenants", "kept"),
    [
        (None, {}, {"acme", "beta", "other"}),
        (30, {}, set()),
        (None, {"acme": 30}, {"beta", "other"}),
        (30, {"beta": 365}, {"beta"}),
        (365, {"acme": 30, "other": 45}, {"beta"}),
    ],
)
async def test_each_tenant_keeps_as_long_as_it_is_set(
    database: Database, days: int | None, tenants: dict[str, int], kept: set[str]
) -> None:
    for tenant in ("acme", "beta", "other"):
        key = some_session(tenant)
        await Writer(database).write([begun(key, days_ago(60)), ended(key, days_ago(50))])
    await retention(database, days=days, tenants=tenants).sweep()
    for table in (sessions, runs, messages):
        assert {row["tenant_id"] for row in await rows(database, table)} == kept


async def test_many_go_in_steps(database: Database) -> None:
    key = some_session()
    count = BATCH + 10
    await Writer(database).write([ended(key, days_ago(50) + n) for n in range(count)])
    assert await retention(database, days=30).sweep() == count
    assert await rows(database, sessions) == []


async def test_a_session_stays_while_it_has_runs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node may hold the lock in one step and not in the next; runs that are left without a
    session are found by no erasure.
    """
    key, silent = some_session(), some_session()
    await Writer(database).write([ended(key, days_ago(50)), begun(silent, days_ago(50))])
    turns = iter([False, True])

    async def first_lost(*_: object) -> bool:
        return next(turns, True)

    with monkeypatch.context() as patch:
        patch.setattr("gateway.archive.retention.try_hold", first_lost)
        assert await retention(database, days=30).sweep() == 0
    assert len(await rows(database, sessions)) == 2, "the whole tenant is left to the other"
    sweeping = retention(database, days=30)
    assert await sweeping._thin_sessions("acme", days_ago(30)) == 1
    assert [row["session_id"] for row in await rows(database, sessions)] == [key.session_id]
    assert await sweeping.sweep() == 1
    assert await rows(database, sessions) == []


async def test_runs_without_a_session_are_found(database: Database) -> None:
    """Their tenant may have nothing else."""
    await Writer(database).write([ended(some_session(), days_ago(50))])
    async with database.writing() as connection:
        await connection.execute(sessions.delete())
    assert await retention(database, days=30).sweep() == 1
    assert await rows(database, runs) == await rows(database, messages) == []


async def test_two_that_remove_the_same_do_not_wait_for_each_other_in_turn(
    database: Database, database_url: str
) -> None:
    """Retention takes the oldest first, erasure one session after the other."""
    if database_url.startswith("sqlite"):
        pytest.skip("SQLite has one writer at a time")
    keys = sorted(some_session() for _ in range(2))
    # By age in the other order than by key.
    await Writer(database).write(
        [ended(key, days_ago(50 + n), run_id="r") for n, key in enumerate(keys)]
    )
    asked: list[list[str]] = []

    def note(_c: object, _cursor: object, statement: str, given: Any, *_: object) -> None:
        if statement.startswith("DELETE"):
            asked.append([row[1] for row in given])

    engine = database._engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    assert await retention(database, days=30).sweep() == 2
    assert asked == [[key.session_id for key in keys]] * 3


async def test_one_node_at_a_time_does_it(database: Database, database_url: str) -> None:
    """The others go on, and come again in an hour."""
    if database_url.startswith("sqlite"):
        pytest.skip("SQLite has one writer at a time")
    key = some_session()
    await Writer(database).write([ended(key, days_ago(50))])
    async with database.writing() as connection:
        await hold(connection, RETAINING)
        assert await retention(database, days=30).sweep() == 0
        assert len(await rows(database, runs)) == 1
    assert await retention(database, days=30).sweep() == 1
