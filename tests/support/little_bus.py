"""A bus for one process: real little logs and channels, and the faults that a bus can have.

It keeps what the ports promise of order, cursors and homes; it is no model of the scripts. Faults
are switched on by attributes: `down`, `lose` (pushes that never come), `hold` (pushes that come
later, by hand).
"""

import asyncio
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import msgspec

from gateway.session.archive import Recalled
from gateway.session.entry import TERMINAL_KINDS, read_entry
from gateway.session.errors import Refused, Unavailable
from gateway.session.model import (
    Accepted,
    AgentInfo,
    AgentStatus,
    Closed,
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
from protocol.codes import ErrorCode
from protocol.frames import Cursor, OnDetach, RunInfo

KEY = SessionKey("acme", "s1")
PAGE_BYTES = 256 * 1024


@dataclass
class Session:
    user: str
    agent: str
    made_of: str = ""
    epoch: str = "e1"
    log: list[bytes] = field(default_factory=list)
    trimmed: int = 0
    messages: list[bytes] = field(default_factory=list)
    message_runs: list[str] = field(default_factory=list)
    state: bytes | None = None
    metadata: bytes = b"{}"
    open_run: str = ""
    run_from: int = 0
    home: str = ""
    home_seq: int = 0
    made_by: str = ""
    ended: bool = False
    on_detach: OnDetach = "continue"
    ended_by: str = ""
    ids: dict[str, tuple[str, str]] = field(default_factory=dict)

    lost_runs: set[str] = field(default_factory=set)
    """Runs that were acknowledged, and that Redis does not know any more."""

    @property
    def seq(self) -> int:
        return self.trimmed + len(self.log)

    def contradicts(self, after: Cursor, seen: Seen) -> bool:
        if seen.at_ms and self.trimmed < after.seq <= self.seq:
            entry = read_entry(self.log[after.seq - self.trimmed - 1])
            if entry.ts_ms != seen.at_ms:
                return True
        return not self.lost_runs.isdisjoint(seen.runs)

    def ended_runs(self) -> set[str]:
        entries = [read_entry(raw) for raw in self.log]
        return {entry.run_id for entry in entries if entry.kind in TERMINAL_KINDS}


class LittleBus:
    """`Sessions`, `Notices`, `Erasure`, and what the service needs of the other ports."""

    def __init__(self) -> None:
        self.sessions: dict[SessionKey, Session] = {}
        self.followers: dict[SessionKey, list[tuple[Callable[[bytes], None], Callable[[], None]]]]
        self.followers = {}
        self.made: Counter[SessionKey] = Counter()
        self.calls: Counter[str] = Counter()
        self.dispatched: list[RunRef] = []
        self.accepted: list[NewMessage | NewAnswer | NewToolResult] = []
        self.agent_names = {"demo"}
        self.dead_nodes: set[str] = set()
        self.erased: dict[SessionKey, str] = {}
        """Erased sessions, with the call that ended each by that."""
        self.dropped_dead: list[tuple[str, str, str]] = []
        self.settled: list[tuple[SessionKey, str]] = []
        self.down = False
        self.dispatch_down = False
        self.lose = 0
        self.hold = False
        self.held: list[bytes] = []
        self.gate: asyncio.Event | None = None
        """Set to an event: reads wait for it, after they have read."""

    # --- what happens in the session --------------------------------------------------------------

    def make(self, key: SessionKey = KEY, *, home: str = "", user: str = "anonymous") -> Session:
        self.made[key] = 0
        return self._make(key, user, "demo", home)

    def _make(
        self,
        key: SessionKey,
        user: str,
        agent: str,
        home: str = "",
        on_detach: OnDetach = "continue",
        made_of: str = "",
        made_by: str = "",
    ) -> Session:
        self.made[key] += 1
        epoch = f"e{self.made[key]}"
        session = Session(
            user, agent, made_of, epoch, home=home, made_by=made_by, on_detach=on_detach
        )
        self.sessions[key] = session
        return session

    def append(
        self,
        kind: str = "E",
        event: dict[str, Any] | None = None,
        *,
        key: SessionKey = KEY,
        run: str = "r1",
        out: int = 0,
        into: int = 0,
        role: str = "-",
        code: str = "-",
        ts_ms: int = 1000,
        since_ms: int = 0,
    ) -> int:
        """One event into the log, and its push onto the channel. Answers its seq."""
        session = self.sessions[key]
        seq = session.seq + 1
        event = event or {"type": "CUSTOM", "name": "n", "value": seq}
        frame = (
            b'{"type":"event","seq":%d,"ts":%d,"run_id":"%s","event":' % (seq, ts_ms, run.encode())
        ) + msgspec.json.encode(event)
        header = (
            f"{seq} {session.epoch} {run} {kind} {ts_ms} {out} {into} {role} run {since_ms} {code}"
        )
        raw = header.encode() + b"\n" + frame + b"}"
        session.log.append(raw)
        if kind == "S":
            session.open_run, session.run_from = run, seq
        elif kind in "FICX":
            session.open_run = ""
        self.push(raw, key)
        return seq

    def end(self, key: SessionKey = KEY) -> None:
        """The session is closed, by somebody else."""
        session = self.sessions[key]
        session.ended, session.home = True, ""
        self.push(b"!ended", key)

    def push(self, data: bytes, key: SessionKey = KEY) -> None:
        if self.hold:
            self.held.append(data)
        elif self.lose:
            self.lose -= 1
        else:
            self.deliver(data, key)

    def deliver(self, data: bytes, key: SessionKey = KEY) -> None:
        for on_push, _ in list(self.followers.get(key, ())):
            on_push(data)

    def restore(self) -> None:
        """The subscriber's connection was lost and is back."""
        for followers in self.followers.values():
            for _, on_restored in followers:
                on_restored()

    def new_epoch(self, epoch: str = "e2", *, keep: int | None = None) -> None:
        session = self.sessions[KEY]
        session.epoch = epoch
        if keep is not None:
            del session.log[keep:]

    # --- Sessions ---------------------------------------------------------------------------------

    async def _call(self, name: str) -> None:
        self.calls[name] += 1
        await asyncio.sleep(0)
        if self.down:
            raise Unavailable

    def _find(self, key: SessionKey, user: str) -> Session:
        session = self.sessions.get(key)
        if session is None or session.user != user:
            raise Refused(ErrorCode.SESSION_NOT_FOUND, "no such session")
        if session.ended:
            raise Refused(ErrorCode.SESSION_ENDED, "this session is over")
        return session

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
        await self._call("open")
        self.calls["attend"] += attending
        if recalled is not None:
            agent, on_detach = recalled.agent, recalled.on_detach
        created = agent is not None and key not in self.sessions
        if created and key in self.erased:
            raise Refused(ErrorCode.SESSION_NOT_FOUND, "no such session")
        if created:
            made = self._make(key, user, agent, node, on_detach, digest, node)
            made.metadata = msgspec.json.encode(metadata or {})
            if recalled is not None:
                made.messages = [message for _, message in recalled.messages]
                made.message_runs = [run_id for run_id, _ in recalled.messages]
                made.metadata, made.state = recalled.metadata, recalled.state
        session = self._find(key, user)
        if digest and session.made_of != digest:
            raise Refused(ErrorCode.ID_CONFLICT, "this key was used for another session")
        homed = node != "" and (session.home == "" or (session.home == dead_home != node))
        if homed:
            session.home_seq = session.seq if session.home else min(session.home_seq, session.seq)
            session.home, session.made_by = node, ""
        runs = [RunInfo(session.open_run, "running")] if session.open_run else []
        return SessionView(
            key=key,
            user=session.user,
            agent=session.agent,
            state="running" if runs else "idle",
            cursor=Cursor(session.epoch, session.seq),
            runs=runs,
            home=session.home,
            home_seq=session.home_seq,
            made_here=session.made_by == node,
            created_ms=1_700_000_000_000,
            created=created,
            homed=homed,
            on_detach=session.on_detach,
            metadata=session.metadata,
        )

    async def accept(self, new: NewMessage | NewAnswer | NewToolResult) -> Accepted:
        await self._call("accept")
        session = self._find(new.key, new.user)
        known = session.ids.get(new.frame_id)
        if known is not None:
            if known[1] != new.body_digest:
                raise Refused(ErrorCode.ID_CONFLICT, "this id was used with another content")
            return Accepted("duplicate", known[0], None, session.agent)
        if not new.run_id:
            raise Refused(ErrorCode.CIRCUIT_OPEN, "nothing new is accepted")
        session.ids[new.frame_id] = (new.run_id, new.body_digest)
        self.accepted.append(new)
        return Accepted("accepted", new.run_id, RunRef(*new.key, new.run_id), session.agent)

    async def cancel(
        self, key: SessionKey, user: str, run_id: str | None, *, frame_id: str
    ) -> Accepted:
        await self._call("cancel")
        session = self._find(key, user)
        known, asked = session.ids.get(frame_id), f"cancel:{run_id or ''}"
        if known is not None:
            if known[1] != asked:
                raise Refused(ErrorCode.ID_CONFLICT, "this id was used with another content")
            return Accepted("duplicate", known[0], None, session.agent)
        if run_id and run_id != session.open_run and run_id not in session.ended_runs():
            raise Refused(ErrorCode.RUN_NOT_FOUND, "no such run in this session")
        target = run_id or session.open_run
        session.ids[frame_id] = (target, asked)
        return Accepted("accepted", target, None, session.agent)

    async def close(
        self, key: SessionKey, user: str, *, call_id: str = "", again: bool = False
    ) -> Closed:
        await self._call("close")
        session = self.sessions[key]
        if again and not session.ended:
            return Closed(False, session.agent, 1000, 0)
        if not session.ended:
            session.ended_by = call_id
            self.end(key)
        for _ in range(20):  # the push may be there long before the answer
            await asyncio.sleep(0)
        return Closed(session.ended_by == call_id, session.agent, 1000, 61_000)

    # --- Erasure, and what is asked of Journal ----------------------------------------------------

    async def sessions_of(self, tenant: str, user: str) -> list[SessionKey]:
        await self._call("sessions_of")
        return [
            key for key, one in self.sessions.items() if (key.tenant, one.user) == (tenant, user)
        ]

    async def now_ms(self) -> int:
        await self._call("now_ms")
        return 7000

    async def erase(self, key: SessionKey, user: str, *, call_id: str) -> Closed:
        await self._call("erase")
        if key in self.sessions:
            session = self.sessions[key]
            assert session.user == user
            self.erased[key] = "" if session.ended else call_id
            self.end(key)
            del self.sessions[key]
        if key not in self.erased:
            raise Refused(ErrorCode.SESSION_NOT_FOUND, "no such session")
        return Closed(self.erased[key] == call_id, "demo", 1000, 61_000)

    async def settle(self, sessions: Sequence[SessionKey], user: str) -> None:
        await self._call("settle")
        self.settled += [(key, user) for key in sessions]

    async def drop_dead(self, tenant: str, user: str, session_id: str = "") -> int:
        await self._call("drop_dead")
        self.dropped_dead.append((tenant, user, session_id))
        return 0

    # --- the log ----------------------------------------------------------------------------------

    async def read(
        self, key: SessionKey, after: Cursor, count: int, *, seen: Seen | None = None
    ) -> LogPage:
        await self._call("read")
        session = self.sessions.get(key)
        if session is None:
            return LogPage([], "", 0, "gone")
        start = after.seq - session.trimmed
        over = session.ended and not session.open_run
        entries = session.log[max(start, 0) : max(start, 0) + count]
        sizes = list(accumulate(len(raw) for raw in entries))
        fitting = max(1, bisect_right(sizes, PAGE_BYTES))
        ended = session.ended_runs()
        runs = [run_id for run_id in (seen.runs if seen else ()) if run_id in ended]
        page = LogPage(entries[:fitting], session.epoch, session.seq, "ok", over, runs)
        if after.epoch != session.epoch:
            page = LogPage([], session.epoch, session.seq, "epoch")
        elif after.seq > session.seq or session.contradicts(after, seen or Seen()):
            session.epoch += "+"
            page = LogPage([], session.epoch, session.seq, "ahead")
        elif start < 0:
            page = LogPage([], session.epoch, session.seq, "trimmed")
        if self.gate is not None:
            await self.gate.wait()
        return page

    async def snapshot(self, key: SessionKey) -> SnapshotSource | None:
        await self._call("snapshot")
        session = self.sessions.get(key)
        if session is None:
            return None
        source = SnapshotSource(
            Cursor(session.epoch, session.seq),
            list(session.messages),
            session.state,
            session.run_from if session.open_run else 0,
            list(session.message_runs),
            2**53,  # it does not know when runs ended
        )
        if self.gate is not None:
            await self.gate.wait()
        return source

    async def leave(self, key: SessionKey, node: str, *, counted_seq: int) -> bool:
        await self._call("leave")
        session = self.sessions.get(key)
        if session is None or session.home != node:
            return False
        session.home, session.home_seq, session.made_by = "", counted_seq, ""
        self.push(b"!home", key)
        return True

    # --- Notices ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def session_events(
        self, key: SessionKey, on_push: Callable[[bytes], None], on_restored: Callable[[], None]
    ) -> AsyncIterator[None]:
        await self._call("subscribe")
        follower = (on_push, on_restored)
        self.followers.setdefault(key, []).append(follower)
        try:
            yield
        finally:
            await asyncio.sleep(0)
            self.calls["unsubscribe"] += 1
            self.followers[key].remove(follower)

    # --- RunQueue and Directory -------------------------------------------------------------------

    async def dispatch(self, ref: RunRef, agent: str) -> None:
        await self._call("dispatch")
        if self.dispatch_down:
            raise Unavailable
        self.dispatched.append(ref)

    async def agents(self) -> list[AgentStatus]:
        await self._call("agents")
        return [AgentStatus(AgentInfo(name), 1, 8, 3, 2) for name in sorted(self.agent_names)]

    async def find(self, name: str) -> AgentInfo | None:
        return AgentInfo(name) if name in self.agent_names else None


class CountingProbe:
    """Counts facts, so that a test can compare them with what happened."""

    def __init__(self) -> None:
        self.facts: Counter[str] = Counter()
        self.pushes: list[float] = []
        self.deliveries: list[float] = []
        self.durations: list[float] = []
        self.refused_agents: list[str] = []
        self.waits: list[tuple[str, float]] = []
        self.breakers: dict[str, tuple[int, int]] = {}

    def connection_opened(self, tenant: str) -> None:
        self.facts[f"connections {tenant}"] += 1

    def connection_closed(self, tenant: str) -> None:
        self.facts[f"connections {tenant}"] -= 1

    def writes_lost(self) -> None:
        self.facts["writes lost"] += 1

    def pubsub_gap(self) -> None:
        self.facts["gaps"] += 1

    def pubsub_repaired(self, events: int) -> None:
        self.facts["repaired"] += events

    def breaker_moved(self, service: str, state: int, failures: int) -> None:
        self.breakers[service] = (state, failures)

    def session(self, tenant: str, agent: str) -> "CountingProbe":
        return self

    def created(self) -> None:
        self.facts["created"] += 1

    def completed(self, status: str, duration_s: float) -> None:
        self.facts[f"completed {status}"] += 1
        self.durations.append(duration_s)

    def home_taken(self) -> None:
        self.facts["active"] += 1

    def home_left(self) -> None:
        self.facts["active"] -= 1

    def message_accepted(self, role: str, seconds: float) -> None:
        self.facts[f"messages {role}"] += 1

    def pushed(self, delivery_s: float) -> None:
        self.pushes.append(delivery_s)

    def tokens(self, output: int, into: int) -> None:
        self.facts["output"] += output
        self.facts["input"] += into

    def run_ended(
        self,
        kind: str,
        role: str,
        code: str,
        task: str,
        took_s: float | None,
        delivery_s: float | None,
    ) -> None:
        self.facts["runs ended"] += 1
        if delivery_s is not None:
            self.deliveries.append(delivery_s)
        if took_s is not None:
            self.waits.append((f"{kind} {task} {code}", took_s))

    def call_spared(self) -> None:
        self.facts["calls spared"] += 1

    def run_claimed(self, waited_s: float) -> None:
        self.waits.append(("claimed", waited_s))

    def first_event(self, waited_s: float) -> None:
        self.waits.append(("first event", waited_s))

    def opened(self, outcome: str, seconds: float) -> None:
        self.facts[f"opened {outcome}"] += 1

    def agent_left_alone(self, tenant: str, agent: str) -> None:
        self.facts[f"left alone {tenant} {agent}"] += 1

    def message_failed(self, tenant: str, role: str, code: str, agent: str = "") -> None:
        self.facts[f"failed {tenant} {role} {code}"] += 1
        self.refused_agents.append(agent)

    def run_forced(self, ref: RunRef, agent: str, code: str) -> None:
        self.facts[f"forced {code}"] += 1

    def socket_opened(self) -> None:
        self.facts["sockets"] += 1

    def socket_closed(self) -> None:
        self.facts["sockets"] -= 1

    def handshake(self, result: str) -> None:
        self.facts[f"handshake {result}"] += 1

    def disconnected(self, code: int, reason: str) -> None:
        self.facts[f"disconnected {code} {reason}"] += 1

    def frame_received(self, size_bytes: int) -> None:
        self.facts["frames in"] += 1
        self.facts["bytes in"] += size_bytes

    def frames_sent(self, count: int, size_bytes: int) -> None:
        self.facts["frames out"] += count
        self.facts["bytes out"] += size_bytes

    def rate_limited(self) -> None:
        self.facts["rate limited"] += 1


class ManualClock:
    """A clock that stands until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
