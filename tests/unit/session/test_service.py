"""What a client asks for, as the bus is asked for it."""

import msgspec
import pytest
from support.little_bus import KEY

from gateway.session.endings import PATIENCE_S, Endings
from gateway.session.errors import Refused, Unavailable
from gateway.session.model import Principal
from gateway.session.service import SessionService, digest, run_fields
from protocol.codes import ErrorCode
from protocol.frames import Answer, AnswerEntry, Cancel, Close, Message, ToolResult

ANONYMOUS = Principal("acme", "anonymous")


@pytest.fixture
def endings(world) -> Endings:
    return Endings(sessions=world.bus, probe=world.probe, clock=world.clock, report=world.report)


@pytest.fixture
def service(world, endings) -> SessionService:
    return SessionService(
        sessions=world.bus,
        queue=world.bus,
        directory=world.bus,
        hub=world.hub,
        endings=endings,
        node="n1",
        now_ms=lambda: world.now_ms,
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
    ack = await service.message(view, Message("m1", "hi", traceparent="00-x"))
    [new] = world.bus.accepted
    assert new.message == b'{"id":"m1","role":"user","content":"hi"}'
    assert (new.frame_id, new.run_id, new.traceparent) == ("m1", ack.run_id, "00-x")
    assert (new.seen.epoch, new.seen.seq) == ("e1", 1)
    assert world.bus.dispatched[0].run_id == ack.run_id


async def test_whatever_starts_a_run_says_how_much_of_the_log_was_seen(world, service):
    """By this a Redis that lost writes is found out."""
    world.bus.make()
    world.bus.append()
    await world.join()
    view = await service.find(ANONYMOUS, KEY.session_id)
    await service.answer(view, Answer("a", [AnswerEntry("i", "resolved")]))
    await service.tool_result(view, ToolResult("t", "c", "42"))
    assert [(new.seen.epoch, new.seen.seq) for new in world.bus.accepted] == [("e1", 1)] * 2


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
