"""The AG-UI 1.0 events that the gateway or the SDK itself reads or writes.

Every other event passes through verbatim. Names and shapes are AG-UI's (https://docs.ag-ui.com):
camelCase on the wire, `type` in upper snake case, absent rather than null.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

JsonObject = dict[str, Any]


class Interrupt(Struct, frozen=True, rename="camel", omit_defaults=True):
    """A question to a person on which a run ends."""

    id: str
    reason: str
    message: str | None = None
    tool_call_id: str | None = None
    response_schema: JsonObject | None = None
    expires_at: str | None = None
    metadata: JsonObject | None = None


class ResumeEntry(Struct, frozen=True, rename="camel", omit_defaults=True):
    """The answer to an interrupt, as the next run receives it."""

    interrupt_id: str
    status: Literal["resolved", "cancelled"]
    payload: Any | UnsetType = UNSET


class TokenUsage(Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a model call cost, as the agent reports it. Absent means unknown, never zero."""

    provider: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_input_tokens: int | None = None


class RunAgentInput(Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a run is given. In `RUN_STARTED` its `messages` are only the new ones of this run."""

    thread_id: str
    run_id: str
    messages: list[JsonObject]
    state: Any | UnsetType = UNSET
    tools: list[JsonObject] | None = None
    context: list[JsonObject] | None = None
    forwarded_props: Any | UnsetType = UNSET
    resume: list[ResumeEntry] | None = None


class _Event(Struct, frozen=True, rename="camel", omit_defaults=True, tag_field="type"):
    """The base of all events: `type` carries the tag."""


class RunStarted(_Event, frozen=True, tag="RUN_STARTED"):
    """The first event of a run."""

    thread_id: str
    run_id: str
    parent_run_id: str | None = None
    input: RunAgentInput | None = None


class SuccessOutcome(Struct, frozen=True, rename="camel", omit_defaults=True, tag="success"):
    """The run is over; client tools may be pending."""

    pending_tool_call_ids: list[str] | None = None


class InterruptOutcome(Struct, frozen=True, rename="camel", tag="interrupt"):
    """The run is over and asks a person."""

    interrupts: Annotated[list[Interrupt], Meta(min_length=1)]


class CancelledOutcome(Struct, frozen=True, tag="cancelled"):
    """The run was stopped on request and closed what it had opened."""


Outcome = SuccessOutcome | InterruptOutcome | CancelledOutcome


class RunFinished(_Event, frozen=True, tag="RUN_FINISHED"):
    """The last event of a run that ended in order."""

    thread_id: str
    run_id: str
    result: Any | UnsetType = UNSET
    outcome: Outcome | None = None
    usage: list[TokenUsage] | None = None


class RunError(_Event, frozen=True, tag="RUN_ERROR"):
    """The last event of a run that failed or was ended by force."""

    message: str
    code: str | None = None
    usage: list[TokenUsage] | None = None


class TextMessageStart(_Event, frozen=True, tag="TEXT_MESSAGE_START"):
    """Opens a text message."""

    message_id: str
    role: str | None = "assistant"


class TextMessageContent(_Event, frozen=True, tag="TEXT_MESSAGE_CONTENT"):
    """Adds to an open text message."""

    message_id: str
    delta: str


class TextMessageEnd(_Event, frozen=True, tag="TEXT_MESSAGE_END"):
    """Closes a text message."""

    message_id: str


class ToolCallStart(_Event, frozen=True, tag="TOOL_CALL_START"):
    """Opens a tool call."""

    tool_call_id: str
    tool_call_name: str
    parent_message_id: str | None = None


class ToolCallArgs(_Event, frozen=True, tag="TOOL_CALL_ARGS"):
    """Adds to the arguments (JSON text) of an open tool call."""

    tool_call_id: str
    delta: str


class ToolCallEnd(_Event, frozen=True, tag="TOOL_CALL_END"):
    """Closes a tool call's arguments."""

    tool_call_id: str


class ToolCallResult(_Event, frozen=True, tag="TOOL_CALL_RESULT"):
    """The result of a tool that the agent ran itself."""

    message_id: str
    tool_call_id: str
    content: str | list[JsonObject]
    role: str | None = "tool"


class StateSnapshot(_Event, frozen=True, tag="STATE_SNAPSHOT"):
    """Replaces the shared state."""

    snapshot: Any


class StateDelta(_Event, frozen=True, tag="STATE_DELTA"):
    """Changes the shared state (RFC 6902 JSON Patch)."""

    delta: list[JsonObject]


class MessagesSnapshot(_Event, frozen=True, tag="MESSAGES_SNAPSHOT"):
    """Replaces all messages."""

    messages: list[JsonObject]


class Custom(_Event, frozen=True, tag="CUSTOM"):
    """An application's own event."""

    name: str
    value: Any


AgUiEvent = (
    RunStarted
    | RunFinished
    | RunError
    | TextMessageStart
    | TextMessageContent
    | TextMessageEnd
    | ToolCallStart
    | ToolCallArgs
    | ToolCallEnd
    | ToolCallResult
    | StateSnapshot
    | StateDelta
    | MessagesSnapshot
    | Custom
)

_encoder = msgspec.json.Encoder()


def encode_event(event: AgUiEvent) -> bytes:
    """The event as compact JSON: one line, since JSON escapes every line break."""
    return _encoder.encode(event)
