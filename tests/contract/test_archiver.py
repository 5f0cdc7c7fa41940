"""Guarantee 8 where the parts meet: real journals, a real database, the archiver between them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from support.bus import running_bus
from support.history import everything, rows
from support.talk import Talk

from gateway.app import now_ms, report
from gateway.archive.archive import open_archive
from gateway.archive.archiver import READ_BYTES, Archiver
from gateway.archive.database import Database
from gateway.archive.errors import HistoryAway, UnusableDatabase
from gateway.archive.reader import Reader
from gateway.archive.schema import messages, runs, usage_daily
from gateway.archive.writer import Writer
from gateway.bus import keys
from gateway.bus.bus import Bus
from gateway.session.archive import JournalState
from gateway.session.errors import Refused, Unavailable
from gateway.session.model import Limits, SessionKey
from protocol.codes import ErrorCode

USAGE = [{"model": "m", "inputTokens": 3, "outputTokens": 5}]


class Silent:
    def journal(self, state: JournalState) -> None:
        pass

    def archived(self, seconds: float) -> None:
        pass


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    """On a server of its own: the archiver takes whatever waits in any journal."""
    async with running_bus() as connected:
        yield connected


def archiver(bus: Bus, database: Database, node: str = "n1", *, journal: Any = None) -> Archiver:
    made = Archiver(
        journal=journal or bus.journal,
        prepare=database.check,
        write=Writer(database).write,
        erased=Writer(database).erased,
        erase=partial(erase_live, bus),
        probe=Silent(),
        node=node,
        partitions=keys.PARTITIONS,
        clock=time.monotonic,
        report=lambda _what, _error: None,
    )
    made.heard({node: True})
    return made


async def erase_live(bus: Bus, key: SessionKey, user: str) -> None:
    await bus.erasure.erase(key, user, call_id="archiver")


def reader(database: Database) -> Reader:
    return Reader(database, now_ms=now_ms, transcript_messages=200, transcript_bytes=1 << 20)


async def converse(bus: Bus, count: int = 3, **fields: Any) -> Talk:
    """A session with so many runs that are over, each with usage."""
    talk = Talk(bus)
    await talk.open()
    for number in range(count):
        claim = await talk.running(f"question {number}")
        said = json.dumps({"id": f"a{number}", "role": "assistant", "content": f"answer {number}"})
        ended = json.dumps({"type": "RUN_FINISHED", "usage": USAGE}).encode()
        await talk.finish(claim, **{"messages": [said.encode()], "event": ended, **fields})
    return talk


async def texts(database: Database, talk: Talk) -> list[str]:
    found = await reader(database).messages(talk.key, before=None, limit=100)
    return [json.loads(one.json)["content"] for one in found]


async def test_a_conversation_comes_to_the_archive_as_it_was(bus: Bus, database: Database):
    talk = await converse(bus)
    await archiver(bus, database).archive()
    words = [f"{kind} {n}" for n in range(3) for kind in ("question", "answer")]
    assert await texts(database, talk) == words
    record = await reader(database).session(talk.key, talk.user)
    assert record is not None
    assert (record.agent, record.status, record.runs) == (talk.agent, "active", 3)
    assert await bus.journal.state() == JournalState()


async def test_a_node_that_dies_between_commit_and_forget_doubles_nothing(
    bus: Bus, database: Database
):
    """Its successor brings the same entries again: runs, messages and usage count once."""

    class Dies:
        read = staticmethod(bus.journal.read)
        sizes = staticmethod(bus.journal.sizes)

        @staticmethod
        async def forget(_entries: object) -> None:
            raise Unavailable

    await converse(bus)
    with pytest.raises(Unavailable):
        await archiver(bus, database, journal=Dies()).archive()
    first = await everything(database)
    assert len(first["runs"]) == 3, "it was committed"
    assert (await bus.journal.state()).entries, "and not forgotten"
    await archiver(bus, database, "n2").archive()
    assert await everything(database) == first
    assert [row["runs"] for row in first["usage_daily"]] == [3]
    assert (await bus.journal.state()).entries == 0


async def test_nodes_that_take_the_same_partitions_at_one_time_write_once(
    bus: Bus, database: Database
):
    """For a moment each may think that the other is dead."""
    talks = [await converse(bus, 2) for _ in range(5)]
    nodes = [archiver(bus, database, f"n{number}") for number in range(3)]
    await asyncio.gather(*(node.archive() for node in nodes))
    assert len(await rows(database, runs)) == 10
    assert len(await rows(database, messages)) == 20
    assert {row["agent_id"]: row["runs"] for row in await rows(database, usage_daily)} == {
        talk.agent: 2 for talk in talks
    }


async def test_what_the_database_will_never_take_is_set_aside_and_replayed(
    bus: Bus, database: Database
):
    """A time that no number of the database holds; beside it, everything is archived."""
    talk = await converse(bus, 2)
    journal = f"j:{{p{keys.partition(talk.key)}}}"
    *_, (_, fields) = await bus.client.xrange(journal)
    await bus.client.xadd(journal, {**fields, b"run": "r-bad", b"created_ms": str(2**70)})
    node = archiver(bus, database)
    await node.archive()
    assert len(await texts(database, talk)) == 4
    state = await bus.journal.state()
    assert (state.entries, state.dead) == (0, 1)
    [letter] = await bus.journal.dead(10)
    assert letter.fields["run"] == "r-bad"
    assert letter.why
    assert await bus.journal.replay([letter.id]) == 1
    state = await bus.journal.state()
    assert (state.entries, state.dead) == (1, 0)
    await node.archive()
    assert (await bus.journal.state()).dead == 1, "nothing was mended"


async def test_a_run_that_is_nested_too_deeply_to_be_read_holds_up_nobody(
    bus: Bus, database: Database
):
    """An agent may end its run with any event; its usage cannot be read then, and is absent."""
    deep = b'{"type":"RUN_FINISHED","result":' + b"[" * 5000 + b"]" * 5000 + b"}"
    talk = await converse(bus, 1, event=deep)
    await archiver(bus, database).archive()
    assert len(await texts(database, talk)) == 2
    [row] = await rows(database, runs)
    assert row["event"] == deep.decode()
    assert row["input_tokens"] is None


async def test_an_entry_whose_words_cannot_be_read_is_set_aside(bus: Bus, database: Database):
    talk = await converse(bus, 1)
    journal = keys.journal(keys.partition(talk.key))
    *_, (_, fields) = await bus.client.xrange(journal)
    deep = b"[" * 5000 + b"]" * 5000
    await bus.client.xadd(journal, {**fields, b"run": "r-deep", b"asked": deep})
    await archiver(bus, database).archive()
    assert len(await texts(database, talk)) == 2
    [letter] = await bus.journal.dead(10)
    assert letter.fields["run"] == "r-deep"


async def test_a_backlog_is_read_a_few_partitions_at_a_time(bus: Bus, database: Database):
    """Redis answers within a bound of time, so one answer must not be all that it has."""
    talks = [await converse(bus, 1) for _ in range(8)]
    sizes = await bus.journal.sizes(range(keys.PARTITIONS))
    busy = {keys.partition(talk.key) for talk in talks}
    assert {number for number, size in enumerate(sizes) if size} == busy
    for number in busy:
        await bus.client.set(keys.journal_bytes(number), READ_BYTES * 2 // 3)
    asked: list[int] = []

    class Counts:
        sizes = staticmethod(bus.journal.sizes)
        forget = staticmethod(bus.journal.forget)

        @staticmethod
        async def read(partitions: Any, count: int, **rest: Any) -> Any:
            asked.append(len(busy.intersection(partitions)))
            return await bus.journal.read(partitions, count, **rest)

    await archiver(bus, database, journal=Counts()).archive()
    assert asked == [1] * len(busy)
    assert len(await rows(database, runs)) == 8


async def test_an_entry_of_a_newer_version_waits_for_a_newer_node(bus: Bus, database: Database):
    """In a rolling deploy; and what stands behind it goes on."""
    talk = await converse(bus, 1)
    journal = keys.journal(keys.partition(talk.key))
    *_, (_, fields) = await bus.client.xrange(journal)
    newer = await bus.client.xadd(journal, {"entry": "of a later version"})
    await bus.client.xadd(journal, {**fields, b"run": b"r-behind"})
    await bus.client.xadd("j:{p7}", {"what": "no entry at all"})
    node = archiver(bus, database)
    for _ in range(2):
        await node.archive()
    assert len(await texts(database, talk)) == 4
    [waiting] = await bus.journal.read(range(keys.PARTITIONS), 10)
    assert waiting.id == (keys.partition(talk.key), newer.decode())
    [letter] = await bus.journal.dead(10)
    assert letter.fields == {"what": "no entry at all"}


@pytest.mark.parametrize("session_only", [True, False])
async def test_no_dead_letter_arises_of_what_was_erased(
    bus: Bus, database: Database, session_only: bool
):
    """Not of a run that no database takes, of one that cannot be read, nor of a newer version's."""
    talk = await converse(bus, 1, messages=[b'{"content":"SECRET \xff"}'])
    journal = keys.journal(keys.partition(talk.key))
    *_, (_, fields) = await bus.client.xrange(journal)
    for changes in ({b"created_ms": b"SECRET"}, {b"ended_ms": str(2**70)}, {b"entry": b"newer"}):
        await bus.client.xadd(journal, {**fields, b"run": b"r-%d" % len(str(changes)), **changes})
    other = await converse(bus, 1)
    await reader(database).erase(*talk.key[:1], talk.user, *talk.key[1:] if session_only else ())
    await archiver(bus, database).archive()
    assert await bus.journal.dead(10) == []
    assert await bus.journal.state() == JournalState()
    assert len(await texts(database, other)) == (2 if session_only else 0)


async def test_an_old_schema_is_refused_and_migrated_only_where_that_is_wanted(database_url: str):
    """A gateway of another version may be using it."""

    def opened(*, migrates: bool) -> Any:
        return open_archive(
            database_url, Limits(), migrates=migrates, now_ms=lambda: 0, report=report
        )

    with pytest.raises(UnusableDatabase, match="gateway migrate"):
        async with opened(migrates=False):
            pass
    async with opened(migrates=True) as archive:
        await archive.database.check()
    async with opened(migrates=False) as archive:
        await archive.database.check()


async def test_a_database_that_is_away_at_the_start_may_come_later(tmp_path):
    """Guarantee 8: the gateway starts all the same, and says that it is not ready."""
    url = f"postgresql://nobody@/history?host={tmp_path}"
    async with open_archive(
        url, Limits(), migrates=True, now_ms=lambda: 0, report=report
    ) as archive:
        with pytest.raises(Unavailable):
            await archive.database.check()


async def test_a_database_that_comes_later_is_migrated_then_where_that_is_wanted(tmp_path):
    """Here a file in a folder that is not there yet; nobody else would do it."""
    url = f"sqlite:///{tmp_path / 'later' / 'history.db'}"
    options: Any = {"now_ms": now_ms, "report": report}
    async with (
        open_archive(url, Limits(), migrates=True, **options) as archive,
        open_archive(url, Limits(), migrates=False, **options) as careful,
    ):
        with pytest.raises(Unavailable):
            await archive.prepare()
        (tmp_path / "later").mkdir()
        with pytest.raises(HistoryAway) as caught:
            await careful.prepare()
        assert "gateway migrate" in caught.value.why
        await archive.prepare()
        await archive.database.check()
        await careful.prepare()


async def test_a_session_of_which_redis_forgot_that_it_was_erased_ends(
    bus: Bus, database: Database
):
    """Redis lost its last second, and the answered erasure with it: nobody may go on there."""
    talk, other = await converse(bus), Talk(bus, user="else")
    await archiver(bus, database).archive()
    await reader(database).erase(talk.key.tenant, talk.user, talk.key.session_id)
    await talk.finish(await talk.running("once more"))
    await other.open()
    await archiver(bus, database).archive()
    with pytest.raises(Refused) as caught:
        await talk.open(agent=None)
    assert caught.value.code is ErrorCode.SESSION_NOT_FOUND
    assert await bus.sessions.snapshot(talk.key) is None
    assert await talk.journal() == []
    assert await texts(database, talk) == []
    assert await other.state() == "idle", "another's"


async def test_one_that_was_made_by_an_erased_key_while_the_archive_was_away_ends(
    bus: Bus, database: Database
):
    """Redis remembers an hour; what was said there would never be archived, and nobody be told."""
    talk = Talk(bus)
    await reader(database).erase(talk.key.tenant, talk.user, talk.key.session_id)
    await talk.open(digest="same")
    await archiver(bus, database).archive()
    with pytest.raises(Refused) as caught:
        await talk.open(digest="same")
    assert caught.value.code is ErrorCode.SESSION_ENDED
