"""A run that lost its worker in the middle is made anew, when its agent says so; never for ever."""

import asyncio
import json
from typing import Any

import pytest
from support.bus import QUICK
from support.talk import Talk

from gateway.bus.bus import Bus
from gateway.session.model import Claim, RunRef
from protocol.codes import ErrorCode


@pytest.fixture
async def talk(quick_bus: Bus) -> Talk:
    opened = Talk(quick_bus)
    await opened.open()
    return opened


def text(role: str, content: str) -> bytes:
    return json.dumps({"id": f"{role}-{content}", "role": role, "content": content}).encode()


def contents(messages: list[bytes]) -> list[str]:
    return [json.loads(message)["content"] for message in messages]


async def claim(talk: Talk, run_id: str, *, restartable: bool = True) -> Claim:
    got = await talk.bus.runs.claim(talk.ref(run_id), "w1", restartable=restartable)
    assert got is not None
    return got


async def asked(talk: Talk, question: str = "hi", **options: Any) -> Claim:
    return await claim(talk, (await talk.message(question)).run_id, **options)


async def lost(talk: Talk, held: Claim, said: str = "so far") -> RunRef | None:
    """The worker says something and is gone; a sweep ends its run. Answers the run that follows."""
    await talk.append(held, 0, "A")
    advanced = await talk.advance("lease")
    assert advanced.end == ErrorCode.WORKER_LOST
    ending = {"messages": [text("assistant", said)], "code": advanced.end}
    return await talk.end_by_force(held.ref.run_id, advanced, **ending)


async def test_the_same_message_is_answered_by_a_new_run(talk: Talk) -> None:
    first = await asked(talk, "question")
    pending = (await talk.message("next")).run_id
    following = await lost(talk, first)
    assert following is not None
    assert following.run_id not in (first.ref.run_id, pending)
    assert await talk.state() == "queued"

    again = await claim(talk, following.run_id)
    assert await talk.kinds() == "SEXS"
    started = [json.loads(entry.frame)["event"] for entry in await talk.log() if entry.kind == "S"]
    assert started[1]["parentRunId"] == first.ref.run_id
    for key in ("messages", "threadId"):
        assert started[1]["input"][key] == started[0]["input"][key]
    assert started[1]["runId"] == started[1]["input"]["runId"] == following.run_id
    assert await talk.finish(again, messages=[text("assistant", "answer")]) == pending

    source = await talk.bus.sessions.snapshot(talk.key)
    assert source is not None
    assert contents(source.messages) == ["question", "so far", "answer"]


async def test_the_new_agent_sees_the_question_last_and_once(talk: Talk) -> None:
    await talk.finish(await asked(talk, "before"), messages=[text("assistant", "said")])
    following = await lost(talk, await asked(talk, "question"))
    assert following is not None
    again = await claim(talk, following.run_id)
    assert contents(again.messages) == ["before", "said", "question"]
    assert contents((await claim(talk, following.run_id)).messages) == contents(again.messages)


async def test_what_kills_every_worker_is_given_up(talk: Talk) -> None:
    """All runs that answer one message have as many attempts as one may have, and no more."""
    held = await asked(talk)
    runs = [held.ref]
    while (following := await lost(talk, held)) is not None:
        runs.append(following)
        held = await claim(talk, following.run_id)
        assert held.attempt == len(runs)
    assert len(runs) == QUICK.max_attempts
    assert await talk.kinds() == "SEX" * len(runs)
    assert await talk.state() == "idle"


async def test_a_message_has_one_first_event_however_often_it_is_answered(talk: Talk) -> None:
    following = await lost(talk, await asked(talk))
    assert following is not None
    again = await claim(talk, following.run_id)
    await talk.append(again, 0, "A")
    await talk.finish(again, 1)
    started, first, end, restarted, later, last = await talk.log()
    assert 0 < first.since_ms <= started.ts_ms
    assert later.since_ms == 0, "it had one"
    assert (end.since_ms, last.since_ms) == (started.ts_ms, restarted.ts_ms)
    assert restarted.since_ms >= end.ts_ms


async def test_a_run_begins_once_however_often_it_is_claimed(talk: Talk) -> None:
    held = await asked(talk)
    assert await talk.bus.runs.hand_back(held.ref, held.claim_id)
    await asyncio.sleep(0.02)
    again = await claim(talk, held.ref.run_id)
    await talk.append(again, 0, "A")
    await talk.finish(again, 1)
    started, first, end = await talk.log()
    assert first.since_ms <= started.ts_ms
    assert end.since_ms == started.ts_ms


async def test_attempts_without_a_word_count_too(talk: Talk) -> None:
    held = await asked(talk)
    for _ in range(QUICK.max_attempts - 1):
        await talk.advance("lease")
        held = await claim(talk, held.ref.run_id)
    assert await lost(talk, held) is None


async def test_a_chain_of_lost_runs_leaves_the_question_to_the_last(talk: Talk) -> None:
    """Also what the tools of the client said, which is what a `resume` run answers."""
    first = await asked(talk, "question")
    await talk.finish(first, kind="I", pending_tools=["c1", "c2"], messages=[])
    await talk.tool_result("c1")
    result = (await talk.tool_result("c2")).run_id
    following = await lost(talk, await claim(talk, result))
    assert following is not None
    again = await claim(talk, following.run_id)
    assert contents(again.messages) == ["question", "42", "42"]
    assert len(json.loads(again.run_input)["messages"]) == 2
    assert again.task_type == "resume"


async def test_an_answer_is_given_again(talk: Talk) -> None:
    await talk.asked()
    held = await claim(talk, (await talk.answer("q1", "q2")).run_id)
    following = await lost(talk, held)
    assert following is not None
    again = await claim(talk, following.run_id)
    assert json.loads(again.run_input)["resume"] == json.loads(held.run_input)["resume"]
    assert contents(again.messages) == ["hi"]


async def test_a_worker_that_gives_up_its_run_makes_a_new_one_too(talk: Talk) -> None:
    held = await asked(talk)
    await talk.append(held, 0, "A")
    end = {"kind": "X", "code": "worker_lost"}
    following = await talk.finish(held, 1, **end)
    assert following is not None
    assert await talk.finish(held, 1, **end) == following, "the same call again: the same run"
    assert await talk.kinds() == "SEX"


async def test_a_run_that_is_not_restartable_is_lost(talk: Talk) -> None:
    held = await asked(talk, restartable=False)
    assert await lost(talk, held) is None
    assert await talk.state() == "idle"


async def test_who_holds_it_now_says_whether_it_is_restartable(talk: Talk) -> None:
    held = await asked(talk, restartable=True)
    await talk.advance("lease")
    assert await lost(talk, await claim(talk, held.ref.run_id, restartable=False)) is None


@pytest.mark.parametrize("code", ["internal", "too_large"])
async def test_a_failure_is_no_loss(talk: Talk, code: str) -> None:
    held = await asked(talk)
    assert await talk.finish(held, kind="X", code=code) is None


async def test_a_cancelled_run_is_not_made_anew(talk: Talk) -> None:
    held = await asked(talk)
    await talk.append(held, 0, "A")
    await talk.cancel()
    advanced = await talk.advance("lease")
    assert advanced.end == ErrorCode.CANCELLED
    assert await talk.end_by_force(held.ref.run_id, advanced, code=advanced.end) is None


async def test_a_run_of_a_closed_session_is_not_made_anew(talk: Talk) -> None:
    held = await asked(talk)
    await talk.append(held, 0, "A")
    await talk.bus.sessions.close(talk.key, talk.user)
    advanced = await talk.advance("lease")
    assert await talk.end_by_force(held.ref.run_id, advanced, code=advanced.end) is None
    assert await talk.kinds() == "SEX"


async def test_the_same_message_id_still_names_its_first_run(talk: Talk) -> None:
    accepted = await talk.message("hi", frame_id="m1")
    following = await lost(talk, await claim(talk, accepted.run_id))
    assert following is not None
    repeated = await talk.message("hi", frame_id="m1")
    assert (repeated.status, repeated.run_id) == ("duplicate", accepted.run_id)


async def test_a_run_that_is_cancelled_while_its_loss_is_looked_at_is_not_made_anew(
    talk: Talk,
) -> None:
    held = await asked(talk)
    await talk.append(held, 0, "A")
    advanced = await talk.advance("lease")  # a node reads what it said
    assert (await talk.cancel()).status == "accepted"
    assert await talk.end_by_force(held.ref.run_id, advanced, code=advanced.end) is None


async def test_who_interrupts_a_run_that_is_lost_then_goes_first(talk: Talk) -> None:
    held = await asked(talk)
    await talk.append(held, 0, "A")
    mine = await talk.message("instead", when_busy="interrupt")
    assert await talk.finish(held, 1, kind="X", code="worker_lost") == mine.run_id
