"""`Sessions` on Redis: a session's live state, for the node that serves its clients."""

from typing import Any
from uuid import uuid4

import msgspec

from gateway.bus import keys
from gateway.bus.scripts import Argument, Scripts
from gateway.session.archive import Recalled
from gateway.session.model import (
    Accepted,
    Closed,
    Limits,
    LogPage,
    NewAnswer,
    NewMessage,
    NewToolResult,
    RunRef,
    Seen,
    SessionKey,
    SessionView,
    SnapshotSource,
)
from protocol.frames import Cursor, OnDetach, RunInfo


def encode_limits(limits: Limits) -> bytes:
    """The bounds as the scripts read them."""
    return msgspec.json.encode(
        {
            "pending_runs": limits.pending_runs,
            "max_attempts": limits.max_attempts,
            "log_bytes": limits.log_bytes,
            "transcript_messages": limits.transcript_messages,
            "transcript_bytes": limits.transcript_bytes,
            "message_ids": limits.message_ids,
            "message_id_ttl_ms": int(limits.message_id_ttl_s * 1000),
            "queue_wait_ms": int(limits.queue_wait_s * 1000),
            "interrupt_ttl_ms": int(limits.interrupt_ttl_s * 1000),
            "cancel_grace_ms": int(limits.cancel_grace_s * 1000),
            "resume_grace_ms": int(limits.resume_grace_s * 1000),
            "session_ttl_ms": int(limits.session_ttl_s * 1000),
            "dispatch_retry_ms": int(limits.dispatch_retry_s * 1000),
            "node_lease_ms": int(limits.node_lease_s * 1000),
            "journal_bytes": limits.journal_bytes,
        }
    )


def new_epoch() -> str:
    """A fresh, opaque name for a log."""
    return uuid4().hex[:12]


class RedisSessions:
    """See `gateway.session.ports.Sessions`."""

    def __init__(self, scripts: Scripts, limits: Limits, *, ack_replicas: int = 0) -> None:
        """`ack_replicas` replicas confirm what `accept`, `cancel` and `close` answer."""
        self._scripts = scripts
        self._limits = encode_limits(limits)
        self._ack_replicas = ack_replicas

    async def _call(self, name: str, key: SessionKey, *arguments: Argument) -> list[Any]:
        return await self._scripts.call(name, keys.session(key), *arguments)

    async def _command(self, name: str, key: SessionKey, *arguments: Argument) -> list[Any]:
        """A call whose answer a client is told."""
        return await self._scripts.call(
            name, keys.session(key), *arguments, replicas=self._ack_replicas
        )

    async def open(
        self,
        key: SessionKey,
        user: str,
        *,
        node: str,
        agent: str | None = None,
        metadata: dict[str, Any] | None = None,
        dead_home: str = "",
        on_detach: OnDetach = "continue",
        attending: bool = False,
        digest: str = "",
        recalled: Recalled | None = None,
    ) -> SessionView:
        """Creates the session (`agent` given) or finds it; takes its home when it has none."""
        made_of = msgspec.json.encode(metadata or {})
        items: list[bytes] = []
        if recalled is not None:
            agent, made_of, on_detach = recalled.agent, recalled.metadata, recalled.on_detach
            items = [run_id.encode() + b" " + json for run_id, json in recalled.messages]
        answer = await self._call(
            "open",
            key,
            user,
            agent or "",
            made_of,
            node,
            dead_home,
            new_epoch(),
            self._limits,
            on_detach,
            int(attending),
            digest,
            (recalled and recalled.state) or b"",
            recalled.last_end_ms if recalled else 0,
            *items,
        )
        created, homed = answer[:2]
        owner, agent_name, state, epoch, seq, created_ms, home = (
            item.decode() for item in answer[2:9]
        )
        runs = [
            RunInfo(run_id.decode(), status.decode())
            for run_id, status in zip(answer[15::2], answer[16::2], strict=True)
        ]
        return SessionView(
            key=key,
            user=owner,
            agent=agent_name,
            state=state,
            cursor=Cursor(epoch, int(seq)),
            runs=runs,
            interrupts=msgspec.json.decode(answer[9] or b"[]", type=list[dict[str, Any]]),
            pending_tools=msgspec.json.decode(answer[10] or b"[]", type=list[str]),
            home=home,
            home_seq=int(answer[12]),
            made_here=bool(answer[13]),
            created_ms=int(created_ms),
            created=bool(created),
            homed=bool(homed),
            on_detach="cancel" if answer[11] == b"cancel" else "continue",
            metadata=answer[14],
        )

    async def accept(self, new: NewMessage | NewAnswer | NewToolResult) -> Accepted:
        """Makes exactly one run per frame id; the same id again answers `duplicate`."""
        common = (new.user, new.frame_id, new.run_id, new.body_digest)
        seen = (*((new.seen.epoch, new.seen.seq) if new.seen else ("", 0)), new_epoch())
        match new:
            case NewMessage():
                answer = await self._command(
                    "accept",
                    new.key,
                    *common,
                    new.message,
                    new.run_fields,
                    new.when_busy,
                    new.traceparent,
                    *seen,
                    self._limits,
                )
            case NewAnswer():
                answer = await self._command(
                    "answer",
                    new.key,
                    *common,
                    new.entries,
                    new.traceparent,
                    *seen,
                    self._limits,
                    *new.interrupt_ids,
                )
            case NewToolResult():
                answer = await self._command(
                    "tool_result",
                    new.key,
                    *common,
                    new.tool_call_id,
                    new.message,
                    new.traceparent,
                    *seen,
                    self._limits,
                )
        return _accepted(new.key, answer)

    async def cancel(
        self, key: SessionKey, user: str, run_id: str | None, *, frame_id: str
    ) -> Accepted:
        """Cancels the run (the open one by default), or abandons what awaits input."""
        answer = await self._command("cancel", key, user, run_id or "", frame_id, self._limits)
        return _accepted(key, answer)

    async def close(
        self, key: SessionKey, user: str, *, call_id: str = "", again: bool = False
    ) -> Closed:
        """Ends the session; its open run is cancelled."""
        call_id = call_id or uuid4().hex
        return parse_closed(
            await self._command("close", key, user, call_id, self._limits, int(again))
        )

    async def read(
        self, key: SessionKey, after: Cursor, count: int, *, seen: Seen | None = None
    ) -> LogPage:
        """The log after a cursor, at most `count` entries."""
        seen = seen or Seen()
        status, epoch, last_seq, ended, entries, over = await self._call(
            "read", key, after.epoch, after.seq, count, new_epoch(), seen.at_ms, *seen.runs
        )
        return LogPage(
            entries,
            epoch.decode(),
            int(last_seq),
            status.decode(),
            ended=bool(ended),
            over=[run_id.decode() for run_id in over],
        )

    async def snapshot(self, key: SessionKey) -> SnapshotSource | None:
        """All that a newcomer must know, in one consistent read."""
        answer = await self._call("snapshot", key)
        if not answer:
            return None
        epoch, seq, first_seq, state, items, last_end_ms = answer
        parts = [item.partition(b" ") for item in items]
        return SnapshotSource(
            cursor=Cursor(epoch.decode(), int(seq)),
            messages=[message for _, _, message in parts],
            first_seq=int(first_seq),
            state=state or None,
            message_runs=[run_id.decode() for run_id, _, _ in parts],
            last_end_ms=last_end_ms,
        )

    async def leave(self, key: SessionKey, node: str, *, counted_seq: int) -> bool:
        """Gives up the home."""
        return bool((await self._call("leave", key, node, counted_seq, self._limits))[0])


def parse_closed(answer: list[Any]) -> Closed:
    """What close.lua and erase.lua answer."""
    completed, agent, created_ms, ended_ms = answer
    return Closed(bool(completed), agent.decode(), int(created_ms), int(ended_ms))


def _accepted(key: SessionKey, answer: list[Any]) -> Accepted:
    status, run_id, dispatch, agent = (item.decode() for item in answer)
    return Accepted(status, run_id, RunRef(*key, dispatch) if dispatch else None, agent)
