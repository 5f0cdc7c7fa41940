"""What a run has opened and not closed. AG-UI wants every start closed before the run's end."""

from typing import Any, Final

JsonObject = dict[str, Any]

PAIRS: Final = {
    "TEXT_MESSAGE_START": ("TEXT_MESSAGE_END", "messageId"),
    "TOOL_CALL_START": ("TOOL_CALL_END", "toolCallId"),
    "REASONING_START": ("REASONING_END", "messageId"),
    "REASONING_MESSAGE_START": ("REASONING_MESSAGE_END", "messageId"),
    "STEP_STARTED": ("STEP_FINISHED", "stepName"),
}
"""What opens, what closes it, and the field that both carry."""

_CLOSERS: Final = dict(PAIRS.values())


class Unfinished:
    """Kept right event by event.

    Attributes:
        calls: ids of tool calls without a result in this run, in the order they were made.
    """

    def __init__(self) -> None:
        self.calls: dict[str, None] = {}
        self._open: dict[tuple[str, str], None] = {}

    def note(self, event: JsonObject) -> None:
        """Takes in one event of the run."""
        kind: str = event["type"]
        if kind in PAIRS:
            closer, field = PAIRS[kind]
            self._open[closer, event[field]] = None
        elif kind in _CLOSERS:
            self._open.pop((kind, event[_CLOSERS[kind]]), None)
        if kind == "TOOL_CALL_START":
            self.calls[event["toolCallId"]] = None
        elif kind == "TOOL_CALL_RESULT":
            self.calls.pop(event["toolCallId"], None)

    def closers(self, *, incomplete: bool) -> list[JsonObject]:
        """The events that close what is open, the last opened first.

        What was cut off says so: whoever ends the run, were it not its worker, must know.
        """
        mark = {"incomplete": True} if incomplete else {}
        return [{"type": kind, _CLOSERS[kind]: key, **mark} for kind, key in reversed(self._open)]
