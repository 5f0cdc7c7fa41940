"""Records as the journals bring them, and a database's tables as they are."""

import json
from typing import Any
from uuid import uuid4

from sqlalchemy import Table, select

from gateway.archive.database import Database
from gateway.session.archive import RunEnded, SessionBegun, SessionOver
from gateway.session.model import RunRef, SessionKey

DAY_MS = 24 * 3600 * 1000
T0 = 1_750_000_000_000
"""2025-06-15, 15:06 UTC."""


def some_session(tenant: str = "acme") -> SessionKey:
    return SessionKey(tenant, uuid4().hex)


def begun(key: SessionKey, at_ms: int = T0, **changes: Any) -> SessionBegun:
    fields: dict[str, Any] = {
        "key": key,
        "user": "ann",
        "agent": "helper",
        "metadata": b'{"topic":"tea"}',
        "on_detach": "continue",
        "at_ms": at_ms,
    }
    return SessionBegun(**fields | changes)


def ended(key: SessionKey, at_ms: int = T0 + 1000, **changes: Any) -> RunEnded:
    """A run that was asked one thing and said one; `usage` becomes its terminal event's."""
    run_id = changes.pop("run_id", uuid4().hex)
    event: dict[str, Any] = {"type": "RUN_FINISHED", "threadId": key.session_id, "runId": run_id}
    if "usage" in changes:
        event["usage"] = changes.pop("usage")
    fields: dict[str, Any] = {
        "ref": RunRef(*key, run_id),
        "user": "ann",
        "agent": "helper",
        "task": "run",
        "kind": "F",
        "code": "",
        "created_ms": at_ms,
        "claimed_ms": at_ms,
        "ended_ms": at_ms,
        "asked": [message("user", f"q{at_ms}")],
        "said": [message("assistant", f"a{at_ms}")],
        "event": json.dumps(event).encode(),
        "state": None,
    }
    return RunEnded(**fields | changes)


def over(key: SessionKey, status: str, at_ms: int, user: str = "ann") -> SessionOver:
    return SessionOver(key, user, status, at_ms)  # type: ignore[arg-type]


def message(role: str, content: str) -> bytes:
    return json.dumps({"id": uuid4().hex, "role": role, "content": content}).encode()


async def rows(database: Database, table: Table) -> list[dict[str, Any]]:
    """All of a table, in the order of its key."""
    async with database.reading() as connection:
        found = await connection.execute(select(table).order_by(*table.primary_key.columns))
        return [dict(row._mapping) for row in found]


async def everything(database: Database) -> dict[str, list[dict[str, Any]]]:
    """All tables."""
    from gateway.archive.schema import metadata

    return {name: await rows(database, table) for name, table in sorted(metadata.tables.items())}
