"""`Journal` on Redis: what waits for the archive, one stream per partition."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from gateway.bus import keys
from gateway.bus.scripts import Scripts, source
from gateway.session.archive import (
    NOWHERE,
    DeadLetter,
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

    async def read(
        self, partitions: Sequence[int], count: int, *, after: Mapping[int, str] = NOWHERE
    ) -> list[JournalEntry]:
        """At most `count` of the oldest entries of each partition, oldest first within each."""
        first = {number: f"({entry_id}" for number, entry_id in after.items()}
        pages = await self._scripts.pipeline(
            "journal_read",
            *(
                ("XRANGE", keys.journal(number), first.get(number, "-"), "+", "COUNT", count)
                for number in partitions
            ),
        )
        return [
            _parse_entry(EntryId(number, entry_id.decode()), fields)
            for number, page in zip(partitions, pages, strict=True)
            for entry_id, fields in page
        ]

    async def sizes(self, partitions: Sequence[int]) -> list[int]:
        """About how many bytes wait in each of the partitions."""
        answers = await self._scripts.pipeline(
            "journal_sizes", *(("GET", keys.journal_bytes(number)) for number in partitions)
        )
        return [int(answer or 0) for answer in answers]

    async def forget(self, entries: Sequence[EntryId]) -> None:
        """They are archived."""
        await asyncio.gather(
            *(
                self._scripts.call("forget", keys.journal(number), *ids)
                for number, ids in _by_partition(entries).items()
            )
        )

    async def bury(self, entry: EntryId, why: str) -> None:
        """Sets an entry aside, since the archive will never take it."""
        await self._scripts.call("bury", keys.journal(entry.partition), entry.id, why)

    async def dead(self, count: int) -> list[DeadLetter]:
        """At most `count` dead letters, oldest first."""
        pages = await self._scripts.pipeline(
            "dead_letters",
            *(
                ("XRANGE", keys.dead_letters(number), "-", "+", "COUNT", count)
                for number in range(keys.PARTITIONS)
            ),
        )
        letters = [
            _parse_letter(EntryId(number, letter_id.decode()), fields)
            for number, page in enumerate(pages)
            for letter_id, fields in page
        ]
        return sorted(letters, key=lambda letter: letter.at_ms)[:count]

    async def replay(self, letters: Sequence[EntryId]) -> int:
        """Puts dead letters back at the end of their journals. Answers how many."""
        answers = await asyncio.gather(
            *(
                self._scripts.call("replay", keys.journal(number), *ids)
                for number, ids in _by_partition(letters).items()
            )
        )
        return sum(count for [count] in answers)

    async def drop_dead(self, tenant: str, user: str, session_id: str = "") -> int:
        """Removes the dead letters of a user, or of one session of theirs. Answers how many."""
        numbers: Sequence[int] = range(keys.PARTITIONS)
        if session_id:
            numbers = [keys.partition(SessionKey(tenant, session_id))]
        sizes = await self._scripts.pipeline(
            "dead_letters", *(("XLEN", keys.dead_letters(number)) for number in numbers)
        )
        count = 0
        for number, size in zip(numbers, sizes, strict=True):
            after = b"-" if size else b""
            while after:
                dropped, after = await self._scripts.call(
                    "drop_dead", keys.journal(number), tenant, user, session_id, after
                )
                count += dropped
        return count

    async def state(self) -> JournalState:
        """How much waits, and for how long."""
        script = source("journal_state")
        answers = await self._scripts.pipeline(
            "journal_state",
            *(("EVAL", script, 1, keys.journal(number)) for number in range(keys.PARTITIONS)),
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


def _parse_entry(entry_id: EntryId, fields: dict[bytes, bytes]) -> JournalEntry:
    record = parse_record(fields)
    if record is not None:
        return JournalEntry(entry_id, record)
    known = fields.get(b"entry") in (None, b"begun", b"run", b"over")
    try:
        tenant, session_id = fields[b"session"].decode().split(":")
        owner = SessionKey(tenant, session_id), fields[b"user"].decode()
    except (KeyError, ValueError):
        owner = None
    return JournalEntry(entry_id, None, owner, known)


def _parse_letter(letter_id: EntryId, fields: dict[bytes, bytes]) -> DeadLetter:
    text = {name.decode(errors="replace"): fields[name].decode(errors="replace") for name in fields}
    why = text.pop("why", "")
    return DeadLetter(letter_id, text, why, int(letter_id.id.partition("-")[0]))


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
    except (KeyError, ValueError, msgspec.DecodeError, RecursionError):
        return None


_TEXTS = {"entry", "session", "user", "agent", "on_detach", "run", "task", "kind", "code", "status"}
