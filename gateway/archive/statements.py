"""What SQLite and PostgreSQL say in two ways."""

from typing import Any

from sqlalchemy import Table, case
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection


def upsert(connection: AsyncConnection, table: Table) -> Any:
    """An `INSERT` that can say what is to be done about a row that is there."""
    postgresql = connection.dialect.name == "postgresql"
    return postgresql_insert(table) if postgresql else sqlite_insert(table)


def least(one: Any, other: Any) -> Any:
    """The smaller of two columns."""
    return case((one < other, one), else_=other)


def greatest(one: Any, other: Any) -> Any:
    """The larger of two columns."""
    return case((one > other, one), else_=other)
