"""Processes of the product without the second of CPU that its imports take.

Hundreds of them are started, and most of what the tests cost was the same imports again and again.
So each process that runs tests has a parent that has imported everything and does nothing else:
`start` has it fork a child, which then is what `python -m gateway.cli ARGUMENTS` would be. That
the command starts by itself, `e2e/test_commands.py` sees.

When what runs the tests dies, so does its parent, then who waits for a child, then the child.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

_TESTS = Path(__file__).parent.parent
_COMMAND = [sys.executable, "-m", "gateway.cli"]
_IMPORTED = (
    "gateway.app",
    "gateway.archive.migrate",
    "gateway.agents.demo",
    "gateway.agents.loading",
    "gateway.server",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "uvloop",
)
_PR_SET_PDEATHSIG = 1


def start(
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stdout: IO[Any],
    stderr: IO[Any],
) -> "subprocess.Popen[bytes] | Forked":
    """Starts `gateway ARGUMENTS`, with nothing to read from its standard input.

    Forked where that can be, and a new interpreter where it cannot: coverage is measured from a
    process's first line on.
    """
    environment = {**env, "PYTHONPATH": _path()}
    if sys.platform != "linux" or any(name.startswith("COVERAGE_") for name in env):
        return subprocess.Popen(
            [*_COMMAND, *arguments],
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    fds = [stdout.fileno(), stderr.fileno()]
    return _parent().fork(arguments, env=environment, cwd=cwd, fds=fds)


def run(
    *arguments: str, cwd: Path | None = None, timeout_s: float = 60, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Runs `gateway ARGUMENTS`, which is expected to end by itself."""
    with TemporaryFile() as out, TemporaryFile() as err:
        env = {**os.environ, **environment}
        process = start(arguments, env=env, cwd=cwd, stdout=out, stderr=err)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(
            arguments, code, out.read().decode(), err.read().decode()
        )


class Forked:
    """A process as `subprocess.Popen` shows it.

    Attributes:
        pid: its number.
        returncode: how it ended; None while it runs.
    """

    def __init__(self, status: int) -> None:
        """`status`: where its number comes from, and how it ended."""
        self._status = os.fdopen(status, "rb", buffering=0)
        self._lock = threading.Lock()
        self.returncode: int | None = None
        self.pid = self._read()

    def poll(self) -> int | None:
        """How it ended, if it did."""
        with self._lock:
            if self.returncode is None and select.select([self._status], [], [], 0)[0]:
                self.returncode = self._read()
                self._status.close()
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits until it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not, in that time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(_COMMAND, timeout or 0)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _read(self) -> int:
        line = self._status.read(16)
        assert line, "the parent of all processes is gone"
        return int(line)


class _Parent:
    """What forks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "support.forked", str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": _path()},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        atexit.register(self._close)

    def fork(
        self, arguments: Sequence[str], *, env: dict[str, str], cwd: Path | None, fds: list[int]
    ) -> Forked:
        request = {"arguments": arguments, "env": env, "cwd": str(cwd or Path.cwd())}
        status, theirs = os.pipe()
        try:
            with self._lock:
                socket.send_fds(self._socket, [json.dumps(request).encode()], [theirs, *fds])
        finally:
            os.close(theirs)
        return Forked(status)

    def _close(self) -> None:
        self._socket.close()
        self.process.wait()


def _path() -> str:
    """So that the product and `support.agents` are found."""
    return os.pathsep.join([str(_TESTS), str(_TESTS.parent), os.environ.get("PYTHONPATH", "")])


def parent_id() -> int | None:
    """The number of the process that forks, if there is one."""
    return _parent().process.pid if _parent.cache_info().currsize else None


@cache
def _parent() -> _Parent:
    return _Parent()


# --- in the parent --------------------------------------------------------------------------------


def main(requests: socket.socket) -> None:
    """Forks until nobody asks any more. Returns in a child, which then is the command."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent = os.getpid()
    while True:
        request, fds, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        if not request:
            sys.exit()
        if not os.fork():
            break
        for fd in fds:
            os.close(fd)
    _die_with(parent, signal.SIGKILL)
    requests.close()
    status, stdout, stderr = fds
    _wait_for_child(status, others=[stdout, stderr])
    _become(json.loads(request), stdout, stderr)


def _wait_for_child(status: int, others: list[int]) -> None:
    """Tells of a child how it ends. Returns in the child."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    waiter = os.getpid()
    pid = os.fork()
    if not pid:
        _die_with(waiter, signal.SIGTERM)  # in order: it may have a server to end
        os.close(status)
        return
    for fd in others:
        os.close(fd)
    with suppress(BrokenPipeError):  # who asked is gone
        os.write(status, b"%15d\n" % pid)
        _, ended = os.waitpid(pid, 0)
        os.write(status, b"%15d\n" % os.waitstatus_to_exitcode(ended))
    os._exit(0)


def _die_with(parent: int, number: signal.Signals) -> None:
    """This process gets the signal as soon as its parent is gone, however that went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def _become(request: dict[str, Any], stdout: int, stderr: int) -> None:
    """What a new process has of its own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for fd, number in ((stdout, 1), (stderr, 2)):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[0] = request["cwd"]
    sys.argv = ["gateway", *request["arguments"]]


if __name__ == "__main__":
    cli = importlib.import_module("gateway.cli")
    for name in _IMPORTED:
        importlib.import_module(name)
    assert threading.active_count() == 1
    gc.freeze()  # so that children share it, and none looks through it
    main(socket.socket(fileno=int(sys.argv[1])))
    cli.main()
