"""A session as one frame, for who comes without a cursor."""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import msgspec
from msgspec import Raw

from gateway.session.errors import Unavailable
from gateway.session.log import Moved, events_of, read_stretch
from gateway.session.model import SessionKey, SnapshotSource
from gateway.session.ports import Sessions
from protocol.codec import encode
from protocol.frames import Cursor, Snapshot
from protocol.transcript import merge_deltas

SNAPSHOT_BYTES = 960 * 1024
"""Bound of the events in a snapshot, but for the shared state: many WebSocket clients take no
message of more than 1 MiB."""

_ATTEMPTS = 5
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Taken(NamedTuple):
    """A snapshot.

    `cursor` is what it covers; `seen` is where the log was when it was read, which is further when
    the open run was too large to be part of it.
    """

    frame: bytes
    cursor: Cursor
    seen: Cursor


async def take_snapshot(sessions: Sessions, key: SessionKey) -> Taken | None:
    """The `snapshot` frame and its cursor; None when there is no session.

    Raises:
        Unavailable: Redis does not answer, or the log was trimmed time and again while it was read.
    """
    for _ in range(_ATTEMPTS):
        source = await sessions.snapshot(key)
        if source is None:
            return None
        messages = _newest(source.messages)
        room = SNAPSHOT_BYTES - sum(map(len, messages))
        try:
            run = await _run_so_far(sessions, key, source, room)
        except Moved:
            continue
        cursor = source.cursor
        if run is None:  # it follows as events; the transcript has nothing of it but its question
            cursor = Cursor(cursor.epoch, source.first_seq - 1)
        return Taken(_frame(source, cursor, messages, run or []), cursor, source.cursor)
    raise Unavailable("the session moves on too fast to be read")


async def _run_so_far(
    sessions: Sessions, key: SessionKey, source: SnapshotSource, room: int
) -> list[bytes] | None:
    """The events of the open run, adjacent deltas merged; None for more bytes than `room`."""
    run: list[bytes] = []
    last: list[dict[str, Any]] = []  # the next delta may belong to it
    size_bytes = 0
    async for entries in read_stretch(sessions, key, source.first_seq, source.cursor):
        *complete, final = merge_deltas([*last, *events_of(entries)]) or [None]
        last = [final] if final else []
        run += map(_encode, complete)
        size_bytes += sum(map(len, run[len(run) - len(complete) :]))
        if size_bytes + sum(map(len, map(_encode, last))) > room:
            return None
    return [*run, *map(_encode, last)]


def _newest(messages: list[bytes]) -> list[bytes]:
    """The last messages, as many as there is room for; a newest that is too large is shortened."""
    size_bytes = 0
    for count, message in enumerate(reversed(messages)):
        size_bytes += len(message) + 1
        if size_bytes > SNAPSHOT_BYTES:
            return messages[len(messages) - count :] or [_shortened(message)]
    return messages


def _shortened(message: bytes) -> bytes:
    """The message without what makes it too large, marked so."""
    whole = _decode(message)
    kept: dict[str, Any] = {name: whole[name] for name in ("id", "role") if name in whole}
    content: Any = whole.get("content")
    # A character has at most twelve bytes in JSON.
    kept["content"] = content[: SNAPSHOT_BYTES // 16] if isinstance(content, str) else ""
    kept["metadata"] = {"truncated": True}
    return _encode(kept)


def _frame(
    source: SnapshotSource, cursor: Cursor, messages: Iterable[bytes], run: list[bytes]
) -> bytes:
    """The messages, the shared state, and the open run so far.

    `RUN_STARTED` comes first, since AG-UI wants every event inside a run; the transcript already
    holds the messages that the run was started with.
    """
    events = [b'{"type":"MESSAGES_SNAPSHOT","messages":[' + b",".join(messages) + b"]}"]
    if source.state is not None:
        events.append(b'{"type":"STATE_SNAPSHOT","snapshot":' + source.state + b"}")
    if run and cast(Any, _decode(run[0])).get("type") == "RUN_STARTED":
        events.insert(0, run.pop(0))
    return encode(Snapshot(cursor, [Raw(event) for event in events + run]))
