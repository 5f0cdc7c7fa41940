"""A call whose answer was lost is repeated: it takes effect once, and tells the truth twice."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from support.bus import connected_bus
from support.talk import Talk, event

from gateway.bus import keys, sessions
from gateway.bus.bus import Bus
from gateway.session.archive import RunEnded
from gateway.session.errors import Unavailable
from gateway.session.model import AgentEvent, Limits, NewMessage
from protocol.frames import Cursor


@pytest.fixture
async def talk(bus: Bus) -> Talk:
    opened = Talk(bus)
    await opened.open()
    return opened


class LosesAnswers:
    """The client, except that the first answer of each call is lost on the way."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.lost = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def evalsha(self, *arguments: Any) -> Any:
        answer = await self._client.evalsha(*arguments)
        self.lost += 1
        if self.lost % 2:
            raise ConnectionResetError
        return answer


@pytest.fixture
async def lossy(talk: Talk) -> Talk:
    """The same session through a connection that loses every first answer."""
    client: Any = LosesAnswers(talk.bus.client)
    return replace(talk, bus=Bus(client, talk.bus.limits))


async def test_a_repeated_cancel_does_not_hit_the_next_run(talk: Talk, lossy: Talk) -> None:
    await talk.message("first")
    second = await talk.message("second")
    cancelled = await lossy.cancel()
    assert cancelled.dispatch == talk.ref(second.run_id)
    view = await talk.bus.sessions.open(talk.key, talk.user, node="")
    assert [(run.run_id, run.status) for run in view.runs] == [(second.run_id, "queued")]


async def test_a_client_that_repeats_its_cancel_does_not_hit_the_next_run(talk: Talk) -> None:
    await talk.message("first")
    second = await talk.message("second")
    await talk.cancel(frame_id="c1")
    again = await talk.cancel(frame_id="c1")
    assert (again.status, again.dispatch) == ("duplicate", talk.ref(second.run_id))
    assert await talk.kinds() == "SC"


async def test_our_own_repetition_is_no_duplicate(lossy: Talk) -> None:
    accepted = await lossy.message()
    assert accepted.status == "accepted"
    assert (await lossy.message()).status == "queued"


async def test_a_session_is_created_and_homed_once_by_a_repeated_open(lossy: Talk) -> None:
    fresh = Talk(lossy.bus)
    view = await fresh.open()
    assert (view.created, view.homed) == (True, True)
    view = await fresh.open()
    assert (view.created, view.homed) == (False, False)


async def test_a_session_is_completed_once_by_a_repeated_close(talk: Talk, lossy: Talk) -> None:
    assert (await lossy.bus.sessions.close(talk.key, talk.user)).completed
    assert not (await talk.bus.sessions.close(talk.key, talk.user)).completed


async def test_who_did_not_hear_that_it_ended_a_session_may_ask(talk: Talk) -> None:
    """Guarantee 9."""
    sessions = talk.bus.sessions
    asked = await sessions.close(talk.key, talk.user, call_id="c1", again=True)
    assert (asked.completed, asked.ended_ms) == (False, 0)
    assert await talk.state() == "idle", "asking ends nothing"
    ended = await sessions.close(talk.key, talk.user, call_id="c1")
    assert ended.completed
    assert await sessions.close(talk.key, talk.user, call_id="c1", again=True) == ended
    assert not (await sessions.close(talk.key, talk.user, call_id="c2", again=True)).completed


async def test_a_session_closed_by_many_at_once_is_completed_by_one(talk: Talk) -> None:
    """Guarantee 9."""
    close = talk.bus.sessions.close
    closed = await asyncio.gather(*(close(talk.key, talk.user) for _ in range(20)))
    assert sum(one.completed for one in closed) == 1


async def test_a_lost_answer_of_every_call_of_a_run(lossy: Talk) -> None:
    claim = await lossy.running()
    await lossy.append(claim, 0, "A", "B")
    await lossy.append(claim, 2, "C")
    await lossy.finish(claim, 3)
    assert await lossy.kinds() == "SEEEF"


@pytest.mark.parametrize("text", ["NOREPLICAS not enough", "MISCONF disk", "OOM no memory"])
async def test_what_the_server_refuses_is_unavailable(talk: Talk, text: str) -> None:
    from redis.exceptions import ResponseError

    class Refuses(LosesAnswers):
        async def evalsha(self, *arguments: Any) -> Any:
            raise ResponseError(text)

    refusing = replace(talk, bus=Bus(Refuses(talk.bus.client), talk.bus.limits))  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        await refusing.message()


async def test_too_many_calls_of_our_own_are_no_outage(talk: Talk) -> None:
    """A cluster's pool does not make callers wait: past its bound it fails."""
    from redis.exceptions import MaxConnectionsError

    class Busy(LosesAnswers):
        async def evalsha(self, *arguments: Any) -> Any:
            raise MaxConnectionsError

    client: Any = Busy(talk.bus.client)
    busy = replace(talk, bus=Bus(client, talk.bus.limits))
    for _ in range(3):
        with pytest.raises(Unavailable):
            await busy.message()
    assert busy.bus.scripts.breaker.failures == 0


async def test_a_full_server_refuses_new_messages_and_lets_runs_end() -> None:
    from support.bus import running_server

    with running_server() as url:
        async with connected_bus(url) as bus:
            talk = Talk(bus)
            await talk.open()
            claim = await talk.running()
            await bus.client.config_set("maxmemory", "1")
            with pytest.raises(Unavailable):
                await talk.message()
            await talk.append(claim, 0, "A")
            assert await bus.runs.renew([(claim.ref, claim.claim_id)]) == [(True, False)]
            await talk.finish(claim, 1)
            assert await talk.kinds() == "SEF"
            assert await bus.sessions.snapshot(talk.key) is not None
            assert await bus.deadlines.beat("node")
            assert (await bus.sessions.close(talk.key, talk.user)).completed


async def test_lost_writes_are_found_by_the_next_message(talk: Talk) -> None:
    """Redis forgot what somebody has seen; new events must not take the old ones' numbers."""
    await talk.finish(await talk.running())
    body = json.dumps({"id": "m1", "role": "user", "content": "hi"}).encode()
    new = NewMessage(talk.key, talk.user, "m1", "run-x", "d", body, b"", "enqueue", "")
    seen = Cursor(talk.epoch, 99)
    await talk.bus.sessions.accept(replace(new, seen=seen))
    view = await talk.bus.sessions.open(talk.key, talk.user, node="")
    assert view.cursor.epoch != talk.epoch
    assert (await talk.bus.sessions.read(talk.key, seen, 10)).status == "epoch"


async def test_a_pending_run_that_was_cancelled_is_in_the_journal_too(talk: Talk) -> None:
    claim = await talk.running()
    pending = await talk.message("never mind")
    await talk.cancel(pending.run_id)
    await talk.finish(claim)
    ended = [record.ref.run_id for record in await talk.journal() if isinstance(record, RunEnded)]
    assert ended == [claim.ref.run_id, pending.run_id]


async def test_a_finished_run_keeps_no_words(talk: Talk) -> None:
    """Its key stays for an hour; a large message must not."""
    claim = await talk.running("x" * 50_000)
    await talk.finish(claim)
    size = await talk.bus.client.memory_usage(
        f"r:{keys.session(talk.key)[2:]}:{claim.ref.run_id}", samples=0
    )
    assert size < 2000


async def test_a_page_of_the_log_is_bounded_in_bytes(talk: Talk) -> None:
    claim = await talk.running()
    for number in range(12):
        large = AgentEvent(event("A", text="x" * 60_000))
        await talk.bus.runs.append(claim.ref, claim.claim_id, number, [large])
    page = await talk.bus.sessions.read(talk.key, Cursor(talk.epoch, 0), 1000)
    assert sum(map(len, page.entries)) < 400_000
    assert page.last_seq == 13
    assert len(await talk.log()) == 13


async def test_reading_an_ended_session_says_so(talk: Talk) -> None:
    claim = await talk.running()
    await talk.bus.sessions.close(talk.key, talk.user)
    cursor = Cursor(talk.epoch, 0)
    assert not (await talk.bus.sessions.read(talk.key, cursor, 10)).ended, "its run is open"
    await talk.finish(claim, kind="C")
    page = await talk.bus.sessions.read(talk.key, cursor, 10)
    assert page.ended
    assert len(page.entries) == 2


async def test_notices_count_into_the_bound_of_the_log(redis_url: str) -> None:
    async with connected_bus(redis_url, Limits(log_bytes=3000)) as bus:
        talk = Talk(bus)
        await talk.open()
        for _ in range(10):
            await talk.asked()
            await talk.cancel()
        length = await bus.client.xlen(f"l:{keys.session(talk.key)[2:]}")
        page = await bus.sessions.read(talk.key, Cursor(talk.epoch, 0), 1)
        assert page.status == "trimmed"
        assert 3 <= length <= 3000 // 200


async def test_what_nobody_can_wait_for_leaves_the_queue(redis_url: str) -> None:
    async with connected_bus(redis_url) as bus:
        talk = Talk(bus)
        stale = [talk.ref(f"run-{number}") for number in range(3)]
        fresh = talk.ref("run-fresh")
        for ref in stale:
            await bus.runs.dispatch(ref, talk.agent)
        # As if they had been there for ever: any age is too old.
        call = (keys.waiting(talk.agent), keys.reference(fresh), "acme", -1000)
        await bus.scripts.call("dispatch", *call)
        assert await bus.runs.take(talk.agent, 10) == [fresh]
        assert await bus.runs.take(talk.agent, 10) == []


def test_limits_travel_complete() -> None:
    """Every limit that a script names is sent to it."""
    import re
    from importlib.resources import files

    text = "".join(p.read_text() for p in (files("gateway.bus") / "scripts").iterdir())
    named = set(re.findall(r"limits\.(\w+)", text))
    assert named <= set(json.loads(sessions.encode_limits(Limits())))
