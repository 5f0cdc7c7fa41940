"""A stretch of a session's log, read page by page: a run may have 16 MiB, and the loop others."""

from collections.abc import AsyncGenerator, Iterable
from typing import Any

import msgspec

from gateway.session.entry import Entry, read_entry
from gateway.session.model import SessionKey
from gateway.session.ports import Sessions
from protocol.frames import Cursor

PAGE = 256
"""Entries of the log in one read, at most; a page is bounded in bytes, too."""


class Moved(Exception):
    """The stretch cannot be read any more: the log was trimmed meanwhile, or has a new epoch."""


async def read_stretch(
    sessions: Sessions, key: SessionKey, first_seq: int, last: Cursor
) -> AsyncGenerator[list[Entry]]:
    """The entries from `first_seq` to `last`, page by page; nothing when `first_seq` is 0.

    Raises:
        Moved: what was read so far is all that there will be.
    """
    seq = first_seq - 1
    while first_seq and seq < last.seq:
        page = await sessions.read(key, Cursor(last.epoch, seq), PAGE)
        if page.status != "ok" or not page.entries:
            raise Moved
        entries = [read_entry(raw) for raw in page.entries]
        seq = entries[-1].seq
        yield [entry for entry in entries if entry.seq <= last.seq]


class _EventFrame(msgspec.Struct):
    event: dict[str, Any]


_decode = msgspec.json.Decoder(_EventFrame).decode


def events_of(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """The AG-UI events in those entries. One that is no JSON object says nothing."""
    events: list[dict[str, Any]] = []
    for entry in entries:
        try:
            events.append(_decode(entry.frame).event)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            continue
    return events
