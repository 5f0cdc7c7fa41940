"""The stream's rules: gathering, order, numbering, repetition, bounds."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from support.recorder import REF, Recorder

from gateway.agents import backoff
from gateway.agents.stream import EventStream
from gateway.session.errors import Fenced, TooLarge, Unavailable
from protocol.events import (
    TextMessageContent,
    TextMessageStart,
    ToolCallArgs,
    encode_event,
)

TEXT = "TEXT_MESSAGE_CONTENT"
LONG_S = 3600.0


class Broken(list[Exception]):
    """What `on_broken` was told."""

    def __init__(self) -> None:
        super().__init__()
        self.event = asyncio.Event()

    def add(self, error: Exception) -> None:
        self.append(error)
        self.event.set()


@asynccontextmanager
async def streaming(
    recorder: Recorder, *, window_s: float = LONG_S, until: float = math.inf, **bounds: int
) -> AsyncIterator[tuple[EventStream, Broken]]:
    broken = Broken()
    stream = EventStream(
        recorder,
        REF,
        "1@1",
        until=lambda: until,
        on_broken=broken.add,
        window_s=window_s,
        **bounds,
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(stream.run())
        try:
            yield stream, broken
        finally:
            stream.close()


async def test_the_first_delta_goes_at_once_and_the_next_are_joined_with_their_tokens() -> None:
    recorder = Recorder()
    async with streaming(recorder) as (stream, _):
        await stream.delta(TEXT, "m", "a", 1)
        await recorder.until(1)
        for part in "bcd":
            await stream.delta(TEXT, "m", part, 2)
            for _ in range(5):
                await asyncio.sleep(0)
        assert len(recorder.log) == 1, "inside the window nothing more is sent"
    assert [(event["delta"]) for event in recorder.events] == ["a", "bcd"]
    assert [event.tokens for event in recorder.log] == [1, 6]


async def test_the_window_ends_by_itself() -> None:
    recorder = Recorder()
    async with streaming(recorder, window_s=0.02) as (stream, _):
        await stream.delta(TEXT, "m", "a")
        await recorder.until(1)
        await stream.delta(TEXT, "m", "b")
        await recorder.until(2)


async def test_the_first_delta_of_each_message_goes_at_once() -> None:
    recorder = Recorder()
    async with streaming(recorder) as (stream, _):
        for key in "mno":
            await stream.delta(TEXT, key, "x")
            await recorder.until("mno".index(key) + 1)


async def test_other_events_send_what_waits_before_them_and_order_is_kept() -> None:
    recorder = Recorder()
    async with streaming(recorder) as (stream, _):
        await stream.delta(TEXT, "m", "a")
        await recorder.until(1)
        await stream.delta(TEXT, "m", "b")
        await stream.put({"type": "CUSTOM", "name": "n", "value": 1})
        await recorder.until(3)
        await stream.delta(TEXT, "m", "c")
        await stream.delta("TOOL_CALL_ARGS", "t", "{")
        await stream.delta(TEXT, "m", "d")
    shown = [event.get("delta", "-") for event in recorder.events]
    assert shown == ["a", "b", "-", "c", "{", "d"], "only neighbours are joined"


async def test_deltas_have_the_shape_of_the_protocols_events() -> None:
    recorder = Recorder()
    async with streaming(recorder) as (stream, _):
        await stream.delta(TEXT, "m", "a")
        await stream.delta("TOOL_CALL_ARGS", "t", "{}")
    assert [event.json for event in recorder.log] == [
        encode_event(TextMessageContent("m", "a")),
        encode_event(ToolCallArgs("t", "{}")),
    ]


async def test_emitted_deltas_are_joined_too_unless_they_carry_more() -> None:
    recorder = Recorder()
    kind = "REASONING_MESSAGE_CONTENT"
    async with streaming(recorder) as (stream, _):
        await stream.put({"type": kind, "messageId": "r", "delta": "a"})
        await recorder.until(1)
        await stream.put({"type": kind, "messageId": "r", "delta": "b"})
        await stream.put({"type": kind, "messageId": "r", "delta": "c"})
        await stream.put({"type": kind, "messageId": "r", "delta": "d", "metadata": {}})
    assert [event["delta"] for event in recorder.events] == ["a", "bc", "d"]


async def test_fast_events_share_calls_and_ordinals_count_events() -> None:
    recorder = Recorder()
    recorder.gate.clear()
    async with streaming(recorder) as (stream, _):
        for i in range(50):
            await stream.put({"type": "CUSTOM", "name": str(i), "value": None})
        recorder.gate.set()
    assert [event["name"] for event in recorder.events] == [str(i) for i in range(50)]
    assert len(recorder.calls) <= 3
    expected = 0
    for ordinal, events in recorder.calls:
        assert ordinal == expected
        expected += len(events)


@pytest.mark.parametrize("way", ["lose", "refuse"])
async def test_an_unanswered_append_is_repeated_as_it_was(way: str) -> None:
    """Guarantee 2: whether or not the call had arrived, its events are in the log once."""
    recorder = Recorder()
    setattr(recorder, way, 2)
    async with streaming(recorder) as (stream, broken):
        await stream.put(TextMessageStart("m"))
        await stream.delta(TEXT, "m", "a")
        await recorder.until(2)
        await stream.delta(TEXT, "m", "b")
    assert not broken
    assert recorder.types == ["TEXT_MESSAGE_START", TEXT, TEXT]
    assert recorder.text == "ab"
    firsts = [call for call in recorder.calls if call[0] == 0]
    assert all(call == firsts[0] for call in firsts)
    assert len(firsts) == (3 if way == "lose" else 1)


async def test_it_gives_up_when_the_lease_cannot_hold_any_more() -> None:
    recorder = Recorder()
    recorder.refuse = 10**9
    until = asyncio.get_running_loop().time() + 0.1
    async with streaming(recorder, until=until) as (stream, broken):
        await stream.put(TextMessageStart("m"))
    assert isinstance(broken[0], Unavailable)
    assert recorder.log == []


@pytest.mark.parametrize(
    ("recorder_of", "error"),
    [(lambda: Recorder(claim_id="2@1"), Fenced), (lambda: Recorder(max_events=0), TooLarge)],
)
async def test_what_cannot_be_sent_is_told_once_and_forgotten(recorder_of, error) -> None:
    recorder = recorder_of()
    async with streaming(recorder) as (stream, broken):
        await stream.put(TextMessageStart("m"))
        await broken.event.wait()
        for _ in range(5000):
            await stream.delta(TEXT, "m", "x" * 1000)
        assert not stream._waiting, "a writer that goes on costs no memory"
    assert [type(each) for each in broken] == [error]
    assert recorder.log == []


@pytest.mark.parametrize(
    ("bounds", "most"),
    [({"max_bytes": 2000}, 3), ({"max_events": 20}, 21)],
)
async def test_writers_wait_while_too_much_waits_for_redis(bounds, most) -> None:
    """Guarantee 5, on the worker's side: memory stays bounded while Redis is slow."""
    recorder = Recorder()
    recorder.gate.clear()
    written = 0

    async def write(stream: EventStream) -> None:
        nonlocal written
        for _ in range(200):
            await stream.put({"type": "CUSTOM", "name": "n" * 900, "value": None})
            written += 1

    async with streaming(recorder, **bounds) as (stream, _), asyncio.TaskGroup() as group:
        writer = group.create_task(write(stream))
        for _ in range(1000):
            await asyncio.sleep(0)
        assert 0 < written <= most
        assert not writer.done()
        recorder.gate.set()
    assert len(recorder.log) == 200


async def test_a_tight_writer_lets_others_run() -> None:
    recorder = Recorder()
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with streaming(recorder) as (stream, _), asyncio.TaskGroup() as group:
        other = group.create_task(count_turns())
        for _ in range(100_000):
            await stream.delta(TEXT, "m", "x")
        other.cancel()
    assert turns > 3
    assert len(recorder.text) == 100_000


async def test_half_a_surrogate_pair_does_not_break_the_run() -> None:
    recorder = Recorder()
    async with streaming(recorder) as (stream, _):
        await stream.delta(TEXT, "m", "a")
        await recorder.until(1)
        await stream.delta(TEXT, "m", "\ud83d")
        await stream.delta(TEXT, "m", "\ude00")
        await stream.put({"type": "CUSTOM", "name": "n", "value": None})
        await stream.delta(TEXT, "m", "\ud83d")
    assert recorder.text == "a😀\ufffd"


async def test_the_transcript_says_what_redis_took() -> None:
    recorder = Recorder(max_events=2)
    async with streaming(recorder) as (stream, broken):
        await stream.put(TextMessageStart("m"))
        await stream.delta(TEXT, "m", "kept")
        await recorder.until(2)
        await stream.delta(TEXT, "m", "lost")
    assert isinstance(broken[0], TooLarge)
    assert stream.transcript.messages == [{"id": "m", "role": "assistant", "content": "kept"}]
    assert stream.ordinal == 2


def test_backoff_grows_to_its_cap_and_starts_anew_after_reset() -> None:
    delays = backoff.Backoff()
    seen = [delays.next_s() for _ in range(2000)]
    assert seen[0] <= backoff.BASE_S
    assert max(seen) <= backoff.CAP_S
    assert min(seen[20:]) >= backoff.CAP_S / 2
    delays.reset()
    assert delays.next_s() <= backoff.BASE_S


def test_events_are_one_line() -> None:
    assert b"\n" not in msgspec.json.encode({"delta": "a\nb"})
