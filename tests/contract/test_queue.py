"""From accepted runs to workers: each run waits once, tenants take turns, rings are heard."""

import anyio
from support.talk import Talk

from gateway.bus.bus import Bus
from gateway.session.model import AgentInfo, RunRef, WorkerInfo


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
