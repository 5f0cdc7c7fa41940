"""`DATABASE_URL` to an engine: what is taken, and one line about what is not."""

import os
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from gateway.archive.errors import UnusableDatabase
from gateway.session.masking import mask

SCHEMES = ("sqlite:///", "postgresql://")

_CONNECT_TIMEOUT_S = 2.0
_LOCK_TIMEOUT_S = 1.5
_CONNECTIONS = 8

_CHOICES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": (
        *("any", "primary", "standby", "read-write", "read-only", "prefer-standby"),
    ),
}
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile")
_PASSED_ON = (
    *(*_CHOICES, *_FILES, "user", "password", "dbname", "sslpassword"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "application_name", "options"),
)
"""What asyncpg understands by libpq's names, when it is given a DSN."""
_HOSTS = ("host", "port")
_LEFT_OUT = ("channel_binding", "gssencmode")
"""Stand in URLs that are handed out; asyncpg does without."""


def create_engine(place: str | Path) -> tuple[str, AsyncEngine]:
    """How a `DATABASE_URL` or an SQLite file is called in messages, and its engine.

    Raises:
        UnusableDatabase: for what cannot be one, in one line for a person.
    """
    if isinstance(place, Path):
        return str(place), _sqlite(URL.create("sqlite", database=str(place)), str(place))
    try:
        url = make_url(place)
    except (ArgumentError, ValueError):
        # What cannot be read may hold a password anywhere.
        raise UnusableDatabase(f"DATABASE_URL: must be like {' or '.join(SCHEMES)}...") from None
    name = "postgresql" if url.drivername == "postgres" else url.drivername
    url = url.set(drivername=name.partition("+")[0])
    where = f"DATABASE_URL={mask(url.render_as_string(hide_password=True))}"
    if name in ("sqlite", "sqlite+aiosqlite"):
        return where, _sqlite(url, where)
    if name in ("postgresql", "postgresql+asyncpg"):
        return where, _postgresql(url, where)
    raise UnusableDatabase(f"{where}: must begin with {' or '.join(SCHEMES)}")


class _SqliteConnection(sqlite3.Connection):
    """Gives up its transaction, and with it the lock, when it is closed.

    Python keeps both while a statement of it is not yet collected as garbage, and one that was cut
    off by a time bound may stay long in a traceback.
    """

    def close(self) -> None:
        if self.in_transaction:
            self.rollback()
        super().close()


def _sqlite(url: URL, where: str) -> AsyncEngine:
    if not url.database or url.database == ":memory:" or url.host or url.query:
        raise UnusableDatabase(f"{where}: must name a file, as in sqlite:////var/lib/history.db")
    if sqlite3.sqlite_version_info < (3, 35):  # RETURNING
        raise UnusableDatabase(f"SQLite {sqlite3.sqlite_version}: 3.35 or later is needed")
    engine = create_async_engine(
        url.set(drivername="sqlite+aiosqlite"),
        connect_args={"timeout": _LOCK_TIMEOUT_S, "factory": _SqliteConnection},
        hide_parameters=True,  # in its errors: they are what people said
        pool_size=_CONNECTIONS,
        max_overflow=0,
        pool_timeout=_CONNECT_TIMEOUT_S,
    )

    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions are begun below
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # what was committed survives a power loss
        cursor.close()

    def begin(connection: Connection) -> None:
        # Who will write says so at once: a reader that becomes a writer in mid-transaction is
        # refused when another was quicker, and cannot wait.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine.sync_engine, "connect", connected)
    event.listen(engine.sync_engine, "begin", begin)
    return engine


def _postgresql(url: URL, where: str) -> AsyncEngine:
    _check_host(url.host or "", where)
    hosts = {name: value for name, value in url.query.items() if name in _HOSTS}
    query, timeout_s = _translate(url, where)
    try:
        return create_async_engine(
            url.set(drivername="postgresql+asyncpg", query=hosts),
            # asyncpg takes files of certificates in a DSN only; host and user are said apart.
            connect_args={"timeout": timeout_s, "dsn": f"postgresql://?{urlencode(query)}"},
            pool_size=_CONNECTIONS,
            max_overflow=0,
            pool_timeout=_CONNECT_TIMEOUT_S,
            pool_pre_ping=True,
            hide_parameters=True,
        )
    except (ArgumentError, ValueError):
        raise UnusableDatabase(f"{where}: every host needs its port, a number") from None
    except ModuleNotFoundError:
        raise UnusableDatabase(
            "DATABASE_URL: PostgreSQL needs its driver: pip install 'nooble-gateway[postgres]'"
        ) from None


def _check_host(host: str, where: str) -> None:
    try:
        host.encode("idna")
    except UnicodeError:
        raise UnusableDatabase(f"{where}: {host} is no name of a host") from None


def _translate(url: URL, where: str) -> tuple[dict[str, str], float]:
    """The arguments of libpq as asyncpg takes them, and how long connecting may take."""
    query: dict[str, str] = {}
    timeout_s = _CONNECT_TIMEOUT_S
    for given, values in url.query.items():
        name = "sslmode" if given == "ssl" else given  # asyncpg's own name
        value = values if isinstance(values, str) else values[-1]
        choices = _CHOICES.get(name)
        if choices and value not in choices:
            raise UnusableDatabase(f"{where}: {given} must be one of {', '.join(choices)}")
        if name in _FILES and not os.access(value, os.R_OK):
            raise UnusableDatabase(f"{where}: {given} must be a file that can be read")
        if name == "connect_timeout":
            if not value.isdecimal():
                raise UnusableDatabase(f"{where}: {given} must be a number of seconds")
            timeout_s = float(value) or timeout_s
        elif name in _PASSED_ON:
            query[name] = value
        elif name not in (*_HOSTS, *_LEFT_OUT):
            known = ", ".join(sorted({*_PASSED_ON, *_HOSTS, *_LEFT_OUT, "connect_timeout"}))
            raise UnusableDatabase(f"{where}: {given} is not known; known are {known}")
    return query, timeout_s
