"""A newcomer's one frame says the same as the events that made the session."""

import asyncio

import msgspec

from gateway.session.model import SnapshotSource
from gateway.session.snapshot import snapshot_frame
from protocol.frames import Cursor


def event_frame(event: dict) -> bytes:
    return (
        b'{"type":"event","seq":1,"ts":1,"run_id":"r","event":' + msgspec.json.encode(event) + b"}"
    )


def delta(text: str, message_id: str = "m2") -> dict:
    return {"type": "TEXT_MESSAGE_CONTENT", "messageId": message_id, "delta": text}


async def snapshot(**fields) -> dict:
    source = SnapshotSource(
        **{"cursor": Cursor("e", 9), "messages": [], "frames": [], "state": None, **fields}
    )
    return msgspec.json.decode(await snapshot_frame(source))


async def test_an_empty_session():
    assert await snapshot() == {
        "type": "snapshot",
        "cursor": {"epoch": "e", "seq": 9},
        "events": [{"type": "MESSAGES_SNAPSHOT", "messages": []}],
    }


async def test_the_order_of_a_session_with_an_open_run():
    started = {"type": "RUN_STARTED", "runId": "r"}
    begin = {"type": "TEXT_MESSAGE_START", "messageId": "m2"}
    message = {"id": "m1", "role": "user", "content": "hi"}
    made = await snapshot(
        messages=[msgspec.json.encode(message)],
        state=b'{"step":1}',
        frames=[event_frame(e) for e in (started, begin, delta("Hel"), delta("lo"))],
        open_run="r",
    )
    assert made["events"] == [
        started,
        {"type": "MESSAGES_SNAPSHOT", "messages": [message]},
        {"type": "STATE_SNAPSHOT", "snapshot": {"step": 1}},
        begin,
        delta("Hello"),
    ]


async def test_a_long_run_leaves_the_loop_to_others():
    frames = [event_frame(delta("x")) for _ in range(5000)]
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(other())
        made = await snapshot(frames=frames)
        running.cancel()
    assert made["events"][1]["delta"] == "x" * 5000
    assert turns > 10
