"""The archiver: one node's part in bringing what the journals hold to the database.

The partitions are shared out over the nodes that are alive by rendezvous hashing: each node
computes the same shares from what the beat tells, and nobody has to agree on anything. While nodes
disagree for a moment, two bring the same entries, which is harmless since writing is idempotent; a
partition that nobody takes for a moment waits.

An entry is forgotten after its transaction was committed, so what dies in between is written again.
While the database or Redis is away everything waits where it is, in Redis.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from hashlib import blake2b

from loguru import logger

from gateway.archive.errors import BadRecord
from gateway.archive.rows import key_of
from gateway.session.archive import (
    ArchiveProbe,
    Journal,
    JournalEntry,
    JournalState,
    Record,
    RunEnded,
)
from gateway.session.errors import Rejected, Unavailable
from gateway.session.model import SessionKey
from gateway.session.ports import Clock

READ_BYTES = 8 * 1024 * 1024
"""Partitions are read together while no more than this waits in them; one alone, otherwise."""
COUNT = 50
"""So many entries of each."""
BATCH = 500
BATCH_BYTES = 8 * 1024 * 1024
"""What one transaction has at most, or one entry, however large. After a failure it is half of it,
down to one entry, so that what was too much in the time that there is becomes less; and each round
that succeeds makes it a quarter more again."""
AGAIN_S = 30.0
"""An entry that we cannot bring now, and must not set aside, is tried again after this."""

PAUSE_S = 0.5
MOST_PAUSE_S = 5.0
"""Between tries while the database or Redis is away: doubled each time, up to this."""

FULL = 0.8
"""From here on a journal's fill is worth a warning (and an alert): at 1 messages are refused."""


class Archiver:
    """Archives this node's share, and looks how much waits for the whole fleet."""

    def __init__(
        self,
        *,
        journal: Journal,
        prepare: Callable[[], Awaitable[None]],
        write: Callable[[Sequence[Record]], Awaitable[Iterable[tuple[SessionKey, str]]]],
        erased: Callable[[SessionKey, str], Awaitable[bool]],
        erase: Callable[[SessionKey, str], Awaitable[object]],
        probe: ArchiveProbe,
        node: str,
        partitions: int,
        clock: Clock,
        report: Callable[[str, Exception], None],
        interval_s: float = 0.5,
        watch_s: float = 5.0,
    ) -> None:
        """Nothing is its share before `heard`.

        Args:
            journal: where history waits.
            prepare: makes the database fit to be written, before that is done first. Raises
                `Unavailable` until it is.
            write: writes records in one transaction, idempotently. Answers sessions, with their
                users, that were erased. Raises `Unavailable` while the database is away,
                `BadRecord` when it will never take one of them. What else it raises is a fault of
                ours, and no reason to set history aside: the entry waits.
            erased: whether a session of a user was erased. Raises `Unavailable`.
            erase: removes what lives of such a session, which Redis may have forgotten to be
                erased. Raises `Unavailable`, also where all else is done: it may want replicas.
            probe: telemetry.
            node: this one.
            partitions: how many journals there are.
            clock: tells the time.
            report: is told of unexpected faults.
            interval_s: how often the journals are looked at,
            watch_s: and how often their state is; more often while something waits, so that what is
                shown of it is true.
        """
        self._journal = journal
        self._prepare = prepare
        self._write = write
        self._erased = erased
        self._erase = erase
        self._probe = probe
        self._node = node
        self._partitions = partitions
        self._clock = clock
        self._report = report
        self._interval_s = interval_s
        self._watch_s = watch_s
        self._alive: frozenset[str] = frozenset()
        self._share: list[int] = []
        self._limit = BATCH
        self._passed: dict[int, str] = {}
        self._again_at = 0.0
        self._nearly_full = False

    def heard(self, nodes: Mapping[str, bool]) -> None:
        """Which nodes live, as the beat was told."""
        alive = frozenset(node for node, lives in nodes.items() if lives)
        if alive != self._alive:
            self._alive = alive
            self._share = share(self._node, alive, self._partitions)

    async def run(self) -> None:
        """Archives until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run())
            tasks.create_task(self._watch())

    async def _run(self) -> None:
        failures, prepared = 0, False
        while True:
            pause_s = self._interval_s
            try:
                if not prepared:
                    await self._prepare()
                    prepared = True
                if await self.archive():
                    pause_s = 0.0
                failures = 0
            except Unavailable as error:
                if not prepared and not failures:
                    why = getattr(error, "why", str(error))
                    logger.bind(error=why).warning("the archive is not ready; history waits")
                pause_s = min(MOST_PAUSE_S, PAUSE_S * 2 ** min(failures, 16))
                pause_s *= random.uniform(0.5, 1)  # nodes that lost it together come back apart
                failures += 1
            except Exception as error:  # noqa: BLE001 - history waits, and must not for ever
                self._report("history could not be archived", error)
                pause_s = MOST_PAUSE_S
            await asyncio.sleep(pause_s)

    async def archive(self) -> bool:
        """Archives what waits in this node's share, once through. True: there is more already.

        Raises:
            Unavailable: the database or Redis is away; the rest waits.
        """
        if self._clock() >= self._again_at:
            self._passed.clear()
        try:
            more = await self._archive(min(COUNT, self._limit))
        except Unavailable:
            self._limit = max(1, self._limit // 2)
            raise
        self._limit = min(BATCH, self._limit + max(1, self._limit // 4))
        return more

    async def _archive(self, count: int) -> bool:
        more = False
        batch, size = list[JournalEntry](), 0
        for partitions in await self._groups():
            found = await self._journal.read(partitions, count, after=self._passed)
            more = more or count in Counter(entry.id.partition for entry in found).values()
            for entry in found:
                size += _size(entry)
                too_large = size > BATCH_BYTES * self._limit // BATCH
                if batch and (too_large or len(batch) >= self._limit):
                    await self._bring(batch)
                    batch, size = [], _size(entry)
                batch.append(entry)
        if batch:
            await self._bring(batch)
        return more

    async def _groups(self) -> list[list[int]]:
        """Its share, as it is read: Redis's answers, and what we hold of them, stay small."""
        groups, left = list[list[int]](), 0
        sizes = await self._journal.sizes(self._share) if self._share else []
        for number, size in zip(self._share, sizes, strict=True):
            left -= size
            if left < 0 or not groups:
                groups.append([])
                left = READ_BYTES - size
            groups[-1].append(number)
        return groups

    async def _bring(self, entries: Sequence[JournalEntry]) -> None:
        began = self._clock()
        readable = [(entry, entry.record) for entry in entries if entry.record is not None]
        if readable:
            await self._write_all(readable)
            self._probe.archived(self._clock() - began)
        for entry in entries:
            if entry.record is None:
                await self._bury(entry, "it cannot be understood")

    async def _write_all(self, entries: Sequence[tuple[JournalEntry, Record]]) -> None:
        """Writes and forgets. One that cannot be written is found by halves: what the database will
        never take is buried, and what we stumble over waits; neither holds up the others. Nor does
        a session that was erased and cannot be ended: what there is of it waits, too.
        """
        try:
            erased = await self._write([record for _, record in entries])
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - it is looked at below
            if len(entries) == 1:
                if isinstance(error, BadRecord):
                    await self._bury(entries[0][0], _one_line(error))
                else:
                    self._pass(entries[0][0])
                    self._report("an entry of the journal could not be archived; it waits", error)
                return
            middle = len(entries) // 2
            await self._write_all(entries[:middle])
            await self._write_all(entries[middle:])
            return
        left = await self._end(erased)
        waits = [entry for entry, record in entries if (key_of(record), record.user) in left]
        ids = {entry.id for entry in waits}
        await self._journal.forget([entry.id for entry, _ in entries if entry.id not in ids])
        for entry in waits:
            self._pass(entry)

    async def _end(self, erased: Iterable[tuple[SessionKey, str]]) -> set[tuple[SessionKey, str]]:
        """Removes what lives of sessions that were erased. Answers of which it could not."""
        left = set(erased)
        for key, user in random.sample(list(left), len(left)):  # none is always behind another
            try:
                await self._erase(key, user)
            except Rejected:
                continue
            except Unavailable:
                break  # each of the others would take its time, and those behind them wait
            except Exception as error:  # noqa: BLE001 - its entries wait
                self._report("an erased session could not be ended; its entries wait", error)
                continue
            left.remove((key, user))
        return left

    def _pass(self, entry: JournalEntry) -> None:
        """Leaves it where it is, and reads on behind it, until it is time to try again.

        What stands before it in its partition has been brought, or passed, too.
        """
        if not self._passed:
            self._again_at = self._clock() + AGAIN_S
        number, entry_id = entry.id
        self._passed[number] = max(self._passed.get(number, "0-0"), entry_id, key=_place)

    async def _bury(self, entry: JournalEntry, why: str) -> None:
        """Sets it aside; unless its owner had it erased, or a newer node may understand it."""
        owner = entry.owner
        if entry.record is not None:
            owner = key_of(entry.record), entry.record.user
        if owner is not None and await self._erased(*owner):
            await self._journal.forget([entry.id])
            return
        if not entry.known:
            logger.bind(partition=entry.id.partition, entry=entry.id.id).warning(
                "an entry of the journal is of a newer version; it waits for a newer node"
            )
            self._pass(entry)
            return
        logger.bind(partition=entry.id.partition, entry=entry.id.id, error=why).error(
            "the archive refuses an entry of the journal; it is among the dead letters now"
        )
        await self._journal.bury(entry.id, why)

    # --- how much waits ---------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            pause_s = self._watch_s
            try:
                state = await self._journal.state()
                self._look(state)
                if state.entries:
                    pause_s /= 5
            except Unavailable:
                pass
            except Exception as error:  # noqa: BLE001 - the next look may succeed
                self._report("the journals could not be looked at", error)
            await asyncio.sleep(pause_s)

    def _look(self, state: JournalState) -> None:
        self._probe.journal(state)
        nearly_full = state.fill >= FULL
        if nearly_full and not self._nearly_full:
            logger.bind(fill=round(state.fill, 2), entries=state.entries).warning(
                "a journal is nearly full: its sessions take no messages when it is"
            )
        self._nearly_full = nearly_full


def share(node: str, alive: Iterable[str], partitions: int) -> list[int]:
    """The partitions of one node among those that are alive: each has exactly one.

    Rendezvous hashing: when a node goes, only what was its own moves, evenly to the others.
    """

    def weight(other: str, number: int) -> tuple[bytes, str]:
        return blake2b(f"{number} {other}".encode(), digest_size=8).digest(), other

    nodes = list(alive)
    return [
        number
        for number in range(partitions)
        if nodes and max(nodes, key=lambda other, n=number: weight(other, n)) == node
    ]


def _size(entry: JournalEntry) -> int:
    """What is large in it, in bytes."""
    match entry.record:
        case RunEnded(asked=asked, said=said, event=event, state=state):
            return sum(map(len, asked)) + sum(map(len, said)) + len(event) + len(state or b"")
        case _:
            return 0


def _place(entry_id: str) -> tuple[int, int]:
    """An entry's id in the order of its stream."""
    ms, _, nth = entry_id.partition("-")
    return int(ms), int(nth)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
