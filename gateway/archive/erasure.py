"""Removes what is archived: all of a user, or a session of theirs, and runs in general."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, bindparam, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.archive.database import ERASING, Database, hold
from gateway.archive.schema import messages, runs, sessions, tombstones
from gateway.archive.statements import greatest, upsert

BATCH = 500
"""So many runs go in one transaction: others who write wait for no more."""
_SESSIONS = 50


async def erase(
    database: Database, tenant: str, user: str, session_id: str = "", *, now_ms: int
) -> int:
    """Sets a tombstone, then removes what is there, in bounded steps. Answers how many sessions.

    Idempotent: when it fails it is to be called again, and the tombstone stands meanwhile.

    Raises:
        HistoryAway: the database does not answer.
    """
    s = sessions.c
    named = [s.tenant_id == tenant, s.user_id == user]
    if session_id:
        named.append(s.session_id == session_id)
    async with database.writing(tenant) as connection:
        await hold(connection, ERASING)
        # By the clock of Redis, where it is ahead of ours.
        newest = await connection.scalar(select(func.max(s.created_ms)).where(*named))
        at_ms = max(now_ms, newest or 0)
        await _bury(connection, tenant, user, session_id, at_ms)
    count = 0
    named.append(s.created_ms <= at_ms)
    while True:
        async with database.writing(tenant) as connection:
            found = await connection.execute(
                select(s.session_id).where(*named).order_by(s.session_id).limit(_SESSIONS)
            )
            ids = [row.session_id for row in found]
            if not ids:
                return count
            where = [runs.c.tenant_id == tenant, runs.c.session_id.in_(ids)]
            if len(await remove_runs(connection, where, runs.c.session_id)) < BATCH:
                await remove_sessions(connection, tenant, ids)
                count += len(ids)


async def _bury(
    connection: AsyncConnection, tenant: str, user: str, session_id: str, at_ms: int
) -> None:
    statement = upsert(connection, tombstones)
    t = tombstones.c
    later = {"at_ms": greatest(t.at_ms, statement.excluded.at_ms)}
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=[t.tenant_id, t.user_id, t.session_id], set_=later
        ),
        {"tenant_id": tenant, "user_id": user, "session_id": session_id, "at_ms": at_ms},
    )


async def remove_runs(
    connection: AsyncConnection, where: Sequence[ColumnElement[bool]], order: Any
) -> list[Any]:
    """Removes the first `BATCH` runs and their messages. Answers what they were."""
    r = runs.c
    found = await connection.execute(
        select(r.tenant_id, r.session_id, r.run_id, r.messages)
        .where(*where)
        .order_by(order)
        .limit(BATCH)
    )
    gone = found.all()
    if gone:
        # In the order of their keys, so that two who remove never wait for each other in turn.
        keys = [{"t": key[0], "s": key[1], "r": key[2]} for key in sorted(row[:3] for row in gone)]
        for table in (messages, runs):
            await connection.execute(_REMOVE[table.name], keys)
    return list(gone)


async def remove_sessions(
    connection: AsyncConnection, tenant: str, session_ids: Sequence[str]
) -> None:
    """Removes sessions that have no runs any more, in the order of their keys."""
    if session_ids:
        keys = [{"t": tenant, "s": session_id} for session_id in sorted(session_ids)]
        await connection.execute(_REMOVE_SESSION, keys)


_REMOVE_SESSION = delete(sessions).where(
    sessions.c.tenant_id == bindparam("t"), sessions.c.session_id == bindparam("s")
)
_REMOVE = {
    table.name: delete(table).where(
        table.c.tenant_id == bindparam("t"),
        table.c.session_id == bindparam("s"),
        table.c.run_id == bindparam("r"),
    )
    for table in (messages, runs)
}
