"""AG-UI events to messages: the one fold that server and clients share.

The gateway folds a run that nobody can finish any more, the SDK the run that it finishes, a client
what it shows. Messages are AG-UI messages as plain JSON objects, so that fields we do not know
survive. Events come from agents, so any JSON object must do: one that lacks what its type demands
changes nothing.
"""

from collections.abc import Iterable
from typing import Any, cast

JsonObject = dict[str, Any]


class Transcript:
    """The messages of a session, brought up to date event by event.

    `messages` is in order of appearance; a message is open until its end event or the end of its
    run. Events of unknown type change nothing.
    """

    def __init__(self, messages: Iterable[JsonObject] = ()) -> None:
        """Starts from messages that are complete."""
        self.messages: list[JsonObject] = []
        self.open_ids: set[str] = set()
        """Ids of messages and tool calls that were begun and not ended, or not by themselves."""
        self._by_id: dict[str, JsonObject] = {}
        self._calls: dict[str, JsonObject] = {}
        self._parents: dict[str, JsonObject] = {}
        self._add_all(messages)

    def apply(self, event: JsonObject) -> None:
        """Folds one event in."""
        match event:
            case {"type": "RUN_STARTED", "input": {"messages": [*messages]}}:
                self._add_all(messages)
            case {"type": "MESSAGES_SNAPSHOT", "messages": [*messages]}:
                self.__init__(messages)
            case {"type": "TEXT_MESSAGE_START" | "TEXT_MESSAGE_CONTENT" | "TEXT_MESSAGE_END"}:
                self._apply_text(event)
            case {"type": "TOOL_CALL_START" | "TOOL_CALL_ARGS" | "TOOL_CALL_END"}:
                self._apply_call(event)
            case {
                "type": "TOOL_CALL_RESULT",
                "messageId": str(message_id),
                "toolCallId": str(call_id),
                "content": content,
            }:
                self._add(
                    {"id": message_id, "role": "tool", "toolCallId": call_id, "content": content}
                )
            case {"type": "RUN_FINISHED" | "RUN_ERROR"}:
                self.open_ids.clear()
            case _:
                pass

    def mark_incomplete(self) -> None:
        """Marks what is still open as cut off, for a run that was ended by force."""
        for open_id in self.open_ids:
            for message in (self._by_id.get(open_id), self._parents.get(open_id)):
                if message is not None:
                    known: Any = message.get("metadata")
                    kept = cast(JsonObject, known) if isinstance(known, dict) else {}
                    message["metadata"] = {**kept, "incomplete": True}
        self.open_ids.clear()

    def _apply_text(self, event: JsonObject) -> None:
        match event:
            case {"type": "TEXT_MESSAGE_START", "messageId": str(message_id)}:
                role = event.get("role")
                self.open_ids.add(message_id)
                self._message(message_id, role if role and isinstance(role, str) else "assistant")
            case {
                "type": "TEXT_MESSAGE_CONTENT",
                "messageId": str(message_id),
                "delta": str(delta),
            }:
                message = self._message(message_id, "assistant")
                if isinstance(message.get("content", ""), str | None):
                    _append(message, "content", delta)
            case {"type": "TEXT_MESSAGE_END", "messageId": str(message_id)}:
                if event.get("incomplete") is not True:
                    self.open_ids.discard(message_id)
            case _:
                pass

    def _apply_call(self, event: JsonObject) -> None:
        match event:
            case {
                "type": "TOOL_CALL_START",
                "toolCallId": str(call_id),
                "toolCallName": str(name),
            } if call_id not in self._calls:
                parent_id = event.get("parentMessageId")
                self._start_call(call_id, name, parent_id if isinstance(parent_id, str) else "")
            case {"type": "TOOL_CALL_ARGS", "toolCallId": str(call_id), "delta": str(delta)}:
                if call_id in self._calls:
                    _append(self._calls[call_id]["function"], "arguments", delta)
            case {"type": "TOOL_CALL_END", "toolCallId": str(call_id)}:
                if event.get("incomplete") is not True:
                    self.open_ids.discard(call_id)
            case _:
                pass

    def _add_all(self, messages: Iterable[Any]) -> None:
        for message in messages:
            if isinstance(message, dict):
                self._add(cast(JsonObject, message))

    def _add(self, message: JsonObject) -> None:
        message_id = message.get("id")
        if not isinstance(message_id, str) or message_id in self._by_id:
            return
        message = dict(message)  # ours from here on: what was passed in never changes
        calls: Any = message.get("toolCalls")
        if isinstance(calls, list):
            message["toolCalls"] = [
                self._own_call(call, message) for call in cast(list[Any], calls)
            ]
        self._by_id[message_id] = message
        self.messages.append(message)

    def _own_call(self, call: Any, parent: JsonObject) -> Any:
        match call:
            case {"id": str(call_id), "function": {"arguments": str()} as function}:
                call = {**call, "function": dict(cast(JsonObject, function))}
                self._calls[call_id] = call
                self._parents[call_id] = parent
            case _:
                pass
        return call

    def _message(self, message_id: str, role: str) -> JsonObject:
        if message_id not in self._by_id:
            self._add({"id": message_id, "role": role, "content": ""})
        return self._by_id[message_id]

    def _start_call(self, call_id: str, name: str, parent_id: str) -> None:
        parent_id = parent_id or call_id
        self._add({"id": parent_id, "role": "assistant"})  # nothing, when it is there
        parent = self._by_id[parent_id]
        call: JsonObject = {
            "id": call_id,
            "type": "function",
            "function": {"name": name, "arguments": ""},
        }
        known: Any = parent.get("toolCalls")
        parent["toolCalls"] = [*(cast(list[Any], known) if isinstance(known, list) else ()), call]
        self._calls[call_id] = call
        self._parents[call_id] = parent
        self.open_ids.add(call_id)


def _append(target: JsonObject, key: str, delta: str) -> None:
    # A local name alone holds the string while it grows: CPython then grows it in place, and a long
    # answer of many small deltas costs its length, not the square of it.
    text: str = target.get(key) or ""
    target[key] = None
    text += delta
    target[key] = text


def merge_deltas(events: Iterable[JsonObject]) -> list[JsonObject]:
    """The events with adjacent deltas of one message or tool call joined into one."""
    merged: list[JsonObject] = []
    parts: list[str] = []
    last_key: tuple[str, str] | None = None

    def flush() -> None:
        if len(parts) > 1:
            merged[-1] = {**merged[-1], "delta": "".join(parts)}
        parts.clear()

    for event in events:
        key = _delta_key(event)
        if key is None or key != last_key:
            flush()
            merged.append(event)
        if key is not None:
            parts.append(event["delta"])
        last_key = key
    flush()
    return merged


def _delta_key(event: JsonObject) -> tuple[str, str] | None:
    """What deltas must share to be joined."""
    match event:
        case {"type": "TEXT_MESSAGE_CONTENT" as kind, "messageId": str(owner), "delta": str()}:
            return kind, owner
        case {"type": "TOOL_CALL_ARGS" as kind, "toolCallId": str(owner), "delta": str()}:
            return kind, owner
        case _:
            return None
