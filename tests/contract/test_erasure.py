"""What is erased is gone at once, and nobody brings it back."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import RedisCluster
from support.bus import archive_all, running_bus
from support.following import until
from support.talk import Talk

import gateway.bus.scripts as scripts_module
from gateway.bus import keys
from gateway.bus.bus import Bus
from gateway.session.archive import Recalled
from gateway.session.entry import Control, parse_push
from gateway.session.errors import Fenced, Refused
from gateway.session.model import AgentEvent, Closed, SessionKey
from protocol.codes import ErrorCode
from protocol.frames import Cursor


@pytest.fixture
async def talk(bus: Bus) -> Talk:
    opened = Talk(bus)
    await opened.open()
    return opened


async def erase(talk: Talk, call_id: str = "call-1", user: str = "") -> Closed:
    return await talk.bus.erasure.erase(talk.key, user or talk.user, call_id=call_id)


async def refused(call: Any) -> ErrorCode:
    with pytest.raises(Refused) as caught:
        await call
    return caught.value.code


async def keys_of(talk: Talk) -> list[str]:
    """All keys that name the session, and members that do."""
    client, name = talk.bus.client, talk.key.session_id
    found = [key.decode() for key in await client.keys(f"*{name}*")]
    number = keys.partition(talk.key)
    dues = await client.zrange(keys.due(number), 0, -1)
    found += [member.decode() for member in dues if name in member.decode()]
    users = await client.zrange(keys.user_sessions(number, talk.key.tenant, talk.user), 0, -1)
    return found + [member.decode() for member in users if name in member.decode()]


async def busy(talk: Talk) -> Any:
    """One run done, one open with words, two pending, and a cancellation."""
    await talk.finish(await talk.running("secret 1"), state=b'{"secret":2}')
    claim = await talk.running("secret 3")
    await talk.append(claim, 0, "A")
    for text in ("secret 4", "secret 5"):
        await talk.message(text)
    return claim


async def test_nothing_is_left_but_a_tombstone_for_a_time(talk: Talk) -> None:
    await busy(talk)
    closed = await erase(talk)
    assert closed.completed
    assert closed.agent == talk.agent
    assert 0 < closed.created_ms <= closed.ended_ms
    [tombstone] = await keys_of(talk)
    assert tombstone.startswith("z:")
    assert 0 < await talk.bus.client.pttl(tombstone) <= 3_600_000
    words = await talk.bus.client.hgetall(tombstone)
    assert not [value for value in words.values() if b"secret" in value]


async def test_a_question_and_results_of_tools_are_gone_too(talk: Talk) -> None:
    await talk.finish(await talk.running(), kind="I", pending_tools=["t1", "t2"])
    await talk.tool_result("t1")
    await erase(talk)
    assert len(await keys_of(talk)) == 1


async def test_what_the_worker_still_says_is_refused(talk: Talk) -> None:
    claim = await busy(talk)
    await erase(talk)
    with pytest.raises(Fenced):
        await talk.append(claim, 1, "B")
    with pytest.raises(Fenced):
        await talk.finish(claim, 1)
    assert not (await talk.bus.runs.renew([(claim.ref, claim.claim_id)]))[0].held
    assert not await talk.bus.runs.hand_back(claim.ref, claim.claim_id)
    assert await talk.claim(claim.ref.run_id) is None
    assert len(await keys_of(talk)) == 1


async def test_the_worker_and_the_followers_are_told(talk: Talk) -> None:
    claim = await busy(talk)
    told: asyncio.Queue[Any] = asyncio.Queue()
    notices = talk.bus.notices
    async with (
        notices.session_control(talk.key, told.put_nowait),
        notices.session_events(
            talk.key, lambda data: told.put_nowait(parse_push(data)), lambda: None
        ),
    ):
        await erase(talk)
        both = [await told.get(), await told.get()]
    assert claim.ref.run_id in both
    assert Control("ended", "") in both


async def test_nobody_makes_it_again(talk: Talk) -> None:
    """A node that follows it would, and so would one that recalled it just before."""
    await erase(talk)
    recalled = Recalled("demo", b"{}", "continue")
    for options in ({"agent": None}, {}, {"agent": None, "recalled": recalled}):
        assert await refused(talk.open(**options)) is ErrorCode.SESSION_NOT_FOUND
    assert await refused(talk.message()) is ErrorCode.SESSION_NOT_FOUND
    assert await refused(talk.cancel()) is ErrorCode.SESSION_NOT_FOUND
    assert await talk.bus.sessions.snapshot(talk.key) is None
    page = await talk.bus.sessions.read(talk.key, Cursor(talk.epoch, 0), 10)
    assert page.status == "gone"
    assert len(await keys_of(talk)) == 1


async def test_who_creates_it_again_by_its_key_is_told_that_it_is_over(talk: Talk) -> None:
    await erase(talk)
    assert await refused(talk.open(digest="same")) is ErrorCode.SESSION_ENDED
    assert len(await keys_of(talk)) == 1
    foreign = Talk(talk.bus, talk.key, user="its owner")
    assert (await foreign.open(digest="same")).created, "not by who never had it"


async def test_one_that_does_not_live_cannot_be_made_live_either(bus: Bus) -> None:
    """It expired, and somebody may have recalled it just before it was erased."""
    talk = Talk(bus)
    assert await erase(talk) == Closed(False, "", 0, 0)
    recalled = Recalled("demo", b"{}", "continue")
    code = await refused(talk.open(agent=None, recalled=recalled))
    assert code is ErrorCode.SESSION_NOT_FOUND
    assert (await Talk(bus, talk.key, user="its owner").open()).created, "not by who never had it"


async def test_its_time_is_that_of_the_sessions(bus: Bus) -> None:
    before = await Talk(bus).open()
    now_ms = await bus.erasure.now_ms()
    after = await Talk(bus).open()
    assert before.created_ms <= now_ms <= after.created_ms


async def test_the_journal_is_told_nothing(talk: Talk) -> None:
    await talk.archive()
    await busy(talk)
    await talk.archive()
    await erase(talk)
    assert await talk.journal() == []


async def test_it_ends_once(talk: Talk) -> None:
    """Guarantee 9: who erased it is told so again, and no other is."""
    first = await erase(talk)
    assert await erase(talk) == first
    assert await erase(talk, "call-2") == Closed(
        False, first.agent, first.created_ms, first.ended_ms
    )
    asked = talk.bus.sessions.close(talk.key, talk.user, call_id="call-1", again=True)
    assert await asked == first


async def test_one_that_was_closed_is_not_over_again(talk: Talk) -> None:
    closed = await talk.bus.sessions.close(talk.key, talk.user, call_id="closing")
    assert await erase(talk) == Closed(False, talk.agent, closed.created_ms, closed.ended_ms)
    assert len(await keys_of(talk)) == 1
    asked = talk.bus.sessions.close(talk.key, talk.user, call_id="closing", again=True)
    assert await asked == closed, "the answer to that call may have been lost"


async def test_only_its_user_may(talk: Talk) -> None:
    """Guarantee 6."""
    assert await refused(erase(talk, user="eve")) is ErrorCode.SESSION_NOT_FOUND
    assert await talk.state() == "idle"
    await erase(talk)
    assert await refused(erase(talk, user="eve")) is ErrorCode.SESSION_NOT_FOUND
    assert await refused(talk.open()) is ErrorCode.SESSION_NOT_FOUND


# --- all of a user --------------------------------------------------------------------------------


async def test_the_sessions_of_a_user_are_found(bus: Bus) -> None:
    user = "ann:with|odd}{signs é"
    own = [Talk(bus, user=user) for _ in range(5)]
    others = [Talk(bus, user="else"), Talk(bus, SessionKey("umbrella", uuid4().hex), user=user)]
    for talk in own + others:
        await talk.open()
    await bus.sessions.close(own[0].key, user)
    assert sorted(await bus.erasure.sessions_of("acme", user)) == sorted(talk.key for talk in own)
    for talk in own:
        await erase(talk)
    assert await bus.erasure.sessions_of("acme", user) == []
    for talk in others:
        assert await bus.erasure.sessions_of(talk.key.tenant, talk.user) == [talk.key]


async def test_a_user_without_living_sessions_leaves_nothing_behind(bus: Bus) -> None:
    talk = Talk(bus, user="closes")
    await talk.open()
    index = keys.user_sessions(keys.partition(talk.key), "acme", "closes")
    assert await bus.client.pttl(index) == -1
    await bus.sessions.close(talk.key, talk.user)
    assert 0 < await bus.client.pttl(index) <= 3_600_000
    again = Talk(bus, user="closes")
    while keys.partition(again.key) != keys.partition(talk.key):
        again = Talk(bus, user="closes")
    await again.open()
    assert await bus.client.pttl(index) == -1, "this one lives"


async def test_a_session_that_expired_is_found_no_more(quick_bus: Bus) -> None:
    talk = Talk(quick_bus, user="sleeper")
    await talk.open()
    await archive_all(quick_bus)
    assert (await talk.advance("expiry")).completed
    assert await quick_bus.erasure.sessions_of("acme", "sleeper") == []


async def test_large_sessions_are_erased_whole(bus: Bus) -> None:
    talk = Talk(bus)
    await talk.open()
    for _ in range(30):
        claim = await talk.running("x" * 1000)
        await bus.runs.append(claim.ref, claim.claim_id, 0, [AgentEvent(b'{"type":"A"}')] * 50)
        await talk.finish(claim, 50)
    await erase(talk)
    assert len(await keys_of(talk)) == 1


async def test_thousands_of_finished_runs_are_removed_a_part_at_a_time(talk: Talk) -> None:
    """Nobody else is served while a script runs."""
    base = keys.session(talk.key).removeprefix("s:")
    client: Any = talk.bus.client
    names = [f"run-{number}" for number in range(3_000)]
    pipeline = client.pipeline(transaction=False)
    pipeline.hset(f"d:{base}", mapping={name: f"{name} digest" for name in names})
    for name in names:
        pipeline.hset(f"r:{base}:{name}", mapping={"status": "done"})
    await pipeline.execute()
    claim = await talk.running()
    call = ("erase_runs", keys.session(talk.key))
    assert await talk.bus.scripts.call(*call, "eve", "0") == [b"0"]
    assert len(await client.keys(f"r:{base}:*")) == 3_001, "another's"
    [after] = await talk.bus.scripts.call(*call, talk.user, "0")
    assert after != b"0"
    assert 1_000 < len(await client.keys(f"r:{base}:*")) < 3_000, "a part of them"
    await erase(talk)
    assert len(await keys_of(talk)) == 1
    with pytest.raises(Fenced):
        await talk.append(claim, 0, "A")


# --- for good -------------------------------------------------------------------------------------


@pytest.fixture
async def own() -> AsyncIterator[Bus]:
    """On a server of its own; as those of all tests it does not flush its file by itself."""
    async with running_bus() as bus:
        yield bus


async def waits(bus: Bus) -> int:
    """How often somebody waited for the server's disk."""
    client: Any = bus.client
    where = {"target_nodes": RedisCluster.ALL_NODES} if isinstance(client, RedisCluster) else {}
    stats = await client.info("commandstats", **where)
    return stats.get("cmdstat_waitaof", {}).get("calls", 0)


async def erased_sessions(bus: Bus) -> list[SessionKey]:
    talks = [Talk(bus) for _ in range(5)]
    for talk in talks:
        await talk.open()
        await erase(talk)
    return [talk.key for talk in talks]


@pytest.mark.parametrize("cluster", [False, True])
async def test_what_was_erased_is_waited_for_until_the_disk_has_it(
    cluster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its last second Redis would lose an erasure that was answered."""
    monkeypatch.setattr(scripts_module, "_FLUSH_MS", 20_000)  # the disk may be busy
    async with running_bus(cluster=cluster) as bus:
        await bus.client.config_set("appendfsync", "everysec")
        await bus.erasure.settle(await erased_sessions(bus), "ann")
        assert await waits(bus) == 1, "once for all on one server"
        await bus.erasure.settle([], "ann")
        assert await waits(bus) == 1


async def test_a_server_that_cannot_tell_is_not_waited_for(own: Bus) -> None:
    names = await erased_sessions(own)
    await own.erasure.settle(names, "ann")
    assert await waits(own) == 0, "it does not flush by itself"
    await own.client.config_set("appendfsync", "everysec")
    await allow(own, "-waitaof")  # as if it did not know it
    await own.erasure.settle(names, "ann")
    await allow(own, "+waitaof")
    await own.client.config_set("appendonly", "no")
    await own.erasure.settle(names, "ann")


async def test_a_slow_disk_is_told_of_and_holds_up_nobody_else(
    own: Bus, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    """Whoever waits for it has a connection to Redis; others have to get one, too."""
    monkeypatch.setattr(scripts_module, "_FLUSH_MS", 1000)
    names = await erased_sessions(own)
    await allow(own, "-config")  # it cannot say that it does not flush
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(own.erasure.settle(names, "ann")) for _ in range(160)]
        await until(lambda: any(task.done() for task in waiting))
        done = sum(task.done() for task in waiting)
        await own.sessions.snapshot(names[0])
        assert sum(task.done() for task in waiting) - done <= 32
        for task in waiting:
            task.cancel()
    assert any("has not yet written to its disk" in line for line in lines)


async def allow(bus: Bus, command: str) -> None:
    await bus.client.acl_setuser("default", enabled=True, nopass=True, commands=[command])
