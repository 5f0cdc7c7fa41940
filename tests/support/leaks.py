"""Processes that tests have started and forgot: whatever is still below the one that runs tests."""

import ctypes
import sys
import time
from pathlib import Path

import psutil

from support import forked

_PATIENCE_S = 45.0
_PR_SET_CHILD_SUBREAPER = 36


def keep_orphans() -> None:
    """From now on what this process starts stays below it, also when its own parent is gone.

    An environment tells less: a server overwrites its own with its title.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def left_behind(patience_s: float = _PATIENCE_S) -> list[str]:
    """What still runs, after some time to end: number, command, and what its output goes to."""
    deadline = time.monotonic() + patience_s
    while (found := _below()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def lives(process_id: int) -> bool:
    """Whether it runs, and does not just wait for its parent to notice that it ended."""
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _below() -> list[str]:
    found: list[str] = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.pid != forked.parent_id() and lives(process.pid):
                found.append(f"{process.pid} {' '.join(process.cmdline())} > {_output(process)}")
        except psutil.NoSuchProcess:
            continue
    return found


def _output(process: psutil.Process) -> str:
    try:
        return str(Path(f"/proc/{process.pid}/fd/1").readlink())
    except OSError:
        return "?"
