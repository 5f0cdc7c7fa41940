"""Writes what the journals bring: one transaction a batch, the same batch twice changes nothing."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table, case, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.archive.database import ERASING, Database, hold
from gateway.archive.errors import BadRecord
from gateway.archive.rows import (
    Row,
    SessionDelta,
    key_of,
    message_rows,
    reported_usage,
    run_row,
    usage_rows,
)
from gateway.archive.schema import messages, runs, sessions, tombstones, usage_daily
from gateway.archive.statements import greatest, least, upsert
from gateway.session.archive import Record, RunEnded, SessionBegun, SessionOver
from gateway.session.model import RunRef, SessionKey


class Writer:
    """The way into the archive. Records may come again, and of one session in any order."""

    def __init__(self, database: Database) -> None:
        """`database` stays the caller's."""
        self._database = database

    async def write(self, records: Sequence[Record]) -> list[tuple[SessionKey, str]]:
        """Archives a batch, all of it or nothing; what belongs to a tombstone is dropped.

        Answers the sessions, with their users, of which something was dropped: if they live, they
        must not.

        Raises:
            HistoryAway: the database is away, full or locked: the same batch may pass later.
            BadRecord: something in the batch will never be taken.
        """
        async with self._database.writing() as connection:
            await hold(connection, ERASING, shared=True)
            kept = await _not_erased(connection, records)
            # Only now: what was erased and cannot be written is dropped, too, and not set aside.
            prepared = {
                record.ref: (record, run_row(record, usage), message_rows(record), usage)
                for record in kept
                if isinstance(record, RunEnded)
                for usage in [reported_usage(record.event)]
            }
            # In the order of their keys, so that two writers never wait for each other in turn.
            keys = sorted(prepared)
            fresh = await _add_runs(connection, [prepared[key][1] for key in keys])
            rows = [row for key in keys if key in fresh for row in prepared[key][2]]
            if rows:
                await connection.execute(_insert(connection, messages), rows)
            deltas = _deltas(kept, fresh)
            if deltas:
                await connection.execute(_merge_sessions(connection), deltas)
            ran = [(prepared[key][0], prepared[key][3]) for key in keys if key in fresh]
            if usage := usage_rows(ran):
                await connection.execute(_add_usage(connection), usage)
        return _dropped(records, kept)

    async def erased(self, key: SessionKey, user: str) -> bool:
        """Whether a session was erased, or all of its user when it had begun.

        Of a session that is not known yet, it is taken to have begun before that.

        Raises:
            HistoryAway: the database is away.
        """
        try:
            async with self._database.reading(key.tenant) as connection:
                return not await _not_erased(connection, [SessionOver(key, user, "expired", 0)])
        except BadRecord:
            return False  # a name that no tombstone can have


async def _not_erased(connection: AsyncConnection, records: Sequence[Record]) -> list[Record]:
    """The records that no tombstone names."""
    users = sorted({(key_of(record).tenant, record.user) for record in records})
    t = tombstones.c
    found = await connection.execute(
        select(t.tenant_id, t.user_id, t.session_id, t.at_ms).where(
            tuple_(t.tenant_id, t.user_id).in_(users)
        )
    )
    erased = {(tenant, user, session): at_ms for tenant, user, session, at_ms in found}
    if not erased:
        return list(records)
    begun = await _begun(connection, records)
    return [record for record in records if not _is_erased(record, erased, begun)]


def _dropped(records: Sequence[Record], kept: Sequence[Record]) -> list[tuple[SessionKey, str]]:
    """Whose records were not kept. The end of a session is nothing to end it for."""
    passed = set(map(id, kept))
    gone = (record for record in records if id(record) not in passed)
    return sorted(
        {(key_of(record), record.user) for record in gone if not isinstance(record, SessionOver)}
    )


async def _begun(connection: AsyncConnection, records: Sequence[Record]) -> dict[SessionKey, int]:
    """When the sessions began of which that is known: archived, or in the batch."""
    keys = sorted({tuple(key_of(record)) for record in records})
    s = sessions.c
    found = await connection.execute(
        select(s.tenant_id, s.session_id, s.created_ms).where(
            tuple_(s.tenant_id, s.session_id).in_(keys)
        )
    )
    known = {SessionKey(row.tenant_id, row.session_id): row.created_ms for row in found}
    for record in records:
        if isinstance(record, SessionBegun):
            known[record.key] = min(record.at_ms, known.get(record.key, record.at_ms))
    return known


def _is_erased(
    record: Record, erased: dict[tuple[str, str, str], int], begun: dict[SessionKey, int]
) -> bool:
    key = key_of(record)
    if (key.tenant, record.user, key.session_id) in erased:
        return True
    # All of the user that was begun up to a moment. Of a session that is not known its runs tell,
    # and its end is nothing without it.
    user_ms = erased.get((key.tenant, record.user, ""))
    if user_ms is None:
        return False
    began_ms = record.created_ms if isinstance(record, RunEnded) else 0
    return begun.get(key, began_ms) <= user_ms


def _deltas(records: Sequence[Record], fresh: set[RunRef]) -> list[Row]:
    """What the batch says of each session; runs count once."""
    found: dict[SessionKey, SessionDelta] = {}
    left = set(fresh)
    for record in records:
        key = key_of(record)
        if isinstance(record, RunEnded):
            if record.ref not in left:
                continue
            left.remove(record.ref)
        delta = found.setdefault(key, SessionDelta(key, record.user))
        match record:
            case SessionBegun():
                delta.begun(record)
            case RunEnded():
                delta.ran(record)
            case SessionOver():
                delta.over(record)
    return [found[key].row() for key in sorted(found)]


# --- statements -----------------------------------------------------------------------------------


def _insert(connection: AsyncConnection, table: Table) -> Any:
    """`INSERT` that passes over what is there."""
    return upsert(connection, table).on_conflict_do_nothing()


async def _add_runs(connection: AsyncConnection, rows: list[Row]) -> set[RunRef]:
    """Adds those that are not there yet, and says which: only they are counted."""
    if not rows:
        return set()
    added = _insert(connection, runs).returning(runs.c.tenant_id, runs.c.session_id, runs.c.run_id)
    found = await connection.execute(added, rows)
    return {RunRef(run.tenant_id, run.session_id, run.run_id) for run in found}


def _merge_sessions(connection: AsyncConnection) -> Any:
    statement = upsert(connection, sessions)
    old, new = sessions.c, statement.excluded
    moves = case(
        (old.status == "completed", False),
        (new.status == "completed", True),
        else_=new.status_ms >= old.status_ms,
    )
    newer_state = new.state_ms > old.state_ms

    return statement.on_conflict_do_update(
        index_elements=[old.tenant_id, old.session_id],
        set_={
            # Runs alone do not say what it was created with; nor does an end say whose agent it is.
            "agent_id": case((old.agent_id == "", new.agent_id), else_=old.agent_id),
            "metadata": func.coalesce(old["metadata"], new["metadata"]),
            "on_detach": func.coalesce(old.on_detach, new.on_detach),
            "status": case((moves, new.status), else_=old.status),
            "status_ms": case((moves, new.status_ms), else_=old.status_ms),
            "created_ms": least(old.created_ms, new.created_ms),
            "active_ms": greatest(old.active_ms, new.active_ms),
            "ended_ms": greatest(old.ended_ms, new.ended_ms),
            "runs": old.runs + new.runs,
            "messages": old.messages + new.messages,
            "state": case((newer_state, new.state), else_=old.state),
            "state_ms": greatest(old.state_ms, new.state_ms),
        },
    )


def _add_usage(connection: AsyncConnection) -> Any:
    statement = upsert(connection, usage_daily)
    old, new = usage_daily.c, statement.excluded
    return statement.on_conflict_do_update(
        index_elements=[old.tenant_id, old.day, old.agent_id, old.model],
        set_={
            "runs": old.runs + new.runs,
            "input_tokens": _sum(old.input_tokens, new.input_tokens),
            "output_tokens": _sum(old.output_tokens, new.output_tokens),
        },
    )


def _sum(old: Any, new: Any) -> Any:
    """What is absent adds nothing, and absent it stays until something is known."""
    return case((new.is_(None), old), else_=func.coalesce(old, 0) + new)
