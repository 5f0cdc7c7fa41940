"""Every run ends, whatever dies: each kind of due time, acted on by any node, again and again."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from uuid import uuid4

import pytest
from support.bus import QUICK, archive_all, connected_bus
from support.talk import Talk

from gateway.bus import keys
from gateway.bus.bus import Bus
from gateway.session.archive import SessionOver
from gateway.session.errors import Fenced, Refused
from gateway.session.model import AgentInfo, Limits, WorkerInfo
from protocol.codes import ErrorCode
from protocol.frames import Cursor


@pytest.fixture
async def talk(quick_bus: Bus) -> Talk:
    opened = Talk(quick_bus)
    await opened.open()
    return opened


async def test_a_run_whose_node_died_before_dispatch_is_dispatched_again(talk: Talk) -> None:
    run_id = (await talk.message()).run_id
    advanced = await talk.advance("dispatch")
    assert (advanced.dispatch, advanced.agent) == (talk.ref(run_id), talk.agent)
    assert advanced.dispatch is not None
    await talk.bus.runs.dispatch(advanced.dispatch, advanced.agent)
    assert await talk.bus.runs.take(talk.agent, 5) == [talk.ref(run_id)]


async def test_a_claimed_run_is_dispatched_no_more(talk: Talk) -> None:
    claim = await talk.running()
    await talk.due("lease")  # later than that of the dispatch would have been
    dues = await talk.bus.deadlines.due(1000)
    assert "dispatch" not in {due.kind for due in dues if due.ref == claim.ref}


async def test_a_run_that_nobody_serves_ends(talk: Talk) -> None:
    run_id = (await talk.message()).run_id
    advanced = await talk.advance("wait")
    assert advanced.end == ErrorCode.NO_WORKER
    assert await talk.end_by_force(run_id, advanced) is None
    assert await talk.kinds() == "SX"
    assert await talk.state() == "idle"


async def test_a_run_that_waits_behind_others_for_too_long_times_out(talk: Talk) -> None:
    worker = WorkerInfo("w1", AgentInfo(talk.agent), 8, 8)
    await talk.bus.directory.announce(worker)
    await talk.message()
    assert (await talk.advance("wait")).end == ErrorCode.TIMEOUT
    await talk.bus.directory.retire(worker)
    assert [s.workers for s in await talk.bus.directory.agents() if s.info.name == talk.agent] == [
        0
    ]


async def test_a_lost_worker_before_the_first_event_means_another_attempt(talk: Talk) -> None:
    lost = await talk.running()
    advanced = await talk.advance("lease")
    assert advanced.dispatch == lost.ref
    with pytest.raises(Fenced):
        await talk.append(lost, 0, "A")
    second = await talk.claim(lost.ref.run_id, "w2")
    assert second is not None
    assert second.attempt == 2
    assert await talk.kinds() == "S", "RUN_STARTED is written once"


async def test_attempts_are_bounded(talk: Talk) -> None:
    claim = await talk.running()
    for _ in range(QUICK.max_attempts - 1):
        await talk.advance("lease")
        assert await talk.claim(claim.ref.run_id, "w2") is not None
    assert (await talk.advance("lease")).end == ErrorCode.WORKER_LOST


async def test_a_lost_worker_after_the_first_event_ends_the_run(talk: Talk) -> None:
    lost = await talk.running()
    await talk.append(lost, 0, "A", "B")
    following = await talk.message("next")
    advanced = await talk.advance("lease")
    assert (advanced.end, advanced.attempt, advanced.ordinal) == (ErrorCode.WORKER_LOST, 1, 2)
    assert (advanced.first_seq, advanced.cursor) == (1, Cursor(talk.epoch, 3))
    said = b'{"id":"a1","role":"assistant","content":"so far"}'
    assert await talk.end_by_force(lost.ref.run_id, advanced, messages=[said]) == talk.ref(
        following.run_id
    )
    with pytest.raises(Fenced):
        await talk.end_by_force(lost.ref.run_id, advanced)
    assert await talk.kinds() == "SEEX"
    with pytest.raises(Fenced):
        await talk.append(lost, 2, "C")


async def test_a_worker_that_comes_back_in_time_keeps_its_run(redis_url: str, bus: Bus) -> None:
    # But for this lease no deadline of the run passes under our hands, as one of QUICK might.
    async with connected_bus(redis_url, Limits(lease_s=0.15)) as hasty:
        talk = Talk(hasty)
        await talk.open()
        claim = await talk.running()
        await talk.append(claim, 0, "A")
        advanced = await talk.advance("lease")
    talk.bus = bus
    await talk.append(claim, 1, "B")
    with pytest.raises(Fenced):
        await talk.end_by_force(claim.ref.run_id, advanced)
    await bus.runs.renew([(claim.ref, claim.claim_id)])
    moved = replace(advanced, ordinal=2)  # the right fence, but the deadline is no longer due
    with pytest.raises(Fenced):
        await talk.end_by_force(claim.ref.run_id, moved)
    assert await talk.state() == "running"


async def test_a_run_has_a_time_limit(talk: Talk) -> None:
    claim = await talk.running()
    await talk.append(claim, 0, "A")
    advanced = await talk.advance("timeout")
    assert advanced.end == ErrorCode.TIMEOUT
    await talk.end_by_force(claim.ref.run_id, advanced)
    assert await talk.kinds() == "SEX"


async def test_an_agent_that_ignores_its_cancel_is_cut_off(talk: Talk) -> None:
    claim = await talk.running()
    await talk.append(claim, 0, "A")
    await talk.cancel()
    advanced = await talk.advance("grace")
    assert advanced.end == ErrorCode.CANCELLED
    await talk.end_by_force(claim.ref.run_id, advanced)
    assert await talk.state() == "idle"
    assert await talk.bus.runs.renew([(claim.ref, 1)]) == [(False, False)]


async def test_an_unanswered_question_expires_and_the_next_run_begins(talk: Talk) -> None:
    claim = await talk.running()
    pending = await talk.message("pending")
    await talk.finish(claim, kind="I", interrupts=b'[{"id":"q1"}]')
    advanced = await talk.advance("input")
    assert advanced.dispatch == talk.ref(pending.run_id)
    with pytest.raises(Refused) as caught:
        await talk.answer("q1")
    assert caught.value.code is ErrorCode.INTERRUPT_EXPIRED


async def test_a_session_expires_once_when_its_home_is_gone(redis_url: str, talk: Talk) -> None:
    """Guarantee 9: counted by one node, which is told again when it did not hear the answer."""
    await talk.bus.deadlines.beat("one node")
    await archive_all(talk.bus)
    due = await talk.due("expiry")
    async with connected_bus(redis_url, QUICK) as other_node:
        await other_node.deadlines.beat("another node")
        first = await talk.bus.deadlines.advance(due)
        assert first.completed
        assert not (await other_node.deadlines.advance(due)).completed
        assert await talk.bus.deadlines.advance(due) == first
    with pytest.raises(Refused) as caught:
        await talk.open(agent=None)
    assert caught.value.code is ErrorCode.SESSION_NOT_FOUND
    [leftover] = await talk.bus.client.keys(f"*{talk.key.session_id}*")
    assert 0 < await talk.bus.client.pttl(leftover) <= 3_600_000


async def test_of_many_nodes_one_makes_a_session_expire(redis_url: str, talk: Talk) -> None:
    """Guarantee 9."""
    await archive_all(talk.bus)
    due = await talk.due("expiry")
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(connected_bus(redis_url, QUICK)) for _ in range(4)]
        for number, node in enumerate(nodes):
            await node.deadlines.beat(f"node {number}")
        advances = await asyncio.gather(*(node.deadlines.advance(due) for node in nodes * 5))
    counted = {number % 4 for number, advanced in enumerate(advances) if advanced.completed}
    assert len(counted) == 1


async def test_a_session_expires_only_when_the_archive_has_it(talk: Talk) -> None:
    """Guarantee 8: it would be lost, if the database is away, or opened again without its end."""
    await archive_all(talk.bus)
    await talk.open()
    await talk.finish(await talk.running())
    for _ in range(2):
        assert not (await talk.advance("expiry")).completed
        assert await talk.state() == "idle"
    [entry] = await talk.entries()
    await talk.bus.journal.forget([entry.id])
    assert (await talk.advance("expiry")).completed
    [over] = await talk.journal()
    assert isinstance(over, SessionOver)
    assert (over.user, over.status) == (talk.user, "expired")


async def test_others_do_not_keep_a_session_from_expiring(quick_bus: Bus) -> None:
    """The journal of a partition is never empty when there is much to do."""
    talk = Talk(quick_bus)
    await talk.open()
    await archive_all(quick_bus)
    while keys.partition((other := Talk(quick_bus)).key) != keys.partition(talk.key):
        pass
    await other.open()
    assert (await talk.advance("expiry")).completed
    assert not (await other.advance("expiry")).completed


async def test_an_entry_that_is_set_aside_keeps_no_session(quick_bus: Bus) -> None:
    talk = Talk(quick_bus)
    await archive_all(quick_bus)
    await talk.open()
    [begun] = await talk.entries()
    await quick_bus.journal.bury(begun.id, "no")
    assert (await talk.advance("expiry")).completed


async def test_an_open_run_asks_for_a_home(redis_url: str, quick_bus: Bus) -> None:
    """Guarantee 9: a session with an open run always has a home, whoever dies."""
    talk = Talk(quick_bus, node=f"node-{uuid4().hex}")
    await talk.open()
    claim = await talk.running()
    async with connected_bus(redis_url, QUICK) as other_node:
        await talk.bus.deadlines.beat(talk.node)
        await talk.bus.client.zincrby(
            "nodes", 3_600_000, talk.node
        )  # it lives, however slow we are
        await other_node.deadlines.beat("other")
        due = await talk.due("home")
        assert not (await other_node.deadlines.advance(due)).adopt, "its home lives"
        due = await talk.due("home")
        own = await talk.bus.deadlines.advance(due)
        assert (own.adopt, own.user, own.dead_home) == (True, talk.user, talk.node)
        await talk.bus.deadlines.leave(talk.node)
        await other_node.deadlines.beat("other")
        due = await talk.due("home")
        orphan = await other_node.deadlines.advance(due)
        assert (orphan.adopt, orphan.user, orphan.dead_home) == (True, talk.user, talk.node)
    await talk.finish(claim)
    due_times = keys.due(keys.partition(talk.key))
    member = f"home|acme:{talk.key.session_id}|{claim.ref.run_id}"
    assert await talk.bus.client.zscore(due_times, member) is None


async def test_a_session_with_a_living_home_does_not_expire(talk: Talk) -> None:
    await talk.bus.deadlines.beat(talk.node)
    due = await talk.due("expiry")
    assert not (await talk.bus.deadlines.advance(due)).completed
    assert await talk.state() == "idle"


async def test_acting_on_what_is_not_due_does_nothing(redis_url: str, talk: Talk) -> None:
    claim = await talk.running()
    due = await talk.due("lease")
    async with connected_bus(redis_url, QUICK) as other_node:
        first = await other_node.deadlines.advance(due)
    assert first.dispatch == claim.ref
    assert (await talk.bus.deadlines.advance(due)).dispatch is None


async def test_nodes_know_who_lives(talk: Talk) -> None:
    nodes = await talk.bus.deadlines.beat("beating")
    assert nodes["beating"] is True
    await talk.bus.deadlines.leave("beating")
    assert (await talk.bus.deadlines.beat("other"))["beating"] is False


async def test_a_timed_out_run_that_keeps_streaming_is_cut_off(talk: Talk) -> None:
    claim = await talk.running()
    await talk.append(claim, 0, "A")
    due = await talk.due("timeout")
    await talk.append(claim, 1, "B")
    advanced = await talk.bus.deadlines.advance(due)
    with pytest.raises(Fenced):  # nothing comes between the reading and the end
        await talk.append(claim, 2, "C")
    await talk.end_by_force(claim.ref.run_id, advanced)
    assert await talk.kinds() == "SEEX"


async def test_a_dead_node_is_known_for_longer_than_a_session_may_name_it(talk: Talk) -> None:
    await talk.bus.deadlines.beat("dead")
    await talk.bus.deadlines.leave("dead")
    long_ago = -(QUICK.session_ttl_s * 1000 + 1000)
    await talk.bus.client.zincrby("nodes", long_ago, "dead")
    assert (await talk.bus.deadlines.beat("other"))["dead"] is False


async def test_nodes_that_end_a_run_at_the_same_time_do_not_fence_off_each_other(
    quick_bus: Bus,
) -> None:
    talk = Talk(quick_bus)
    await talk.open()
    held = await talk.running()
    await talk.append(held, 0, "A")
    first = await talk.advance("timeout")
    second = await talk.advance("timeout")
    await talk.end_by_force(held.ref.run_id, first)
    with pytest.raises(Fenced):
        await talk.end_by_force(held.ref.run_id, second)
    assert await talk.kinds() == "SEX"


async def test_a_session_that_was_followed_for_long_lives_on_when_it_is_left(
    redis_url: str, quick_bus: Bus
) -> None:
    await quick_bus.deadlines.beat("node-a")
    talk = Talk(quick_bus)
    await talk.open()
    await talk.due("expiry")  # a socket was there all the time
    async with connected_bus(redis_url) as patient:
        await patient.sessions.leave(talk.key, talk.node, counted_seq=0)
    dues = await quick_bus.deadlines.due(1000)
    assert "expiry" not in {due.kind for due in dues if due.ref.session == talk.key}
