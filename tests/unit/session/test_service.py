"""What a client asks for, as the bus is asked for it."""

import msgspec
import pytest
from support.little_bus import KEY

from gateway.session.endings import PATIENCE_S, Endings
from gateway.session.eraser import Eraser
from gateway.session.errors import Refused, Unavailable
from gateway.session.model import Accepted, Principal, SessionKey
from gateway.session.service import SessionService, digest, run_fields
from protocol.codes import ErrorCode
from protocol.frames import Answer, AnswerEntry, Cancel, Close, Message, ToolResult

ANONYMOUS = Principal("acme", "anonymous")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def endings(world) -> Endings:
    return Endings(
        sessions=world.bus,
        erasure=world.bus,
        probe=world.probe,
        clock=world.clock,
        report=world.report,
    )


@pytest.fixture
def service(world, endings) -> SessionService:
    return SessionService(
        sessions=world.bus,
        queue=world.bus,
        directory=world.bus,
        hub=world.hub,
        endings=endings,
        history=world.archive,
        eraser=Eraser(history=world.archive, journal=world.bus, endings=endings),
        erasure=world.bus,
        journal=world.bus,
        node="n1",
        now_ms=lambda: world.now_ms,
        tracer=world.ends,
    )


def decode(kind: type, text: str):
    return msgspec.json.decode(text, type=kind)


def test_the_digest_is_of_the_content_and_not_of_its_spelling():
    one = decode(Message, '{"type":"message","id":"a","content":[{"x":1,"y":2}],"traceparent":"t"}')
    two = decode(
        Message,
        '{ "content": [{"y": 2, "x": 1}], "when_busy": "enqueue", "type": "message", "id": "b" }',
    )
    assert digest(one) == digest(two)
    assert len(digest(one)) == 32


@pytest.mark.parametrize(
    "other",
    [
        Message("a", "ho"),
        Message("a", "hi", when_busy="reject"),
        Message("a", "hi", state=None),
        Message("a", "hi", tools=[]),
        ToolResult("a", "c", "hi"),
        Answer("a", [AnswerEntry("i", "resolved")]),
    ],
)
def test_another_content_has_another_digest(other):
    assert digest(Message("a", "hi")) != digest(other)


def test_the_fields_of_a_run():
    assert run_fields(Message("a", "hi")) == b""
    full = Message("a", "hi", tools=[{"name": "t"}], context=[], state=None, metadata={"k": 1})
    assert msgspec.json.decode(b"{" + run_fields(full) + b"}") == {
        "tools": [{"name": "t"}],
        "context": [],
        "state": None,
        "forwardedProps": {"k": 1},
    }


async def test_a_message_carries_what_its_run_needs(world, service):
    world.bus.make()
    world.bus.append()
    await world.join()
    view = await service.find(ANONYMOUS, KEY.session_id)
    ack = await service.message(view, Message("m1", "hi", traceparent=TRACEPARENT))
    [new] = world.bus.accepted
    assert new.message == b'{"id":"m1","role":"user","content":"hi"}'
    assert (new.frame_id, new.run_id, new.traceparent) == ("m1", ack.run_id, TRACEPARENT)
    assert (new.seen.epoch, new.seen.seq) == ("e1", 1)
    assert world.bus.dispatched[0].run_id == ack.run_id


async def test_nothing_is_acknowledged_behind_the_reset_that_may_have_lost_it(
    world, service, monkeypatch
):
    """Guarantee 1: Redis dies between `accept` and `dispatch`, and comes back without the run."""
    world.bus.make()
    client = await world.join()
    view = await service.find(ANONYMOUS, KEY.session_id)
    dispatch = world.bus.dispatch

    async def dispatch_late(ref, agent) -> None:
        world.bus.new_epoch(keep=0)
        world.bus.push(b"!reset e2")
        await world.settle()
        assert client.resets
        await dispatch(ref, agent)

    monkeypatch.setattr(world.bus, "dispatch", dispatch_late)
    with pytest.raises(Unavailable):
        await service.message(view, Message("m1", "hi"))
    monkeypatch.undo()
    assert (await service.message(view, Message("m1", "hi"))).re == "m1"  # and so it is repeated


async def test_whatever_starts_a_run_says_how_much_of_the_log_was_seen(world, service):
    """By this a Redis that lost writes is found out."""
    world.bus.make()
    world.bus.append()
    await world.join()
    view = await service.find(ANONYMOUS, KEY.session_id)
    await service.answer(view, Answer("a", [AnswerEntry("i", "resolved")]))
    await service.tool_result(view, ToolResult("t", "c", "42"))
    assert [(new.seen.epoch, new.seen.seq) for new in world.bus.accepted] == [("e1", 1)] * 2


@pytest.mark.parametrize(
    ("given", "passed"), [(TRACEPARENT, TRACEPARENT), ("evil\r\nX-Admin: 1", "")]
)
async def test_whatever_starts_a_run_names_a_valid_trace_or_none(world, service, given, passed):
    """A worker's agent sends it to others as a header."""
    world.bus.make()
    view = await service.find(ANONYMOUS, KEY.session_id)
    await service.message(view, Message("m", "hi", traceparent=given))
    await service.answer(view, Answer("a", [AnswerEntry("i", "resolved")], traceparent=given))
    await service.tool_result(view, ToolResult("t", "c", "42", traceparent=given))
    assert [new.traceparent for new in world.bus.accepted] == [passed] * 3


async def test_a_trace_tells_a_message_that_makes_no_run(world, service):
    world.bus.make()
    view = await service.find(ANONYMOUS, KEY.session_id)
    first = await service.message(view, Message("m", "hi"))
    await service.message(view, Message("m", "hi"))
    accept = world.bus.accept

    async def accept_without(_run):
        return Accepted("accepted", "", None, "demo")

    async def accept_twice(new):
        """The answer was lost, and the bus repeats the call."""
        await accept(new)
        return await accept(new)

    world.bus.accept = accept_without
    await service.tool_result(view, ToolResult("t", "c", "42"))
    world.bus.accept = accept_twice
    await service.message(view, Message("n", "hi"))
    assert world.ends.made == [
        ("accepted", ""),
        ("duplicate", first.run_id),
        ("none", ""),
        ("accepted", ""),
    ]


async def test_a_repeated_cancel_is_the_same_cancel(world, service):
    world.bus.make()
    world.bus.append("S", run="r1")
    view = await service.find(ANONYMOUS, KEY.session_id)
    first = await service.cancel(view.key, view.user, Cancel("x"))
    world.bus.append("C", run="r1")
    world.bus.append("S", run="r2")
    again = await service.cancel(view.key, view.user, Cancel("x"))
    assert (first.status, first.run_id) == ("accepted", "r1")
    assert (again.status, again.run_id) == ("duplicate", "r1")


async def test_only_a_known_agent_gets_sessions(world, service):
    with pytest.raises(Refused) as refusal:
        await service.create(ANONYMOUS, "nobody", None)
    assert refusal.value.code == ErrorCode.AGENT_NOT_FOUND
    assert world.bus.sessions == {}


async def test_a_given_id_creates_once_and_what_was_asked_for(world, service):
    first = await service.create(ANONYMOUS, "demo", None, session_id="s9", digest="d")
    again = await service.create(ANONYMOUS, "demo", None, session_id="s9", digest="d")
    assert (first.created, again.created) == (True, False)
    assert world.probe.facts["created"] == 1
    with pytest.raises(Refused) as refusal:
        await service.create(ANONYMOUS, "demo", {"a": 1}, session_id="s9", digest="e")
    assert refusal.value.code == ErrorCode.ID_CONFLICT


@pytest.mark.parametrize("made", [True, False])
async def test_an_open_whose_answer_was_lost_may_have_made_a_home(world, service, made):
    """Guarantee 9: Redis names this node, so nobody else would ever count the session."""
    if made:
        world.bus.make()
    really_open = world.bus.open

    async def lossy(*arguments, **options):
        world.bus.open = really_open
        await really_open(*arguments, **options)
        raise Unavailable

    world.bus.open = lossy
    find = service.find(ANONYMOUS, KEY.session_id)
    create = service.create(ANONYMOUS, "demo", None, session_id=KEY.session_id)
    asked, other = (find, create) if made else (create, find)
    other.close()
    with pytest.raises(Unavailable):
        await asked
    assert world.bus.sessions[KEY].home == "n1"
    assert world.hub.find(KEY) is None
    world.bus.down = True
    with pytest.raises(Unavailable):
        await world.hub.unanswered.ask_again()
    world.bus.down = False
    await world.hub.unanswered.ask_again()
    feed = world.hub.find(KEY)
    assert feed is not None
    assert feed.home
    await world.pass_time(130)
    assert world.bus.sessions[KEY].home == "", "nobody came: it is left in order"


async def test_an_open_that_never_arrived_is_not_asked_after_for_ever(world, service):
    world.bus.down = True
    with pytest.raises(Unavailable):
        await service.find(ANONYMOUS, KEY.session_id)
    world.bus.down = False
    await world.hub.unanswered.ask_again()
    assert world.hub.find(KEY) is None
    before = world.bus.calls["open"]
    await world.hub.unanswered.ask_again()
    assert world.bus.calls["open"] == before


async def test_the_end_is_counted_by_the_call_that_made_it(world, service):
    world.bus.make()
    view = await service.find(ANONYMOUS, KEY.session_id)
    await service.close(view, Close("c1"))
    await service.close(view, Close("c2"))
    assert world.probe.facts["completed completed"] == 1
    assert world.probe.durations == [60.0]


async def test_an_end_whose_answer_was_lost_is_counted_once(world, service, endings):
    """Guarantee 9: its client is told that it may have happened, and nobody else counts it."""
    world.bus.make()
    view = await service.find(ANONYMOUS, KEY.session_id)
    close = world.bus.close

    async def lossy(*arguments, **options):
        world.bus.close = close
        await close(*arguments, **options)
        raise Unavailable

    world.bus.close = lossy
    with pytest.raises(Unavailable):
        await service.close(view, Close("c1"))
    world.bus.down = True
    with pytest.raises(Unavailable):
        await endings.ask_again()
    world.bus.down = False
    for _ in range(3):
        await endings.ask_again()
    await service.close(view, Close("c1"))
    assert world.probe.facts["completed completed"] == 1


async def test_asking_after_an_end_ends_nothing(world, service, endings):
    """It never arrived, or not yet; if it does arrive late, that is counted, too."""
    session = world.bus.make()
    view = await service.find(ANONYMOUS, KEY.session_id)
    close = world.bus.close
    calls = []

    async def never(*arguments, **options):
        world.bus.close = close
        calls.append((arguments, options))
        raise Unavailable

    world.bus.close = never
    with pytest.raises(Unavailable):
        await service.close(view, Close("c1"))
    await endings.ask_again()
    assert not session.ended
    [(arguments, options)] = calls
    await close(*arguments, **options)
    await endings.ask_again()
    assert world.probe.facts["completed completed"] == 1


async def test_an_end_that_never_arrived_is_not_asked_after_for_ever(world, service, endings):
    world.bus.make()
    view = await service.find(ANONYMOUS, KEY.session_id)
    world.bus.down = True
    with pytest.raises(Unavailable):
        await service.close(view, Close("c1"))
    world.bus.down = False
    world.clock.now += PATIENCE_S + 1
    await endings.ask_again()
    asked = world.bus.calls["close"]
    await endings.ask_again()
    assert world.bus.calls["close"] == asked
    assert world.probe.facts["completed completed"] == 0


async def test_followers_that_missed_the_end_learn_it_from_a_refusal(world, service):
    session = world.bus.make()
    client = await world.join()
    view = await service.find(ANONYMOUS, KEY.session_id)
    session.ended = True
    with pytest.raises(Refused):
        await service.message(view, Message("m", "hi"))
    await world.settle()
    assert client.closed == 4410


async def test_what_is_asked_of_a_session_that_redis_lost_may_be_asked_again(world, service):
    """It is followed here, so it is made again; whoever does not follow it is told the truth."""
    world.bus.make()
    client = await world.join()
    view = await service.find(ANONYMOUS, KEY.session_id)
    del world.bus.sessions[KEY]
    for asking in (
        service.message(view, Message("m", "hi")),
        service.cancel(view.key, view.user, Cancel("c")),
        service.find(ANONYMOUS, KEY.session_id),
    ):
        with pytest.raises(Refused) as refused:
            await asking
        assert refused.value.code == ErrorCode.UNAVAILABLE
    with pytest.raises(Refused) as refused:
        await service.find(Principal("acme", "mallory"), KEY.session_id)
    assert refused.value.code == ErrorCode.SESSION_NOT_FOUND
    await world.settle()
    assert client.resets == ["writes_lost"]
    assert (await service.message(view, Message("m", "hi"))).status == "accepted"
    world.hub.detach(client.attachment)
    await world.pass_time(121)
    del world.bus.sessions[KEY]
    with pytest.raises(Refused) as refused:
        await service.message(view, Message("m2", "hi"))
    assert refused.value.code == ErrorCode.SESSION_NOT_FOUND


# --- what Redis does not know any more, and the archive does --------------------------------------


async def test_an_expired_session_is_made_live_again_with_what_was_said(world, service):
    """It is created once more, so it is counted once more: it was counted as expired, too."""
    world.archive.begin()
    world.archive.end_run("r1", "hi", "ho")
    view = await service.find(ANONYMOUS, KEY.session_id)
    session = world.bus.sessions[KEY]
    assert (view.created, view.home, view.agent) == (True, "n1", "demo")
    assert [msgspec.json.decode(one)["content"] for one in session.messages] == ["hi", "ho"]
    assert session.message_runs == ["r1", "r1"]
    assert world.probe.facts["created"] == 1
    assert (await service.message(view, Message("m1", "hi"))).status == "accepted"


async def test_a_session_of_another_user_stays_unknown_when_it_has_expired(world, service):
    """Guarantee 6."""
    world.archive.begin()
    with pytest.raises(Refused) as refused:
        await service.find(Principal("acme", "mallory"), KEY.session_id)
    assert refused.value.code == ErrorCode.SESSION_NOT_FOUND
    assert KEY not in world.bus.sessions


async def test_a_session_that_was_completed_stays_over(world, service):
    world.archive.begin()
    world.archive.change(status="completed", ended_ms=2000)
    with pytest.raises(Refused) as refused:
        await service.find(ANONYMOUS, KEY.session_id)
    assert refused.value.code == ErrorCode.SESSION_ENDED


async def test_while_the_archive_is_away_nobody_is_told_that_a_session_is_gone(world, service):
    """Guarantee 8: a live one is found all the same, of another nobody knows."""
    world.archive.down = True
    with pytest.raises(Unavailable):
        await service.find(ANONYMOUS, KEY.session_id)
    world.bus.make()
    assert (await service.find(ANONYMOUS, KEY.session_id)).key == KEY
    other = await service.create(ANONYMOUS, "demo", None, session_id="s9", digest="d")
    assert other.created


async def test_a_key_that_made_a_session_finds_it_when_it_has_expired(world, service):
    world.archive.begin()
    world.archive.end_run("r1", "hi", "ho")
    await service.create(ANONYMOUS, "demo", {"a": 1}, session_id=KEY.session_id)
    assert len(world.bus.sessions[KEY].messages) == 2


@pytest.mark.parametrize(
    "asked",
    [
        {"agent": "other"},
        {"metadata": {"a": 2}},
        {"metadata": None},
        {"on_detach": "cancel"},
    ],
)
async def test_a_key_that_made_another_session_is_a_conflict_when_that_has_expired(
    world, service, asked
):
    world.archive.begin()
    world.bus.agent_names.add("other")
    asked = {"agent": "demo", "metadata": {"a": 1}, **asked}
    with pytest.raises(Refused) as refused:
        await service.create(ANONYMOUS, session_id=KEY.session_id, **asked)
    assert refused.value.code == ErrorCode.ID_CONFLICT
    assert world.bus.sessions == {}


async def test_a_key_whose_session_was_erased_makes_none(world, service):
    """It would never be archived."""
    world.archive.begin()
    await service.erase(ANONYMOUS, KEY.session_id)
    with pytest.raises(Refused) as refused:
        await service.create(ANONYMOUS, "demo", None, session_id=KEY.session_id)
    assert refused.value.code == ErrorCode.SESSION_ENDED
    assert world.bus.sessions == {}


async def test_a_session_that_redis_lost_begins_anew_with_what_is_archived(world, service):
    """Its followers are told (`reset`), and get what there is: guarantee 1."""
    world.archive.begin()
    world.archive.end_run("r1", "hi", "ho")
    world.bus.make()
    client = await world.join()
    del world.bus.sessions[KEY]
    with pytest.raises(Unavailable):
        await service.find(ANONYMOUS, KEY.session_id)
    await world.settle()
    assert client.resets == ["writes_lost"]
    assert len(world.bus.sessions[KEY].messages) == 2


async def test_a_session_that_redis_lost_goes_on_without_the_archive(world, service):
    """Guarantee 8."""
    world.archive.begin()
    world.archive.end_run("r1", "hi", "ho")
    world.archive.down = True
    world.bus.make()
    client = await world.join()
    del world.bus.sessions[KEY]
    with pytest.raises(Unavailable):
        await service.find(ANONYMOUS, KEY.session_id)
    await world.settle()
    assert client.resets == ["writes_lost"]
    assert (await service.find(ANONYMOUS, KEY.session_id)).key == KEY


async def test_a_session_that_redis_lost_and_the_archive_knows_to_be_over_ends(world, service):
    world.archive.begin()
    world.archive.change(status="completed", ended_ms=2000)
    world.bus.make()
    client = await world.join()
    del world.bus.sessions[KEY]
    with pytest.raises(Unavailable):
        await service.find(ANONYMOUS, KEY.session_id)
    await world.settle()
    assert client.closed == 4410
    assert KEY not in world.bus.sessions


# --- erasure --------------------------------------------------------------------------------------


async def test_an_erased_session_is_gone_everywhere_and_does_not_come_back(world, service):
    """The tombstone stands before what lives is touched: its journal must not bring it back."""
    world.archive.begin()
    world.bus.make()
    client = await world.join()
    order: list[str] = []
    for owner, *names in ((world.archive, "erase"), (world.bus, "settle", "erase", "drop_dead")):
        for name in names:
            _record(owner, name, order)
    await service.erase(ANONYMOUS, KEY.session_id)
    told = ["LittleArchive.erase", "LittleBus.drop_dead", "LittleBus.erase", "LittleBus.settle"]
    assert order == told
    await world.settle()
    assert client.closed == 4410
    assert (world.archive.records, world.bus.sessions) == ({}, {})
    assert world.bus.dropped_dead == [("acme", "anonymous", KEY.session_id)]
    for asking in (service.find, service.erase):
        with pytest.raises(Refused) as refused:
            await asking(ANONYMOUS, KEY.session_id)
        assert refused.value.code == ErrorCode.SESSION_NOT_FOUND


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("by", ["find", "create", "hub"])
async def test_what_is_erased_while_it_is_made_live_again_is_gone_all_the_same(
    world, service, by, whole
):
    """The erasure comes after the archive was asked, and finds nothing that lives yet."""
    world.archive.begin()
    world.archive.end_run("r1", "secret")
    if by == "hub":
        world.bus.make()
        client = await world.join()
        del world.bus.sessions[KEY]
    open_ = world.bus.open

    async def late(*arguments, recalled=None, **options):
        if recalled is not None:
            if whole:
                await service.erase_user(ANONYMOUS)
            else:  # the tombstone of Redis may be lost
                await world.archive.erase(*KEY[:1], "anonymous", KEY.session_id)
        return await open_(*arguments, recalled=recalled, **options)

    world.bus.open = late
    if by == "hub":
        assert world.hub.missing(KEY, "anonymous")
        await world.settle()
        assert client.closed == 4410
    else:
        asked = (
            service.find(ANONYMOUS, KEY.session_id)
            if by == "find"
            else service.create(ANONYMOUS, "demo", {"a": 1}, session_id=KEY.session_id)
        )
        with pytest.raises(Refused) as refused:
            await asked
        assert refused.value.code == ErrorCode.SESSION_NOT_FOUND
    assert KEY in world.bus.erased
    assert KEY not in world.bus.sessions
    assert not world.errors


def _record(owner: object, name: str, order: list[str]) -> None:
    call = getattr(owner, name)

    async def recorded(*arguments, **options):
        order.append(f"{type(owner).__name__}.{name}")
        return await call(*arguments, **options)

    setattr(owner, name, recorded)


@pytest.mark.parametrize("where", ["live", "archived"])
async def test_nobody_erases_what_is_another_users(world, service, where):
    """Guarantee 6: not even a tombstone is left, which would keep its history from the archive."""
    if where == "live":
        world.bus.make()
    else:
        world.archive.begin()
    with pytest.raises(Refused) as refused:
        await service.erase(Principal("acme", "mallory"), KEY.session_id)
    assert refused.value.code == ErrorCode.SESSION_NOT_FOUND
    assert world.archive.erased == []
    assert (KEY in world.bus.sessions) == (where == "live")


@pytest.mark.parametrize("where", ["live", "ended", "archived"])
async def test_a_session_is_erased_wherever_it_is(world, service, where):
    if where == "archived":
        world.archive.begin()
    else:
        world.bus.make().ended = where == "ended"
    await service.erase(ANONYMOUS, KEY.session_id)
    assert world.archive.erased == [("acme", "anonymous", KEY.session_id)]
    assert KEY not in world.bus.sessions


async def test_an_erasure_that_failed_can_be_asked_for_again(world, service):
    world.bus.make()
    world.archive.down = True
    with pytest.raises(Unavailable):
        await service.erase(ANONYMOUS, KEY.session_id)
    assert KEY in world.bus.sessions, "without a tombstone its journal would bring it back"
    world.archive.down = False
    await service.erase(ANONYMOUS, KEY.session_id)
    assert KEY not in world.bus.sessions


async def test_an_erased_session_is_counted_as_completed_once(world, service, endings):
    """Guarantee 9: also when the answer was lost, and not again when it had ended before."""
    world.bus.make()
    await service.find(ANONYMOUS, KEY.session_id)
    erase = world.bus.erase

    async def lossy(*arguments, **options):
        world.bus.erase = erase
        await erase(*arguments, **options)
        raise Unavailable

    world.bus.erase = lossy
    with pytest.raises(Unavailable):
        await service.erase(ANONYMOUS, KEY.session_id)
    for _ in range(3):
        await endings.ask_again()
    assert world.probe.facts["completed completed"] == 1


async def test_all_of_a_user_is_erased_and_nothing_of_others(world, service):
    mine = [SessionKey("acme", f"mine{number}") for number in range(3)]
    theirs = SessionKey("acme", "theirs")
    for key in mine[:2]:
        world.bus.make(key)
    for key in mine[1:]:
        world.archive.begin(key)
    world.bus.make(theirs, user="bob")
    world.archive.begin(theirs, user="bob")
    assert await service.erase_user(ANONYMOUS) >= 2
    assert list(world.bus.sessions) == [theirs]
    assert list(world.archive.records) == [theirs]
    assert {key.session_id for key in mine[:2]} <= {name for _, _, name in world.archive.erased}
    assert ("acme", "anonymous", "") in world.archive.erased
    assert ("acme", "anonymous", "") in world.bus.dropped_dead
    assert world.bus.settled == [(key, "anonymous") for key in mine[:2]]


async def test_up_to_when_a_user_is_erased_is_by_the_clock_of_redis(world, service):
    """A node's clock that is ahead would drop what begins after it."""
    assert world.now_ms != await world.bus.now_ms()
    await service.erase_user(ANONYMOUS)
    assert world.archive.erased_upto_ms == await world.bus.now_ms()
