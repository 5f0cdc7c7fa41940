"""What is written down: a client's frames, the agent's calls, the faults.

A client's tape has a line for each thing that happened to it, in order:

    12.0450 + node-0                    a connection was made
    12.0451 > {"type":"open",...}       it sent a frame
    12.0462 < {"type":"opened",...}     it saw a frame
    14.3301 - 1012                      the connection ended, with this close code
"""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

UP, SENT, SEEN, DOWN = b"+", b">", b"<", b"-"


class Line(NamedTuple):
    """One line of a tape."""

    at: float
    mark: bytes
    text: bytes


class Fault(NamedTuple):
    """Something that was broken on purpose.

    Attributes:
        at, until: when it began, and when it was mended.
        stops: processes that could not do their work meanwhile.
        loses: Redis may have lost what it had confirmed.
    """

    kind: str
    at: float
    until: float
    stops: tuple[str, ...] = ()
    loses: bool = False


class Call(NamedTuple):
    """The agent was called for a run (`start`), or returned (`end`)."""

    at: float
    what: str
    run_id: str
    attempt: int
    process: str


class Tape:
    """What one client writes down. It goes to a file: a run of minutes has a million lines."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=1 << 16)

    def write(self, mark: bytes, text: bytes) -> None:
        """Adds a line."""
        self._file.write(b"%.4f %s %s\n" % (time.time(), mark, text))

    def close(self) -> None:
        """Writes the rest."""
        self._file.close()


def read_tape(lines: Iterable[bytes]) -> Iterator[Line]:
    """The lines of a tape, from its file or from a list."""
    for raw in lines:
        at, mark, text = raw.rstrip(b"\n").split(b" ", 2)
        yield Line(float(at), mark, text)


def read_calls(folder: Path) -> list[Call]:
    """The journal of `support.witness`, all processes, by time."""
    calls: list[Call] = []
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            at, what, run_id, _session, attempt = line.split()
            calls.append(Call(float(at), what, run_id, int(attempt), path.stem))
    return sorted(calls)
