"""What goes in and out, as structs: the one definition, from which `/openapi.json` is made.

Unknown members of a body are ignored, as on the wire; unknown query parameters are refused, since a
filter with a wrong name would answer what was not asked for. Times are RFC 3339, in UTC.
"""

from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from gateway.session.archive import SessionStatus
from protocol.frames import (
    AgentName,
    Content,
    Cursor,
    JsonObject,
    OnDetach,
    RunInfo,
    SessionState,
    WhenBusy,
)

MAX_LIMIT = 200

Timestamp = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Day = Annotated[str, Meta(extra_json_schema={"format": "date"})]
Object = Annotated[Raw, Meta(extra_json_schema={"type": "object"})]
AgUiMessage = Annotated[
    Raw,
    Meta(
        description="An AG-UI message, as it was said.",
        extra_json_schema={"type": "object", "required": ["id", "role"]},
    ),
]
PageCursor = Annotated[
    str,
    Meta(
        max_length=200,
        pattern=r"^[A-Za-z0-9_-]+$(?!\n)",
        description="`next_cursor` of the page before; opaque.",
        extra_json_schema={"format": "nooble-cursor"},
    ),
]
PageLimit = Annotated[int, Meta(ge=1, le=MAX_LIMIT)]
Moment = Annotated[datetime, Meta(tz=True)]

# --- in -------------------------------------------------------------------------------------------


class SessionCreate(Struct, frozen=True):
    """A new session."""

    agent_id: AgentName
    user_id: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    metadata: JsonObject | None = None
    on_detach: OnDetach = "continue"


class MessageCreate(Struct, frozen=True):
    """A user message; its members are those of the frame `message`."""

    content: Content
    when_busy: WhenBusy = "enqueue"
    tools: list[JsonObject] | None = None
    context: list[JsonObject] | None = None
    state: Any | UnsetType = UNSET
    metadata: JsonObject | None = None


class SessionQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Which sessions are wanted: `created_from` is included, `created_to` is not."""

    agent_id: AgentName | UnsetType = UNSET
    status: SessionStatus | UnsetType = UNSET
    created_from: Moment | UnsetType = UNSET
    created_to: Moment | UnsetType = UNSET
    order: Literal["created", "active"] = "created"
    cursor: PageCursor | UnsetType = UNSET
    limit: PageLimit = 50


class MessageQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Which messages are wanted: the newest, or those before a cursor."""

    cursor: PageCursor | UnsetType = UNSET
    limit: PageLimit = 50


class UsageQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Which usage is wanted: by default of the last thirty days. Both days are included."""

    first: date | UnsetType = field(default=UNSET, name="from")
    last: date | UnsetType = field(default=UNSET, name="to")
    agent_id: AgentName | UnsetType = UNSET
    model: (
        Annotated[str, Meta(max_length=200, pattern=r"^[^\u0000-\u001f]*$(?!\n)")] | UnsetType
    ) = UNSET


# --- out ------------------------------------------------------------------------------------------


class Session(Struct, frozen=True):
    """A session.

    What is absent is not known here: `run_count` and `message_count` are what the archive has, and
    `state` to `pending_tool_calls` stand on a session that lives, when it is read alone.
    """

    session_id: str
    agent_id: str
    tenant_id: str
    user_id: str
    status: SessionStatus
    metadata: Object
    on_detach: OnDetach
    created_at: Timestamp
    active_at: Timestamp | UnsetType = UNSET
    ended_at: Timestamp | UnsetType = UNSET
    run_count: int | UnsetType = UNSET
    message_count: int | UnsetType = UNSET
    state: SessionState | UnsetType = UNSET
    cursor: Cursor | UnsetType = UNSET
    runs: list[RunInfo] | UnsetType = UNSET
    interrupts: list[JsonObject] | UnsetType = UNSET
    pending_tool_calls: list[str] | UnsetType = UNSET


class SessionList(Struct, frozen=True):
    """Sessions, newest first. One is listed a moment after its creation, once it is archived."""

    sessions: list[Session]
    next_cursor: str | None


class SessionMessage(Struct, frozen=True):
    """A message of the transcript, with the run that asked or said it.

    `at` is when that run ended, and `outcome` and `code` say how; all are absent until that is
    archived.
    """

    message: AgUiMessage
    run_id: str
    outcome: Literal["success", "interrupt", "cancelled", "error"] | UnsetType = UNSET
    code: str | UnsetType = UNSET
    at: Timestamp | UnsetType = UNSET


class MessageList(Struct, frozen=True):
    """Messages, oldest first; `next_cursor` leads to older ones.

    What is not archived yet follows on the first page, beyond its limit.
    """

    messages: list[SessionMessage]
    next_cursor: str | None


class RunAccepted(Struct, frozen=True):
    """It will not be lost. `duplicate`: it was asked for before, under the same key."""

    run_id: str
    status: Literal["accepted", "queued", "duplicate"]


class Erased(Struct, frozen=True):
    """So many sessions, with all that they had, are erased: at least, when it was begun before."""

    sessions: int


class Agent(Struct, frozen=True):
    """An agent and who serves it now; `breaker` is this node's, for the caller's tenant."""

    agent_id: str
    description: str
    workers: int
    slots: int
    busy: int
    queue_depth: int
    breaker: Literal["closed", "half_open", "open"]


class AgentList(Struct, frozen=True):
    """All agents that were ever announced."""

    agents: list[Agent]


class Usage(Struct, frozen=True):
    """What the runs of one day (UTC), agent and model used.

    Tokens that no run reported are absent, never zero; so is a model that none named.
    """

    day: Day
    agent_id: str
    runs: int
    model: str | UnsetType = UNSET
    input_tokens: int | UnsetType = UNSET
    output_tokens: int | UnsetType = UNSET


class UsageList(Struct, frozen=True):
    """The usage of a tenant, both days included."""

    tenant_id: str
    first: Day = field(name="from")
    last: Day = field(name="to")
    usage: list[Usage]


class Problem(Struct, frozen=True):
    """An error (RFC 9457). `code` is that of the wire, and absent where no such path exists."""

    type: str
    title: str
    status: int
    detail: str
    code: str | UnsetType = UNSET
    param: str | UnsetType = UNSET


def timestamp(at_ms: int) -> str:
    """Milliseconds since the epoch as a `Timestamp`."""
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def milliseconds(moment: datetime) -> int:
    """A moment as milliseconds since the epoch."""
    return int(moment.timestamp() * 1000)
