"""Guarantee 8: the archive may be down, slow, full or locked; the gateway goes on, and all of it is
written when it is back, once. Real processes, a real PostgreSQL, and SQLite as it comes.
"""

import asyncio
import json
import resource
import shutil
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest
from redis import Redis
from support.agents import expected
from support.databases import PostgresServer, postgres_server
from support.forked import run
from support.history import rows
from support.net import HTTP
from support.socket import TERMINAL, Socket, socket
from support.stack import COUNTING, Stack

from gateway.archive.database import Database
from gateway.archive.schema import messages, runs, sessions, usage_daily
from gateway.bus import keys

pytestmark = pytest.mark.timeout(180)

P = "nooble_orchestrator_"
DEPTH = f'{P}queue_depth{{queue="archive",tenant_id="_all"}}'
LAG = f'{P}queue_lag_seconds{{queue="archive",tenant_id="_all"}}'
SESSIONS, EACH = 10, 10


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@asynccontextmanager
async def reading(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        await database.close()


async def until(check: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(check):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.1)


def checks(stack: Stack, number: int = 0) -> dict[str, str]:
    return HTTP.get(f"{stack.url_of(number)}/health/readiness").json()["checks"]


async def archived(stack: Stack, number: int = 0) -> None:
    """Waits until nothing waits any more: in the journals themselves, then as the metrics say.

    A gauge alone may be from before the last run, which stands in the journal when its end is told.
    """

    def nothing_waits() -> bool:
        with closing(Redis.from_url(stack.redis_url)) as redis:
            journals = sum(redis.xlen(keys.journal(n)) for n in range(keys.PARTITIONS))
        well = checks(stack, number)["database"] == "ok"
        return well and not journals and stack.metrics(number)[DEPTH] == 0

    await until(nothing_waits, "history still waits")


def run_ids(file: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return [run_id for (run_id,) in connection.execute("SELECT run_id FROM runs")]


async def answered(client: Socket, content: str = "count 5 1") -> str:
    """One message and its whole answer; its run."""
    ack = await client.ask("message", content=content)
    assert ack["type"] == "ack", ack
    while (await client.until_event(*TERMINAL))["run_id"] != ack["run_id"]:
        pass
    return ack["run_id"]


# --- PostgreSQL -----------------------------------------------------------------------------------


async def talk(url: str, made: set[str], done: Callable[[], object]) -> None:
    async with socket(url) as client:
        await client.open(agent="counting")
        for _ in range(EACH):
            run_id = await answered(client)
            assert client.text(run_id) == expected(5)
            made.add(run_id)
            done()


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_postgresql_ends_in_the_middle_of_a_hundred_runs(
    folder: Path, postgres: PostgresServer, end: str
):
    """Nobody who talks notices, and afterwards each run is there once, with what was said in it."""
    url = postgres.create(f"test_{uuid4().hex}")
    environment = {"DATABASE_URL": url, "GATEWAY_DATABASE_MIGRATE": "true"}
    made: set[str] = set()
    third, most = anyio.Event(), anyio.Event()

    def done() -> None:
        if len(made) >= 30:
            third.set()
        if len(made) >= 70:
            most.set()

    with Stack.running(folder, agent=COUNTING, **environment) as stack:
        async with asyncio.TaskGroup() as tasks:
            talking = [tasks.create_task(talk(stack.ws_of(), made, done)) for _ in range(SESSIONS)]
            await third.wait()
            await asyncio.to_thread(postgres.kill if end == "kill" else postgres.stop)
            try:
                await most.wait()
                assert not any(task.done() and task.exception() for task in talking)
                await until(lambda: checks(stack)["database"] == "error", "it is not ill")
                await until(lambda: stack.metrics()[DEPTH] > 0, "nothing waits")
                await until(lambda: stack.metrics()[LAG] > 0, "what waits has no age")
                assert HTTP.get(f"{stack.url}/health/readiness").status_code == 503
                assert checks(stack)["redis"] == "ok"
            finally:
                await asyncio.to_thread(postgres.start)
        await archived(stack)
        assert "Traceback" not in stack.nodes[0].output()
    assert len(made) == SESSIONS * EACH
    async with reading(url) as database:
        found = await rows(database, runs)
        assert sorted(row["run_id"] for row in found) == sorted(made)
        said = [json.loads(row["json"]) for row in await rows(database, messages)]
        assert [one["content"] for one in said if one["role"] == "assistant"] == [
            expected(5)
        ] * len(made)
        assert len(said) == 2 * len(made)
        assert {row["runs"] for row in await rows(database, sessions)} == {EACH}
        [usage] = await rows(database, usage_daily)
        assert (usage["runs"], usage["input_tokens"]) == (len(made), 3 * len(made))


async def test_a_node_that_is_killed_while_it_archives_loses_and_doubles_nothing(
    folder: Path, postgres: PostgresServer
):
    """The other takes what is left. (Between commit and forget: `contract/test_archiver.py`.)"""
    url = postgres.create(f"test_{uuid4().hex}")
    environment = {
        "DATABASE_URL": url,
        "GATEWAY_DATABASE_MIGRATE": "true",
        "GATEWAY_LIMIT_NODE_LEASE_S": "2",
    }
    made: set[str] = set()
    with Stack.running(folder, nodes=2, agent=COUNTING, **environment) as stack:
        third = anyio.Event()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(SESSIONS):
                tasks.create_task(talk(stack.ws_of(0), made, lambda: len(made) < 30 or third.set()))
            await third.wait()
            stack.kill_node(1)
        await archived(stack)
    async with reading(url) as database:
        assert sorted(row["run_id"] for row in await rows(database, runs)) == sorted(made)
        assert len(await rows(database, messages)) == 2 * len(made)
        [usage] = await rows(database, usage_daily)
        assert usage["runs"] == len(made)


async def test_the_journal_is_bounded_and_drops_nothing(folder: Path, postgres: PostgresServer):
    """Past the bound messages are refused, to be sent again; what was accepted is written."""
    url = postgres.create(f"test_{uuid4().hex}")
    environment = {
        "DATABASE_URL": url,
        "GATEWAY_DATABASE_MIGRATE": "true",
        "GATEWAY_LIMIT_JOURNAL_BYTES": "6000",
    }
    with Stack.running(folder, agent=COUNTING, **environment) as stack:
        await asyncio.to_thread(postgres.stop)
        made: list[str] = []
        try:
            async with socket(stack.ws_of()) as client:
                await client.open(agent="counting")
                async with asyncio.timeout(60):
                    while True:
                        answer = await client.ask("message", content="count 20 0")
                        if answer["type"] == "error":
                            break
                        made.append(answer["run_id"])
                        await client.until_event(*TERMINAL)
                assert answer["code"] == "unavailable"
                assert answer["retryable"]
                await until(
                    lambda: stack.metrics()[f"{P}archive_journal_fill"] >= 1, "it is not full"
                )
                await asyncio.to_thread(postgres.start)
                await archived(stack)
                made.append(await answered(client))
        finally:
            if not postgres.running:
                await asyncio.to_thread(postgres.start)
        await archived(stack)
    async with reading(url) as database:
        assert sorted(row["run_id"] for row in await rows(database, runs)) == sorted(made)


# --- SQLite ---------------------------------------------------------------------------------------


@asynccontextmanager
async def locked(file: Path, _stack: Stack) -> AsyncIterator[None]:
    """Another process holds the file."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@asynccontextmanager
async def full(file: Path, stack: Stack) -> AsyncIterator[None]:
    """Its files cannot grow, as on a full disk."""
    pid = stack.nodes[0].popen.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    size = max(path.stat().st_size for path in file.parent.glob("history.db*"))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@asynccontextmanager
async def removed(file: Path, _stack: Stack) -> AsyncIterator[None]:
    """Somebody moves it away, and back."""
    away = shutil.move(file, file.with_name("away.db"))
    yield
    shutil.move(away, file)


@pytest.mark.parametrize(
    ("fault", "message", "error"),
    [
        (locked, "history cannot be written", "locked"),
        (full, "history cannot be written", "disk"),
        (removed, "the database does not answer", "removed"),
    ],
)
async def test_a_file_that_cannot_be_written_is_told_and_survived(
    folder: Path, fault: Callable[[Path, Stack], Any], message: str, error: str
):
    """Issue 4, point 2: a clear error in log and readiness, no crash, nothing lost."""
    with Stack.running(folder, agent=COUNTING) as stack:
        file, made = folder / "history.db", list[str]()
        async with socket(stack.ws_of()) as client:
            await client.open(agent="counting")
            for _ in range(3):
                made.append(await answered(client, "count 300 0"))
            await archived(stack)
            async with fault(file, stack):
                made += [await answered(client) for _ in range(3)]
                await until(lambda: checks(stack)["database"] == "error", "it is not ill")
                assert checks(stack)["redis"] == "ok"
                made.append(await answered(client))
            made.append(await answered(client))
            await archived(stack)
        output = stack.nodes[0].output()
        lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        told = [line for line in lines if line["level"] in ("WARNING", "ERROR")]
        assert any(message in line["message"] for line in told), told
        assert any(error in str(line["context"].get("error")) for line in told), told
        assert "Traceback" not in output
    assert sorted(run_ids(file)) == sorted(made)


async def test_a_full_disk_is_told_and_survived(folder: Path):
    """The same on a file system that is really full; needs the right to mount one."""
    disk = folder / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)],
        capture_output=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip("this process may not mount")
    try:
        url = f"sqlite:///{disk / 'history.db'}"
        environment = {"DATABASE_URL": url, "GATEWAY_DATABASE_MIGRATE": "true"}
        with Stack.running(folder, agent=COUNTING, **environment) as stack:
            async with socket(stack.ws_of()) as client:
                await client.open(agent="counting")
                made = [await answered(client)]
                await archived(stack)
                ballast = disk / "ballast"
                with ballast.open("wb", buffering=0) as file, suppress(OSError):
                    while True:
                        file.write(b"x" * 4096)
                made += [await answered(client, "count 300 0") for _ in range(5)]
                await until(lambda: checks(stack)["database"] == "error", "it is not ill")
                assert "full" in stack.nodes[0].output()
                ballast.unlink()
                await archived(stack)
        assert sorted(run_ids(disk / "history.db")) == sorted(made)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# --- sessions that live again ---------------------------------------------------------------------


async def test_an_expired_session_is_opened_again_with_all_that_was_said(folder: Path):
    """Issue 4, point 3: by its id, in a new epoch, with its transcript; for its own user only."""
    environment = {
        "GATEWAY_LIMIT_SESSION_TTL_S": "2",
        "GATEWAY_LIMIT_RESUME_GRACE_S": "0.5",
    }
    with Stack.running(folder, agent=COUNTING, **environment) as stack:
        async with socket(stack.ws_of()) as client:
            await client.open(agent="counting", metadata={"topic": "tea"})
            for _ in range(2):
                await answered(client)
            epoch, session_id = client.opened["cursor"]["epoch"], client.session_id
        expired = (
            f'{P}sessions_completed_total{{agent_id="counting",status="expired",'
            'tenant_id="default"}'
        )
        await until(lambda: stack.metrics().get(expired, 0) == 1, "it does not expire")
        async with socket(stack.ws_of(), additional_headers={"X-Tenant-ID": "other"}) as client:
            answer = await client.ask("open", session_id=session_id)
            assert answer["code"] == "session_not_found"
        async with socket(stack.ws_of()) as client:
            await client.open(session_id=session_id)
            assert client.opened["cursor"]["epoch"] != epoch
            assert client.snapshot is not None
            [snapshot] = [
                event for event in client.snapshot["events"] if event["type"] == "MESSAGES_SNAPSHOT"
            ]
            said = [message["content"] for message in snapshot["messages"]]
            assert said == ["count 5 1", expected(5)] * 2
            await answered(client)
        created = f'{P}sessions_created_total{{agent_id="counting",tenant_id="default"}}'
        # Once more, since it was counted as expired.
        await until(lambda: stack.metrics()[created] == 2, "it is not counted")
        await until(lambda: len(run_ids(folder / "history.db")) == 3, "it is not archived")


# --- for operators --------------------------------------------------------------------------------


async def test_an_operator_sees_what_waits_and_replays_what_was_refused(folder: Path):
    with Stack.running(folder, agent=COUNTING) as stack:

        def gateway(*arguments: str) -> "subprocess.CompletedProcess[str]":
            return run(
                *("archive", *arguments),
                REDIS_URL=stack.redis_url,
                GATEWAY_DATA_DIR=str(folder),
                GATEWAY_LOG_LEVEL="DEBUG",  # what is logged stands not among the answers
            )

        with Redis(unix_socket_path=stack.redis_url.removeprefix("unix://")) as redis:
            redis.xadd("j:{p7}", {"entry": "run", "session": "acme:s1", "kind": "unreadable"})
        dead = f"{P}archive_dead_letters"
        await until(lambda: stack.metrics()[dead] == 1, "it is not set aside")
        status = await asyncio.to_thread(gateway, "status")
        assert status.returncode == 0, status.stderr
        assert "dead letters: 1\n" in status.stdout
        assert "archive: well\n" in status.stdout
        listed = await asyncio.to_thread(gateway, "dead", "--fields")
        [letter] = map(json.loads, listed.stdout.splitlines())
        assert letter["id"].startswith("7/")
        assert letter["fields"]["kind"] == "unreadable"
        replayed = await asyncio.to_thread(gateway, "replay", letter["id"])
        assert replayed.stdout == "put back: 1\n"
        again = await asyncio.to_thread(gateway, "replay", letter["id"])
        assert (again.returncode, again.stdout) == (
            1,
            f"put back: 0\nnot found: {letter['id']}\n",
        )
        everything = await asyncio.to_thread(gateway, "replay", "--all")
        assert everything.returncode == 0
        wrong = await asyncio.to_thread(gateway, "replay", "nonsense")
        assert wrong.returncode == 1
        assert "gateway archive dead" in wrong.stderr
