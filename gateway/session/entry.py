r"""The log's entry: a small header ahead of the frame bytes that clients read.

The script that appends builds both by concatenation, once; the gateway reads the header and never
decodes the event. One entry is two lines, `header LF frame`; a push may carry several, so that
`data.split(b"\n")` alternates headers and frames (JSON escapes line breaks).

    seq epoch run_id kind ts_ms output_tokens input_tokens role task_type since_ms code
    {"type":"event","seq":...}

`kind` is one letter:

====  =============================================================================================
S     the run started
E     an event of the agent
F     the run finished (success)
I     the run finished and asks a person, or waits for a tool of the client
C     the run was cancelled
X     the run failed or was ended by force
N     a notice in the log that belongs to no live run (an interrupt was abandoned or expired)
====  =============================================================================================

Fields that do not apply are `-` or 0. `since_ms` is when that began which the entry ends: with `S`
the wait for a worker (0: none came), with a run's first `E` the wait for that, from the acceptance
of the message on, with its end the work, from the first claim on (0: there was none). `role` is
`assistant` when the ended run left a message; `code` is why it failed (`X` only).
A push that is no entry starts with `!`: `!reset epoch`, `!ended`, `!home`, see `Control`.
"""

from typing import NamedTuple

TERMINAL_KINDS = frozenset("FICX")


class Entry(NamedTuple):
    """One event of the log, with what the gateway needs to know of it."""

    seq: int
    epoch: str
    run_id: str
    kind: str
    ts_ms: int
    output_tokens: int
    input_tokens: int
    role: str
    task_type: str
    since_ms: int
    code: str
    frame: bytes

    @property
    def took_s(self) -> float:
        """From `since_ms` to this entry, by Redis' clock, which may have been set back."""
        return max(0, self.ts_ms - self.since_ms) / 1000


class Control(NamedTuple):
    """A push that is not in the log.

    `name` is `reset` (the log has a new epoch: `detail`), `ended` (the session is over) or `home`
    (the session has no home any more).
    """

    name: str
    detail: str


def parse_push(data: bytes) -> list[Entry] | Control:
    """What one message on a session's channel carries."""
    if data.startswith(b"!"):
        name, _, detail = data[1:].decode().partition(" ")
        return Control(name, detail)
    lines = data.split(b"\n")
    return [parse_entry(lines[i], lines[i + 1]) for i in range(0, len(lines) - 1, 2)]


def parse_entry(header: bytes, frame: bytes) -> Entry:
    """One entry from its two lines."""
    seq, epoch, run_id, kind, ts, out, into, role, task, since, code = header.decode().split(" ")
    return Entry(
        int(seq),
        epoch,
        run_id,
        kind,
        int(ts),
        int(out),
        int(into),
        role,
        task,
        int(since),
        code,
        frame,
    )


def read_entry(raw: bytes) -> Entry:
    """One raw entry of a `LogPage`."""
    header, _, frame = raw.partition(b"\n")
    return parse_entry(header, frame)
