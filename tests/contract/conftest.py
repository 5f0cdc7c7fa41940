"""The engines that the contract holds on: for the bus a single server, and the same binary as a
cluster; for the archive SQLite and PostgreSQL.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from loguru import logger
from support.bus import QUICK, connected_bus, running_server
from support.databases import PostgresServer, postgres_server

from gateway.archive import database as archive_database
from gateway.archive import engines
from gateway.archive.database import Database
from gateway.archive.migrate import migrate
from gateway.bus import connection, notices
from gateway.bus.bus import Bus

PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def in_no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for seconds is no outage: what bounds an answer is far away.

    A test of such a bound sets it.
    """
    for module, names in (
        (connection, ("_ANSWER_TIMEOUT_S", "_CONNECT_TIMEOUT_S")),
        (notices, ("_CONFIRM_TIMEOUT_S", "_ECHO_TIMEOUT_S")),
        (engines, ("_CONNECT_TIMEOUT_S", "_LOCK_TIMEOUT_S")),
        (archive_database, ("_CHECK_TIMEOUT_S", "_READ_TIMEOUT_S")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, PATIENCE_S)


@pytest.fixture(scope="session", params=["single", "cluster"])
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A running server, shared by all tests; each uses sessions and agents of its own."""
    with running_server(cluster=request.param == "cluster") as url:
        yield url


@pytest.fixture
async def bus(redis_url: str) -> AsyncIterator[Bus]:
    """A bus with the documented limits."""
    async with connected_bus(redis_url) as connected:
        yield connected


@pytest.fixture
async def quick_bus(redis_url: str) -> AsyncIterator[Bus]:
    """A bus whose deadlines pass within the test."""
    async with connected_bus(redis_url, QUICK) as connected:
        yield connected


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL, shared by all tests; each uses a database of its own."""
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """`DATABASE_URL` of an empty database, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/history.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create(f"test_{uuid4().hex}")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A database with all tables, and nothing in them."""
    database = Database(database_url)
    await migrate(database)
    yield database
    await database.close()


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged."""
    found: list[str] = []
    sink = logger.add(lambda line: found.append(str(line)), format="{message} {extra}")
    yield found
    logger.remove(sink)
