"""Hypothesis strategies for what stands on the wire."""

from typing import Any

from hypothesis import strategies as st
from msgspec import UNSET, Raw

from protocol import frames

# Strings that can stand in JSON: no lone surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
json_objects = st.dictionaries(texts, json_values, max_size=4)
seqs = st.integers(0, 2**53 - 1)
cursors = st.builds(frames.Cursor, epoch=st.text("abc09-", min_size=1, max_size=64), seq=seqs)
session_ids = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
agents = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,62}", fullmatch=True)
contents = texts | st.lists(json_objects, min_size=1, max_size=3)
anything = json_values | st.just(UNSET)


def _maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


client_frames: dict[type, st.SearchStrategy[Any]] = {
    frames.Open: st.builds(
        frames.Open,
        id=ids,
        token=_maybe(texts),
        agent=_maybe(agents),
        session_id=_maybe(session_ids),
        after=_maybe(cursors),
        traceparent=_maybe(texts),
        metadata=_maybe(json_objects),
    ),
    frames.Message: st.builds(
        frames.Message,
        id=ids,
        content=contents,
        when_busy=st.sampled_from(["enqueue", "reject", "interrupt"]),
        tools=_maybe(st.lists(json_objects, max_size=2)),
        context=_maybe(st.lists(json_objects, max_size=2)),
        state=anything,
        metadata=_maybe(json_objects),
        traceparent=_maybe(texts),
    ),
    frames.Answer: st.builds(
        frames.Answer,
        id=ids,
        entries=st.lists(
            st.builds(
                frames.AnswerEntry,
                interrupt_id=ids,
                status=st.sampled_from(["resolved", "cancelled"]),
                payload=anything,
            ),
            min_size=1,
            max_size=3,
        ),
        traceparent=_maybe(texts),
    ),
    frames.ToolResult: st.builds(
        frames.ToolResult,
        id=ids,
        tool_call_id=ids,
        content=contents,
        error=_maybe(texts),
        traceparent=_maybe(texts),
    ),
    frames.Cancel: st.builds(
        frames.Cancel, id=ids, run_id=_maybe(st.text("run-19", min_size=1, max_size=64))
    ),
    frames.Refresh: st.builds(frames.Refresh, id=ids, token=texts),
    frames.Ping: st.builds(
        frames.Ping, t=st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
    ),
    frames.Close: st.builds(frames.Close, id=ids),
}
any_client_frame = st.one_of(*client_frames.values())

_run_infos = st.builds(
    frames.RunInfo,
    run_id=texts,
    status=st.sampled_from(["pending", "queued", "running", "cancelling"]),
)
_events = st.sampled_from([Raw(b'{"type":"RUN_ERROR","message":"x"}'), Raw(b"{}")])

server_frames: dict[type, st.SearchStrategy[Any]] = {
    frames.Opened: st.builds(
        frames.Opened,
        re=ids,
        session_id=texts,
        agent=texts,
        state=st.sampled_from(["idle", "queued", "running", "awaiting_input", "ended"]),
        cursor=cursors,
        resumed=st.booleans(),
        runs=st.lists(_run_infos, max_size=2),
        interrupts=st.lists(json_objects, max_size=2),
        pending_tool_calls=st.lists(texts, max_size=2),
    ),
    frames.Ack: st.builds(
        frames.Ack,
        re=ids,
        status=st.sampled_from(["accepted", "queued", "duplicate"]),
        run_id=_maybe(texts),
    ),
    frames.Snapshot: st.builds(
        frames.Snapshot, cursor=cursors, events=st.lists(_events, max_size=2)
    ),
    frames.Event: st.builds(
        frames.Event,
        seq=seqs,
        ts=st.integers(0, 2**53),
        run_id=texts,
        event=_events,
        first_seq=_maybe(seqs),
    ),
    frames.Reset: st.builds(frames.Reset, reason=texts, runs=st.lists(_run_infos, max_size=2)),
    frames.Error: st.builds(
        frames.Error,
        code=texts,
        message=texts,
        retryable=st.booleans(),
        re=_maybe(ids),
        param=_maybe(texts),
        retry_after_ms=_maybe(st.integers(0, 10**6)),
    ),
    frames.Expiring: st.builds(frames.Expiring, expires_in_s=st.integers(0, 10**6)),
    frames.GoAway: st.builds(frames.GoAway, reason=texts, reconnect_in_ms=st.integers(0, 10**6)),
    frames.Pong: st.builds(frames.Pong, t=st.integers() | texts),
}
any_server_frame = st.one_of(*server_frames.values())
