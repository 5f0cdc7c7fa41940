"""A session as one frame, for who comes without a cursor."""

import asyncio
from typing import Any

import msgspec
from msgspec import Raw

from gateway.session.model import SnapshotSource
from protocol.codec import encode
from protocol.frames import Snapshot
from protocol.transcript import merge_deltas

_SLICE = 256
"""Frames decoded per turn of the loop: a long run must not delay other sockets."""


class _EventFrame(msgspec.Struct):
    event: dict[str, Any]


_decode = msgspec.json.Decoder(_EventFrame).decode
_encode = msgspec.json.Encoder().encode


def event_of(frame: bytes) -> dict[str, Any]:
    """The AG-UI event in an `event` frame."""
    return _decode(frame).event


async def snapshot_frame(source: SnapshotSource) -> bytes:
    """The `snapshot` frame: the messages, the shared state, and the open run so far.

    `RUN_STARTED` comes first, since AG-UI wants every event inside a run; the transcript already
    holds the messages that the run was started with.
    """
    run: list[dict[str, Any]] = []
    for start in range(0, len(source.frames), _SLICE):
        run.extend(event_of(frame) for frame in source.frames[start : start + _SLICE])
        await asyncio.sleep(0)
    events: list[Raw] = []
    if run and run[0].get("type") == "RUN_STARTED":
        events.append(Raw(_encode(run.pop(0))))
    messages = b",".join(source.messages)
    events.append(Raw(b'{"type":"MESSAGES_SNAPSHOT","messages":[' + messages + b"]}"))
    if source.state is not None:
        events.append(Raw(b'{"type":"STATE_SNAPSHOT","snapshot":' + source.state + b"}"))
    events.extend(Raw(_encode(event)) for event in merge_deltas(run))
    return encode(Snapshot(source.cursor, events))
