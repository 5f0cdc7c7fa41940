"""The words of the domain as frozen values. Times are milliseconds since the epoch, by Redis."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from protocol.frames import Cursor, OnDetach, RunInfo, SessionState

Role = Literal["user", "assistant", "tool", "system"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who speaks: a user of a tenant."""

    tenant: str
    user: str


class SessionKey(NamedTuple):
    """What names a session: unique only within its tenant."""

    tenant: str
    session_id: str


class RunRef(NamedTuple):
    """What names a run."""

    tenant: str
    session_id: str
    run_id: str

    @property
    def session(self) -> SessionKey:
        """The run's session."""
        return SessionKey(self.tenant, self.session_id)


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds that the domain keeps; the defaults are the documented ones."""

    pending_runs: int = 20
    log_bytes: int = 4 * 1024 * 1024
    run_events: int = 50_000
    run_bytes: int = 16 * 1024 * 1024
    transcript_messages: int = 200
    transcript_bytes: int = 1024 * 1024
    message_ids: int = 10_000
    message_id_ttl_s: float = 24 * 3600
    lease_s: float = 30.0
    max_attempts: int = 3
    run_timeout_s: float = 600.0
    queue_wait_s: float = 60.0
    interrupt_ttl_s: float = 3600.0
    cancel_grace_s: float = 5.0
    resume_grace_s: float = 120.0
    session_ttl_s: float = 24 * 3600
    sessions_capacity: int = 20_000
    dispatch_retry_s: float = 2.0
    node_lease_s: float = 10.0
    journal_bytes: int = 4 * 1024 * 1024
    outbox_bytes: int = 1024 * 1024
    stall_timeout_s: float = 30.0
    label_tenants: int = 200
    label_agents: int = 100


# --- opening and reading a session ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as the bus sees it now.

    Attributes:
        agent: name of its agent.
        user: its owner.
        state: see the table of states in the README.
        cursor: epoch and last seq of the log.
        runs: open and pending runs, the open one first.
        interrupts: AG-UI interrupts that await an answer.
        pending_tools: ids of client tool calls that await a result.
        home: the node that counts it, or an empty string.
        home_seq: that node counts what comes after it.
        made_here: the caller created it, and has been its home ever since.
        created: True when this very call created it.
        homed: True when this very call made the caller its home.
        on_detach: what happens to its runs when nobody follows it for the resume grace.
        metadata: what it was created with, as JSON.
    """

    key: SessionKey
    user: str
    agent: str
    state: SessionState
    cursor: Cursor
    runs: list[RunInfo] = field(default_factory=list[RunInfo])
    interrupts: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    pending_tools: list[str] = field(default_factory=list[str])
    home: str = ""
    home_seq: int = 0
    made_here: bool = False
    created_ms: int = 0
    created: bool = False
    homed: bool = False
    on_detach: OnDetach = "continue"
    metadata: bytes = b"{}"


@dataclass(frozen=True, slots=True)
class SnapshotSource:
    """What a snapshot is made from, read in one step: consistent with `cursor`.

    The events of the open run are read from the log, from `first_seq` to `cursor`.

    Attributes:
        messages: the live transcript, each an AG-UI message as JSON.
        message_runs: the run that each of them belongs to.
        state: the shared state as JSON, when the agent has set one.
        first_seq: of the open run's `RUN_STARTED`; 0 when no run is open.
        last_end_ms: when the newest run ended, as the archive orders them.
    """

    cursor: Cursor
    messages: list[bytes]
    state: bytes | None
    first_seq: int = 0
    message_runs: list[str] = field(default_factory=list[str])
    last_end_ms: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a node saw of a session besides its cursor: where Redis contradicts it, it lost writes.

    Attributes:
        at_ms: time of the event at the cursor; 0 when not known.
        runs: accepted or begun, and not over as far as the node knows.
    """

    at_ms: int = 0
    runs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LogPage:
    """A part of the log after a cursor.

    Attributes:
        entries: raw `header LF frame` entries, oldest first, contiguous from the cursor; bounded in
            number and in bytes.
        last_seq: of the whole log; more pages follow while the last entry is below it.
        status: `ok`; or why the cursor cannot be continued: `epoch` (another epoch), `trimmed`
            (older than the log), `ahead` (Redis lost writes), `gone` (no such session).
        over: those of the runs that were asked about which are over.
        ended: the session is over, and its last run has its terminal event.
    """

    entries: list[bytes]
    epoch: str
    last_seq: int
    status: Literal["ok", "epoch", "trimmed", "ahead", "gone"]
    ended: bool = False
    over: list[str] = field(default_factory=list[str])


# --- putting something into a session -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to accept. `body_digest` tells `id_conflict`; `message` the AG-UI message.

    With an empty `run_id` nothing new is accepted (`circuit_open`), but what is known is answered.

    `run_fields` are further members of `RUN_STARTED.input` as JSON text without braces (tools,
    context, state, forwardedProps), or empty.
    """

    key: SessionKey
    user: str
    frame_id: str
    run_id: str
    body_digest: str
    message: bytes
    run_fields: bytes
    when_busy: Literal["enqueue", "reject", "interrupt"]
    traceparent: str
    seen: Cursor | None = None


@dataclass(frozen=True, slots=True)
class NewAnswer:
    """Answers to the interrupts of those ids. `entries` is AG-UI's `resume` array as JSON."""

    key: SessionKey
    user: str
    frame_id: str
    run_id: str
    body_digest: str
    interrupt_ids: list[str]
    entries: bytes
    traceparent: str
    seen: Cursor | None = None


@dataclass(frozen=True, slots=True)
class NewToolResult:
    """The result of a client tool call. `message` is the AG-UI tool message as JSON."""

    key: SessionKey
    user: str
    frame_id: str
    run_id: str
    body_digest: str
    tool_call_id: str
    message: bytes
    traceparent: str
    seen: Cursor | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of it.

    `dispatch` is the run that now wants a worker (not necessarily this one's), with its agent;
    None when none does. `run_id` is empty for a tool result while others are pending.
    """

    status: Literal["accepted", "queued", "duplicate"]
    run_id: str
    dispatch: RunRef | None
    agent: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is over. `completed` is True for the one call that made it so.

    `ended_ms` is 0 when it is not over, as a call that only asks may find.
    """

    completed: bool
    agent: str
    created_ms: int
    ended_ms: int


# --- a run, as its worker sees it -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """What a worker says about its agent."""

    name: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker's presence: what it serves and how full it is."""

    worker_id: str
    agent: AgentInfo
    slots: int
    busy: int


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """An agent as the directory lists it."""

    info: AgentInfo
    workers: int
    slots: int
    busy: int
    queued: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that is ours. Every later call carries `claim_id`.

    Attributes:
        user: the user id.
        attempt: how often the run has been claimed.
        claim_id: the fencing token, unique even when Redis forgets a claim and counts it again.
        messages: the live transcript, this run's new messages last; each an AG-UI message as JSON.
        run_input: the run's own `RunAgentInput` as JSON, `messages` being only the new ones.
        state: the shared state as JSON, or None.
        metadata: the session's metadata as JSON object.
        task_type: `run`, or `resume` for the answer to an interrupt or tool call.
        deadline_ms: when the run is ended by force.
    """

    ref: RunRef
    agent: str
    user: str
    attempt: int
    claim_id: str
    messages: list[bytes]
    run_input: bytes
    state: bytes | None
    metadata: Mapping[str, Any]
    task_type: Literal["run", "resume"]
    traceparent: str
    deadline_ms: int
    now_ms: int
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """One AG-UI event as compact JSON, with the output tokens in it (0: none or unknown)."""

    json: bytes
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ends.

    Attributes:
        kind: `F` success, `I` interrupt or pending client tools, `C` cancelled, `X` error.
        event: the terminal AG-UI event as compact JSON.
        messages: what the run adds to the transcript, each as JSON.
        interrupts: AG-UI interrupts as a JSON array, empty when there are none.
        pending_tools: ids of client tool calls without a result.
        output_tokens: total over the run as reported, None when not reported.
        input_tokens: likewise.
        state: the new shared state as JSON, None when unchanged.
        code: the error code for `X`, else empty.
    """

    kind: Literal["F", "I", "C", "X"]
    event: bytes
    messages: list[bytes] = field(default_factory=list[bytes])
    interrupts: bytes = b""
    pending_tools: list[str] = field(default_factory=list[str])
    output_tokens: int | None = None
    input_tokens: int | None = None
    state: bytes | None = None
    code: str = ""


class Lease(NamedTuple):
    """What a renewal answers. `held` False: stop at once; `cancelled` True: stop in order."""

    held: bool
    cancelled: bool


# --- deadlines ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Due:
    """A due time that has passed: `kind` is one of those in `bus/scripts/advance.lua`."""

    kind: str
    ref: RunRef
    due_ms: int


@dataclass(frozen=True, slots=True)
class Advanced:
    """What came of acting on a due time.

    Attributes:
        dispatch: a run that wants a worker now, with its `agent`.
        end: set when the run must be ended by force and its words so far be kept: the code to end
            it with. The caller folds the run's events and calls `end_by_force`.
        attempt: how often the run has been claimed.
        claim_id, ordinal: the fence for that call.
        first_seq, cursor: the run's events are in the log from `first_seq` to `cursor`; `first_seq`
            is 0 when it has none.
        completed: the session expired by this call, or by one of this node whose answer was lost
            (it is counted as completed once).
        adopt: `user`'s session wants this node as its home, since `dead_home` is dead or nobody, or
            since it is this very node, which may not know.
    """

    agent: str = ""
    dispatch: RunRef | None = None
    end: str = ""
    attempt: int = 0
    claim_id: str = ""
    ordinal: int = 0
    first_seq: int = 0
    cursor: Cursor = field(default_factory=lambda: Cursor("", 0))
    completed: bool = False
    adopt: bool = False
    user: str = ""
    dead_home: str = ""
    created_ms: int = 0
    now_ms: int = 0
