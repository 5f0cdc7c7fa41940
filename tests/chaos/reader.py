"""What one client may see of a session: order, whole words, and nothing lost in silence."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgspec
from support.witness import expected

from chaos.tape import DOWN, SEEN, SENT, UP, Line

Position = tuple[str, int]
"""Epoch and seq."""

TERMINAL = ("RUN_FINISHED", "RUN_ERROR")
LOSS_REASONS = ("writes_lost", "epoch_changed")

# What a server that keeps its promises may answer under faults; the rest is a fault of its own.
_ERRORS = {
    "busy",
    "unavailable",
    "circuit_open",
    "interrupt_pending",
    "interrupt_expired",
}
_ERRORS_AFTER_LOSS = {"session_not_found", "agent_not_found", "run_not_found"}
_CODES = {1000, 1006, 1012, 4408, 4410, 4503}
_GONE = 4404

_decode = msgspec.json.Decoder().decode
Json = dict[str, Any]


@dataclass
class RunRecord:
    """A run, as all clients of a session together saw it."""

    run_id: str
    acked: dict[str, float] = field(default_factory=dict[str, float])
    seen_by: dict[str, float] = field(default_factory=dict[str, float])
    frames: set[str] = field(default_factory=set[str])
    tags: set[str] = field(default_factory=set[str])
    started: set[Position] = field(default_factory=set[Position])
    ended: dict[Position, str] = field(default_factory=dict[Position, str])
    ended_at: float = 0.0


class Shared:
    """What all clients of a session must agree on."""

    def __init__(self, lost_before: Callable[[float], bool], log_bytes: int) -> None:
        self.lost_before = lost_before
        self.log_bytes = log_bytes
        self.runs: dict[str, RunRecord] = {}
        self.contents: dict[Position, bytes] = {}
        self.runs_of: dict[str, dict[str, float]] = {}  # frame id -> run id -> when first seen
        self.verbs: dict[str, str] = {}  # frame id -> what was asked for
        self.ids: set[str] = set()
        self.cancels = 0
        self.closes = 0

    def run(self, run_id: str) -> RunRecord:
        if run_id not in self.runs:
            self.runs[run_id] = RunRecord(run_id)
        return self.runs[run_id]


class Reader:
    """Follows one client's tape.

    Attributes:
        wrong: what was found, as (rule, detail).
        cursor: how far it has read.
        told_loss: when it was told that something may be lost.
        told_trim: when it was told that its cursor was older than the log.
        told_end: that the session is over.
        up_until: when its last connection ended.
    """

    def __init__(self, name: str, shared: Shared, totals: "Counter[str]") -> None:
        self.name = name
        self.wrong: list[tuple[str, str]] = []
        self.cursor: Position | None = None
        self.told_loss: list[float] = []
        self.told_trim: list[float] = []
        self.told_end = False
        self.opened: Json = {}
        self.up_until = 0.0
        self.snapshot_at: Position | None = None
        self.slowest_resume_s = 0.0
        self._shared = shared
        self._totals = totals
        self._after: Position | None = None
        self._behind: Position | None = None
        self._reset = ""
        self._needs_opened = self._needs_reset = self._needs_snapshot = False
        self._up_at = 0.0
        self._epoch = ""
        self._run = ""
        self._texts: dict[str, list[str]] = {}
        self._sent: dict[str, str] = {}
        self._diverged = False

    def read(self, line: Line) -> None:
        """The next line."""
        if line.mark == SEEN:
            self._seen(line.at, line.text)
        elif line.mark == SENT:
            self._send(_decode(line.text))
        elif line.mark == UP:
            self._needs_opened, self._up_at = True, line.at
            self._totals["connections"] += 1
        elif line.mark == DOWN:
            self._down(line.at, int(line.text.split()[0]))

    def _bad(self, rule: str, detail: str) -> None:
        self.wrong.append((rule, detail))

    # --- what it sent -----------------------------------------------------------------------------

    def _send(self, frame: Json) -> None:
        kind = frame["type"]
        if kind == "open":
            after = frame.get("after")
            self._after = (after["epoch"], after["seq"]) if after else None
        elif kind == "message":
            self._shared.verbs[frame["id"]] = frame["content"].split()[0]
            self._shared.cancels += frame.get("when_busy") == "interrupt"
        elif kind == "answer":
            payload = frame["entries"][0].get("payload", "")
            self._shared.verbs[frame["id"]] = payload.split()[0]
        elif kind == "cancel":
            self._shared.cancels += 1
        elif kind == "close":
            self._shared.closes += 1
        self._sent[frame["id"]] = kind

    # --- what it saw ------------------------------------------------------------------------------

    def _seen(self, at: float, raw: bytes) -> None:
        frame = _decode(raw)
        match frame["type"]:
            case "event":
                self._event(at, frame, raw)
            case "opened":
                self._open(at, frame)
            case "snapshot":
                self._snapshot(at, frame)
            case "reset":
                self._on_reset(at, frame["reason"])
            case "ack":
                self._ack(at, frame)
            case "error":
                self._error(at, frame)
            case "goaway" | "pong":
                self._totals[frame["type"]] += 1
            case other:
                self._bad("unknown frame", other)

    def _open(self, at: float, frame: Json) -> None:
        if not self._needs_opened:
            self._bad("frame out of turn", "`opened` twice on a connection")
        self._needs_opened = False
        self._shared.ids.add(frame["session_id"])
        self.opened = frame
        if frame["resumed"]:
            if self._after is None:
                self._bad("frame out of turn", "resumed, though no cursor was given")
            self.cursor = self._after
            self._epoch = self._after[0] if self._after else ""
            self._totals["resumes"] += 1
            self.slowest_resume_s = max(self.slowest_resume_s, at - self._up_at)
        else:
            self._behind = self._after
            self._needs_reset = self._after is not None
            self._needs_snapshot = True
            self.cursor = None

    def _on_reset(self, at: float, reason: str) -> None:
        self._totals[f"reset {reason}"] += 1
        self._behind = self.cursor or self._behind
        self._reset = reason
        self._needs_reset, self._needs_snapshot = False, True
        self.cursor = None
        if reason in LOSS_REASONS:
            self.told_loss.append(at)
            if not self._shared.lost_before(at):
                self._bad("loss without a cause", f"`reset` {reason}, but Redis had lost nothing")
        elif reason == "cursor_too_old":
            self.told_trim.append(at)
        else:
            self._bad("unknown frame", f"reset {reason}")

    def _snapshot(self, at: float, frame: Json) -> None:
        self._totals["snapshots"] += 1
        if self._needs_reset:
            self._bad("silent loss", f"a cursor {self._after} became a snapshot without `reset`")
        elif not self._needs_snapshot:
            self._bad("frame out of turn", "a snapshot that nothing announced")
        cursor = (frame["cursor"]["epoch"], frame["cursor"]["seq"])
        if self._reset == "cursor_too_old" and self._behind is not None:
            self._check_trim(self._behind, cursor)
        self._needs_reset = self._needs_snapshot = False
        self._reset = ""
        self.cursor = self.snapshot_at = cursor
        self._epoch = cursor[0]
        self._texts.clear()
        self._run = ""
        self._diverged = False
        for event in frame["events"]:
            if event["type"] == "MESSAGES_SNAPSHOT":
                self._check_messages(event["messages"])
            elif event["type"] == "RUN_STARTED":
                self._start(at, event["runId"], event, None)
            elif event["type"] not in ("STATE_SNAPSHOT", "CUSTOM"):
                self._content(self._run, event)

    def _check_trim(self, behind: Position, head: Position) -> None:
        known = [s for p, s in self._sizes() if behind[1] < p[1] <= head[1] and p[0] == head[0]]
        missing = head[1] - behind[1] - len(known)
        # What nobody saw counts as large as what somebody did, and twice as large again.
        estimate = sum(known) + missing * 2 * max(known, default=1024)
        if behind[0] == head[0] and estimate < self._shared.log_bytes / 2:
            self._bad("silent loss", f"{behind} was too old at {head}, within the log's bound")

    def _sizes(self) -> list[tuple[Position, int]]:
        return [(p, int.from_bytes(v[:4], "big")) for p, v in self._shared.contents.items()]

    def _event(self, at: float, frame: Json, raw: bytes) -> None:
        self._totals["events"] += 1
        seq, first = frame["seq"], frame.get("from", frame["seq"])
        if self.cursor is None:
            self._bad("frame out of turn", f"event {seq} before any snapshot")
            self.cursor = (self._epoch, first - 1)
        expected_seq = self.cursor[1] + 1
        if first > expected_seq:
            self._bad("gap", f"event {first} where {expected_seq} was due")
        elif first < expected_seq:
            self._bad("duplicate", f"event {first} where {expected_seq} was due")
        position = self.cursor = (self.cursor[0], seq)
        if first == seq:
            self._compare(position, raw)
        else:
            self._totals["merged events"] += 1
        self._apply(at, frame["run_id"], frame["event"], position)

    def _compare(self, position: Position, raw: bytes) -> None:
        if self._diverged:
            return
        value = len(raw).to_bytes(4, "big") + blake2b(raw, digest_size=8).digest()
        if self._shared.contents.setdefault(position, value) != value:
            self._diverged = True  # once is enough: the rest differs, too
            self._bad("two contents", f"{position} is not what another client saw: {raw[:200]!r}")

    # --- runs and words ---------------------------------------------------------------------------

    def _apply(self, at: float, run_id: str, event: Json, position: Position) -> None:
        kind = event["type"]
        if kind == "RUN_STARTED":
            self._start(at, run_id, event, position)
        elif kind in TERMINAL:
            self._end(at, run_id, event, position)
        elif kind != "CUSTOM":
            self._content(run_id, event)

    def _start(self, at: float, run_id: str, event: Json, position: Position | None) -> None:
        if self._run:
            self._bad("runs interleave", f"{run_id} begins within {self._run}")
        self._run = run_id
        self._texts[run_id] = []
        run = self._shared.run(run_id)
        run.seen_by.setdefault(self.name, at)
        for message in event["input"]["messages"]:
            if message["role"] == "user":
                self._made(at, message["id"], run)
        if position is not None:
            run.started.add(position)
            if sum(epoch == position[0] for epoch, _ in run.started) > 1:
                self._bad("a run begins twice", f"{run_id}: {sorted(run.started)}")

    def _content(self, run_id: str, event: Json) -> None:
        if run_id != self._run:
            self._bad("runs interleave", f"{event['type']} of {run_id or 'no run'}: {self._run}")
        elif event["type"] == "TEXT_MESSAGE_START":
            if self._texts[run_id]:
                self._bad("answered twice", f"{run_id} has two messages")
        elif event["type"] == "TEXT_MESSAGE_CONTENT":
            self._texts[run_id].append(event["delta"])

    def _end(self, at: float, run_id: str, event: Json, position: Position) -> None:
        run = self._shared.run(run_id)
        if run_id != self._run:
            self._bad("runs interleave", f"{run_id} ends, but {self._run or 'no run'} is open")
        self._run = ""
        kind = outcome_of(event)
        text = "".join(self._texts.pop(run_id, []))
        run.ended[position] = kind
        run.ended_at = at
        if sum(epoch == position[0] for epoch, _ in run.ended) > 1:
            self._bad("a run ends twice", f"{run_id}: {sorted(run.ended)}")
        if kind == "success" or text:
            tag = self._check_text(text, complete=kind == "success", where=run_id)
            run.tags.add(tag)

    def _check_messages(self, messages: list[Json]) -> None:
        seen: set[str] = set()
        for message in messages:
            name = message["id"]
            if message["role"] == "assistant" and message.get("content"):
                complete = not (message.get("metadata") or {}).get("incomplete")
                name = "answer " + self._check_text(message["content"], complete, "the transcript")
            if name in seen:
                self._bad("message run twice", f"{name} is in the transcript twice")
            seen.add(name)

    def _check_text(self, text: str, complete: bool, where: str) -> str:
        head, _, _ = text.partition(" ")
        tag, _, count = head.partition("/")
        words = max(0, text.count(" ") - 1)
        if not count.isdigit() or text != expected(tag, int(count), words):
            self._bad("words", f"{where}: {_first_fault(text)!r}")
        elif words > int(count) or (complete and words < int(count)):
            self._bad("words", f"{where}: {words} of {count}, and that is all")
        return tag

    # --- answers ----------------------------------------------------------------------------------

    def _ack(self, at: float, frame: Json) -> None:
        self._totals[f"ack {frame['status']}"] += 1
        if self._sent.get(frame["re"]) in ("message", "answer"):
            run = self._shared.run(frame["run_id"])
            run.acked.setdefault(self.name, at)
            self._made(at, frame["re"], run)

    def _made(self, at: float, frame_id: str, run: RunRecord) -> None:
        run.frames.add(frame_id)
        self._shared.runs_of.setdefault(frame_id, {}).setdefault(run.run_id, at)

    def _error(self, at: float, frame: Json) -> None:
        code = frame["code"]
        self._totals[f"error {code}"] += 1
        if code == "session_ended":
            self.told_end = True
            return
        if code in _ERRORS_AFTER_LOSS and self._shared.lost_before(at):
            return
        if code not in _ERRORS:
            self._bad("error", f"{code}: {frame['message']}")

    def _down(self, at: float, code: int) -> None:
        self.up_until = at
        self._totals[f"close {code}"] += 1
        if code == _GONE:
            self.told_loss.append(at)
            if not self._shared.lost_before(at):
                self._bad("loss without a cause", "4404, but Redis had lost nothing")
        elif code == 4410:
            self.told_end = True
        elif code not in _CODES:
            self._bad("close code", str(code))


def outcome_of(event: Json) -> str:
    """How a run ended: `success`, `interrupt`, `cancelled`, or an error's code."""
    if event["type"] == "RUN_ERROR":
        return f"error {event['code']}"
    return event.get("outcome", {}).get("type", "success")


def _first_fault(text: str) -> str:
    words = text.split(" ")
    for number, word in enumerate(words[1:-1]):
        if word != str(number):
            return " ".join([words[0], "...", *words[max(1, number - 1) : number + 4]])
    return text[:80]
