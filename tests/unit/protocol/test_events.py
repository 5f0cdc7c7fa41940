"""Our events are AG-UI 1.0 events: the published models accept every one of them."""

import json
from typing import Any, get_args

import pytest
from ag_ui.core import Event, EventType
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from pydantic import TypeAdapter
from support.frames import json_objects, json_values, texts

from protocol import events
from protocol.events import AgUiEvent, encode_event

model: TypeAdapter[Any] = TypeAdapter(Event)
maybe_text = st.none() | texts
tokens = st.none() | st.integers(0, 10**9)
anything = json_values | st.just(UNSET)
messages = st.lists(
    st.fixed_dictionaries({"id": texts, "role": st.just("user"), "content": texts}), max_size=2
)
usage = st.none() | st.lists(
    st.builds(
        events.TokenUsage,
        provider=maybe_text,
        model=maybe_text,
        input_tokens=tokens,
        output_tokens=tokens,
        total_tokens=tokens,
        reasoning_tokens=tokens,
        cached_input_tokens=tokens,
        cache_write_input_tokens=tokens,
    ),
    max_size=2,
)
interrupts = st.builds(
    events.Interrupt,
    id=texts,
    reason=texts,
    message=maybe_text,
    tool_call_id=maybe_text,
    response_schema=st.none() | json_objects,
    expires_at=maybe_text,
    metadata=st.none() | json_objects,
)
outcomes = (
    st.none()
    | st.builds(
        events.SuccessOutcome, pending_tool_call_ids=st.none() | st.lists(texts, max_size=2)
    )
    | st.builds(events.InterruptOutcome, interrupts=st.lists(interrupts, min_size=1, max_size=2))
    | st.just(events.CancelledOutcome())
)
resume = st.builds(
    events.ResumeEntry,
    interrupt_id=texts,
    status=st.sampled_from(["resolved", "cancelled"]),
    payload=anything,
)
run_input = st.builds(
    events.RunAgentInput,
    thread_id=texts,
    run_id=texts,
    messages=messages,
    state=anything,
    tools=st.none()
    | st.lists(st.fixed_dictionaries({"name": texts, "description": texts}), max_size=2),
    context=st.none()
    | st.lists(st.fixed_dictionaries({"description": texts, "value": texts}), max_size=2),
    forwarded_props=anything,
    resume=st.none() | st.lists(resume, max_size=2),
)

EVENTS: dict[type, st.SearchStrategy[Any]] = {
    events.RunStarted: st.builds(
        events.RunStarted,
        thread_id=texts,
        run_id=texts,
        parent_run_id=maybe_text,
        input=st.none() | run_input,
    ),
    events.RunFinished: st.builds(
        events.RunFinished,
        thread_id=texts,
        run_id=texts,
        result=anything,
        outcome=outcomes,
        usage=usage,
    ),
    events.RunError: st.builds(events.RunError, message=texts, code=maybe_text, usage=usage),
    events.TextMessageStart: st.builds(
        events.TextMessageStart,
        message_id=texts,
        role=st.none() | st.sampled_from(["assistant", "user", "system", "developer"]),
    ),
    events.TextMessageContent: st.builds(events.TextMessageContent, message_id=texts, delta=texts),
    events.TextMessageEnd: st.builds(events.TextMessageEnd, message_id=texts),
    events.ToolCallStart: st.builds(
        events.ToolCallStart,
        tool_call_id=texts,
        tool_call_name=texts,
        parent_message_id=maybe_text,
    ),
    events.ToolCallArgs: st.builds(events.ToolCallArgs, tool_call_id=texts, delta=texts),
    events.ToolCallEnd: st.builds(events.ToolCallEnd, tool_call_id=texts),
    events.ToolCallResult: st.builds(
        events.ToolCallResult,
        message_id=texts,
        tool_call_id=texts,
        content=texts | st.just([{"type": "text", "text": "x"}]),
    ),
    events.StateSnapshot: st.builds(events.StateSnapshot, snapshot=json_values),
    events.StateDelta: st.builds(
        events.StateDelta,
        delta=st.lists(
            st.fixed_dictionaries(
                {"op": st.just("add"), "path": st.just("/a"), "value": json_values}
            ),
            max_size=2,
        ),
    ),
    events.MessagesSnapshot: st.builds(events.MessagesSnapshot, messages=messages),
    events.Custom: st.builds(events.Custom, name=texts, value=json_values),
}


def test_every_event_is_tried() -> None:
    assert set(EVENTS) == set(get_args(AgUiEvent))


@pytest.mark.parametrize("kind", list(EVENTS), ids=lambda kind: kind.__name__)
def test_ag_ui_accepts_it_and_reads_the_same(kind: type) -> None:
    @given(EVENTS[kind])
    def check(event: AgUiEvent) -> None:
        line = encode_event(event)
        assert b"\n" not in line
        read = model.validate_json(line)
        assert type(read).__name__ == kind.__name__ + "Event"
        assert read.model_extra == {}, "a field that AG-UI does not know"
        ours = json.loads(line)
        theirs = json.loads(read.model_dump_json(by_alias=True))
        # They leave out what is null where it may be absent; everything else is equal.
        assert without_nulls(ours) == without_nulls(theirs)

    check()


def test_type_names_are_ag_uis() -> None:
    names = {kind.__struct_config__.tag for kind in EVENTS}  # type: ignore[attr-defined]
    assert names <= {kind.value for kind in EventType}


def test_absent_is_absent_not_null() -> None:
    assert encode_event(events.RunFinished("t", "r")) == (
        b'{"type":"RUN_FINISHED","threadId":"t","runId":"r"}'
    )


def without_nulls(value: Any) -> Any:
    match value:
        case dict():
            return {k: without_nulls(v) for k, v in value.items() if v is not None}
        case list():
            return [without_nulls(v) for v in value]
        case _:
            return value
