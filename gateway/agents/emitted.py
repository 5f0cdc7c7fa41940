"""Which events an agent may send as they are."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.agents.stream import DELTAS
from gateway.agents.unfinished import Unfinished
from protocol.events import (
    Custom,
    MessagesSnapshot,
    StateDelta,
    StateSnapshot,
    TextMessageContent,
    TextMessageEnd,
    TextMessageStart,
    ToolCallArgs,
    ToolCallEnd,
    ToolCallResult,
    ToolCallStart,
)

JsonObject = dict[str, Any]

_OURS: Final = frozenset({"RUN_STARTED", "RUN_FINISHED", "RUN_ERROR"})
_SHAPES: Final = {
    cls.__struct_config__.tag: cls
    for cls in (
        Custom,
        MessagesSnapshot,
        StateDelta,
        StateSnapshot,
        TextMessageContent,
        TextMessageEnd,
        TextMessageStart,
        ToolCallArgs,
        ToolCallEnd,
        ToolCallResult,
        ToolCallStart,
    )
}
"""Events of which a wrong shape would break the run's own bookkeeping."""


def checked_event(event: Mapping[str, Any]) -> JsonObject:
    """The event, if the run's bookkeeping can take it.

    Raises:
        ValueError: for what is no event, or one that only the gateway may send.
    """
    kind = event.get("type")
    if not isinstance(kind, str):
        raise ValueError("an event needs a `type`")  # noqa: TRY004 (it is the value that is wrong)
    if kind in _OURS:
        raise ValueError(f"{kind} is sent by the gateway, not by an agent")
    checked = dict(event)
    try:
        if kind in _SHAPES:
            msgspec.convert(checked, _SHAPES[kind])
        if kind in DELTAS and not isinstance(checked["delta"], str):
            raise TypeError("`delta` is no text")
        Unfinished().note(checked)
    except (msgspec.ValidationError, KeyError, TypeError) as error:
        raise ValueError(f"not a {kind}: {error}") from error
    return checked
