"""Guarantee 8: what the journals hold comes to the database, once, whatever is away."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from gateway.archive.archiver import BATCH, COUNT, Archiver, share
from gateway.archive.errors import BadRecord
from gateway.session.archive import (
    NOWHERE,
    DeadLetter,
    EntryId,
    JournalEntry,
    JournalState,
    Record,
    SessionOver,
)
from gateway.session.errors import Rejected, Unavailable
from gateway.session.model import SessionKey

PARTITIONS = 128


class LittleJournal:
    """The port's rules in one process: an entry stays until it is forgotten or buried."""

    def __init__(self) -> None:
        self.waiting: dict[EntryId, Record | None] = {}
        self.added = 0
        self.buried: dict[EntryId, str] = {}
        self.down = False
        self.forget_down = False
        self.emptied = asyncio.Event()

    def add(self, name: str, partition: int = 0) -> None:
        record = SessionOver(SessionKey("acme", name), "u", "completed", 1)
        self.added += 1
        self.waiting[EntryId(partition, f"{self.added:06}-0")] = record

    async def sizes(self, partitions: Sequence[int]) -> list[int]:
        await self._answer()
        waiting = Counter(entry.partition for entry in self.waiting)
        return [waiting[number] for number in partitions]

    async def read(
        self, partitions: Sequence[int], count: int, *, after: Mapping[int, str] = NOWHERE
    ) -> list[JournalEntry]:
        await self._answer()
        found: list[JournalEntry] = []
        for number in partitions:
            first = EntryId(number, after.get(number, ""))
            ids = sorted(
                entry for entry in self.waiting if entry.partition == number and entry > first
            )
            found += [JournalEntry(entry, self.waiting[entry]) for entry in ids[:count]]
        return found

    async def forget(self, entries: Sequence[EntryId]) -> None:
        await self._answer()
        if self.forget_down:
            raise Unavailable
        for entry in entries:
            self.waiting.pop(entry, None)
        self._tell()

    async def bury(self, entry: EntryId, why: str) -> None:
        await self._answer()
        if entry in self.waiting:
            del self.waiting[entry]
            self.buried[entry] = why
        self._tell()

    async def state(self) -> JournalState:
        await self._answer()
        return JournalState(entries=len(self.waiting), dead=len(self.buried))

    async def dead(self, count: int) -> list[DeadLetter]:
        raise NotImplementedError

    async def replay(self, letters: Sequence[EntryId]) -> int:
        raise NotImplementedError

    async def drop_dead(self, tenant: str, user: str, session_id: str = "") -> int:
        raise NotImplementedError

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise Unavailable

    def _tell(self) -> None:
        if not self.waiting:
            self.emptied.set()


class LittleTable:
    """Takes a batch whole or not at all, as a transaction does."""

    def __init__(self) -> None:
        self.rows: dict[str, Record] = {}
        self.written: list[list[str]] = []
        self.poison: set[str] = set()
        self.stumbles: set[str] = set()
        self.failures = 0
        self.most = 1_000_000
        self.erased: set[str] = set()

    async def write(self, records: Sequence[Record]) -> list[tuple[SessionKey, str]]:
        await asyncio.sleep(0)
        if len(records) > self.most:
            raise Unavailable("not in the time that there is")
        if self.failures:
            self.failures -= 1
            raise Unavailable("the history does not answer")
        names = [record.key.session_id for record in records]
        bad = self.poison.intersection(names)
        if bad:
            raise BadRecord(f"invalid input for {sorted(bad)[0]}\nDETAIL: and so on")
        if self.stumbles.intersection(names):
            raise RecursionError("a fault of ours")
        self.written.append(names)
        self.rows.update(zip(names, records, strict=True))
        return [
            (record.key, record.user) for record in records if record.key.session_id in self.erased
        ]


class Seen:
    def __init__(self) -> None:
        self.batches = 0
        self.state = JournalState()
        self.told = asyncio.Event()

    def journal(self, state: JournalState) -> None:
        self.state = state
        self.told.set()

    def archived(self, seconds: float) -> None:
        assert seconds >= 0
        self.batches += 1


class World:
    def __init__(self) -> None:
        self.journal = LittleJournal()
        self.table = LittleTable()
        self.probe = Seen()
        self.errors: list[Exception] = []
        self.erased: set[str] = set()
        self.ended: list[str] = []
        self.undying: dict[str, Exception] = {}
        self.asked_to_end: list[str] = []
        self.unprepared = 0
        self.prepared = 0

    async def prepare(self) -> None:
        if self.unprepared:
            self.unprepared -= 1
            raise Unavailable
        self.prepared += 1

    async def is_erased(self, key: SessionKey, user: str) -> bool:
        assert user == "u"
        return key.session_id in self.erased

    async def erase(self, key: SessionKey, user: str) -> None:
        assert user == "u"
        self.asked_to_end.append(key.session_id)
        if key.session_id in self.undying:
            raise self.undying[key.session_id]
        self.ended.append(key.session_id)

    def archiver(self, node: str = "n1", alive: Sequence[str] = ("n1",)) -> Archiver:
        archiver = Archiver(
            journal=self.journal,
            prepare=self.prepare,
            write=self.table.write,
            erased=self.is_erased,
            erase=self.erase,
            probe=self.probe,
            node=node,
            partitions=PARTITIONS,
            clock=time.monotonic,
            report=lambda _what, error: self.errors.append(error),
            interval_s=0.01,
            watch_s=0.01,
        )
        archiver.heard(dict.fromkeys(alive, True))
        return archiver


@pytest.fixture
def world() -> World:
    return World()


async def until_empty(world: World, archiver: Archiver) -> None:
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(archiver.run())
        await world.journal.emptied.wait()
        running.cancel()


# --- shares ---------------------------------------------------------------------------------------


def test_every_partition_has_one_node_and_each_node_its_part():
    nodes = [f"node-{number}" for number in range(4)]
    shares = {node: share(node, nodes, PARTITIONS) for node in nodes}
    assert sorted(n for part in shares.values() for n in part) == list(range(PARTITIONS))
    assert all(PARTITIONS / 8 < len(part) < PARTITIONS / 2 for part in shares.values()), shares


def test_a_node_that_goes_leaves_its_part_to_others_and_moves_no_other():
    nodes = ["a", "b", "c"]
    before = {node: set(share(node, nodes, PARTITIONS)) for node in nodes}
    after = {node: set(share(node, ["a", "b"], PARTITIONS)) for node in ["a", "b"]}
    assert all(before[node] <= after[node] for node in after)
    assert after["a"] | after["b"] == set(range(PARTITIONS))


def test_a_node_that_is_dead_for_the_others_takes_nothing(world):
    archiver = world.archiver()
    archiver.heard({"n1": False, "n2": True})
    assert share("n1", {"n2"}, PARTITIONS) == []
    assert archiver._share == []


async def test_nothing_is_taken_before_the_beat_has_told_who_lives(world):
    world.journal.add("s")
    archiver = world.archiver(alive=())
    await archiver.archive()
    assert world.table.rows == {}
    archiver.heard({"n1": True})
    await archiver.archive()
    assert list(world.table.rows) == ["s"]


async def test_what_a_dead_node_left_another_brings(world):
    for number in range(PARTITIONS):
        world.journal.add(f"s{number}", number)
    one = world.archiver("n1", ["n1", "n2"])
    await one.archive()
    assert 0 < len(world.table.rows) < PARTITIONS
    one.heard({"n1": True, "n2": False})
    await one.archive()
    assert len(world.table.rows) == PARTITIONS
    assert world.journal.waiting == {}


# --- bringing -------------------------------------------------------------------------------------


async def test_what_waits_in_many_partitions_is_one_transaction(world):
    for number in range(PARTITIONS):
        world.journal.add(f"s{number}", number)
    assert not await world.archiver().archive()
    assert [len(names) for names in world.table.written] == [PARTITIONS]
    assert world.probe.batches == 1


async def test_a_backlog_is_brought_in_bounded_batches_in_order(world):
    for number in range(3 * COUNT):
        world.journal.add(f"s{number:03}", 5)
    archiver = world.archiver()
    assert await archiver.archive(), "there is more, and it need not wait"
    while await archiver.archive():
        pass
    assert [len(names) for names in world.table.written] == [COUNT] * 3
    assert list(world.table.rows) == [f"s{number:03}" for number in range(3 * COUNT)]


async def test_a_transaction_is_never_longer_than_its_bound(world):
    for number in range(PARTITIONS):
        for nth in range(10):
            world.journal.add(f"s{number}-{nth}", number)
    await world.archiver().archive()
    assert [len(names) for names in world.table.written] == [BATCH, BATCH, 10 * PARTITIONS - 1000]


async def test_a_transaction_is_never_larger_than_its_bound(world, monkeypatch):
    """In time: what a journal may have is more than a slow database takes at once."""
    monkeypatch.setattr("gateway.archive.archiver._size", lambda _entry: 3 * 1024 * 1024)
    for number in range(5):
        world.journal.add(f"s{number}", 7)
    world.journal.add("s5", 8)
    await world.archiver().archive()
    assert [len(names) for names in world.table.written] == [2] * 3


@pytest.mark.parametrize("most", [1, 60])
async def test_a_backlog_that_is_too_much_at_once_is_brought_in_smaller_parts(
    world, monkeypatch, most
):
    """Else it would be tried for ever, and grow meanwhile."""
    monkeypatch.setattr("gateway.archive.archiver.PAUSE_S", 0.001)
    for number in range(150):
        world.journal.add(f"s{number}", number % 3)
    world.table.most = most
    archiver = world.archiver()
    await until_empty(world, archiver)
    assert len(world.table.rows) == 150
    assert max(map(len, world.table.written)) <= most

    world.table.most = 1_000_000
    for _ in range(30):
        world.journal.add("more")
        await archiver.archive()
    for number in range(10 * PARTITIONS):
        world.journal.add(f"u{number}", number % PARTITIONS)
    await archiver.archive()
    parts = [len(names) for names in world.table.written[-3:]]
    assert parts == [BATCH, BATCH, 10 * PARTITIONS - 2 * BATCH], "as large as ever in the end"


async def test_nothing_is_forgotten_before_it_is_committed(world):
    world.journal.add("s")
    world.table.failures = 1
    archiver = world.archiver()
    with pytest.raises(Unavailable):
        await archiver.archive()
    assert len(world.journal.waiting) == 1
    await archiver.archive()
    assert world.journal.waiting == {}
    assert list(world.table.rows) == ["s"]


async def test_what_was_committed_and_not_forgotten_is_written_again(world):
    """A node that dies in between; the writer is idempotent (`tests/contract/test_archive.py`)."""
    world.journal.add("s")
    world.journal.forget_down = True
    with pytest.raises(Unavailable):
        await world.archiver().archive()
    assert list(world.table.rows) == ["s"]
    world.journal.forget_down = False
    await world.archiver("n2", ["n2"]).archive()
    assert world.table.written == [["s"], ["s"]]
    assert world.journal.waiting == {}


async def test_it_goes_on_when_the_database_is_back(world, monkeypatch):
    monkeypatch.setattr("gateway.archive.archiver.PAUSE_S", 0.001)
    world.table.failures = 6
    for number in range(10):
        world.journal.add(f"s{number}", number)
    await until_empty(world, world.archiver())
    assert len(world.table.rows) == 10
    assert world.errors == []


async def test_the_database_is_prepared_once_before_it_is_written(world, monkeypatch):
    """It may have been away at the start; then nobody else would migrate it."""
    monkeypatch.setattr("gateway.archive.archiver.PAUSE_S", 0.001)
    world.unprepared = 3
    world.journal.add("s")
    await until_empty(world, world.archiver())
    assert (world.unprepared, world.prepared) == (0, 1)


async def test_an_unexpected_fault_of_the_journal_is_reported_and_survived(world, monkeypatch):
    monkeypatch.setattr("gateway.archive.archiver.MOST_PAUSE_S", 0.001)
    world.journal.add("s")
    read = world.journal.read

    async def broken(*_arguments: object, **_rest: object) -> list[JournalEntry]:
        world.journal.read = read
        raise RuntimeError("a fault of ours")

    world.journal.read = broken
    await until_empty(world, world.archiver())
    assert [str(error) for error in world.errors] == ["a fault of ours"]


# --- what the database will never take ------------------------------------------------------------


async def test_one_bad_entry_is_set_aside_and_holds_up_no_other(world):
    for number in range(20):
        world.journal.add(f"s{number}", 3)
    world.table.poison = {"s7"}
    await world.archiver().archive()
    assert set(world.table.rows) == {f"s{number}" for number in range(20)} - {"s7"}
    assert world.journal.waiting == {}
    assert list(world.journal.buried.values()) == ["invalid input for s7 DETAIL: and so on"]


async def test_a_database_that_goes_while_a_bad_entry_is_sought_buries_nothing(world):
    for number in range(4):
        world.journal.add(f"s{number}", 3)
    world.table.poison = {"s3"}
    write, calls = world.table.write, []

    async def goes_away(records: Sequence[Record]) -> list[tuple[SessionKey, str]]:
        calls.append(len(records))
        if len(calls) == 3:
            raise Unavailable
        return await write(records)

    archiver = world.archiver()
    archiver._write = goes_away
    with pytest.raises(Unavailable):
        await archiver.archive()
    assert world.journal.buried == {}
    await archiver.archive()
    assert set(world.table.rows) == {"s0", "s1", "s2"}
    assert len(world.journal.buried) == 1


async def test_an_entry_that_we_stumble_over_waits_and_holds_up_no_other(world):
    """It is no reason to lose history, and none to keep what stands behind it, however much."""
    world.table.stumbles = {f"s{number}" for number in range(COUNT + 5)}
    for number in range(2 * COUNT):
        world.journal.add(f"s{number}", 3)
    world.journal.add("other", 4)
    archiver = world.archiver()
    for _ in range(3):
        await archiver.archive()
    fine = {f"s{number}" for number in range(COUNT + 5, 2 * COUNT)} | {"other"}
    assert set(world.table.rows) == fine
    waiting = {record.key.session_id for record in world.journal.waiting.values()}
    assert waiting == world.table.stumbles
    assert world.journal.buried == {}
    assert len(world.errors) == COUNT + 5, "each is told once, not at each look"


async def test_what_we_stumbled_over_is_tried_again(world, monkeypatch):
    monkeypatch.setattr("gateway.archive.archiver.AGAIN_S", 0.0)
    world.table.stumbles = {"s1"}
    for number in range(3):
        world.journal.add(f"s{number}", 3)
    archiver = world.archiver()
    await archiver.archive()
    assert set(world.table.rows) == {"s0", "s2"}
    world.table.stumbles = set()
    await archiver.archive()
    assert set(world.table.rows) == {"s0", "s1", "s2"}
    assert world.journal.waiting == {}


async def test_an_entry_that_cannot_be_understood_is_set_aside(world):
    world.journal.waiting[EntryId(1, "1-0")] = None
    world.journal.add("s", 1)
    await world.archiver().archive()
    assert list(world.journal.buried) == [EntryId(1, "1-0")]
    assert list(world.table.rows) == ["s"]


async def test_what_is_buried_behind_what_waits_is_not_read_again_before_its_time(world):
    """A newer node's entry before one that we stumble over: the later place counts."""
    entry = EntryId(1, "0-1")
    read = world.journal.read

    async def with_newer(partitions: Sequence[int], count: int, **rest: Any) -> list[JournalEntry]:
        found = await read(partitions, count, **rest)
        return [JournalEntry(one.id, one.record, None, known=one.id != entry) for one in found]

    world.journal.read = with_newer
    world.journal.waiting[entry] = None
    world.journal.add("s", 1)
    world.table.stumbles = {"s"}
    archiver = world.archiver()
    for _ in range(3):
        await archiver.archive()
    assert len(world.journal.waiting) == 2
    assert len(world.errors) == 1
    assert world.journal.buried == {}


async def test_a_bad_entry_of_an_erased_session_is_forgotten_not_set_aside(world):
    """Dead letters are kept and shown to operators: none may arise of what was erased."""
    for number in range(4):
        world.journal.add(f"s{number}", 3)
    world.table.poison = {"s1", "s2"}
    world.erased = {"s1"}
    await world.archiver().archive()
    assert world.journal.waiting == {}
    assert ["s2" in why for why in world.journal.buried.values()] == [True]


# --- what was erased ------------------------------------------------------------------------------


def waiting(world: World) -> list[str]:
    return [record.key.session_id for record in world.journal.waiting.values()]


async def test_what_lives_of_an_erased_session_is_removed_before_its_entry_is_forgotten(
    world, monkeypatch
):
    """Redis lost that it was erased, or the archive was away when somebody made it again."""
    monkeypatch.setattr("gateway.archive.archiver.AGAIN_S", 0.0)
    for name in ("one", "gone", "two"):
        world.journal.add(name)
    world.table.erased = {"gone"}
    world.undying = {"gone": Unavailable()}
    archiver = world.archiver()
    for _ in range(2):
        await archiver.archive()
        assert waiting(world) == ["gone"]
    world.undying = {}
    await archiver.archive()
    assert waiting(world) == []
    assert world.ended == ["gone"]


@pytest.mark.parametrize("fault", [Unavailable(), Rejected(), RuntimeError("a fault of ours")])
async def test_an_erased_session_that_cannot_be_ended_holds_up_no_other(world, monkeypatch, fault):
    """A replica that has to confirm it may be away for long; all else asks for none."""
    monkeypatch.setattr("gateway.archive.archiver.AGAIN_S", 3600.0)
    for number in range(2 * COUNT):
        world.journal.add(f"s{number}", 3)
    world.journal.add("other", 4)
    world.table.erased = {"s7", "s8"}
    world.undying = {"s7": fault}
    if type(fault) is Unavailable:  # to all, and each would take its time
        world.undying["s8"] = fault
    archiver = world.archiver()
    for _ in range(5):
        await archiver.archive()
    assert waiting(world) == list(world.undying)
    assert len(world.table.rows) == 2 * COUNT + 1
    assert sum(map(len, world.table.written)) == 2 * COUNT + 1, "each once"
    assert len(world.asked_to_end) == (1 if "s8" in world.undying else 2)
    assert world.errors == ([fault] if isinstance(fault, RuntimeError) else [])


async def test_nothing_of_an_erased_session_is_passed_over_while_redis_is_away(world):
    """All waits where it is, then, and is brought as soon as it is back."""
    for name in ("one", "gone"):
        world.journal.add(name)
    world.table.erased = {"gone"}
    world.undying = {"gone": Unavailable()}
    world.journal.forget_down = True
    archiver = world.archiver()
    with pytest.raises(Unavailable):
        await archiver.archive()
    world.journal.forget_down, world.undying = False, {}
    await archiver.archive()
    assert waiting(world) == []


# --- what is told ---------------------------------------------------------------------------------


async def test_the_state_of_the_journals_is_told_while_the_database_is_away(world):
    """Depth and lag are what pages somebody: they must be fresh just then."""
    world.journal.add("s")
    world.table.failures = 1_000_000
    archiver = world.archiver()
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(archiver.run())
        await world.probe.told.wait()
        running.cancel()
    assert world.probe.state.entries == 1
