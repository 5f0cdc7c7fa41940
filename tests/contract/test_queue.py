"""From accepted runs to workers: each run waits once, tenants take turns, rings are heard."""

from typing import Any, cast

import anyio
from redis.asyncio import RedisCluster
from support.talk import Talk

from gateway.bus import keys
from gateway.bus.bus import Bus
from gateway.session.model import AgentInfo, RunRef, WorkerInfo
from gateway.session.queues import SLICE, AgentLoad, Waiting


def refs(tenant: str, count: int) -> list[RunRef]:
    return [RunRef(tenant, "session", f"run-{number}") for number in range(count)]


async def test_a_repeated_dispatch_is_applied_once(bus: Bus) -> None:
    agent = Talk(bus).agent
    [ref] = refs("acme", 1)
    await bus.runs.dispatch(ref, agent)
    await bus.runs.dispatch(ref, agent)
    assert await bus.runs.take(agent, 5) == [ref]
    assert await bus.runs.take(agent, 5) == []


async def test_tenants_take_turns(bus: Bus) -> None:
    agent = Talk(bus).agent
    for ref in [*refs("greedy", 5), *refs("small", 2), *refs("tiny", 1)]:
        await bus.runs.dispatch(ref, agent)
    taken = [ref.tenant for _ in range(8) for ref in await bus.runs.take(agent, 1)]
    assert taken == ["greedy", "small", "tiny", "greedy", "small", "greedy", "greedy", "greedy"]


async def test_a_tenant_that_comes_back_is_in_the_rotation_once(bus: Bus) -> None:
    agent = Talk(bus).agent
    first, second, third = refs("acme", 3)
    for ref in (first, second):
        await bus.runs.dispatch(ref, agent)
        assert await bus.runs.take(agent, 5) == [ref]
    await bus.runs.dispatch(third, agent)
    await bus.runs.dispatch(RunRef("other", "session", "run-x"), agent)
    taken = await bus.runs.take(agent, 5)
    assert [ref.tenant for ref in taken] == ["acme", "other"]


async def test_a_worker_hears_the_ring(bus: Bus) -> None:
    agent = Talk(bus).agent
    heard = anyio.Event()
    async with bus.notices.agent_ring(agent, heard.set):
        await bus.runs.dispatch(refs("acme", 1)[0], agent)
        with anyio.fail_after(30):
            await heard.wait()


async def test_a_worker_hears_a_cancel(bus: Bus) -> None:
    talk = Talk(bus)
    await talk.open()
    claim = await talk.running()
    heard: list[str] = []
    event = anyio.Event()

    def on_cancel(run_id: str) -> None:
        heard.append(run_id)
        event.set()

    async with bus.notices.session_control(talk.key, on_cancel):
        await talk.cancel()
        with anyio.fail_after(30):
            await event.wait()
    assert heard == [claim.ref.run_id]


async def test_the_directory_knows_agents_and_who_serves_them(bus: Bus) -> None:
    talk = Talk(bus)
    info = AgentInfo(talk.agent, "helps")
    assert await bus.directory.find(talk.agent) is None
    first, second = (WorkerInfo(name, info, 8, busy) for name, busy in (("w1", 3), ("w2", 1)))
    await bus.directory.announce(first)
    await bus.directory.announce(second)
    assert await bus.directory.find(talk.agent) == info
    await bus.runs.dispatch(refs("acme", 1)[0], talk.agent)
    [status] = [s for s in await bus.directory.agents() if s.info.name == talk.agent]
    assert (status.workers, status.slots, status.busy, status.queued) == (2, 16, 4, 1)
    await bus.directory.retire(first)
    [status] = [s for s in await bus.directory.agents() if s.info.name == talk.agent]
    assert (status.workers, status.slots, status.busy) == (1, 8, 1)


async def load(bus: Bus, agent: str) -> AgentLoad:
    """What an onlooker sees of one agent; others may be known from other tests."""
    [found] = [load for load in await bus.queues.survey() if load.agent == agent]
    return found


async def test_an_onlooker_sees_what_waits_for_whom_and_since_when(bus: Bus) -> None:
    agent = Talk(bus).agent
    await bus.directory.announce(WorkerInfo("w1", AgentInfo(agent), slots=8, busy=3))
    await bus.directory.announce(WorkerInfo("w2", AgentInfo(agent), slots=4, busy=4))
    assert await load(bus, agent) == AgentLoad(agent, 2, 12, 7, {})
    first = await bus.runs.dispatch(refs("acme", 2)[0], agent)
    second = await bus.runs.dispatch(refs("acme", 2)[1], agent)
    other = await bus.runs.dispatch(refs("other", 1)[0], agent)
    assert (first.depth, second.depth, other.depth) == (1, 2, 1)
    assert 0 < first.oldest_ms == second.oldest_ms <= other.oldest_ms
    seen = await load(bus, agent)
    assert seen.waiting == {"acme": second, "other": other}
    await bus.runs.take(agent, 2)
    assert set((await load(bus, agent)).waiting) == {"acme"}
    await bus.directory.retire(WorkerInfo("w1", AgentInfo(agent), slots=8, busy=3))
    assert (await load(bus, agent))[1:4] == (1, 4, 4)


async def test_what_is_withdrawn_waits_no_more_and_holds_up_nobody(bus: Bus) -> None:
    agent = Talk(bus).agent
    await bus.directory.announce(WorkerInfo("w1", AgentInfo(agent), slots=8, busy=0))
    first, second, third = refs("acme", 3)
    [lonely] = refs("lonely", 1)
    for ref in (first, second, third, lonely):
        await bus.runs.dispatch(ref, agent)
    never = RunRef("acme", "session", "never-dispatched")
    for _ in range(2):  # a repetition changes nothing
        await bus.queues.withdraw(agent, [first, lonely, never])
    seen = (await load(bus, agent)).waiting
    assert (set(seen), seen["acme"].depth) == ({"acme"}, 2)
    back = await bus.runs.dispatch(lonely, agent)
    assert back.depth == 1
    assert await bus.runs.take(agent, 9) == [second, lonely, third]
    assert (await load(bus, agent)).waiting == {}
    assert await bus.runs.dispatch(first, agent) != Waiting(0, 0)


async def scripts_us(bus: Bus) -> int:
    """How long the server has spent in scripts; it serves nobody else meanwhile."""
    where = {"target_nodes": RedisCluster.ALL_NODES} if isinstance(bus.client, RedisCluster) else {}
    client: Any = bus.client
    spent = await client.info("commandstats", **where)
    return sum(spent.get(f"cmdstat_{name}", {}).get("usec", 0) for name in ("eval", "evalsha"))


async def expired(bus: Bus, agent: str, count: int) -> list[str]:
    """A queue of runs that nobody came for, for ever so long."""
    waiting = list(map(keys.reference, refs("acme", count)))
    key = keys.waiting(agent)
    base = key.removeprefix("aw:")
    client: Any = bus.client
    await client.hset(key, mapping=dict.fromkeys(waiting, 1))
    await client.rpush(f"aq:{base}:acme", *waiting)
    await client.rpush(f"ar:{base}", "acme")
    return waiting


async def test_thousands_that_nobody_came_for_leave_a_part_at_a_time(bus: Bus) -> None:
    """In one call they would hold up everybody; and what is dispatched by it waits all the same."""
    agent = Talk(bus).agent
    await expired(bus, agent, 5_000)
    fresh = [RunRef("acme", "session", f"fresh-{number}") for number in range(100)]
    depths: list[int] = []
    for ref in fresh:
        before = await scripts_us(bus)
        depths.append((await bus.runs.dispatch(ref, agent)).depth)
        if len(depths) == 1:
            print(f"{(await scripts_us(bus) - before) / 1000:.1f} ms")  # with `pytest -s`
    assert 4_800 < depths[0] < 5_000, "a part of them"
    gone = depths.index(min(depths))
    assert depths[gone:] == list(range(gone + 1, 101)), "in the end all"
    assert await bus.runs.take(agent, 200) == fresh
    assert (await bus.runs.dispatch(fresh[0], agent)).depth == 1


async def test_very_many_tenants_are_looked_at_a_part_at_a_time(bus: Bus) -> None:
    agent = Talk(bus).agent
    await bus.directory.announce(WorkerInfo("w1", AgentInfo(agent), slots=8, busy=3))
    tenants = [f"tenant-{number}" for number in range(1_200)]
    for tenant in tenants:
        await bus.runs.dispatch(RunRef(tenant, "session", "run"), agent)
    answer = await bus.scripts.call("survey", keys.waiting(agent), 500)
    assert len(answer[3]) == 700, "they are left"
    seen = await load(bus, agent)
    assert seen[1:4] == (1, 8, 3)
    assert {tenant: waiting.depth for tenant, waiting in seen.waiting.items()} == dict.fromkeys(
        tenants, 1
    )


async def test_thousands_that_end_in_a_deep_queue_hold_up_nobody(bus: Bus) -> None:
    """No worker came, and all that waited long enough are over at once."""
    agent, client = Talk(bus).agent, cast("Any", bus.client)
    waiting = await expired(bus, agent, 20_000)
    key = keys.waiting(agent)
    base = key.removeprefix("aw:")
    over = refs("acme", 10_000)
    before = await scripts_us(bus)
    for start in range(0, len(over), SLICE):
        await bus.queues.withdraw(agent, over[start : start + SLICE])
    spent_us = await scripts_us(bus) - before
    assert await client.lrange(f"aq:{base}:acme", 0, 0) == [waiting[10_000].encode()]
    assert await client.llen(f"aq:{base}:acme") == await client.hlen(key) == 10_000
    print(f"{spent_us / 1000:.0f} ms")  # with `pytest -s`
    assert spent_us < 1_000_000, "all of them together"
