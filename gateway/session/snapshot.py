"""A session as one frame, for who comes without a cursor."""

from typing import Any

import msgspec
from msgspec import Raw

from gateway.session.errors import Unavailable
from gateway.session.log import Moved, events_of, read_stretch
from gateway.session.model import SessionKey, SnapshotSource
from gateway.session.ports import Sessions
from protocol.codec import encode
from protocol.frames import Cursor, Snapshot
from protocol.transcript import merge_deltas

_ATTEMPTS = 5
_encode = msgspec.json.Encoder().encode


async def take_snapshot(sessions: Sessions, key: SessionKey) -> tuple[Cursor, bytes] | None:
    """The `snapshot` frame and its cursor; None when there is no session.

    Raises:
        Unavailable: Redis does not answer, or the log was trimmed time and again while it was read.
    """
    for _ in range(_ATTEMPTS):
        source = await sessions.snapshot(key)
        if source is None:
            return None
        try:
            run = await _run_so_far(sessions, key, source)
        except Moved:
            continue
        return source.cursor, _frame(source, run)
    raise Unavailable("the session moves on too fast to be read")


async def _run_so_far(
    sessions: Sessions, key: SessionKey, source: SnapshotSource
) -> list[dict[str, Any]]:
    """The events of the open run, adjacent deltas merged as they come."""
    run: list[dict[str, Any]] = []
    async for entries in read_stretch(sessions, key, source.first_seq, source.cursor):
        run[-1:] = merge_deltas([*run[-1:], *events_of(entries)])
    return run


def _frame(source: SnapshotSource, run: list[dict[str, Any]]) -> bytes:
    """The messages, the shared state, and the open run so far.

    `RUN_STARTED` comes first, since AG-UI wants every event inside a run; the transcript already
    holds the messages that the run was started with.
    """
    events: list[Raw] = []
    if run and run[0].get("type") == "RUN_STARTED":
        events.append(Raw(_encode(run.pop(0))))
    messages = b",".join(source.messages)
    events.append(Raw(b'{"type":"MESSAGES_SNAPSHOT","messages":[' + messages + b"]}"))
    if source.state is not None:
        events.append(Raw(b'{"type":"STATE_SNAPSHOT","snapshot":' + source.state + b"}"))
    events.extend(Raw(_encode(event)) for event in run)
    return encode(Snapshot(source.cursor, events))
