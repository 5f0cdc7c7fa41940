"""AG-UI events to messages: the one fold that server and clients share.

The gateway folds a run that nobody can finish any more, the SDK the run that it finishes, a client
what it shows. Messages are AG-UI messages as plain JSON objects, so that fields we do not know
survive.
"""

from collections.abc import Iterable
from typing import Any

JsonObject = dict[str, Any]

_DELTAS = {"TEXT_MESSAGE_CONTENT": "messageId", "TOOL_CALL_ARGS": "toolCallId"}


class Transcript:
    """The messages of a session, brought up to date event by event.

    `messages` is in order of appearance; a message is open until its end event or the end of its
    run. Events of unknown type change nothing.
    """

    def __init__(self, messages: Iterable[JsonObject] = ()) -> None:
        """Starts from messages that are complete."""
        self.messages: list[JsonObject] = []
        self.open_ids: set[str] = set()
        """Ids of messages and tool calls that were begun and not ended."""
        self._by_id: dict[str, JsonObject] = {}
        self._calls: dict[str, JsonObject] = {}
        for message in messages:
            self._add(message)

    def apply(self, event: JsonObject) -> None:
        """Folds one event in."""
        match event.get("type"):
            case "RUN_STARTED":
                run_input: JsonObject = event.get("input") or {}
                for message in run_input.get("messages") or ():
                    self._add(message)
            case "MESSAGES_SNAPSHOT":
                self.__init__(event.get("messages") or ())
            case "TEXT_MESSAGE_START":
                self.open_ids.add(event["messageId"])
                self._message(event["messageId"], event.get("role") or "assistant")
            case "TEXT_MESSAGE_CONTENT":
                message = self._message(event["messageId"], "assistant")
                message["content"] = (message.get("content") or "") + event["delta"]
            case "TEXT_MESSAGE_END":
                self.open_ids.discard(event["messageId"])
            case "TOOL_CALL_START":
                self._start_call(event)
            case "TOOL_CALL_ARGS":
                call = self._calls.get(event["toolCallId"])
                if call is not None:
                    call["function"]["arguments"] += event["delta"]
            case "TOOL_CALL_END":
                self.open_ids.discard(event["toolCallId"])
            case "TOOL_CALL_RESULT":
                self._add(
                    {
                        "id": event["messageId"],
                        "role": "tool",
                        "toolCallId": event["toolCallId"],
                        "content": event["content"],
                    }
                )
            case "RUN_FINISHED" | "RUN_ERROR":
                self.open_ids.clear()
            case _:
                pass

    def mark_incomplete(self) -> None:
        """Marks what is still open as cut off, for a run that was ended by force."""
        for message in self.messages:
            calls: list[JsonObject] = message.get("toolCalls") or []
            if message["id"] in self.open_ids or any(c["id"] in self.open_ids for c in calls):
                message["metadata"] = {**(message.get("metadata") or {}), "incomplete": True}
        self.open_ids.clear()

    def _add(self, message: JsonObject) -> None:
        known = self._by_id.get(message["id"])
        if known is not None:
            return
        message = dict(message)
        if message.get("toolCalls"):
            message["toolCalls"] = [
                {**call, "function": dict(call["function"])} for call in message["toolCalls"]
            ]
        self._by_id[message["id"]] = message
        self.messages.append(message)
        for call in message.get("toolCalls") or ():
            self._calls[call["id"]] = call

    def _message(self, message_id: str, role: str) -> JsonObject:
        if message_id not in self._by_id:
            self._add({"id": message_id, "role": role, "content": ""})
        return self._by_id[message_id]

    def _start_call(self, event: JsonObject) -> None:
        call_id: str = event["toolCallId"]
        if call_id in self._calls:
            return
        parent_id: str = event.get("parentMessageId") or call_id
        if parent_id not in self._by_id:
            self._add({"id": parent_id, "role": "assistant"})
        call: JsonObject = {
            "id": call_id,
            "type": "function",
            "function": {"name": event["toolCallName"], "arguments": ""},
        }
        self._by_id[parent_id].setdefault("toolCalls", []).append(call)
        self._calls[call_id] = call
        self.open_ids.add(call_id)


def merge_deltas(events: Iterable[JsonObject]) -> list[JsonObject]:
    """The events with adjacent deltas of one message or tool call joined into one."""
    merged: list[JsonObject] = []
    parts: list[str] = []

    def flush() -> None:
        if len(parts) > 1:
            merged[-1] = {**merged[-1], "delta": "".join(parts)}
        parts.clear()

    for event in events:
        key = _DELTAS.get(event.get("type", ""))
        last = merged[-1] if parts else None
        if (
            key is not None
            and last is not None
            and last["type"] == event["type"]
            and last[key] == event[key]
        ):
            parts.append(event["delta"])
            continue
        flush()
        merged.append(event)
        if key is not None:
            parts.append(event["delta"])
    flush()
    return merged
