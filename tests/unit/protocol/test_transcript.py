"""The fold of events into messages, and the merging of deltas."""

import copy
import itertools
import json
from typing import Any

from ag_ui.core import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from support.frames import json_objects, json_values, texts

from protocol.transcript import Transcript, merge_deltas

messages_model: TypeAdapter[Any] = TypeAdapter(list[Message])

Events = list[dict[str, Any]]


def fold(events: Events) -> Transcript:
    transcript = Transcript()
    for event in events:
        transcript.apply(event)
    return transcript


def known(transcript: Transcript) -> Any:
    return transcript.messages, transcript.open_ids


# --- well-formed streams --------------------------------------------------------------------------


@st.composite
def runs(draw: st.DrawFn) -> Events:
    """What agents send: messages and tool calls that may interleave, some left open."""
    events: Events = []
    for number in range(draw(st.integers(1, 2))):
        run = f"run{number}"
        question = {"id": f"q{number}", "role": "user", "content": draw(texts)}
        events.append(
            {
                "type": "RUN_STARTED",
                "threadId": "t",
                "runId": run,
                "input": {"threadId": "t", "runId": run, "messages": [question]},
            }
        )
        streams = [
            draw(text_stream(f"m{number}{n}") | call_stream(f"c{number}{n}", f"m{number}0"))
            for n in range(draw(st.integers(0, 3)))
        ]
        while any(streams):
            events.append(draw(st.sampled_from([s for s in streams if s])).pop(0))
        events.append({"type": "STATE_SNAPSHOT", "snapshot": 1})
        if draw(st.booleans()):
            events.append({"type": "RUN_FINISHED", "threadId": "t", "runId": run})
    return events


@st.composite
def text_stream(draw: st.DrawFn, message_id: str) -> Events:
    start: dict[str, Any] = {"type": "TEXT_MESSAGE_START", "messageId": message_id}
    if draw(st.booleans()):
        start["role"] = draw(st.sampled_from(["assistant", "system", "developer"]))
    deltas = [
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": message_id, "delta": delta}
        for delta in draw(st.lists(texts, max_size=5))
    ]
    return [start, *deltas, *draw(ends("TEXT_MESSAGE_END", "messageId", message_id))]


@st.composite
def call_stream(draw: st.DrawFn, call_id: str, parent: str) -> Events:
    start: dict[str, Any] = {
        "type": "TOOL_CALL_START",
        "toolCallId": call_id,
        "toolCallName": "search",
    }
    if draw(st.booleans()):
        start["parentMessageId"] = draw(st.sampled_from([parent, f"p{call_id}"]))
    deltas = [
        {"type": "TOOL_CALL_ARGS", "toolCallId": call_id, "delta": delta}
        for delta in draw(st.lists(texts, max_size=5))
    ]
    result = {
        "type": "TOOL_CALL_RESULT",
        "messageId": f"r{call_id}",
        "toolCallId": call_id,
        "content": draw(texts),
    }
    end = draw(ends("TOOL_CALL_END", "toolCallId", call_id))
    return [start, *deltas, *end, *([result] if end and draw(st.booleans()) else [])]


def ends(kind: str, key: str, value: str) -> st.SearchStrategy[Events]:
    return st.sampled_from([[{"type": kind, key: value}], []])


@given(runs())
def test_folding_merged_events_is_folding_them(events: Events) -> None:
    assert known(fold(merge_deltas(events))) == known(fold(events))


@given(runs(), st.data())
def test_merging_any_part_of_the_events(events: Events, data: st.DataObject) -> None:
    """A resume may merge from any point on, and a snapshot up to any."""
    cut = data.draw(st.integers(0, len(events)))
    head, tail = events[:cut], events[cut:]
    assert known(fold(merge_deltas(head))) == known(fold(head))
    assert known(fold(merge_deltas(head) + merge_deltas(tail))) == known(fold(events))


@given(runs())
def test_merging_leaves_no_two_adjacent_deltas_and_its_input_as_it_was(events: Events) -> None:
    before = copy.deepcopy(events)
    merged = merge_deltas(events)
    assert events == before
    assert merge_deltas(merged) == merged
    for one, other in itertools.pairwise(merged):
        if "delta" in one and one["type"] == other["type"]:
            owner = "messageId" if "messageId" in one else "toolCallId"
            assert one[owner] != other[owner]


@given(runs(), st.data())
def test_messages_are_ag_ui_messages_at_any_time(events: Events, data: st.DataObject) -> None:
    events = events[: data.draw(st.integers(0, len(events)))]
    transcript = fold(events)
    messages_model.validate_python(transcript.messages)
    transcript.mark_incomplete()
    messages_model.validate_python(transcript.messages)
    assert not transcript.open_ids


@given(runs())
def test_what_a_message_says_is_what_was_sent(events: Events) -> None:
    sent: dict[tuple[str, str], str] = {}
    for event in events:
        for kind in ("messageId", "toolCallId"):
            owner = (kind, event.get(kind, ""))
            sent[owner] = sent.get(owner, "") + event.get("delta", "")
    transcript = fold(events)
    for message in transcript.messages:
        if message["role"] in ("assistant", "system", "developer"):
            assert (message.get("content") or "") == sent.get(("messageId", message["id"]), "")
            for call in message.get("toolCalls", ()):
                assert call["function"]["arguments"] == sent.get(("toolCallId", call["id"]), "")
    ids = [message["id"] for message in transcript.messages]
    assert len(set(ids)) == len(ids)


@given(runs())
def test_a_snapshot_of_the_messages_and_what_follows_is_the_same(events: Events) -> None:
    """What a newcomer is given: MESSAGES_SNAPSHOT of the finished runs, then the open run."""
    last = max(i for i, event in enumerate(events) if event["type"] == "RUN_STARTED")
    finished, rest = events[:last], events[last:]
    snapshot = {"type": "MESSAGES_SNAPSHOT", "messages": fold(finished).messages}
    anew = fold([snapshot, *merge_deltas(rest)])
    assert anew.messages == fold(events).messages


@given(runs())
def test_folding_changes_nothing_that_was_passed_in(events: Events) -> None:
    before = copy.deepcopy(events)
    first = fold(events)
    messages = copy.deepcopy(first.messages)
    second = Transcript(first.messages)
    for event in events:
        second.apply(event)
    assert events == before
    assert first.messages == messages


# --- whatever agents send -------------------------------------------------------------------------

FIELDS = {
    "type": st.sampled_from(
        [
            "RUN_STARTED",
            "MESSAGES_SNAPSHOT",
            "TEXT_MESSAGE_START",
            "TEXT_MESSAGE_CONTENT",
            "TEXT_MESSAGE_END",
            "TOOL_CALL_START",
            "TOOL_CALL_ARGS",
            "TOOL_CALL_END",
            "TOOL_CALL_RESULT",
            "RUN_FINISHED",
            "RUN_ERROR",
            "OTHER",
        ]
    )
    | json_values
}
few = st.sampled_from(["a", "b"])
odd_calls = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "id": few | json_values,
            "function": st.fixed_dictionaries({"name": few, "arguments": texts | json_values})
            | json_values,
        },
    )
    | json_values,
    max_size=2,
)
odd_messages = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "id": few | json_values,
            "role": few,
            "content": json_values,
            "metadata": json_values,
            "toolCalls": odd_calls | json_values,
        },
    )
    | json_values,
    max_size=3,
)
odd_events = st.fixed_dictionaries(
    FIELDS,
    optional={
        "messageId": few | json_values,
        "toolCallId": few | json_values,
        "toolCallName": few | json_values,
        "parentMessageId": few | json_values,
        "role": few | json_values,
        "delta": texts | json_values,
        "content": json_values,
        "messages": odd_messages | json_values,
        "input": st.fixed_dictionaries({"messages": odd_messages}) | json_values,
    },
)


@settings(max_examples=50)
@given(st.lists(odd_events | json_objects, max_size=8))
def test_any_json_object_is_an_event(events: Events) -> None:
    """An agent's fault must not end the gateway's fold of its run."""
    transcript = fold(events)
    json.dumps(transcript.messages)
    assert known(fold(merge_deltas(events))) == known(transcript)
    transcript.mark_incomplete()
    json.dumps(transcript.messages)


# --- single rules ---------------------------------------------------------------------------------


def start(message_id: str = "m") -> dict[str, Any]:
    return {"type": "TEXT_MESSAGE_START", "messageId": message_id}


def delta(text: str, message_id: str = "m") -> dict[str, Any]:
    return {"type": "TEXT_MESSAGE_CONTENT", "messageId": message_id, "delta": text}


def test_a_message_is_open_until_its_end_or_the_end_of_the_run() -> None:
    transcript = fold([start("a"), start("b"), {"type": "TEXT_MESSAGE_END", "messageId": "a"}])
    assert transcript.open_ids == {"b"}
    transcript.apply({"type": "RUN_ERROR", "message": "x"})
    assert transcript.open_ids == set()


def test_what_is_still_open_is_marked_incomplete() -> None:
    transcript = fold(
        [
            start("done"),
            {"type": "TEXT_MESSAGE_END", "messageId": "done"},
            start("open"),
            delta("so f", "open"),
            start("parent"),
            {"type": "TEXT_MESSAGE_END", "messageId": "parent"},
            {
                "type": "TOOL_CALL_START",
                "toolCallId": "c",
                "toolCallName": "f",
                "parentMessageId": "parent",
            },
        ]
    )
    transcript.mark_incomplete()
    marked = {m["id"]: m.get("metadata") for m in transcript.messages}
    assert marked == {
        "done": None,
        "open": {"incomplete": True},
        "parent": {"incomplete": True},
    }


def test_what_was_closed_because_it_was_cut_off_is_incomplete() -> None:
    """Its worker closes it, and may die before it ends the run."""
    call = {"type": "TOOL_CALL_START", "toolCallId": "c", "toolCallName": "f"}
    transcript = fold(
        [
            start("m"),
            {"type": "TEXT_MESSAGE_END", "messageId": "m", "incomplete": True},
            {**call, "parentMessageId": "p"},
            {"type": "TOOL_CALL_END", "toolCallId": "c", "incomplete": True},
        ]
    )
    transcript.mark_incomplete()
    assert [m["metadata"] for m in transcript.messages] == [{"incomplete": True}] * 2


def test_marking_keeps_what_the_metadata_said() -> None:
    transcript = Transcript([{"id": "m", "role": "assistant", "metadata": {"a": 1}}])
    transcript.apply(start("m"))
    transcript.mark_incomplete()
    assert transcript.messages[0]["metadata"] == {"a": 1, "incomplete": True}


def test_fields_that_we_do_not_know_survive() -> None:
    message = {"id": "m", "role": "user", "content": "x", "later": [1]}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}, "x": 1}
    transcript = Transcript([message, {"id": "n", "role": "assistant", "toolCalls": [call]}])
    transcript.apply({"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": "{}"})
    assert transcript.messages[0] == message
    assert transcript.messages[1]["toolCalls"][0]["x"] == 1
    assert transcript.messages[1]["toolCalls"][0]["function"]["arguments"] == "{}"


def test_what_is_malformed_is_kept_or_left_out_but_never_an_error() -> None:
    odd_call = {"id": "c", "function": "f"}
    parts = {"id": "p", "role": "user", "content": [{"type": "text", "text": "x"}]}
    transcript = Transcript(
        [1, {"role": "user"}, {"id": "m", "role": "assistant", "toolCalls": [odd_call, 2]}, parts]  # type: ignore[list-item]
    )
    for event in (
        {"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": "{}"},
        delta("text", "p"),
        {"type": "TOOL_CALL_RESULT", "messageId": "x"},
        {"type": "RUN_STARTED", "input": None},
        {"type": "MESSAGES_SNAPSHOT"},
        {"type": ["TEXT_MESSAGE_START"]},
    ):
        transcript.apply(event)
    assert transcript.messages == [
        {"id": "m", "role": "assistant", "toolCalls": [odd_call, 2]},
        parts,
    ]


def test_a_message_that_is_there_is_not_added_again() -> None:
    """Every tab's client has its own message already when RUN_STARTED brings it."""
    message = {"id": "m", "role": "user", "content": "x"}
    transcript = Transcript([message])
    transcript.apply({"type": "RUN_STARTED", "input": {"messages": [message]}})
    assert transcript.messages == [message]


def test_a_tool_call_that_is_there_is_not_started_again() -> None:
    call = {"type": "TOOL_CALL_START", "toolCallId": "c", "toolCallName": "f"}
    args = {"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": "{}"}
    [message] = fold([call, args, call]).messages
    assert [c["function"] for c in message["toolCalls"]] == [{"name": "f", "arguments": "{}"}]


def test_deltas_of_different_owners_are_not_joined() -> None:
    events = [delta("a"), delta("b"), delta("c", "n"), delta("d")]
    assert [e["delta"] for e in merge_deltas(events)] == ["ab", "c", "d"]
