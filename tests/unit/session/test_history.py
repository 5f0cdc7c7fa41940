"""What was, joined with what is: nothing twice, nothing missing, nothing of others."""

import pytest
from support.little_archive import LittleArchive
from support.little_bus import KEY, LittleBus

from gateway.session.archive import MessagePosition, SessionFilter
from gateway.session.errors import Refused, Unavailable
from gateway.session.history import MessagePage, SessionHistory
from gateway.session.model import Principal, SessionKey
from protocol.codes import ErrorCode

ME = Principal("acme", "anonymous")
ID = KEY.session_id


@pytest.fixture
def bus() -> LittleBus:
    return LittleBus()


@pytest.fixture
def archive() -> LittleArchive:
    return LittleArchive()


@pytest.fixture
def history(bus, archive) -> SessionHistory:
    return SessionHistory(archive, bus)


def say(bus: LittleBus, run_id: str, *texts: str) -> None:
    """Into the live transcript."""
    session = bus.sessions[KEY]
    session.messages += [f'{{"id":"{text}"}}'.encode() for text in texts]
    session.message_runs += [run_id for _ in texts]


def texts(page: MessagePage) -> list[str]:
    return [one.json.decode().split('"')[3] for one in [*page.archived, *page.live]]


async def all_pages(history: SessionHistory, limit: int) -> list[list[str]]:
    """From the newest page to the oldest."""
    page = await history.messages(ME, ID, before=None, limit=limit)
    pages = [texts(page)]
    while page.following is not None:
        page = await history.messages(ME, ID, before=page.following, limit=limit)
        pages.append(texts(page))
    return pages


# --- one session ----------------------------------------------------------------------------------


async def test_a_live_session_that_the_archive_does_not_know_yet(bus, history):
    bus.make().metadata = b'{"b":2}'
    now = await history.session(ME, ID)
    assert now.live is not None
    assert now.live.state == "idle"
    assert (now.record.status, now.record.agent, now.record.runs) == ("active", "demo", 0)
    assert now.record.metadata == b'{"b":2}'


async def test_a_live_session_with_what_the_archive_has_of_it(bus, archive, history):
    bus.make()
    archive.begin()
    archive.end_run("r1", "q", "a")
    bus.append("S", run="r2")
    now = await history.session(ME, ID)
    assert now.live is not None
    assert now.live.state == "running"
    assert (now.record.metadata, now.record.messages) == (b'{"a":1}', 2)


async def test_one_that_was_made_live_again_is_active_before_the_archive_knows(
    bus, archive, history
):
    archive.begin()
    archive.change(status="expired")
    bus.make()
    assert (await history.session(ME, ID)).record.status == "active"


async def test_one_that_lives_no_more_is_expired_before_the_archive_knows(archive, history):
    archive.begin()
    now = await history.session(ME, ID)
    assert (now.record.status, now.live) == ("expired", None)


async def test_one_that_was_closed_is_completed_before_the_archive_knows(bus, archive, history):
    archive.begin()
    bus.make()
    bus.end()
    now = await history.session(ME, ID)
    assert (now.record.status, now.live) == ("completed", None)
    archive.records.clear()
    with pytest.raises(Refused) as refused:
        await history.session(ME, ID)
    assert refused.value.code == ErrorCode.SESSION_ENDED


@pytest.mark.parametrize("where", ["live", "archived", "both", "nowhere"])
async def test_a_foreign_session_is_not_found(bus, archive, history, where):
    if where in ("live", "both"):
        bus.make(user="ann")
        say(bus, "r1", "secret")
    if where in ("archived", "both"):
        archive.begin(user="ann")
        archive.end_run("r1", "secret")
    for ask in (
        history.session(ME, ID),
        history.messages(ME, ID, before=None, limit=10),
        history.messages(ME, ID, before=MessagePosition(9999, 0), limit=10),
    ):
        with pytest.raises(Refused) as refused:
            await ask
        assert refused.value.code == ErrorCode.SESSION_NOT_FOUND


async def test_looking_takes_no_home(bus, archive, history):
    session = bus.make()
    archive.begin()
    await history.session(ME, ID)
    await history.messages(ME, ID, before=None, limit=10)
    assert session.home == ""


@pytest.mark.parametrize("away", ["bus", "archive"])
async def test_without_redis_or_archive_it_is_unavailable_and_never_half(
    bus, archive, history, away
):
    bus.make()
    archive.begin()
    {"bus": bus, "archive": archive}[away].down = True
    for ask in (
        history.session(ME, ID),
        history.messages(ME, ID, before=None, limit=10),
    ):
        with pytest.raises(Unavailable):
            await ask


# --- lists ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["created", "active"])
async def test_pages_of_sessions_meet_without_gap_and_overlap(archive, history, order):
    for nth in range(7):
        key = SessionKey("acme", f"s{nth}")
        archive.begin(key, at_ms=1000 + nth // 2)  # some at the same moment
        archive.change(key, active_ms=2000 - nth)
    archive.begin(SessionKey("acme", "foreign"), user="ann")
    archive.begin(SessionKey("other", "foreign"))
    found, after = [], None
    for _ in range(3):
        page = await history.sessions(ME, SessionFilter(order=order), after=after, limit=3)
        found += [one.key.session_id for one in page.sessions]
        after = page.following
    assert after is None
    newest_first = [f"s{nth}" for nth in range(7)]
    assert found == (newest_first if order == "active" else newest_first[::-1])


async def test_a_last_page_that_is_full_says_that_it_is_the_last(archive, history):
    for nth in range(2):
        archive.begin(SessionKey("acme", f"s{nth}"))
    page = await history.sessions(ME, SessionFilter(), after=None, limit=2)
    assert (len(page.sessions), page.following) == (2, None)


# --- messages -------------------------------------------------------------------------------------


async def test_the_first_page_ends_with_what_is_not_archived_yet(bus, archive, history):
    bus.make()
    archive.begin()
    for nth in range(3):
        archive.end_run(f"r{nth}", f"q{nth}", f"a{nth}")
        say(bus, f"r{nth}", f"q{nth}", f"a{nth}")
    say(bus, "r3", "q3", "a3")
    say(bus, "r4", "q4")
    assert await all_pages(history, 4) == [["q1", "a1", "q2", "a2", "q3", "a3", "q4"], ["q0", "a0"]]
    assert await all_pages(history, 6) == [["q0", "a0", "q1", "a1", "q2", "a2", "q3", "a3", "q4"]]
    page = await history.messages(ME, ID, before=None, limit=4)
    assert [one.run_id for one in page.live] == ["r3", "r3", "r4"]


async def test_an_unarchived_session_is_all_tail(bus, history):
    bus.make()
    say(bus, "r1", "q", "a")
    assert await all_pages(history, 1) == [["q", "a"]]


@pytest.mark.parametrize("status", ["expired", "completed"])
async def test_one_that_is_over_is_read_from_the_archive(archive, history, status):
    archive.begin()
    archive.end_run("r1", "q", "a", kind="X", code="timeout")
    archive.change(status=status)
    page = await history.messages(ME, ID, before=None, limit=10)
    assert texts(page) == ["q", "a"]
    assert {(one.kind, one.code) for one in page.archived} == {("X", "timeout")}


async def test_one_that_was_closed_just_now_has_its_last_words(bus, archive, history):
    bus.make()
    archive.begin()
    say(bus, "r1", "q", "a")
    bus.end()
    assert await all_pages(history, 10) == [["q", "a"]]


@pytest.mark.parametrize("limit", [1, 2, 3, 10])
@pytest.mark.parametrize("when", ["archived", "messages"])
async def test_what_is_archived_while_it_is_read_is_there_once(bus, archive, history, limit, when):
    """Between the look at which runs are archived and the page of messages, say."""
    bus.make()
    archive.begin()
    archive.end_run("r0", "q0", "a0")
    say(bus, "r0", "q0", "a0")
    for nth in (1, 2):
        say(bus, f"r{nth}", f"q{nth}", f"a{nth}")

    def archive_now(name: str) -> None:
        if name == when and archive.calls[name] == 1:
            for nth in (1, 2):
                archive.end_run(f"r{nth}", f"q{nth}", f"a{nth}")

    archive.on_read = archive_now
    pages = await all_pages(history, limit)
    read = [text for page in reversed(pages) for text in page]
    assert read == ["q0", "a0", "q1", "a1", "q2", "a2"]


async def test_what_the_archive_gave_up_does_not_come_back_as_the_newest(bus, archive, history):
    """Retention has removed the oldest runs, of which the live transcript still knows."""
    bus.make()
    archive.begin()
    say(bus, "r0", "q0", "a0")
    archive.end_run("r1", "q1", "a1")
    say(bus, "r1", "q1", "a1")
    say(bus, "r2", "q2")
    assert await all_pages(history, 10) == [["q1", "a1", "q2"]]
