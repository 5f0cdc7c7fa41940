"""A database that is away, full, locked or hanging: a bounded wait, our own words, no damage."""

import asyncio
import gc
import os
import resource
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text
from support.databases import PostgresServer, postgres_server
from support.history import T0, begun, ended, message, rows, some_session

import gateway.archive.database as database_module
import gateway.archive.engines as engines
from gateway.archive.database import ERASING, Database, hold
from gateway.archive.errors import HistoryAway, UnusableDatabase
from gateway.archive.migrate import migrate, prepare
from gateway.archive.reader import Reader
from gateway.archive.schema import runs
from gateway.archive.writer import Writer
from gateway.session.archive import SessionFilter
from gateway.session.breaker import BreakerState
from gateway.session.errors import Unavailable
from gateway.session.model import SessionKey
from gateway.telemetry.catalogue import PREFIX
from gateway.telemetry.metrics import Telemetry
from protocol.codes import ErrorCode


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A server that may be stopped."""
    with postgres_server() as server:
        yield server


@pytest.fixture
async def remote(own_postgres: PostgresServer) -> AsyncIterator[Database]:
    database = Database(own_postgres.create(f"test_{time.monotonic_ns()}"))
    await migrate(database)
    yield database
    await database.close()


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "history.db")
    await migrate(database)
    yield database
    await database.close()


def reader_of(database: Database) -> Reader:
    return Reader(database, now_ms=lambda: T0, transcript_messages=9, transcript_bytes=9999)


async def refused(database: Database) -> float:
    """How long a write takes to say that the database is not there."""
    began = time.monotonic()
    with pytest.raises(HistoryAway) as caught:
        await Writer(database).write([begun(some_session())])
    assert caught.value.why
    return time.monotonic() - began


async def test_what_libpq_calls_its_arguments_is_understood(own_postgres: PostgresServer) -> None:
    """As hosts of PostgreSQL hand their URLs out."""
    options = "options=-c%20work_mem%3D5MB&application_name=the%20gateway"
    others = "sslmode=prefer&channel_binding=prefer&connect_timeout=5&target_session_attrs=primary"
    database = Database(f"{own_postgres.url()}&{options}&{others}")
    async with database.reading() as connection:
        for name, value in (("application_name", "the gateway"), ("work_mem", "5MB")):
            assert await connection.scalar(text(f"SHOW {name}")) == value
    await database.close()


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_server_that_goes_and_comes_back(
    own_postgres: PostgresServer, remote: Database, lines: list[str], how: str
) -> None:
    """Guarantee 8: nothing is lost or doubled, and clients hear one thing only."""
    key, writer = some_session(), Writer(remote)
    await writer.write([begun(key), ended(key, T0 + 1)])
    getattr(own_postgres, how)()
    try:
        for _ in range(3):
            assert await refused(remote) < 5
        assert remote.breaker.state is BreakerState.OPEN
        assert min([await refused(remote) for _ in range(3)]) < 0.5, "it is known to be away"
        with pytest.raises(Unavailable) as caught:
            await reader_of(remote).session(key, "ann")
        assert caught.value.code is ErrorCode.UNAVAILABLE
        assert caught.value.message == "the history does not answer"
        assert caught.value.retry_after_ms
        with pytest.raises(HistoryAway):
            await remote.check()
        # One that is away at the start is waited for.
        await prepare(remote, migrates=False)
    finally:
        own_postgres.start()
    await remote.check()  # readiness is the one that asks
    assert remote.breaker.state is BreakerState.CLOSED
    await writer.write([ended(key, T0 + 1), ended(key, T0 + 2)])
    assert len(await rows(remote, runs)) == 3
    assert sum("does not answer" in line for line in lines if "the database" in line) == 1
    assert sum("answers again" in line for line in lines) == 1


async def test_a_server_that_hangs_is_waited_for_for_a_while(
    own_postgres: PostgresServer, remote: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remote.check()
    key = some_session()
    own_postgres.pause()
    try:
        with monkeypatch.context() as bounds:
            bounds.setattr(database_module, "_WRITE_TIMEOUT_S", 1.0)
            bounds.setattr(database_module, "_CHECK_TIMEOUT_S", 1.0)
            assert await refused(remote) < 8
            began = time.monotonic()
            with pytest.raises(HistoryAway):
                await remote.check()
            assert time.monotonic() - began < 8
    finally:
        own_postgres.resume()
    await remote.check()
    await Writer(remote).write([ended(key)])


async def test_a_locked_file_is_an_outage_not_a_crash(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read all the same: nobody says that it does not answer, nor leaves it alone."""
    monkeypatch.setattr(engines, "_LOCK_TIMEOUT_S", 0.5)
    local = Database(tmp_path / "history.db")
    await migrate(local)
    with sqlite3.connect(tmp_path / "history.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        assert await refused(local) < 10
        await refused(local)
        with pytest.raises(HistoryAway) as caught:
            await local.check()
        assert "locked" in caught.value.why
        # Reading goes on.
        reader = reader_of(local)
        assert await reader.sessions("acme", "ann", SessionFilter(), after=None, limit=1) == []
        other.execute("ROLLBACK")
    other.close()
    key = some_session()
    await Writer(local).write([ended(key)])
    await local.check()
    said = [line.partition(" {")[0] for line in lines if "migrated" not in line]
    assert said == ["history cannot be written; it waits in Redis", "history is written again"]
    assert "locked" in lines[-2]
    await local.close()


async def test_writes_that_fail_in_a_row_show_while_every_read_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DatabaseDown must fire for a file that is locked, full or read-only: such a one is read."""
    monkeypatch.setattr(engines, "_LOCK_TIMEOUT_S", 0.05)
    local = Database(tmp_path / "history.db")
    await migrate(local)
    telemetry = Telemetry(version="1")
    local.watch(partial(telemetry.breaker_moved, "database"))

    def shown() -> tuple[object, object]:
        telemetry.refresh()
        names = ("service_consecutive_failures", "service_failure_streaks_total")
        found = [telemetry.registry.get(PREFIX + name) for name in names]
        failures, streaks = (metric.get({"service": "database"}) for metric in found)
        return failures, streaks

    async def read() -> None:
        async with local.reading() as connection:
            await connection.execute(text("SELECT 1"))

    assert shown() == (0, 0)
    with closing(sqlite3.connect(tmp_path / "history.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for failed in range(1, 6):
            await refused(local)
            await read()
            assert shown() == (failed, int(failed > 3))
        other.execute("ROLLBACK")
        await read()
        assert shown() == (5, 1), "a read says nothing of writes"
        await Writer(local).write([ended(some_session())])
        assert shown() == (0, 1)
    await local.close()


async def test_a_full_disk_is_told_and_outlived(
    local: Database, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    """No file may grow: the limit is the process's own."""
    key = some_session()
    await Writer(local).write([begun(key)])
    big = ended(key, said=[b'"' + b"x" * 1_000_000 + b'"'])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        for _ in range(3):
            with pytest.raises(HistoryAway) as caught:
                await Writer(local).write([big])
        assert "disk" in caught.value.why
        # A small write may pass, and reading does: readiness says so all the same for a while.
        with pytest.raises(HistoryAway) as caught:
            await local.check()
        assert "disk" in caught.value.why
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sum("history cannot be written" in line for line in lines) == 1
    with pytest.raises(HistoryAway):
        await local.check()
    # Another node has written what waited: we ask by ourselves in the end.
    monkeypatch.setattr(database_module, "_REFUSAL_S", 0.0)
    await local.check()
    assert local.breaker.state is BreakerState.CLOSED
    await Writer(local).write([big])
    assert len(await rows(local, runs)) == 1


async def test_a_full_postgresql_is_an_answer(remote: Database) -> None:
    """The server is there and can be read; only what writes is told to wait."""
    async with remote.writing() as connection:
        await connection.exec_driver_sql(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN RAISE EXCEPTION ''no space left'' USING ERRCODE = ''53100''; END'"
        )
        await connection.exec_driver_sql(
            "CREATE TRIGGER full_disk BEFORE INSERT ON sessions"
            " FOR EACH ROW EXECUTE FUNCTION full_disk()"
        )
    for _ in range(5):
        await refused(remote)
    assert remote.breaker.state is BreakerState.CLOSED
    with pytest.raises(HistoryAway) as caught:
        await remote.check()
    assert "no space left" in caught.value.why


@pytest.fixture
async def distrusted(tmp_path: Path) -> AsyncIterator[Database]:
    """A server whose certificate nobody knows: it is its own."""
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate"))
    for place in (files, ("-keyout", str(tmp_path / "k"), "-out", str(tmp_path / "other"))):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *place, *name],
            check=True,
            capture_output=True,
        )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "certificate", tmp_path / "key")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readexactly(8)  # SSLRequest
            writer.write(b"S")
            await writer.start_tls(tls)
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    trusted = f"sslmode=verify-full&sslrootcert={tmp_path / 'other'}"
    database = Database(f"postgresql://ann@127.0.0.1:{port}/history?{trusted}")
    yield database
    await database.close()
    server.close()


async def test_a_certificate_that_is_not_trusted_is_an_outage(distrusted: Database) -> None:
    """Guarantee 8: SSLCertVerificationError is a ValueError, and no record is to blame for it."""
    database, key = distrusted, some_session()
    reader = reader_of(database)
    for ask in (
        lambda: Writer(database).write([ended(key)]),
        lambda: reader.session(key, "ann"),
        lambda: reader.erase("acme", "ann"),
        database.check,
    ):
        database.breaker.succeed()  # each of them asks the server
        with pytest.raises(HistoryAway) as caught:
            await ask()
        assert "certificate" in caught.value.why.lower()
    await prepare(database, migrates=True)
    with pytest.raises(UnusableDatabase, match=r"(?i)certificate"):
        await migrate(database)


async def test_what_cannot_be_written_is_nowhere_to_be_read_or_erased(database: Database) -> None:
    reader = reader_of(database)
    assert await reader.session(SessionKey("acme", "half \ud800"), "ann") is None
    assert await reader.erase("acme", "half \ud800") == 0


async def test_a_file_that_is_no_database_does_not_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "history.db").write_bytes(os.urandom(8192))
    database = Database(tmp_path / "history.db")
    await prepare(database, migrates=True)
    with pytest.raises(HistoryAway) as caught:
        await database.check()
    assert "not a database" in caught.value.why
    with pytest.raises(UnusableDatabase):
        await migrate(database)
    await database.close()


async def test_a_file_that_is_removed_is_written_no_more(
    local: Database, tmp_path: Path, lines: list[str]
) -> None:
    """Guarantee 8: SQLite would go on, and all of it be gone with the process."""
    key, writer, file = some_session(), Writer(local), tmp_path / "history.db"
    await writer.write([begun(key), ended(key, T0 + 1)])
    away = file.rename(tmp_path / "away.db")
    for _ in range(3):
        await refused(local)
    with pytest.raises(HistoryAway) as caught:
        await local.check()
    assert "removed or replaced" in caught.value.why
    with pytest.raises(Unavailable):
        await reader_of(local).session(key, "ann")
    assert not file.exists(), "no empty one takes its place"
    [line] = [line for line in lines if "does not answer" in line]
    assert f"{file} was removed or replaced" in line
    away.rename(file)
    await local.check()
    await writer.write([ended(key, T0 + 2)])
    with closing(sqlite3.connect(file)) as other:
        assert other.execute("SELECT count(*) FROM runs").fetchone() == (2,)


async def test_a_file_that_is_replaced_is_used_after_a_restart(
    local: Database, tmp_path: Path
) -> None:
    key, file = some_session(), tmp_path / "history.db"
    await Writer(local).write([begun(key), ended(key, T0 + 1)])
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(":memory:")) as copy:
        source.backup(copy)
        for end in ("", "-wal", "-shm"):
            (tmp_path / f"history.db{end}").unlink()
        with closing(sqlite3.connect(file)) as restored:
            copy.backup(restored)
    await refused(local)
    await local.close()
    restarted = Database(file)
    await Writer(restarted).write([ended(key, T0 + 2)])
    assert len(await rows(restarted, runs)) == 2
    await restarted.close()


async def test_what_was_written_while_the_file_went_is_not_taken_for_kept(
    local: Database, tmp_path: Path
) -> None:
    """It would leave the journal."""
    file = tmp_path / "history.db"
    await local.check()

    async def write() -> None:
        async with local.writing() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = version_num"))
            file.unlink()

    with pytest.raises(HistoryAway) as caught:
        await write()
    assert "removed or replaced" in caught.value.why


async def test_a_cancelled_call_leaves_the_database_usable(database: Database) -> None:
    """A client that goes while its page is read."""
    await Writer(database).write([ended(some_session(), T0 + n) for n in range(200)])
    for turns in range(12):
        task = asyncio.get_running_loop().create_task(rows(database, runs))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert len(await rows(database, runs)) == 200
    assert database.breaker.state is BreakerState.CLOSED


HANGS = """
import asyncio, sys
import gateway.archive.database as module
from gateway.archive.database import ERASING, Database, hold

module._WRITE_TIMEOUT_S = 4.0

async def main():
    async with Database(sys.argv[1]).writing() as connection:
        await hold(connection, ERASING, shared=True)
        print("holds", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_node_that_hangs_in_mid_transaction_holds_up_nobody_for_long(
    own_postgres: PostgresServer,
) -> None:
    """Its locks end with its transaction, and the server ends that."""
    url = own_postgres.create(f"test_{time.monotonic_ns()}", patience_s=30)
    other = Database(url)
    await migrate(other)
    with subprocess.Popen(
        [sys.executable, "-c", HANGS, url], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as hung:
        try:
            assert hung.stdout is not None
            assert await asyncio.to_thread(hung.stdout.readline) == b"holds\n"
            hung.send_signal(signal.SIGSTOP)
            async with other.writing() as connection:
                await hold(connection, ERASING)
        finally:
            hung.kill()
    await other.close()


async def test_a_write_that_met_its_bound_keeps_no_lock(
    local: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python closes a connection late while a statement of it lives, in a traceback say."""
    monkeypatch.setattr(database_module, "_WRITE_TIMEOUT_S", 1.0)
    said = [message("assistant", "x" * 500) for _ in range(300)]
    records = [ended(some_session(), said=said) for _ in range(400)]
    gc.disable()
    try:
        with pytest.raises(HistoryAway):
            await Writer(local).write(records)
        with closing(sqlite3.connect(tmp_path / "history.db", timeout=5)) as another:
            another.execute("BEGIN IMMEDIATE")
    finally:
        gc.enable()
