"""A run in the hands of its worker: one holder, each call applied once, order and completeness."""

import asyncio
import json
from typing import Any

import pytest
from redis.asyncio import RedisCluster
from support.bus import connected_bus
from support.talk import Talk, event

from gateway.bus import keys
from gateway.bus.bus import Bus
from gateway.session.entry import Control, Entry, parse_push, read_entry
from gateway.session.errors import Fenced, Refused, TooLarge, Unavailable
from gateway.session.model import AgentEvent, Ending, Limits, Seen
from protocol.codes import ErrorCode
from protocol.frames import Cursor


@pytest.fixture
async def talk(bus: Bus) -> Talk:
    opened = Talk(bus)
    await opened.open()
    return opened


async def test_one_worker_gets_the_run(talk: Talk) -> None:
    run_id = (await talk.message()).run_id
    claims = [await talk.claim(run_id, worker) for worker in ("w1", "w2", "w3")]
    assert [claim is not None for claim in claims] == [True, False, False]
    assert await talk.kinds() == "S"


async def test_a_repeated_claim_is_applied_once(talk: Talk) -> None:
    run_id = (await talk.message()).run_id
    first, again = await talk.claim(run_id), await talk.claim(run_id)
    assert first is not None
    assert again is not None
    assert (first.attempt, again.attempt) == (1, 1)
    assert first.messages == again.messages
    assert await talk.kinds() == "S"


async def test_a_claim_carries_the_conversation(talk: Talk) -> None:
    claim = await talk.running("question")
    said = json.dumps({"id": "a1", "role": "assistant", "content": "answer"}).encode()
    await talk.finish(claim, messages=[said], state=b'{"step":1}')
    following = await talk.running("and then?")
    contents = [json.loads(message)["content"] for message in following.messages]
    assert contents == ["question", "answer", "and then?"]
    assert following.state == b'{"step":1}'
    assert (following.user, following.agent) == (talk.user, talk.agent)
    assert [m["content"] for m in json.loads(following.run_input)["messages"]] == ["and then?"]


async def test_entries_tell_since_when(talk: Talk) -> None:
    """Of a wait for a worker, of a wait for the first event, and of the work: where each ends."""
    claim = await talk.running()
    await talk.append(claim, 0, "A", "B")
    await talk.append(claim, 0, "A", "B", "C")
    await talk.finish(claim, 3)
    started, first, *later, end = await talk.log()
    assert 0 < started.since_ms <= started.ts_ms
    assert first.since_ms == started.since_ms, "it was its turn when it was accepted"
    assert [entry.since_ms for entry in later] == [0, 0]
    assert end.since_ms == started.ts_ms


async def test_a_message_that_waits_for_its_turn_waits_for_no_worker_yet(talk: Talk) -> None:
    claim = await talk.running()
    following = await talk.message("next")
    await asyncio.sleep(0.02)
    await talk.finish(claim)
    next_claim = await talk.claim(following.run_id)
    assert next_claim is not None
    await talk.append(next_claim, 0, "A")
    *_, end, started, first = await talk.log()
    assert started.since_ms >= end.ts_ms
    assert first.since_ms < end.ts_ms, "its client waits since it was accepted"


async def test_a_run_that_no_worker_had_waited_for_nothing_that_came(talk: Talk) -> None:
    run_id = (await talk.message()).run_id
    await talk.cancel(run_id)
    assert [(entry.kind, entry.since_ms) for entry in await talk.log()] == [("S", 0), ("C", 0)]


async def test_a_repeated_append_is_applied_once(talk: Talk) -> None:
    claim = await talk.running()
    await talk.append(claim, 0, "A", "B")
    await talk.append(claim, 0, "A", "B")
    await talk.append(claim, 0, "A", "B", "C")
    await talk.append(claim, 1, "B", "C")
    frames = [json.loads(entry.frame)["event"]["type"] for entry in await talk.log()]
    assert frames == ["RUN_STARTED", "A", "B", "C"]
    assert [entry.seq for entry in await talk.log()] == [1, 2, 3, 4]


async def test_an_append_beyond_a_hole_is_refused(talk: Talk) -> None:
    claim = await talk.running()
    with pytest.raises(Fenced):
        await talk.append(claim, 1, "B")
    epoch = talk.epoch
    await talk.open()
    assert talk.epoch != epoch, "what was before it is lost, which followers must be told"
    assert await talk.kinds() == "S"


async def test_a_stale_attempt_can_do_nothing(talk: Talk) -> None:
    stale = await talk.running()
    assert await talk.bus.runs.hand_back(stale.ref, stale.claim_id)
    assert not await talk.bus.runs.hand_back(stale.ref, stale.claim_id)
    current = await talk.claim(stale.ref.run_id, "w2")
    assert current is not None
    assert current.attempt == 2
    with pytest.raises(Fenced):
        await talk.append(stale, 0, "A")
    with pytest.raises(Fenced):
        await talk.finish(stale)
    held = await talk.bus.runs.renew([(each.ref, each.claim_id) for each in (stale, current)])
    assert [lease.held for lease in held] == [False, True]
    assert await talk.kinds() == "S"


async def test_a_claim_that_redis_lost_can_do_nothing_though_its_attempt_has_its_number_again(
    talk: Talk,
) -> None:
    """Guarantee 3: else its end would be taken for that of the run which another gives anew."""
    run_id = (await talk.message()).run_id
    names = [keys.session(talk.key), keys.session(talk.key).replace("s:", "r:", 1) + f":{run_id}"]
    before = [await talk.bus.client.dump(name) for name in names]
    lost = await talk.claim(run_id, "w1")
    assert lost is not None
    await talk.append(lost, 0, "A", "B")
    await redis_loses(talk, names, before)
    again = await talk.claim(run_id, "w2")
    assert again is not None
    assert again.attempt == lost.attempt
    await talk.append(again, 0, "C", "D")
    epoch = talk.epoch
    with pytest.raises(Fenced):
        await talk.append(lost, 1, "B")
    with pytest.raises(Fenced):
        await talk.finish(lost, 2)
    held = await talk.bus.runs.renew([(each.ref, each.claim_id) for each in (lost, again)])
    assert [lease.held for lease in held] == [False, True]
    await talk.open()
    assert talk.epoch != epoch, "it proves that Redis lost writes, which followers must be told"
    assert await talk.events(run_id) == ["RUN_STARTED", "C", "D"]
    await talk.finish(again, 2)


async def redis_loses(talk: Talk, names: list[str], before: list[bytes]) -> None:
    """Those keys are what they were; the log's tail goes."""
    await talk.bus.client.delete(keys.session(talk.key).replace("s:", "l:", 1))
    for name, value in zip(names, before, strict=True):
        await talk.bus.client.restore(name, 0, value, replace=True)


async def test_a_repeated_finish_is_applied_once_and_names_the_same_next_run(talk: Talk) -> None:
    claim = await talk.running()
    following = await talk.message("next")
    await talk.append(claim, 0, "A")
    assert await talk.finish(claim, 1) == following.run_id
    assert await talk.finish(claim, 1) == following.run_id
    assert await talk.kinds() == "SEF"


async def test_a_finish_that_misses_events_is_refused(talk: Talk) -> None:
    claim = await talk.running()
    await talk.append(claim, 0, "A")
    with pytest.raises(Fenced):
        await talk.finish(claim, 0)
    assert await talk.state() == "running"


async def test_nothing_follows_the_terminal_event(talk: Talk) -> None:
    claim = await talk.running()
    await talk.finish(claim)
    with pytest.raises(Fenced):
        await talk.append(claim, 0, "A")
    assert await talk.claim(claim.ref.run_id) is None


async def test_a_repeated_accept_makes_one_run(talk: Talk) -> None:
    first = await talk.message("hello", frame_id="m1")
    again = await talk.message("hello", frame_id="m1")
    assert again.status == "duplicate"
    assert again.run_id == first.run_id
    assert again.dispatch == first.dispatch, "the first answer may have been lost before dispatch"
    claim = await talk.claim(first.run_id)
    assert claim is not None
    assert (await talk.message("hello", frame_id="m1")).dispatch is None
    await talk.finish(claim)
    assert (await talk.message("hello", frame_id="m1")).run_id == first.run_id
    assert await talk.kinds() == "SF"


async def test_the_same_id_with_another_body_is_a_conflict(talk: Talk) -> None:
    await talk.message("hello", frame_id="m1")
    with pytest.raises(Refused) as caught:
        await talk.message("something else", frame_id="m1")
    assert caught.value.code is ErrorCode.ID_CONFLICT


async def test_ids_are_remembered_up_to_a_bound(redis_url: str) -> None:
    async with connected_bus(redis_url, Limits(message_ids=3, pending_runs=100)) as bus:
        talk = Talk(bus)
        await talk.open()
        runs = [(await talk.message("x", frame_id=f"m{n}")).run_id for n in range(5)]
        assert (await talk.message("x", frame_id="m4")).run_id == runs[4]
        assert (await talk.message("x", frame_id="m0")).status == "queued", "forgotten, so new"


async def test_tokens_of_the_frames_add_up_to_the_reported_usage(talk: Talk) -> None:
    claim = await talk.running()
    await talk.append(claim, 0, "A", "B", "C")
    await talk.finish(claim, 3, output_tokens=10, input_tokens=7)
    log = await talk.log()
    assert sum(entry.output_tokens for entry in log) == 10
    assert (log[-1].output_tokens, log[-1].input_tokens) == (7, 7)


async def test_tokens_are_never_taken_back(talk: Talk) -> None:
    claim = await talk.running()
    await talk.append(claim, 0, "A", "B", "C")
    await talk.finish(claim, 3, output_tokens=1)
    assert (await talk.log())[-1].output_tokens == 0


async def test_unreported_usage_adds_nothing(talk: Talk) -> None:
    claim = await talk.running()
    await talk.append(claim, 0, "A")
    await talk.finish(claim, 1)
    assert [entry.output_tokens for entry in await talk.log()] == [0, 1, 0]


async def test_a_run_is_bounded_in_events_and_bytes(redis_url: str) -> None:
    async with connected_bus(redis_url, Limits(run_events=3, run_bytes=2000)) as bus:
        talk = Talk(bus)
        await talk.open()
        claim = await talk.running()
        with pytest.raises(TooLarge):
            await talk.append(claim, 0, "A", "B", "C", "D")
        with pytest.raises(TooLarge):
            await bus.runs.append(
                claim.ref, claim.claim_id, 0, [AgentEvent(event("A", text="x" * 3000))]
            )
        await talk.append(claim, 0, "A", "B", "C")
        await talk.finish(claim, 3, kind="X", code="too_large")
        assert await talk.kinds() == "SEEEX"


async def test_finished_runs_leave_a_log_that_is_too_large(redis_url: str) -> None:
    async with connected_bus(redis_url, Limits(log_bytes=2000)) as bus:
        talk = Talk(bus)
        await talk.open()
        for number in range(6):
            claim = await talk.running(f"m{number}")
            await talk.append(claim, 0, "A", "B")
            await talk.finish(claim, 2)
        page = await bus.sessions.read(talk.key, Cursor(talk.epoch, 0), 100)
        assert page.status == "trimmed"
        first = 0
        while (await bus.sessions.read(talk.key, Cursor(talk.epoch, first), 1)).status != "ok":
            first += 1
        assert first % 4 == 0, "whole runs leave"
        kept = await bus.sessions.read(talk.key, Cursor(talk.epoch, first), 100)
        assert len(kept.entries) == page.last_seq - first
        assert 0 < sum(map(len, kept.entries)) <= 2000


async def test_very_many_finished_runs_leave_at_once(bus: Bus, redis_url: str) -> None:
    """One that is as large as a log may be ends, and all before it leave in one step."""
    talk = Talk(bus)
    await talk.open()
    for _ in range(100):
        await talk.finish(await talk.running())
    last = (await talk.open()).cursor.seq
    client: Any = bus.client
    finished = f"f:{keys.session(talk.key)[2:]}"
    assert await client.llen(finished) == 100
    claim = await talk.running()
    async with connected_bus(redis_url, Limits(log_bytes=2000)) as other:
        await Talk(other, talk.key).append(claim, 0, *"ABCDEFGHIJKLMNOP")
        before = await trims(bus)
        await Talk(other, talk.key).finish(claim, 16)
        assert await trims(bus) == before + 1
    assert (await bus.sessions.read(talk.key, Cursor(talk.epoch, last - 1), 1)).status == "trimmed"
    page = await bus.sessions.read(talk.key, Cursor(talk.epoch, last), 100)
    assert (page.status, len(page.entries)) == ("ok", 18)
    assert await client.llen(finished) == 1


async def trims(bus: Bus) -> int:
    """How often the server has cut a log."""
    where = {"target_nodes": RedisCluster.ALL_NODES} if isinstance(bus.client, RedisCluster) else {}
    client: Any = bus.client
    return (await client.info("commandstats", **where)).get("cmdstat_xtrim", {}).get("calls", 0)


async def test_the_transcript_is_bounded(redis_url: str) -> None:
    async with connected_bus(redis_url, Limits(transcript_messages=3)) as bus:
        talk = Talk(bus)
        await talk.open()
        for number in range(4):
            await talk.finish(await talk.running(f"m{number}"))
        source = await bus.sessions.snapshot(talk.key)
        assert source is not None
        assert [json.loads(m)["content"] for m in source.messages] == ["m1", "m2", "m3"]


async def test_reading_says_why_a_cursor_cannot_be_continued(talk: Talk) -> None:
    await talk.running()
    read = talk.bus.sessions.read
    assert (await read(talk.key, Cursor("another", 0), 10)).status == "epoch"
    assert (await read(Talk(talk.bus).key, Cursor(talk.epoch, 0), 10)).status == "gone"
    ahead = await read(talk.key, Cursor(talk.epoch, 99), 10)
    assert ahead.status == "ahead"
    assert ahead.epoch != talk.epoch, "somebody saw what Redis has lost: a new epoch begins"


async def test_reading_finds_a_loss_behind_the_cursor(talk: Talk) -> None:
    """Guarantee 2: after a loss others take the numbers of what was lost, and the tail proves
    nothing; the time of the event at the cursor does.
    """
    claim = await talk.running()
    await talk.append(claim, 0, "A", "B")
    read = talk.bus.sessions.read
    page = await read(talk.key, Cursor(talk.epoch, 0), 10)
    last = read_entry(page.entries[-1])
    cursor = Cursor(talk.epoch, last.seq)
    for at_ms in (0, last.ts_ms):
        assert (await read(talk.key, cursor, 10, seen=Seen(at_ms))).status == "ok"
    lost = await read(talk.key, cursor, 10, seen=Seen(last.ts_ms - 1))
    assert lost.status == "ahead"
    assert lost.epoch != talk.epoch


async def test_reading_finds_a_run_that_was_lost(talk: Talk) -> None:
    """Guarantee 1: where Redis lost what was accepted, that shows, though no event is missing."""
    claim = await talk.running()
    waiting = await talk.message("later")
    read, cursor = talk.bus.sessions.read, Cursor(talk.epoch, 0)
    known = Seen(runs=(claim.ref.run_id, waiting.run_id))
    page = await read(talk.key, cursor, 10, seen=known)
    assert (page.status, page.over) == ("ok", [])
    await talk.finish(claim, 0)
    page = await read(talk.key, cursor, 10, seen=known)
    assert (page.status, page.over) == ("ok", [claim.ref.run_id])
    lost = await read(talk.key, cursor, 10, seen=Seen(runs=("run-that-was-lost",)))
    assert lost.status == "ahead"
    assert lost.epoch != talk.epoch


async def test_a_snapshot_is_consistent_with_its_cursor(talk: Talk) -> None:
    claim = await talk.running("question")
    await talk.append(claim, 0, "A", "B")
    source = await talk.bus.sessions.snapshot(talk.key)
    assert source is not None
    assert source.cursor == Cursor(talk.epoch, 3)
    assert source.first_seq == 1
    assert len(source.messages) == 1
    await talk.finish(claim, 2)
    source = await talk.bus.sessions.snapshot(talk.key)
    assert source is not None
    assert source.first_seq == 0
    assert source.cursor == Cursor(talk.epoch, 4)


async def test_one_node_is_home(talk: Talk) -> None:
    elsewhere = await talk.open(node="node-b")
    assert (elsewhere.homed, elsewhere.home) == (False, "node-a")
    assert (await talk.open(node="node-b", dead_home="node-x")).homed is False
    assert await talk.bus.sessions.leave(talk.key, "node-b", counted_seq=0) is False
    assert await talk.bus.sessions.leave(talk.key, "node-a", counted_seq=0) is True
    assert (await talk.open(node="node-b")).homed
    assert (await talk.open(node="node-c", dead_home="node-b")).homed


async def test_a_home_begins_where_the_one_before_left_or_died(talk: Talk) -> None:
    """Guarantee 9: each event is in the stretch of one node."""
    claim = await talk.running()  # one event
    await talk.append(claim, 0, "A", "B", "C")
    assert await talk.bus.sessions.leave(talk.key, "node-a", counted_seq=2)
    await talk.append(claim, 3, "D")
    assert (await talk.open(node="node-b")).home_seq == 2
    assert (await talk.open(node="node-b")).home_seq == 2, "asking again changes nothing"
    await talk.append(claim, 4, "E")
    assert (await talk.open(node="node-b", dead_home="node-b")).home_seq == 2, "it knows better"
    taken = await talk.open(node="node-c", dead_home="node-b")
    assert (taken.home, taken.home_seq) == ("node-c", 6)
    assert (await talk.open(node="node-b")).home_seq == 6, "so who woke knows what was its own"


async def test_creating_a_session_twice_creates_it_once(bus: Bus) -> None:
    talk = Talk(bus)
    assert (await talk.open()).created
    again = await talk.open()
    assert (again.created, again.homed) == (False, False)
    assert again.made_here, "for the node may not have heard of the first answer"
    await bus.sessions.leave(talk.key, talk.node, counted_seq=0)
    assert not (await talk.open()).made_here, "who left had counted it"


async def test_a_session_of_a_given_id_is_made_of_what_was_asked_for_first(bus: Bus) -> None:
    talk = Talk(bus)
    assert (await talk.open(digest="one")).created
    assert not (await talk.open(digest="one")).created
    with pytest.raises(Refused) as caught:
        await talk.open(digest="two")
    assert caught.value.code is ErrorCode.ID_CONFLICT
    assert (await talk.open(agent=None)).agent == talk.agent, "who follows it says nothing of it"


async def test_every_push_is_what_stands_in_the_log(talk: Talk) -> None:
    pushed: list[list[Entry] | Control] = []
    async with talk.bus.notices.session_events(
        talk.key, lambda data: pushed.append(parse_push(data)), lambda: None
    ):
        claim = await talk.running('gruß \n \\ " 🎉')
        await talk.append(claim, 0, "A", "B")
        await talk.append(claim, 2, "C")
        await talk.finish(claim, 3)
        log = await talk.log()
        await talk.bus.sessions.close(talk.key, talk.user)
        while not any(isinstance(push, Control) for push in pushed):
            await talk.bus.sessions.leave(talk.key, "nobody", counted_seq=0)
    entries = [entry for push in pushed if isinstance(push, list) for entry in push]
    assert entries == log
    assert pushed[-1] == Control("ended", "")


async def test_an_unreachable_server_is_unavailable() -> None:
    async with connected_bus("redis://127.0.0.1:1") as bus:
        with pytest.raises(Unavailable):
            await Talk(bus).open()


async def test_the_header_says_who_speaks_last(bus: Bus) -> None:
    talk = Talk(bus)
    await talk.open()
    claim = await talk.running("question")
    said = b'{"id":"a1","role":"assistant","content":"answer"}'
    await bus.runs.finish(claim.ref, claim.claim_id, 0, Ending("F", event("RUN_FINISHED"), [said]))
    assert (await talk.log())[-1].role == "assistant"


@pytest.mark.parametrize(
    ("code", "told"),
    [("internal", "internal"), ("no such\ncustomer 1", "-"), ("", "-"), ("é", "-")],
)
async def test_the_header_says_why_a_run_failed(bus: Bus, code: str, told: str) -> None:
    """The code is the agent's own: it must not break the header."""
    talk = Talk(bus)
    await talk.open()
    await talk.finish(await talk.running(), kind="X", code=code)
    await talk.finish(await talk.running())
    assert [entry.code for entry in await talk.log()] == ["-", told, "-", "-"]
