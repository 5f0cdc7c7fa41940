"""Every cell of the table "States of a session" (README), on the real engine.

The rows are the states, the columns `message`, `answer`, `tool_result` and `cancel`. The row
`expired` is in test_deadlines.py.
"""

from typing import Any

import pytest
from support.talk import Talk, event

from gateway.bus.bus import Bus
from gateway.session.errors import Refused
from gateway.session.model import Claim
from protocol.codes import ErrorCode


async def refused(awaitable: object) -> ErrorCode:
    """The code with which a call is refused."""
    with pytest.raises(Refused) as caught:
        await awaitable  # type: ignore[misc]
    return caught.value.code


async def at(bus: Bus, state: str) -> tuple[Talk, Claim | None]:
    """A session in a state, with the open run's claim where there is one."""
    talk = Talk(bus)
    await talk.open()
    claim = None
    match state:
        case "idle":
            pass
        case "queued":
            await talk.message()
        case "running":
            claim = await talk.running()
        case "cancelling":
            claim = await talk.running()
            await talk.cancel()
        case "awaiting_input":
            claim = await talk.asked()
        case _:
            raise AssertionError(state)
    assert await talk.state() == state
    return talk, claim


async def test_idle_takes_a_message(bus: Bus) -> None:
    talk, _ = await at(bus, "idle")
    accepted = await talk.message()
    assert accepted.status == "accepted"
    assert accepted.dispatch == talk.ref(accepted.run_id)
    assert await talk.state() == "queued"


@pytest.mark.parametrize("state", ["idle", "queued", "running", "cancelling"])
async def test_answers_and_tool_results_are_refused_when_nothing_is_asked(
    bus: Bus, state: str
) -> None:
    talk, _ = await at(bus, state)
    assert await refused(talk.answer("q1")) is ErrorCode.INTERRUPT_EXPIRED
    assert await refused(talk.tool_result("c1")) is ErrorCode.INTERRUPT_EXPIRED
    assert await talk.state() == state


async def test_idle_cancel_has_nothing_to_do(bus: Bus) -> None:
    talk, _ = await at(bus, "idle")
    assert (await talk.cancel()).status == "accepted"
    assert await talk.kinds() == ""


@pytest.mark.parametrize("state", ["queued", "running", "cancelling"])
async def test_a_message_to_a_busy_session_waits_in_order(bus: Bus, state: str) -> None:
    talk, claim = await at(bus, state)
    first = await talk.message("first")
    second = await talk.message("second")
    assert (first.status, first.dispatch) == ("queued", None)
    view = await bus.sessions.open(talk.key, talk.user, node="")
    assert [run.run_id for run in view.runs][1:] == [first.run_id, second.run_id]
    if claim is None:
        claim = await talk.claim(view.runs[0].run_id)
        assert claim is not None
    assert await talk.finish(claim) == first.run_id


@pytest.mark.parametrize("state", ["queued", "running", "cancelling"])
async def test_reject_answers_busy(bus: Bus, state: str) -> None:
    talk, _ = await at(bus, state)
    assert await refused(talk.message(when_busy="reject")) is ErrorCode.BUSY
    assert len((await bus.sessions.open(talk.key, talk.user, node="")).runs) == 1


@pytest.mark.parametrize("state", ["queued", "running", "cancelling"])
async def test_at_most_so_many_messages_wait(quick_bus: Bus, state: str) -> None:
    talk, _ = await at(quick_bus, state)
    for number in range(quick_bus.limits.pending_runs):
        await talk.message(f"number {number}")
    assert await refused(talk.message("one more")) is ErrorCode.BUSY
    assert await refused(talk.message("one more", when_busy="interrupt")) is ErrorCode.BUSY


async def test_interrupt_while_queued_ends_the_queued_run_and_goes_ahead(bus: Bus) -> None:
    talk, _ = await at(bus, "queued")
    waiting = await talk.message("waiting")
    urgent = await talk.message("urgent", when_busy="interrupt")
    assert urgent.dispatch == talk.ref(urgent.run_id)
    view = await bus.sessions.open(talk.key, talk.user, node="")
    assert [run.run_id for run in view.runs] == [urgent.run_id, waiting.run_id]
    assert await talk.kinds() == "SC"


@pytest.mark.parametrize("state", ["running", "cancelling"])
async def test_interrupt_while_running_cancels_and_goes_ahead(bus: Bus, state: str) -> None:
    talk, claim = await at(bus, state)
    assert claim is not None
    await talk.message("waiting")
    urgent = await talk.message("urgent", when_busy="interrupt")
    assert (urgent.status, urgent.dispatch) == ("queued", None)
    assert await talk.state() == "cancelling"
    assert await talk.finish(claim, kind="C") == urgent.run_id


async def test_cancel_while_queued_ends_the_run_at_once(bus: Bus) -> None:
    talk, _ = await at(bus, "queued")
    following = await talk.message("next")
    cancelled = await talk.cancel()
    assert cancelled.dispatch == talk.ref(following.run_id)
    assert await talk.kinds() == "SC"
    assert await talk.claim(cancelled.run_id) is None


async def test_cancel_while_running_tells_the_worker(bus: Bus) -> None:
    talk, claim = await at(bus, "running")
    assert claim is not None
    await talk.cancel()
    await talk.cancel()
    assert await talk.state() == "cancelling"
    assert await bus.runs.renew([(claim.ref, claim.claim_id)]) == [(True, True)]


async def test_cancel_of_a_pending_run_ends_it_in_its_turn(bus: Bus) -> None:
    talk, claim = await at(bus, "running")
    assert claim is not None
    pending = await talk.message("pending")
    last = await talk.message("last")
    await talk.cancel(pending.run_id)
    assert await talk.kinds() == "S", "two runs must not interleave"
    assert await talk.finish(claim) == last.run_id
    assert await talk.kinds() == "SFSC"


async def test_cancel_of_an_unknown_run(bus: Bus) -> None:
    talk, _ = await at(bus, "running")
    assert await refused(talk.cancel("run-unknown")) is ErrorCode.RUN_NOT_FOUND


async def test_cancel_of_a_finished_run_is_ok(bus: Bus) -> None:
    talk, claim = await at(bus, "running")
    assert claim is not None
    await talk.finish(claim)
    assert (await talk.cancel(claim.ref.run_id)).dispatch is None
    assert await talk.kinds() == "SF"


@pytest.mark.parametrize("when_busy", ["enqueue", "reject"])
async def test_awaiting_refuses_a_message(bus: Bus, when_busy: str) -> None:
    talk, _ = await at(bus, "awaiting_input")
    assert await refused(talk.message(when_busy=when_busy)) is ErrorCode.INTERRUPT_PENDING
    assert await talk.state() == "awaiting_input"


async def test_awaiting_is_abandoned_by_an_interrupting_message(bus: Bus) -> None:
    talk, _ = await at(bus, "awaiting_input")
    accepted = await talk.message("instead", when_busy="interrupt")
    assert accepted.dispatch == talk.ref(accepted.run_id)
    assert await talk.state() == "queued"
    assert await talk.kinds() == "SIN"
    assert await refused(talk.answer("q1", "q2")) is ErrorCode.INTERRUPT_EXPIRED


async def test_awaiting_is_abandoned_by_cancel(bus: Bus) -> None:
    talk, _ = await at(bus, "awaiting_input")
    await talk.cancel()
    assert await talk.state() == "idle"
    assert await talk.kinds() == "SIN"


async def test_the_first_complete_answer_wins_and_the_next_run_carries_it(bus: Bus) -> None:
    talk, _ = await at(bus, "awaiting_input")
    assert await refused(talk.answer("q1")) is ErrorCode.BAD_FRAME
    assert await refused(talk.answer("q1", "q2", "q3")) is ErrorCode.INTERRUPT_EXPIRED
    assert await refused(talk.answer("q1", "q2", "q1")) is ErrorCode.BAD_FRAME
    accepted = await talk.answer("q2", "q1")
    assert await refused(talk.answer("q1", "q2")) is ErrorCode.INTERRUPT_EXPIRED
    claim = await talk.claim(accepted.run_id)
    assert claim is not None
    assert claim.task_type == "resume"
    assert b'"resume":[{"interruptId": "q2"' in claim.run_input


async def test_the_last_tool_result_starts_the_next_run_with_all_of_them(bus: Bus) -> None:
    talk, claim = await at(bus, "running")
    assert claim is not None
    await talk.finish(claim, kind="I", pending_tools=["c1", "c2"])
    view = await bus.sessions.open(talk.key, talk.user, node="")
    assert (view.state, view.pending_tools) == ("awaiting_input", ["c1", "c2"])
    assert await refused(talk.message()) is ErrorCode.INTERRUPT_PENDING
    first = await talk.tool_result("c2")
    assert (first.run_id, first.dispatch) == ("", None)
    assert await refused(talk.tool_result("c2")) is ErrorCode.INTERRUPT_EXPIRED
    last = await talk.tool_result("c1")
    following = await talk.claim(last.run_id)
    assert following is not None
    assert [b'"toolCallId": "c2"' in m for m in following.messages] == [False, True, False]
    assert await talk.state() == "running"


async def test_pending_messages_wait_until_the_question_is_answered(bus: Bus) -> None:
    talk, claim = await at(bus, "running")
    assert claim is not None
    pending = await talk.message("pending")
    assert await talk.finish(claim, kind="I", interrupts=b'[{"id":"q1"}]') is None
    answer = await talk.answer("q1")
    resumed = await talk.claim(answer.run_id)
    assert resumed is not None
    assert await talk.finish(resumed) == pending.run_id


@pytest.mark.parametrize("state", ["idle", "queued", "running", "cancelling", "awaiting_input"])
async def test_ended_refuses_everything_but_cancel(bus: Bus, state: str) -> None:
    talk, _ = await at(bus, state)
    assert (await bus.sessions.close(talk.key, talk.user)).completed
    assert not (await bus.sessions.close(talk.key, talk.user)).completed, "counted once"
    assert await refused(talk.message()) is ErrorCode.SESSION_ENDED
    assert await refused(talk.answer("q1")) is ErrorCode.SESSION_ENDED
    assert await refused(talk.tool_result("c1")) is ErrorCode.SESSION_ENDED
    assert await refused(talk.open()) is ErrorCode.SESSION_ENDED
    assert (await talk.cancel()).status == "accepted"


async def test_an_ended_session_ends_its_runs_in_order(bus: Bus) -> None:
    talk, claim = await at(bus, "running")
    assert claim is not None
    await talk.message("pending")
    await bus.sessions.close(talk.key, talk.user)
    assert await talk.kinds() == "S"
    assert await bus.runs.renew([(claim.ref, claim.claim_id)]) == [(True, True)]
    assert await talk.finish(claim, kind="C", event=event("RUN_FINISHED")) is None
    assert await talk.kinds() == "SCSC"


async def test_a_foreign_session_does_not_exist(bus: Bus) -> None:
    talk, _ = await at(bus, "running")
    stranger = Talk(bus, key=talk.key, user="eve")
    for call in (
        stranger.open(agent=None),
        stranger.message(),
        stranger.answer("q1"),
        stranger.tool_result("c1"),
        stranger.cancel(),
        bus.sessions.close(talk.key, "eve"),
    ):
        assert await refused(call) is ErrorCode.SESSION_NOT_FOUND
    unknown = Talk(bus)
    assert await refused(unknown.open(agent=None)) is ErrorCode.SESSION_NOT_FOUND
    assert await refused(unknown.message()) is ErrorCode.SESSION_NOT_FOUND


@pytest.mark.parametrize("asked", [{"interrupts": b'[{"id":"q1"}]'}, {"pending_tools": ["t1"]}])
async def test_a_question_of_an_agent_that_was_told_to_stop_holds_nobody_up(
    bus: Bus, asked: dict[str, Any]
) -> None:
    talk, held = await at(bus, "running")
    assert held is not None
    mine = await talk.message("instead", when_busy="interrupt")
    assert await talk.finish(held, kind="I", **asked) == mine.run_id
    assert await talk.state() == "queued"
    assert (await talk.events(held.ref.run_id))[-2:] == ["RUN_FINISHED", "CUSTOM"]
