"""Redis hears of the clients of a session whose runs are cancelled without any."""

import pytest
from support.little_bus import KEY

from gateway.session.hub import HubTimes


def attended(world) -> int:
    return world.bus.calls["attend"]


@pytest.fixture
def session(world):
    made = world.bus.make(home="n1")
    made.on_detach = "cancel"
    return made


async def test_a_node_with_clients_says_so_time_and_again(world, session):
    """Three times within the grace, whether events flow or not, and whoever the home is."""
    await world.join()
    world.bus.append("S")
    for _ in range(3):
        before = attended(world)
        for _ in range(40):
            world.bus.append("E")
            await world.pass_time(1)
        assert attended(world) > before
    session.home = "n2"
    before = attended(world)
    await world.pass_time(40)
    assert attended(world) > before


async def test_a_node_that_has_seen_no_run_says_so_too(world, session):
    """A run may be queued, or the push that told of it be lost."""
    await world.join()
    before = attended(world)
    await world.pass_time(60)
    assert attended(world) > before


async def test_a_home_without_clients_does_not_say_so(world, session):
    """Nor when it asks whether the run that it waits for is still open."""
    client = await world.join()
    world.bus.append("S")
    world.hub.detach(client.attachment)
    before = attended(world)
    await world.pass_time(500)
    assert session.home == "n1"
    assert attended(world) == before


async def test_a_node_that_stops_says_so_and_takes_no_home(world, session):
    """Its clients stay until their runs are over, which may take longer than the grace."""
    session.home = ""
    await world.join()
    session.home = "n2"
    world.bus.append("S")
    await world.pass_time(60)
    world.hub.drain()
    session.home = ""
    before = attended(world)
    await world.pass_time(40)
    assert attended(world) > before
    assert session.home == ""


async def test_a_session_whose_runs_go_on_needs_no_call(world):
    world.bus.make(home="n1")
    await world.join()
    world.bus.append("S")
    calls = world.bus.calls["open"]
    await world.pass_time(100)
    assert world.bus.calls["open"] == calls


async def test_a_short_grace_is_kept_up_with(world_of):
    async with world_of(HubTimes(resume_grace_s=3.0)) as world:
        world.bus.make(home="n1").on_detach = "cancel"
        await world.join()
        world.hub.expect_run(KEY, "r1")
        await world.pass_time(3)
        for _ in range(4):
            before = attended(world)
            await world.pass_time(2)
            assert attended(world) > before
