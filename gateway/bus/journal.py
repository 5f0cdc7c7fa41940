"""`Journal` on Redis: what waits for the archive, one stream per partition."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from gateway.bus import keys
from gateway.bus.scripts import Scripts, source
from gateway.session.archive import (
    EntryId,
    JournalEntry,
    JournalState,
    Record,
    RunEnded,
    SessionBegun,
    SessionOver,
)
from gateway.session.model import Limits, RunRef, SessionKey

_messages = msgspec.json.Decoder(list[msgspec.Raw]).decode


class RedisJournal:
    """See `gateway.session.archive.Journal`."""

    def __init__(self, scripts: Scripts, limits: Limits) -> None:
        """`limits` tell how much a partition may have waiting."""
        self._scripts = scripts
        self._most_bytes = limits.journal_bytes

    async def _pipeline(self, *commands: tuple[Any, ...]) -> list[Any]:
        """What each of the commands answers; they may be of any partitions."""
        pipeline: Any = self._scripts.client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        async with self._scripts.asking():
            return cast("list[Any]", await pipeline.execute())

    async def read(self, partitions: Sequence[int], count: int) -> list[JournalEntry]:
        """At most `count` of the oldest entries of each partition, oldest first within each."""
        pages = await self._pipeline(
            *(("XRANGE", keys.journal(number), "-", "+", "COUNT", count) for number in partitions)
        )
        return [
            JournalEntry(EntryId(number, entry_id.decode()), parse_record(fields))
            for number, page in zip(partitions, pages, strict=True)
            for entry_id, fields in page
        ]

    async def forget(self, entries: Sequence[EntryId]) -> None:
        """They are archived."""
        await asyncio.gather(
            *(
                self._scripts.call("forget", keys.journal(number), *ids)
                for number, ids in _by_partition(entries).items()
            )
        )

    async def state(self) -> JournalState:
        """How much waits, and for how long."""
        script = source("journal_state")
        answers = await self._pipeline(
            *(("EVAL", script, 1, keys.journal(number)) for number in range(keys.PARTITIONS))
        )
        oldest = [int(oldest.partition(b"-")[0]) for _, oldest, _, _ in answers if oldest]
        return JournalState(
            entries=sum(entries for entries, _, _, _ in answers),
            oldest_ms=min(oldest, default=0),
            fill=max(size for _, _, size, _ in answers) / self._most_bytes,
            dead=sum(dead for _, _, _, dead in answers),
        )


def _by_partition(entries: Sequence[EntryId]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for number, entry_id in entries:
        found[number].append(entry_id)
    return found


def parse_record(fields: dict[bytes, bytes]) -> Record | None:
    """What `journal.lua` wrote; None when it cannot be understood."""
    try:
        entry = {name.decode(): value for name, value in fields.items()}
        text = {name: entry[name].decode() for name in _TEXTS & entry.keys()}
        tenant, session_id = text["session"].split(":")
        key, user = SessionKey(tenant, session_id), text["user"]
        match text["entry"]:
            case "begun":
                return SessionBegun(
                    key,
                    user,
                    text["agent"],
                    entry["metadata"],
                    "cancel" if text["on_detach"] == "cancel" else "continue",
                    int(entry["at_ms"]),
                )
            case "run":
                return RunEnded(
                    RunRef(*key, text["run"]),
                    user,
                    text["agent"],
                    text["task"],
                    cast(Any, text["kind"]),
                    text["code"],
                    int(entry["created_ms"]),
                    int(entry["claimed_ms"] or 0),
                    int(entry["ended_ms"]),
                    [bytes(message) for message in _messages(entry["asked"])],
                    [bytes(message) for message in _messages(entry["said"])],
                    entry["event"],
                    entry["state"] or None,
                )
            case "over":
                return SessionOver(key, user, cast(Any, text["status"]), int(entry["at_ms"]))
            case _:
                return None
    except (KeyError, ValueError, msgspec.DecodeError):
        return None


_TEXTS = {"entry", "session", "user", "agent", "on_detach", "run", "task", "kind", "code", "status"}
