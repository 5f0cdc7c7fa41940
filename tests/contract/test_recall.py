"""A session that expired is made live again from what the archive knows of it."""

import json
import time
from dataclasses import replace

import pytest
from support.bus import connected_bus
from support.talk import Talk

from gateway.bus.bus import Bus
from gateway.session.archive import Recalled, RunEnded, SessionBegun
from gateway.session.errors import Refused
from gateway.session.model import Limits
from protocol.codes import ErrorCode


def message(number: int) -> bytes:
    return json.dumps({"id": f"m{number}", "role": "user", "content": f"word {number}"}).encode()


def recalled(count: int = 3) -> Recalled:
    return Recalled(
        agent="old-agent",
        metadata=b'{"plan":"gold"}',
        on_detach="cancel",
        messages=[(f"run-{number // 2}", message(number)) for number in range(count)],
        state=b'{"step":7}',
    )


async def test_it_goes_on_where_it_was(bus: Bus) -> None:
    talk = Talk(bus)
    view = await talk.open(agent=None, recalled=recalled())
    assert (view.created, view.homed, view.made_here) == (True, True, True)
    assert (view.agent, view.on_detach, view.state) == ("old-agent", "cancel", "idle")
    assert view.metadata == b'{"plan":"gold"}'
    source = await bus.sessions.snapshot(talk.key)
    assert source is not None
    assert source.messages == [message(number) for number in range(3)]
    assert source.message_runs == ["run-0", "run-0", "run-1"]
    assert source.state == b'{"step":7}'
    claim = await talk.running("and then?")
    assert claim.messages[:3] == source.messages
    assert json.loads(claim.messages[3])["content"] == "and then?"
    assert (claim.state, claim.metadata) == (b'{"step":7}', {"plan": "gold"})


async def test_it_has_a_log_of_its_own(bus: Bus) -> None:
    """So a client that comes with its old cursor is told to begin anew."""
    talk = Talk(bus)
    before = await talk.open(agent=None, recalled=recalled())
    other = Talk(bus, user=talk.user)
    again = await other.open(agent=None, recalled=recalled())
    assert before.cursor.epoch != again.cursor.epoch
    assert again.cursor.seq == 0
    page = await bus.sessions.read(other.key, before.cursor, 10)
    assert page.status == "epoch"


async def test_the_journal_says_that_it_began_again(bus: Bus) -> None:
    talk = Talk(bus)
    await talk.open(agent=None, recalled=recalled())
    [begun] = await talk.journal()
    assert isinstance(begun, SessionBegun)
    assert (begun.agent, begun.metadata, begun.on_detach) == (
        "old-agent",
        b'{"plan":"gold"}',
        "cancel",
    )


async def test_its_runs_end_after_those_of_before_whatever_the_clock_says(bus: Bus) -> None:
    """Redis's clock may be behind that of the one before: messages keep their order for good."""
    talk = Talk(bus)
    last_end_ms = int(time.time() * 1000) + 3_600_000
    await talk.open(agent=None, recalled=replace(recalled(), last_end_ms=last_end_ms))
    for _ in range(2):
        await talk.finish(await talk.running("new"))
    ends = [entry.ended_ms for entry in await talk.journal() if isinstance(entry, RunEnded)]
    assert ends == [last_end_ms + 1, last_end_ms + 2]


async def test_of_two_that_recall_it_one_does(bus: Bus) -> None:
    """What was said since must not be put back to what the archive knew."""
    talk = Talk(bus)
    await talk.open(agent=None, recalled=recalled())
    await talk.running("new")
    late = await talk.open(agent=None, recalled=recalled())
    assert not late.created
    source = await bus.sessions.snapshot(talk.key)
    assert source is not None
    assert len(source.messages) == 4
    assert len(await talk.journal()) == 1


async def test_what_is_recalled_keeps_the_bounds_of_a_transcript(redis_url: str) -> None:
    async with connected_bus(redis_url, Limits(transcript_messages=5)) as bus:
        talk = Talk(bus)
        await talk.open(agent=None, recalled=recalled(200))
        source = await bus.sessions.snapshot(talk.key)
        assert source is not None
        assert source.messages == [message(number) for number in range(195, 200)]
        await talk.running("new")
        source = await bus.sessions.snapshot(talk.key)
        assert source is not None
        assert source.messages[:4] == [message(number) for number in range(196, 200)]


async def test_looking_takes_no_home_and_prolongs_no_life(quick_bus: Bus) -> None:
    talk = Talk(quick_bus, node="")
    with pytest.raises(Refused) as caught:
        await talk.open(agent=None)
    assert caught.value.code is ErrorCode.SESSION_NOT_FOUND
    talk.node = "node-a"
    await talk.open()
    await quick_bus.sessions.leave(talk.key, "node-a", counted_seq=0)
    due = await talk.due("expiry")
    view = await quick_bus.sessions.open(talk.key, talk.user, node="")
    assert (view.home, view.homed, view.created) == ("", False, False)
    assert await talk.due("expiry") == due
