"""A newcomer's one frame says the same as the events that made the session."""

import asyncio

import msgspec
import pytest
from support.little_bus import KEY, LittleBus

from gateway.session.errors import Unavailable
from gateway.session.model import LogPage, SnapshotSource
from gateway.session.snapshot import take_snapshot
from protocol.frames import Cursor


def delta(text: str, message_id: str = "m2") -> dict:
    return {"type": "TEXT_MESSAGE_CONTENT", "messageId": message_id, "delta": text}


@pytest.fixture
def bus() -> LittleBus:
    made = LittleBus()
    made.make()
    return made


async def snapshot(bus: LittleBus) -> dict:
    taken = await take_snapshot(bus, KEY)
    assert taken is not None
    made = msgspec.json.decode(taken.frame)
    assert made["cursor"] == msgspec.to_builtins(taken.cursor)
    assert len(taken.frame) < 1024 * 1024, "more than many clients take"
    return made


async def test_an_empty_session(bus):
    assert await snapshot(bus) == {
        "type": "snapshot",
        "cursor": {"epoch": "e1", "seq": 0},
        "events": [{"type": "MESSAGES_SNAPSHOT", "messages": []}],
    }


async def test_no_session(bus):
    assert await take_snapshot(bus, KEY._replace(session_id="other")) is None


async def test_the_order_of_a_session_with_an_open_run(bus):
    started = {"type": "RUN_STARTED", "runId": "r"}
    begin = {"type": "TEXT_MESSAGE_START", "messageId": "m2"}
    message = {"id": "m1", "role": "user", "content": "hi"}
    session = bus.make()
    session.messages.append(msgspec.json.encode(message))
    session.state = b'{"step":1}'
    bus.append("E", delta("of a run before"))
    bus.append("S", started)
    for event in (begin, delta("Hel"), delta("lo")):
        bus.append("E", event)
    assert (await snapshot(bus))["events"] == [
        started,
        {"type": "MESSAGES_SNAPSHOT", "messages": [message]},
        {"type": "STATE_SNAPSHOT", "snapshot": {"step": 1}},
        begin,
        delta("Hello"),
    ]


async def test_what_follows_while_it_is_read_is_not_part_of_it(bus):
    """Or a newcomer would get it twice: in the snapshot, and as the event after its cursor."""
    bus.append("S", {"type": "RUN_STARTED"})
    bus.append("E", delta("in"))

    async def read(*args) -> LogPage:
        bus.append("E", delta("out"))
        return await LittleBus.read(bus, *args)

    bus.read = read
    made = await snapshot(bus)
    assert made["cursor"]["seq"] == 2
    assert made["events"][-1] == delta("in")


async def test_pages_bounded_in_bytes_are_read_to_the_end(bus):
    """A page that is shorter than was asked for is not the last."""
    bus.append("S", {"type": "RUN_STARTED"})
    for _ in range(18):
        bus.append("E", delta("x" * 50_000))
    made = await snapshot(bus)
    assert made["events"][-1] == delta("x" * 900_000)
    assert bus.calls["read"] >= 3


async def test_an_open_run_that_is_too_large_follows_as_events(bus):
    """Guarantee 5: a frame of 16 MiB for each socket would be no bound."""
    message = {"id": "m1", "role": "user", "content": "hi"}
    bus.sessions[KEY].messages.append(msgspec.json.encode(message))
    bus.append("F")
    bus.append("S", {"type": "RUN_STARTED"})
    for _ in range(300):
        bus.append("E", delta("x" * 50_000))
    taken = await take_snapshot(bus, KEY)
    assert taken is not None
    assert (taken.cursor, taken.seen) == (Cursor("e1", 1), Cursor("e1", 302))
    made = msgspec.json.decode(taken.frame)
    assert made["cursor"] == {"epoch": "e1", "seq": 1}
    assert made["events"] == [{"type": "MESSAGES_SNAPSHOT", "messages": [message]}]
    assert bus.calls["read"] < 10, "it is not read to its end first"


async def test_the_newest_messages_that_there_is_room_for(bus):
    messages = [
        {"id": f"m{number}", "role": "assistant", "content": "x" * 300_000} for number in range(6)
    ]
    bus.sessions[KEY].messages += map(msgspec.json.encode, messages)
    bus.append("S", {"type": "RUN_STARTED"})
    bus.append("E", delta("x" * 100_000))
    taken = await take_snapshot(bus, KEY)
    assert taken is not None
    assert len(taken.frame) < 1024 * 1024
    assert taken.cursor == Cursor("e1", 0), "both do not fit"
    [event] = msgspec.json.decode(taken.frame)["events"]
    assert event["messages"] == messages[-3:]


@pytest.mark.parametrize(
    "content", ["\x01" * 3_000_000, [{"type": "text", "text": "x" * 3_000_000}]]
)
async def test_a_newest_message_that_is_too_large_is_shortened_and_says_so(bus, content):
    message = {"id": "m1", "role": "assistant", "content": content, "toolCalls": []}
    bus.sessions[KEY].messages.append(msgspec.json.encode(message))
    [event] = (await snapshot(bus))["events"]
    [shown] = event["messages"]
    assert shown["metadata"] == {"truncated": True}
    assert (shown["id"], shown["role"]) == ("m1", "assistant")
    assert shown["content"] == (content[:61440] if isinstance(content, str) else "")


async def test_a_log_that_is_trimmed_meanwhile_is_read_anew(bus):
    bus.append("S", {"type": "RUN_STARTED"})
    bus.append("E", delta("gone"))
    taken = bus.snapshot

    async def then_trimmed(*args) -> SnapshotSource | None:
        source = await taken(*args)
        bus.snapshot = taken
        bus.append("F")
        session = bus.sessions[KEY]
        session.trimmed, session.log = session.seq, []
        return source

    bus.snapshot = then_trimmed
    made = await snapshot(bus)
    assert made["cursor"]["seq"] == 3
    assert [event["type"] for event in made["events"]] == ["MESSAGES_SNAPSHOT"]


async def test_a_log_that_can_never_be_read_is_no_endless_loop(bus):
    bus.append("S", {"type": "RUN_STARTED"})

    async def read(*_args) -> LogPage:
        return LogPage([], "e1", 1, "trimmed")

    bus.read = read
    with pytest.raises(Unavailable):
        await take_snapshot(bus, KEY)


async def test_an_event_that_is_no_object_says_nothing(bus):
    bus.append("S", {"type": "RUN_STARTED"})
    bus.append("E", ["no", "object"])
    bus.append("E", delta("word"))
    assert (await snapshot(bus))["events"][-1] == delta("word")


async def test_a_long_run_leaves_the_loop_to_others(bus):
    bus.append("S", {"type": "RUN_STARTED"})
    for _ in range(5000):
        bus.append("E", delta("x"))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(other())
        made = await snapshot(bus)
        running.cancel()
    assert made["events"][-1]["delta"] == "x" * 5000
    assert turns > 10


async def test_the_cursor_is_of_the_log(bus):
    for _ in range(3):
        bus.append()
    taken = await take_snapshot(bus, KEY)
    assert taken is not None
    assert taken.cursor == taken.seen == Cursor("e1", 3)
