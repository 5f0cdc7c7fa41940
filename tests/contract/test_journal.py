"""The journal: what lives becomes history, each thing once, in order, and nothing is dropped."""

import json
import random
from typing import Any
from uuid import uuid4

import pytest
from support.bus import archive_all, connected_bus
from support.talk import Talk, event

from gateway.bus import keys
from gateway.bus.bus import Bus
from gateway.session.archive import DeadLetter, RunEnded, SessionBegun, SessionOver
from gateway.session.errors import Refused
from gateway.session.model import Limits, SessionKey
from protocol.codes import ErrorCode

SAID = b'{"id":"a1","role":"assistant","content":"an answer"}'


@pytest.fixture
async def talk(bus: Bus) -> Talk:
    opened = Talk(bus)
    await opened.open()
    return opened


async def ended(talk: Talk) -> list[RunEnded]:
    return [record for record in await talk.journal() if isinstance(record, RunEnded)]


def contents(messages: list[bytes]) -> list[Any]:
    return [json.loads(message)["content"] for message in messages]


# --- what is written ------------------------------------------------------------------------------


async def test_a_session_begins_once(bus: Bus) -> None:
    talk = Talk(bus)
    for _ in range(2):
        await talk.open(metadata={"plan": "gold"}, on_detach="cancel")
    [begun] = await talk.journal()
    assert isinstance(begun, SessionBegun)
    assert (begun.key, begun.user, begun.agent) == (talk.key, talk.user, talk.agent)
    assert json.loads(begun.metadata) == {"plan": "gold"}
    assert begun.on_detach == "cancel"
    assert begun.at_ms == (await talk.open()).created_ms


async def test_a_run_that_succeeds(talk: Talk) -> None:
    claim = await talk.running("a question")
    terminal = event("RUN_FINISHED", usage=[{"inputTokens": 7}])
    for _ in range(2):
        await talk.finish(claim, messages=[SAID], event=terminal, state=b'{"step":1}')
    [run] = await ended(talk)
    assert (run.ref, run.user, run.agent) == (claim.ref, talk.user, talk.agent)
    assert (run.task, run.kind, run.code) == ("run", "F", "")
    assert contents(run.asked) == ["a question"]
    assert run.said == [SAID]
    assert (run.event, run.state) == (terminal, b'{"step":1}')
    assert 0 < run.created_ms <= run.claimed_ms <= run.ended_ms


async def test_the_state_is_that_after_the_run(talk: Talk) -> None:
    for state in (None, b'{"step":1}', None, b'{"step":2}'):
        await talk.finish(await talk.running(), state=state)
    assert [run.state for run in await ended(talk)] == [
        None,
        b'{"step":1}',
        b'{"step":1}',
        b'{"step":2}',
    ]


async def test_a_question_and_its_answer(talk: Talk) -> None:
    await talk.asked()
    claim = await talk.claim((await talk.answer("q1", "q2")).run_id)
    assert claim is not None
    await talk.finish(claim, messages=[SAID])
    asking, answered = await ended(talk)
    assert (asking.kind, answered.kind) == ("I", "F")
    assert (answered.task, answered.asked, answered.said) == ("resume", [], [SAID])


async def test_results_of_client_tools_are_asked(talk: Talk) -> None:
    await talk.finish(await talk.running(), kind="I", pending_tools=["t1", "t2"])
    await talk.tool_result("t1")
    claim = await talk.claim((await talk.tool_result("t2")).run_id)
    assert claim is not None
    await talk.finish(claim)
    _, answered = await ended(talk)
    assert [json.loads(message)["toolCallId"] for message in answered.asked] == ["t1", "t2"]


async def test_runs_that_fail_or_are_cancelled(talk: Talk) -> None:
    await talk.finish(await talk.running("one"), kind="X", code="internal", messages=[SAID])
    await talk.message("two")
    await talk.cancel()
    failed, cancelled = await ended(talk)
    assert (failed.kind, failed.code, failed.said) == ("X", "internal", [SAID])
    assert (cancelled.kind, cancelled.code, contents(cancelled.asked)) == ("C", "", ["two"])
    assert cancelled.claimed_ms == 0, "no worker ever got it"


async def test_a_run_that_is_ended_by_force(quick_bus: Bus) -> None:
    talk = Talk(quick_bus)
    await talk.open()
    claim = await talk.running("a question")
    await talk.append(claim, 0, "A")
    await talk.end_by_force(claim.ref.run_id, await talk.advance("lease"), code="worker_lost")
    [run] = await ended(talk)
    assert (run.kind, run.code, contents(run.asked)) == ("X", "worker_lost", ["a question"])


async def test_a_run_that_restarts_another_asks_nothing(quick_bus: Bus) -> None:
    """The lost one did, and the archive would have the question twice."""
    talk = Talk(quick_bus)
    await talk.open()
    run_id = (await talk.message("a question")).run_id
    claim = await talk.bus.runs.claim(talk.ref(run_id), "w1", restartable=True)
    assert claim is not None
    await talk.append(claim, 0, "A")
    following = await talk.end_by_force(run_id, await talk.advance("lease"), code="worker_lost")
    assert following is not None
    again = await talk.claim(following.run_id, "w2")
    assert again is not None
    await talk.finish(again, messages=[SAID])
    lost, restarted = await ended(talk)
    assert contents(lost.asked) == ["a question"]
    assert (restarted.asked, restarted.said) == ([], [SAID])


async def test_a_session_that_is_closed_is_over_after_its_last_run(talk: Talk) -> None:
    claim = await talk.running()
    pending = await talk.message("never mind")
    closed = await talk.bus.sessions.close(talk.key, talk.user)
    await talk.finish(claim, kind="C")
    begun, first, second, over = await talk.journal()
    assert isinstance(begun, SessionBegun)
    assert isinstance(first, RunEnded)
    assert isinstance(second, RunEnded)
    assert (first.ref, second.ref) == (claim.ref, talk.ref(pending.run_id))
    assert over == SessionOver(talk.key, talk.user, "completed", closed.ended_ms)


async def test_ends_of_a_session_are_told_apart_by_their_time(talk: Talk) -> None:
    """Many end in one step here; the archive orders what was said by it."""
    claim = await talk.running()
    pending = [(await talk.message(f"{number}")).run_id for number in range(10)]
    await talk.bus.sessions.close(talk.key, talk.user)
    await talk.finish(claim, kind="C")
    runs = await ended(talk)
    assert [run.ref.run_id for run in runs] == [claim.ref.run_id, *pending]
    times = [run.ended_ms for run in runs]
    assert times == sorted(set(times))


async def test_words_survive_as_they_were(talk: Talk) -> None:
    text = 'gruß \n \\ " 🎉 \x00'
    said = json.dumps({"id": "a1", "role": "assistant", "content": text}).encode()
    await talk.finish(await talk.running(text), messages=[said, said])
    [run] = await ended(talk)
    assert contents(run.asked) == [text]
    assert run.said == [said, said]


async def test_the_live_transcript_says_which_run_a_message_is_of(talk: Talk) -> None:
    """So what is archived already is told apart from what is not."""
    first = await talk.running("one")
    await talk.finish(first, messages=[SAID])
    second = await talk.running("two words")
    snapshot = await talk.bus.sessions.snapshot(talk.key)
    assert snapshot is not None
    assert contents(snapshot.messages) == ["one", "an answer", "two words"]
    assert snapshot.message_runs == [first.ref.run_id, first.ref.run_id, second.ref.run_id]
    assert contents(second.messages) == ["one", "an answer", "two words"]


# --- what is read and forgotten -------------------------------------------------------------------


async def test_entries_stay_until_they_are_forgotten(talk: Talk) -> None:
    await talk.finish(await talk.running())
    begun, run = await talk.entries()
    assert await talk.entries() == [begun, run]
    for _ in range(2):
        await talk.bus.journal.forget([begun.id])
    assert await talk.entries() == [run]
    await talk.archive()
    assert await talk.entries() == []


async def test_many_partitions_in_one_call(bus: Bus) -> None:
    talks = [Talk(bus) for _ in range(20)]
    for talk in talks:
        await talk.open()
    await archive_all(bus)
    for talk in talks:
        await talk.finish(await talk.running())
        await talk.finish(await talk.running())
    first = await bus.journal.read(range(keys.PARTITIONS), 1)
    assert len(first) == len({keys.partition(talk.key) for talk in talks})
    every = await bus.journal.read(range(keys.PARTITIONS), 100)
    assert len(every) == 40
    state = await bus.journal.state()
    runs = [entry.record for entry in every if isinstance(entry.record, RunEnded)]
    assert state.entries == 40
    assert abs(state.oldest_ms - min(run.ended_ms for run in runs)) < 5000
    assert 0 < state.fill < 0.01
    await bus.journal.forget([entry.id for entry in every])
    state = await bus.journal.state()
    assert (state.entries, state.oldest_ms, state.fill) == (0, 0, 0.0)


async def test_what_is_no_entry_is_told_to_be_none(talk: Talk) -> None:
    number = keys.partition(talk.key)
    for fields in ({"entry": "begun"}, {"entry": "new", "session": "a:b", "user": "c"}, {"a": "b"}):
        await talk.bus.client.xadd(keys.journal(number), fields)
    read = [entry for entry in await talk.bus.journal.read([number], 1000) if entry.record is None]
    owner = (SessionKey("a", "b"), "c")
    assert [(entry.owner, entry.known) for entry in read] == [
        (None, True),
        (owner, False),
        (None, True),
    ]
    await talk.bus.journal.forget([entry.id for entry in read])


# --- its bound ------------------------------------------------------------------------------------


async def test_past_its_bound_nothing_new_is_taken_and_nothing_is_dropped(redis_url: str) -> None:
    """Guarantee 8."""
    async with connected_bus(redis_url, Limits(journal_bytes=6000)) as bus:
        await archive_all(bus)
        talk = Talk(bus)
        await talk.open()
        first = await talk.message("known", frame_id="m1")
        pending = await talk.message("y" * 5000)
        claim = await talk.claim(first.run_id)
        assert claim is not None
        assert await talk.finish(claim, messages=[SAID]) == pending.run_id
        claim = await talk.claim(pending.run_id)
        assert claim is not None
        await talk.finish(claim, kind="I", interrupts=b'[{"id":"q1"}]')
        assert (await bus.journal.state()).fill >= 1

        for refused in (talk.message("new", when_busy="interrupt"), talk.answer("q1")):
            with pytest.raises(Refused) as caught:
                await refused
            assert caught.value.code is ErrorCode.UNAVAILABLE
            assert caught.value.retry_after_ms
        assert (await talk.message("known", frame_id="m1")).status == "duplicate"
        assert (await talk.open()).state == "awaiting_input", "what is there may be opened"
        with pytest.raises(Refused) as caught:
            await beside(talk).open()
        assert caught.value.code is ErrorCode.UNAVAILABLE

        assert [run.ref.run_id for run in await ended(talk)] == [first.run_id, pending.run_id]
        await talk.archive()
        assert (await talk.answer("q1")).status == "accepted", "there is room again"
        await beside(talk).open()


async def test_past_its_bound_tool_results_are_refused(redis_url: str) -> None:
    async with connected_bus(redis_url, Limits(journal_bytes=3000)) as bus:
        await archive_all(bus)
        talk = Talk(bus)
        await talk.open()
        await talk.finish(await talk.running("y" * 3000), kind="I", pending_tools=["t1"])
        with pytest.raises(Refused) as caught:
            await talk.tool_result("t1")
        assert caught.value.code is ErrorCode.UNAVAILABLE
        await talk.archive()
        assert (await talk.tool_result("t1")).run_id


async def test_a_bound_is_of_one_partition(redis_url: str) -> None:
    async with connected_bus(redis_url, Limits(journal_bytes=3000)) as bus:
        await archive_all(bus)
        talk = Talk(bus)
        await talk.open()
        await talk.finish(await talk.running("y" * 3000))
        other = Talk(bus)
        while keys.partition(other.key) == keys.partition(talk.key):
            other = Talk(bus)
        await other.open()


def beside(talk: Talk) -> Talk:
    """Another session in the same partition."""
    while True:
        other = Talk(talk.bus)
        if keys.partition(other.key) == keys.partition(talk.key):
            return other


# --- dead letters ---------------------------------------------------------------------------------


async def test_what_is_buried_waits_elsewhere_until_it_is_replayed(talk: Talk) -> None:
    journal = talk.bus.journal
    await talk.finish(await talk.running("a question"), messages=[SAID])
    begun, run = await talk.entries()
    fill, dead = (await journal.state()).fill, (await journal.state()).dead
    for _ in range(2):
        await journal.bury(run.id, "the database says no")
    assert await talk.entries() == [begun]
    assert (await journal.state()).fill <= fill
    assert (await journal.state()).dead == dead + 1

    [letter] = [letter for letter in await journal.dead(1000) if whose(letter) == talk.key]
    assert letter.why == "the database says no"
    assert "why" not in letter.fields
    assert isinstance(run.record, RunEnded)
    assert letter.fields["run"] == run.record.ref.run_id
    assert "a question" in letter.fields["asked"]

    await talk.finish(await talk.running("another"))
    assert await journal.replay([letter.id]) == 1
    assert await journal.replay([letter.id]) == 0
    records = await talk.journal()
    assert records[-1] == run.record, "at the end, as it was"
    assert len(records) == 3
    assert (await journal.state()).dead == dead
    assert (await journal.state()).fill >= fill


async def test_what_is_buried_is_counted_no_more_until_it_is_back(redis_url: str) -> None:
    async with connected_bus(redis_url, Limits(journal_bytes=100_000)) as bus:
        await archive_all(bus)
        talk = Talk(bus)
        await talk.open()
        await talk.finish(await talk.running("y" * 50_000))
        _, run = await talk.entries()
        full = (await bus.journal.state()).fill
        await bus.journal.bury(run.id, "no")
        assert (await bus.journal.state()).fill < full - 0.5
        letters = [each.id for each in await bus.journal.dead(1000) if whose(each) == talk.key]
        await bus.journal.replay(letters)
        assert (await bus.journal.state()).fill == full


async def test_what_is_counted_is_what_waits(redis_url: str) -> None:
    """A count that drifts would one day refuse everybody, or nobody."""
    dice = random.Random(4)
    async with connected_bus(redis_url, Limits(journal_bytes=1_000_000)) as bus:
        await archive_all(bus)
        talk = Talk(bus)
        await talk.open()
        number = keys.partition(talk.key)
        for _ in range(60):
            entries, letters = await talk.entries(), await bus.journal.dead(1000)
            match dice.choice(("run", "run", "forget", "bury", "replay")):
                case "forget" if entries:
                    some = [entry.id for entry in dice.choices(entries, k=3)]
                    await bus.journal.forget(some)
                case "bury" if entries:
                    await bus.journal.bury(dice.choice(entries).id, "no")
                case "replay" if letters:
                    await bus.journal.replay([letter.id for letter in dice.choices(letters, k=2)])
                case _:
                    await talk.finish(await talk.running("x" * dice.randrange(1000)))
            waiting = await bus.client.xrange(keys.journal(number))
            size = sum(int(fields[b"bytes"]) for _, fields in waiting)
            counted = int(await bus.client.get(f"jb:{{p{number}}}") or 0)
            assert counted == size


async def test_dead_letters_are_told_oldest_first(bus: Bus) -> None:
    talks = [Talk(bus) for _ in range(5)]
    for talk in talks:
        await talk.open()
        [begun] = await talk.entries()
        await bus.journal.bury(begun.id, "no")
    every = await bus.journal.dead(1000)
    times = [letter.at_ms for letter in every]
    assert times == sorted(times)
    assert await bus.journal.dead(3) == every[:3]


async def test_dead_letters_of_a_user_are_dropped_and_no_others(bus: Bus) -> None:
    mine, also_mine = Talk(bus, user="leaver"), Talk(bus, user="leaver")
    others = Talk(bus, user="other")
    foreign = Talk(bus, SessionKey("umbrella", uuid4().hex), user="leaver")
    for talk in (mine, also_mine, others, foreign):
        await talk.open()
        for entry in await talk.entries():
            await bus.journal.bury(entry.id, "no")
    assert await bus.journal.drop_dead("acme", "other", mine.key.session_id) == 0
    assert await bus.journal.drop_dead("acme", "leaver", mine.key.session_id) == 1
    assert await bus.journal.drop_dead("acme", "leaver") == 1
    left = {whose(letter) for letter in await bus.journal.dead(1000)}
    assert not left & {mine.key, also_mine.key}
    assert {others.key, foreign.key} <= left


async def test_thousands_of_dead_letters_are_gone_through_a_part_at_a_time(bus: Bus) -> None:
    """Nobody else is served while a script runs."""
    number = keys.partition(SessionKey("acme", "thinned"))
    pipeline: Any = bus.client.pipeline(transaction=False)
    for user in ["leaver", "stayer"] * 250:
        pipeline.xadd(keys.dead_letters(number), {"session": "acme:thinned", "user": user})
    await pipeline.execute()
    arguments = ("acme", "leaver", "thinned")
    dropped, after = await bus.scripts.call("drop_dead", keys.journal(number), *arguments, "-")
    assert 0 < dropped < 50
    assert after, "there is more"
    assert await bus.journal.drop_dead(*arguments) == 250 - dropped
    thinned = SessionKey("acme", "thinned")
    left = [letter for letter in await bus.journal.dead(1000) if whose(letter) == thinned]
    assert [letter.fields["user"] for letter in left] == ["stayer"] * 250
    assert await bus.journal.drop_dead("acme", "stayer", "thinned") == 250


def whose(letter: DeadLetter) -> SessionKey:
    tenant, session_id = letter.fields["session"].split(":")
    return SessionKey(tenant, session_id)
