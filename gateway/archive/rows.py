"""Records as rows: what a batch of the journals says of sessions, runs, messages and usage."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from gateway.archive.errors import BadRecord
from gateway.session.archive import Record, RunEnded, SessionBegun, SessionOver
from gateway.session.model import SessionKey
from protocol.events import TokenUsage

Row = dict[str, Any]

_MODEL_CHARS = 200
_MOST_TOKENS = 2**53 - 1


class _Terminal(msgspec.Struct):
    """What is read of a terminal event: the usage, if it can be read."""

    usage: Any = None


_terminal = msgspec.json.Decoder(_Terminal)


def key_of(record: Record) -> SessionKey:
    """The session that a record is about."""
    return record.ref.session if isinstance(record, RunEnded) else record.key


def text(json: bytes) -> str:
    """JSON as the database takes it.

    Raises:
        BadRecord: it is not UTF-8.
    """
    try:
        return json.decode()
    except UnicodeDecodeError:
        raise BadRecord("a text that is not UTF-8") from None


def run_row(run: RunEnded, usage: Sequence[TokenUsage]) -> Row:
    """A run. Raises `BadRecord`."""
    return {
        "tenant_id": run.ref.tenant,
        "session_id": run.ref.session_id,
        "run_id": run.ref.run_id,
        "agent_id": run.agent,
        "task": run.task,
        "kind": run.kind,
        "code": run.code,
        "created_ms": run.created_ms,
        "claimed_ms": run.claimed_ms,
        "ended_ms": run.ended_ms,
        "messages": len(run.asked) + len(run.said),
        "input_tokens": total(entry.input_tokens for entry in usage),
        "output_tokens": total(entry.output_tokens for entry in usage),
        "event": text(run.event),
    }


def message_rows(run: RunEnded) -> list[Row]:
    """What it asked and said, in order. Raises `BadRecord`."""
    return [
        {
            "tenant_id": run.ref.tenant,
            "session_id": run.ref.session_id,
            "run_id": run.ref.run_id,
            "nth": nth,
            "at_ms": run.ended_ms,
            "json": text(json),
        }
        for nth, json in enumerate([*run.asked, *run.said])
    ]


def reported_usage(event: bytes) -> list[TokenUsage]:
    """The usage in a terminal event, entry by entry; what cannot be read is absent, never zero."""
    try:
        usage = _terminal.decode(event).usage
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    entries: list[TokenUsage] = []
    for entry in cast("list[Any]", usage) if isinstance(usage, list) else []:
        try:
            entries.append(msgspec.convert(entry, TokenUsage))
        except msgspec.ValidationError:
            continue
    return entries


def total(counts: Iterable[int | None]) -> int | None:
    """The sum of what is known; None when nothing is."""
    known = [min(max(count, 0), _MOST_TOKENS) for count in counts if count is not None]
    return min(sum(known), _MOST_TOKENS) if known else None


# --- usage by day ---------------------------------------------------------------------------------


def usage_rows(runs: Iterable[tuple[RunEnded, Sequence[TokenUsage]]]) -> list[Row]:
    """What runs add to each day, agent and model, in the order of their keys."""
    cells: dict[tuple[str, str, str, str], list[list[TokenUsage]]] = {}
    for run, usage in runs:
        by_model: dict[str, list[TokenUsage]] = {} if usage else {"": []}
        for entry in usage:
            by_model.setdefault(_model(entry.model), []).append(entry)
        day = datetime.fromtimestamp(run.ended_ms / 1000, UTC).date().isoformat()
        for model, entries in by_model.items():
            cells.setdefault((run.ref.tenant, day, run.agent, model), []).append(entries)
    return [
        {
            "tenant_id": tenant,
            "day": day,
            "agent_id": agent,
            "model": model,
            "runs": len(runs_),
            "input_tokens": total(entry.input_tokens for run_ in runs_ for entry in run_),
            "output_tokens": total(entry.output_tokens for run_ in runs_ for entry in run_),
        }
        for (tenant, day, agent, model), runs_ in sorted(cells.items())
    ]


def _model(name: str | None) -> str:
    return (name or "").replace("\0", "")[:_MODEL_CHARS]


# --- sessions -------------------------------------------------------------------------------------


@dataclass(slots=True)
class SessionDelta:
    """What a batch says of one session; merged with what is known, in whatever order they come."""

    key: SessionKey
    user: str
    agent: str = ""
    status: str = "active"
    status_ms: int = 0
    metadata: bytes | None = None
    on_detach: str | None = None
    active_ms: int = 0
    ended_ms: int = 0
    runs: int = 0
    messages: int = 0
    state: bytes | None = None
    state_ms: int = 0
    seen: list[int] = field(default_factory=list[int])

    def begun(self, record: SessionBegun) -> None:
        """It was created, or made live again."""
        self.agent = record.agent
        self.seen.append(record.at_ms)
        self.active_ms = max(self.active_ms, record.at_ms)
        if self.metadata is None:
            self.metadata, self.on_detach = record.metadata, record.on_detach
        self._become("active", record.at_ms)

    def ran(self, record: RunEnded) -> None:
        """A run of it that was not known is over."""
        self.agent = self.agent or record.agent
        self.seen.append(record.created_ms)
        self.active_ms = max(self.active_ms, record.ended_ms)
        self.runs += 1
        self.messages += len(record.asked) + len(record.said)
        if record.state is not None and record.ended_ms > self.state_ms:
            self.state, self.state_ms = record.state, record.ended_ms

    def over(self, record: SessionOver) -> None:
        """It was closed, or expired."""
        self.seen.append(record.at_ms)
        if record.status == "completed":
            self.ended_ms = max(self.ended_ms, record.at_ms)
        self._become(record.status, record.at_ms)

    def _become(self, status: str, at_ms: int) -> None:
        # Who has completed stays so.
        if self.status != "completed" and (at_ms >= self.status_ms or status == "completed"):
            self.status, self.status_ms = status, at_ms

    def row(self) -> Row:
        """As a row. Raises `BadRecord`."""
        return {
            "tenant_id": self.key.tenant,
            "session_id": self.key.session_id,
            "user_id": self.user,
            "agent_id": self.agent,
            "status": self.status,
            "status_ms": self.status_ms,
            "metadata": None if self.metadata is None else text(self.metadata),
            "on_detach": self.on_detach,
            "created_ms": min(self.seen),
            "active_ms": self.active_ms or min(self.seen),
            "ended_ms": self.ended_ms,
            "runs": self.runs,
            "messages": self.messages,
            "state": None if self.state is None else text(self.state),
            "state_ms": self.state_ms,
        }
