"""Processes that tests have started and forgot: found by a mark in what they inherited."""

import os
import time
from pathlib import Path

import psutil

from support import forked

MARK = "NOOBLE_TESTS"
_PATIENCE_S = 15.0


def mark() -> None:
    """From now on what this process starts can be told, also when its own parent is gone."""
    os.environ[MARK] = str(os.getpid())


def left_behind(patience_s: float = _PATIENCE_S) -> list[str]:
    """What still runs, after some time to end: number, command, and what its output goes to."""
    deadline = time.monotonic() + patience_s
    while (found := _marked()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _marked() -> list[str]:
    ours = {os.getpid(), forked.parent_id()}
    found: list[str] = []
    for process in psutil.process_iter():
        try:
            if process.pid in ours or process.environ().get(MARK) != str(os.getpid()):
                continue
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())} > {_output(process)}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _output(process: psutil.Process) -> str:
    try:
        return str(Path(f"/proc/{process.pid}/fd/1").readlink())
    except OSError:
        return "?"
