"""Client and server frames: frozen structs in two closed unions, one JSON object per text frame.

This is the one definition of the wire. `type` names the frame; unknown fields are ignored. AG-UI
events are carried verbatim (`msgspec.Raw`), our fields stand beside them and never inside.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

FrameId = Annotated[str, Meta(min_length=1, max_length=128)]
"""Made by the client; the idempotency key of what the frame asks for."""

# `$` alone would accept a trailing line break in Python; the look-ahead is legal in ECMA-262 too.
SessionId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$(?!\n)")]
RunId = Annotated[str, Meta(min_length=1, max_length=64)]
AgentName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$(?!\n)")]
Seq = Annotated[int, Meta(ge=0, le=2**53 - 1)]
"""A number that every client and Redis's Lua hold exactly (RFC 8259 section 6)."""
Traceparent = Annotated[str, Meta(max_length=128)]
"""W3C Trace Context `traceparent`; a malformed one is ignored."""

JsonObject = dict[str, Any]
Content = str | Annotated[list[JsonObject], Meta(min_length=1)]
"""A message's content as AG-UI has it: plain text, or a list of content parts."""

WhenBusy = Literal["enqueue", "reject", "interrupt"]
OnDetach = Literal["continue", "cancel"]
"""What happens to a session's runs when its last client has been away for the resume grace."""
RunStatus = Literal["pending", "queued", "running", "cancelling"]
SessionState = Literal["idle", "queued", "running", "cancelling", "awaiting_input", "ended"]


class Cursor(Struct, frozen=True, omit_defaults=True):
    """How far a client has read a session's log; a client stores it and sends it back as it is.

    A client may send the time of the event at `seq`, as that had it, as `ts`: after a loss another
    event may have taken the number, and the server can tell by it.
    """

    epoch: Annotated[str, Meta(min_length=1, max_length=64)]
    seq: Seq
    ts: Seq = 0


class RunInfo(Struct, frozen=True):
    """A run that is not over yet."""

    run_id: str
    status: RunStatus


# --- client to server -----------------------------------------------------------------------------


class Open(Struct, frozen=True, tag="open", omit_defaults=True):
    """First frame: a new session (`agent`) or an old one (`session_id`), resumed at `after`.

    `metadata` and `on_detach` are a new session's; an old one keeps what it was created with.
    """

    id: FrameId
    token: str | None = None
    agent: AgentName | None = None
    session_id: SessionId | None = None
    after: Cursor | None = None
    traceparent: Traceparent | None = None
    metadata: JsonObject | None = None
    on_detach: OnDetach = "continue"


class Message(Struct, frozen=True, tag="message", omit_defaults=True):
    """A user message: makes one run."""

    id: FrameId
    content: Content
    when_busy: WhenBusy = "enqueue"
    tools: list[JsonObject] | None = None
    context: list[JsonObject] | None = None
    state: Any | UnsetType = UNSET
    metadata: JsonObject | None = None
    traceparent: Traceparent | None = None


class AnswerEntry(Struct, frozen=True, omit_defaults=True):
    """The answer to one interrupt."""

    interrupt_id: Annotated[str, Meta(min_length=1, max_length=128)]
    status: Literal["resolved", "cancelled"]
    payload: Any | UnsetType = UNSET


class Answer(Struct, frozen=True, tag="answer", omit_defaults=True):
    """Answers every interrupt on which the last run ended; starts the next run with `resume`."""

    id: FrameId
    entries: Annotated[list[AnswerEntry], Meta(min_length=1, max_length=100)]
    traceparent: Traceparent | None = None


class ToolResult(Struct, frozen=True, tag="tool_result", omit_defaults=True):
    """The result of a tool that the client ran; the last pending one starts the next run."""

    id: FrameId
    tool_call_id: Annotated[str, Meta(min_length=1, max_length=128)]
    content: Content
    error: str | None = None
    traceparent: Traceparent | None = None


class Cancel(Struct, frozen=True, tag="cancel", omit_defaults=True):
    """Cancels a run, by default the open one. Idempotent; safe when nothing runs."""

    id: FrameId
    run_id: RunId | None = None


class Refresh(Struct, frozen=True, tag="refresh"):
    """A fresh token for a long-lived connection."""

    id: FrameId
    token: str


class Ping(Struct, frozen=True, tag="ping"):
    """Answered by `pong` with the same `t`."""

    t: int | float | str


class Close(Struct, frozen=True, tag="close"):
    """Ends the *session*. A plain disconnect only detaches from it."""

    id: FrameId


ClientFrame = Open | Message | Answer | ToolResult | Cancel | Refresh | Ping | Close

# --- server to client -----------------------------------------------------------------------------


class Opened(Struct, frozen=True, tag="opened"):
    """The answer to `open`. Without `resumed` a `snapshot` follows."""

    re: str
    session_id: str
    agent: str
    state: SessionState
    cursor: Cursor
    resumed: bool
    runs: list[RunInfo] = field(default_factory=list[RunInfo])
    interrupts: list[JsonObject] = field(default_factory=list[JsonObject])
    pending_tool_calls: list[str] = field(default_factory=list[str])
    heartbeat_ms: int = 0
    resume_ttl_s: int = 0
    limits: dict[str, int] = field(default_factory=dict[str, int])


class Ack(Struct, frozen=True, tag="ack", omit_defaults=True):
    """The frame `re` has been taken and will not be lost."""

    re: str
    status: Literal["accepted", "queued", "duplicate"]
    run_id: str | None = None


class Snapshot(Struct, frozen=True, tag="snapshot"):
    """Replaces all local state; `cursor` counts only once the events are applied.

    An open run that is too large for one frame is not part of it, but follows `cursor` as events.
    """

    cursor: Cursor
    events: list[Raw]


class Event(Struct, frozen=True, tag="event", omit_defaults=True):
    """One AG-UI event; contiguous when `seq` (or `from`, for a merged range) is the cursor + 1.

    `ts` is the time of the append in milliseconds since the epoch, by the clock of Redis.
    """

    seq: Seq
    ts: int
    run_id: str
    event: Raw
    first_seq: Seq | None = field(default=None, name="from")


class Reset(Struct, frozen=True, tag="reset"):
    """Local state is void. `runs` lists what survived; a `snapshot` follows."""

    reason: str
    runs: list[RunInfo] = field(default_factory=list[RunInfo])


class Error(Struct, frozen=True, tag="error", omit_defaults=True):
    """The frame `re` was refused, or (without `re`) something happened to the connection."""

    code: str
    message: str
    retryable: bool
    re: str | None = None
    param: str | None = None
    retry_after_ms: int | None = None


class Expiring(Struct, frozen=True, tag="expiring"):
    """The token ends soon: send `refresh`."""

    expires_in_s: int


class GoAway(Struct, frozen=True, tag="goaway"):
    """This node stops: reconnect after the delay."""

    reason: str
    reconnect_in_ms: int


class Pong(Struct, frozen=True, tag="pong"):
    """The answer to `ping`."""

    t: int | float | str


ServerFrame = Opened | Ack | Snapshot | Event | Reset | Error | Expiring | GoAway | Pong
