"""A session's pages on real engines, while it is archived: nothing twice, nothing gone."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence

import pytest
from support.history import T0
from support.talk import Talk

from gateway.archive.database import Database
from gateway.archive.reader import Reader
from gateway.archive.writer import Writer
from gateway.bus.bus import Bus
from gateway.session.archive import SessionFilter
from gateway.session.history import MessagePage, SessionHistory
from gateway.session.model import Principal, SessionKey

RUNS = 30
PARTITIONS = range(128)
ME = Principal("acme", "ann")


@pytest.fixture
def reader(database: Database) -> Reader:
    return Reader(
        database, now_ms=lambda: T0, transcript_messages=200, transcript_bytes=1024 * 1024
    )


@pytest.fixture
def history(bus: Bus, reader: Reader) -> SessionHistory:
    return SessionHistory(reader, bus.sessions)


async def archive(bus: Bus, database: Database) -> None:
    """What the archiver does, once."""
    entries = await bus.journal.read(PARTITIONS, 100)
    await Writer(database).write([entry.record for entry in entries if entry.record is not None])
    await bus.journal.forget([entry.id for entry in entries])


def texts(page: MessagePage) -> list[str]:
    return [json.loads(one.json)["content"] for one in [*page.archived, *page.live]]


async def whole(history: SessionHistory, talk: Talk, limit: int) -> list[str]:
    """All pages, newest first, put together in order."""
    page = await history.messages(ME, talk.key.session_id, before=None, limit=limit)
    said = texts(page)
    while page.following is not None:
        page = await history.messages(ME, talk.key.session_id, before=page.following, limit=limit)
        assert not page.live
        said = texts(page) + said
    return said


async def say(talk: Talk, number: int) -> None:
    claim = await talk.running(f"q{number}")
    message = {"id": f"a{number}", "role": "assistant", "content": f"a{number}"}
    await talk.finish(claim, messages=[json.dumps(message).encode()])


@pytest.mark.parametrize("limit", [3, 10, 200])
async def test_pages_read_while_it_is_archived_are_whole(
    bus: Bus, database: Database, history: SessionHistory, limit: int
) -> None:
    talk = Talk(bus)
    await talk.open()
    everything = [text for number in range(RUNS) for text in (f"q{number}", f"a{number}")]
    done = 0

    async def read() -> None:
        while done < RUNS:
            before = done
            said = await whole(history, talk, limit)
            assert said == everything[: len(said)], "not a prefix of what was said"
            assert len(said) >= 2 * before, "what was said is not there"

    async def bring() -> None:
        while done < RUNS:
            await archive(bus, database)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        tasks.create_task(bring())
        for number in range(RUNS):
            await say(talk, number)
            done = number + 1
    assert await whole(history, talk, limit) == everything
    await archive(bus, database)
    page = await history.messages(ME, talk.key.session_id, before=None, limit=200)
    assert (texts(page), page.live) == (everything, [])


class Meanwhile(Reader):
    """A reader that something happens to, between the look at what lives and the read of a page."""

    said: Callable[[], Awaitable[None]]

    async def archived(self, key: SessionKey, run_ids: Sequence[str]) -> set[str]:
        known = await super().archived(key, run_ids)
        await self.said()
        return known


async def test_what_is_said_and_archived_during_the_read_stands_not_ahead_of_what_was(
    bus: Bus, database: Database
) -> None:
    talk = Talk(bus)
    await talk.open()
    await say(talk, 0)
    await archive(bus, database)
    await say(talk, 1)
    reader = Meanwhile(
        database, now_ms=lambda: T0, transcript_messages=200, transcript_bytes=1024 * 1024
    )

    async def more() -> None:
        await say(talk, 2)
        await archive(bus, database)

    reader.said = more
    page = await SessionHistory(reader, bus.sessions).messages(
        ME, talk.key.session_id, before=None, limit=200
    )
    assert texts(page) == ["q0", "a0", "q1", "a1"]


async def test_a_session_from_its_first_moment_to_its_end(
    bus: Bus, database: Database, history: SessionHistory
) -> None:
    talk = Talk(bus)
    await talk.open(metadata={"plan": "gold"})
    now = await history.session(ME, talk.key.session_id)
    assert (now.record.status, now.record.metadata) == ("active", b'{"plan":"gold"}')
    await say(talk, 0)
    await archive(bus, database)
    now = await history.session(ME, talk.key.session_id)
    assert now.live is not None
    assert (now.record.status, now.record.messages) == ("active", 2)
    page = await history.sessions(ME, SessionFilter(status="active"), after=None, limit=1)
    assert [one.key for one in page.sessions if one.key == talk.key] == [talk.key]
    await bus.sessions.close(talk.key, talk.user)
    assert (await history.session(ME, talk.key.session_id)).record.status == "completed"
    await archive(bus, database)
    now = await history.session(ME, talk.key.session_id)
    assert (now.record.status, now.live) == ("completed", None)
    assert now.record.ended_ms
    assert await whole(history, talk, 10) == ["q0", "a0"]
