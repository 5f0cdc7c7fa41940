"""Guarantee 9: only a session's home counts it and its events, each once."""

import asyncio

import pytest
from support.little_bus import KEY

from gateway.session.errors import Unavailable
from gateway.session.model import RunRef, SessionKey


async def test_the_home_counts_and_another_node_does_not(world):
    world.bus.make(home="elsewhere")
    await world.join()
    world.bus.append("E", out=5)
    world.bus.append("F", role="assistant")
    await world.settle()
    assert world.probe.facts == {}
    mine = SessionKey("acme", "mine")
    world.bus.make(mine)
    await world.join(key=mine)
    world.bus.append("E", key=mine, out=5, into=2)
    await world.settle()
    assert world.probe.facts == {"active": 1, "output": 5, "input": 2}


async def test_every_push_is_timed_where_it_comes_home_or_not(world):
    world.bus.make(home="elsewhere")
    await world.join()
    world.bus.append("E")
    world.bus.append("F")
    await world.settle()
    assert len(world.probe.pushes) == 2


async def test_a_run_that_is_cut_is_told_with_its_agent_for_it_may_have_waited(world):
    world.bus.make()
    await world.join()
    for kind in "FICX":
        world.bus.append(kind, run=f"run-{kind}")
    await world.settle()
    assert world.cut == [(RunRef(*KEY, f"run-{kind}"), "demo") for kind in "CX"]


async def test_every_event_is_counted_once_whatever_the_channel_does(world):
    session = world.bus.make()
    await world.join()
    await world.settle()
    world.bus.append("S")
    world.bus.append("E", out=1)
    world.bus.lose = 2
    world.bus.append("E", out=10)
    world.bus.append("F", out=100, role="assistant", ts_ms=4000)
    world.bus.append("S", run="r2")
    world.bus.deliver(session.log[3])
    world.bus.restore()
    await world.settle()
    assert world.probe.facts["output"] == 111
    assert world.probe.facts["runs ended"] == 1
    assert world.probe.deliveries == [1.0]


async def test_a_clock_that_runs_behind_redis_gives_no_negative_time(world):
    world.bus.make()
    await world.join()
    world.bus.append("F", ts_ms=9999)
    await world.settle()
    assert world.probe.deliveries == [0.0]


async def test_two_sockets_count_as_one_session(world):
    world.bus.make()
    first, second = await world.join(), await world.join()
    assert world.probe.facts["active"] == 1
    world.hub.detach(first.attachment)
    await world.pass_time(200)
    assert world.probe.facts["active"] == 1
    world.hub.detach(second.attachment)
    await world.pass_time(121)
    assert world.probe.facts["active"] == 0


async def test_the_home_lasts_through_the_resume_grace(world):
    session = world.bus.make()
    client = await world.join()
    world.hub.detach(client.attachment)
    await world.pass_time(119)
    assert session.home == "n1"
    world.bus.append("E", out=7)
    assert world.probe.facts["output"] == 7, "it goes on following and counting"
    await world.pass_time(3)
    assert session.home == ""
    assert world.probe.facts["active"] == 0
    assert world.bus.followers[KEY] == []
    assert world.hub.find(KEY) is None


async def test_who_comes_back_within_the_grace_is_no_new_session(world):
    session = world.bus.make()
    client = await world.join()
    world.hub.detach(client.attachment)
    await world.pass_time(100)
    await world.join()
    await world.pass_time(100)
    assert session.home == "n1"
    assert world.probe.facts["active"] == 1


async def test_an_open_run_keeps_its_home(world):
    session = world.bus.make()
    client = await world.join()
    world.bus.append("S")
    world.hub.detach(client.attachment)
    await world.pass_time(500)
    assert session.home == "n1"
    world.bus.append("F")
    await world.pass_time(121)
    assert session.home == ""
    assert world.probe.facts["active"] == 0


async def test_a_run_that_never_was_does_not_keep_the_home(world):
    """A run may end without this node's knowledge; the bus knows better."""
    session = world.bus.make()
    client = await world.join()
    world.hub.expect_run(KEY, "ghost")
    world.hub.detach(client.attachment)
    await world.pass_time(121)
    assert session.home == ""
    assert world.probe.facts["active"] == 0


async def test_a_session_made_without_a_socket_is_followed_and_left(world):
    session = world.bus.make()
    view = await world.bus.open(KEY, "anonymous", node="n1")
    world.hub.adopt(view)
    assert world.probe.facts["active"] == 1
    world.bus.append("E", out=3)
    await world.pass_time(2)
    assert world.probe.facts["output"] == 3
    await world.pass_time(121)
    assert session.home == ""
    assert world.probe.facts["active"] == 0


async def test_a_home_that_was_given_up_is_taken_by_a_node_with_sockets(world):
    session = world.bus.make(home="n1")
    other = world.make_hub("n2")
    world.start(other.run())
    client = await world.join(hub=other)
    assert world.probe.facts["active"] == 0
    session.home = ""
    await world.pass_time(31)
    assert session.home == "n2"
    assert world.probe.facts["active"] == 1
    assert client.closed is None


async def test_the_home_of_a_dead_node_is_taken_at_once(world):
    session = world.bus.make(home="dead")
    await world.join()
    world.hub.heard({"n1": True, "dead": True}, interrupted=False)
    await world.settle()
    assert session.home == "dead"
    world.hub.heard({"n1": True, "dead": False}, interrupted=False)
    await world.settle()
    assert session.home == "n1"
    assert world.probe.facts["active"] == 1


async def stream(world, seconds: float) -> None:
    """Pushes, twice a second."""
    for _ in range(int(seconds * 2)):
        await world.pass_time(0.5)
        world.bus.append()


async def test_the_home_of_a_node_known_dead_is_taken_by_who_comes(world):
    session = world.bus.make(home="dead")
    world.hub.heard({"n1": True, "dead": False}, interrupted=False)
    await world.join()
    await world.settle()
    assert session.home == "n1"
    assert world.probe.facts["active"] == 1


async def test_a_home_that_nobody_has_is_taken_while_events_stream(world):
    """A session that is never quiet must be counted all the same."""
    session = world.bus.make(home="elsewhere")
    await world.join()
    world.bus.append("S")
    session.home = ""
    await stream(world, 33)
    assert session.home == "n1"
    assert world.probe.facts["active"] == 1


async def test_the_home_of_a_dead_node_is_taken_while_events_stream(world):
    """Also when Redis did not answer at the moment of the news."""
    session = world.bus.make(home="dead")
    await world.join()
    world.bus.append("S")
    await world.settle()
    world.bus.down = True
    world.hub.heard({"n1": True, "dead": False}, interrupted=False)
    await world.settle()
    world.bus.down = False
    await stream(world, 3)
    assert session.home == "n1"


async def test_the_home_of_a_node_long_forgotten_is_taken(world):
    session = world.bus.make(home="forgotten")
    await world.join()
    for _ in range(3):
        world.hub.heard({"n1": True}, interrupted=False)
        await world.pass_time(1)
    assert session.home == "n1"


async def test_a_node_newer_than_our_last_beat_keeps_its_home(world):
    """It is in no answer yet, and alive."""
    world.hub.heard({"n1": True}, interrupted=False)
    session = world.bus.make(home="fresh")
    await world.join()
    await world.settle()
    await world.pass_time(0.5)
    world.hub.heard({"n1": True}, interrupted=False)  # asked for before we met it
    await world.settle()
    assert session.home == "fresh"
    await world.pass_time(1)
    world.hub.heard({"n1": True, "fresh": True}, interrupted=False)
    await world.pass_time(31)
    assert session.home == "fresh"


async def test_a_home_that_others_took_during_an_interruption_is_counted_no_more(world):
    session = world.bus.make()
    await world.join()
    session.home = "n2"
    world.hub.heard({"n1": True, "n2": True}, interrupted=True)
    await world.settle()
    assert world.probe.facts["active"] == 0


async def test_who_comes_while_the_home_is_being_left(world):
    """Found home a moment ago, and home no more: the node with the socket must take it again."""
    for steps in range(15):
        session = world.bus.make()
        client = await world.join()
        world.hub.detach(client.attachment)
        world.clock.now += 121
        world.wheel.advance()
        for _ in range(steps):
            await asyncio.sleep(0)
        back = await world.join()
        await world.settle()
        assert session.home == "n1", f"after {steps} steps"
        assert world.probe.facts["active"] == 1, f"after {steps} steps"
        world.hub.detach(back.attachment)
        await world.pass_time(122)
        assert world.probe.facts["active"] == 0


async def test_the_end_of_a_session_ends_its_counting(world):
    world.bus.make()
    await world.join()
    world.bus.end()
    await world.settle()
    assert world.probe.facts["active"] == 0


async def test_a_clean_stop_leaves_every_home(world):
    keys = [SessionKey("acme", f"s{number}") for number in range(50)]
    for key in keys:
        world.bus.make(key)
        await world.join(key=key)
    assert world.probe.facts["active"] == 50
    await world.hub.close()
    assert world.probe.facts["active"] == 0
    assert {session.home for session in world.bus.sessions.values()} == {""}
    assert all(followers == [] for followers in world.bus.followers.values())


async def test_a_stop_without_redis_counts_down_all_the_same(world):
    world.bus.make()
    await world.join()
    world.bus.down = True
    await world.hub.close()
    assert world.probe.facts["active"] == 0
    world.bus.down = False


# --- stretches: who counts what -------------------------------------------------------------------


async def test_what_passed_while_nobody_was_home_is_counted_by_the_next(world):
    """A home that is given up says how far it counted; the log has the rest."""
    session = world.bus.make()
    client = await world.join()
    world.bus.append("E", out=1)
    world.hub.detach(client.attachment)
    await world.pass_time(121)
    assert (session.home, session.home_seq) == ("", 1)
    world.bus.append("E", out=10)
    world.bus.append("F", out=100, role="assistant")
    assert world.probe.facts["output"] == 1
    await world.join()
    await world.settle()
    assert world.probe.facts["output"] == 111
    assert world.probe.facts["runs ended"] == 1


async def test_a_home_that_is_left_is_taken_at_once_by_a_node_with_sockets(world):
    """Not at its next position check: a node that stops passes its sessions on."""
    session = world.bus.make()
    other = world.make_hub("n2")
    world.start(other.run())
    first = await world.join()
    await world.join(hub=other)
    world.bus.append("S")
    world.bus.append("E", out=1)
    world.hub.drain()
    assert session.home == "n1", "there is a socket yet"
    world.hub.detach(first.attachment)
    await world.pass_time(0.5)
    assert session.home == "n2"
    world.bus.append("E", out=10)
    await world.settle()
    assert world.probe.facts["output"] == 11
    assert world.probe.facts["active"] == 1


@pytest.mark.parametrize("steps", range(12))
async def test_what_passes_while_a_home_is_passed_on_is_counted_once(world, steps):
    """Whatever comes between the leaver's decision, the answer, the news and the new home."""
    world.bus.make()
    other = world.make_hub("n2")
    world.start(other.run())
    first = await world.join()
    await world.join(hub=other)
    world.bus.append("S")
    world.hub.drain()
    world.hub.detach(first.attachment)
    for _ in range(steps):
        world.bus.append("E", out=1)
        await asyncio.sleep(0)
    await world.pass_time(0.5)
    world.bus.append("F", out=1)
    await world.settle()
    assert world.probe.facts["output"] == steps + 1
    assert world.probe.facts["runs ended"] == 1


async def test_a_leave_whose_answer_was_lost_counts_nothing_twice(world):
    session = world.bus.make()
    client = await world.join()
    world.bus.append("E", out=1)
    world.hub.detach(client.attachment)
    leave = world.bus.leave

    async def lossy(key, node, **options):
        world.bus.leave = leave
        await leave(key, node, **options)
        session.home, session.home_seq = "n2", 1  # and somebody was quick
        world.bus.append("E", out=10)
        raise Unavailable

    world.bus.leave = lossy
    await world.pass_time(123)
    assert world.probe.facts["output"] == 1
    assert world.probe.facts["active"] == 0


async def test_a_node_that_slept_counts_what_was_its_own_and_no_more(world):
    """Taken for dead, it finds pushes when it wakes that another node has counted."""
    session = world.bus.make()
    world.hub.heard({"n1": True}, interrupted=False, until=world.clock.now + 10)
    await world.join()
    world.bus.append("S")
    world.bus.append("E", out=1)
    assert world.probe.facts["output"] == 1
    world.bus.hold = True
    world.bus.append("E", out=10)
    session.home, session.home_seq = "n2", session.seq  # n2 judged it dead here
    world.bus.append("E", out=100)
    world.bus.append("F", out=1000)
    world.clock.now += 12
    for push in world.bus.held:
        world.bus.deliver(push)
    assert world.probe.facts["output"] == 1, "it does not know yet"
    await world.settle()
    world.hub.heard({"n1": True, "n2": True}, True, until=world.clock.now + 10)
    await world.settle()
    assert world.probe.facts["output"] == 11
    assert world.probe.facts["runs ended"] == 0
    assert world.probe.facts["active"] == 0


async def test_a_node_that_slept_and_was_not_missed_counts_everything(world):
    world.bus.make()
    world.hub.heard({"n1": True}, interrupted=False, until=world.clock.now + 10)
    await world.join()
    world.bus.append("S")
    world.bus.hold = True
    world.bus.append("E", out=10)
    world.bus.append("F", out=100)
    world.clock.now += 12
    for push in world.bus.held:
        world.bus.deliver(push)
    world.bus.hold = False
    await world.settle()
    assert world.probe.facts["output"] == 0
    world.hub.heard({"n1": True}, True, until=world.clock.now + 10)
    await world.settle()
    assert world.probe.facts["output"] == 110
    world.bus.append("S", run="r2")
    world.bus.append("F", run="r2", out=1000)
    assert world.probe.facts["output"] == 1110
    assert world.probe.facts["runs ended"] == 2


async def test_an_answer_from_before_its_sleep_makes_no_node_home(world):
    """Between the answer and its reading the home may have become another's."""
    session = world.bus.make()
    world.hub.heard({"n1": True}, interrupted=False, until=world.clock.now + 10)
    view = await world.bus.open(KEY, "anonymous", node="n1")
    world.clock.now += 12
    session.home, session.home_seq = "n2", 0
    world.hub.adopt(view)
    assert world.probe.facts["active"] == 0


async def test_nobody_is_taken_for_dead_just_after_an_interruption(world):
    """When Redis was away nobody could beat; homes would move about for nothing."""
    session = world.bus.make(home="n2")
    await world.join()
    world.hub.heard({"n1": True, "n2": False}, interrupted=True)
    await world.pass_time(9)
    world.hub.heard({"n1": True, "n2": False}, interrupted=False)
    await world.settle()
    assert session.home == "n2"
    await world.pass_time(1)
    world.hub.heard({"n1": True, "n2": False}, interrupted=False)
    await world.settle()
    assert session.home == "n1"


async def test_an_orphan_with_an_open_run_is_adopted_without_a_socket(world):
    session = world.bus.make(home="dead")
    world.bus.append("S")
    world.bus.append("E", out=1)
    world.hub.heard({"n1": True, "dead": False}, interrupted=False)
    await world.hub.take_home(KEY, "anonymous", "dead")
    assert session.home == "n1"
    world.bus.append("E", out=10)
    await world.pass_time(2)
    world.bus.append("F", out=100)
    await world.settle()
    assert world.probe.facts["output"] == 110, "what a dead home had not counted is lost with it"
    assert world.probe.facts["active"] == 1
    await world.pass_time(122)
    assert session.home == ""
    assert world.probe.facts["active"] == 0


async def test_a_creation_whose_answer_was_lost_is_counted_when_it_is_found(world):
    """created - completed = active + dormant: it will expire, and be counted as completed."""
    await world.bus.open(KEY, "anonymous", node="n1", agent="demo")  # nobody heard of it
    assert world.probe.facts == {}
    for _ in range(2):
        await world.hub.take_home(KEY, "anonymous", "n1")
        assert (world.probe.facts["created"], world.probe.facts["active"]) == (1, 1)
    await world.pass_time(122)
    await world.join()
    assert (world.probe.facts["created"], world.probe.facts["active"]) == (1, 1)


async def test_a_creation_counts_with_the_node_that_made_it(world):
    """If that node is dead, so are its counters; who takes the home over counts no creation."""
    session = world.bus.make(home="dead")
    session.made_by = "dead"
    world.hub.heard({"n1": True, "dead": False}, interrupted=False)
    await world.hub.take_home(KEY, "anonymous", "dead")
    assert (world.probe.facts["created"], world.probe.facts["active"]) == (0, 1)


@pytest.mark.parametrize("home", ["n1", "elsewhere"])
async def test_a_session_that_is_made_again_is_not_created_again(world, home):
    """Redis came back empty; whoever makes it again, it was counted before."""
    session = world.bus.make(home=home)
    await world.join()
    world.bus.append("S")
    await world.settle()
    del world.bus.sessions[KEY]
    world.bus.restore()
    await world.settle()
    assert world.bus.sessions[KEY] is not session
    assert world.probe.facts["created"] == 0
    assert world.probe.facts["active"] == 1


async def test_a_home_learns_that_it_is_not(world):
    """Somebody took it for dead, and what told it was lost."""
    session = world.bus.make()
    await world.join()
    assert world.probe.facts["active"] == 1
    session.home, session.home_seq = "n2", session.seq
    await world.pass_time(600)
    assert world.probe.facts["active"] == 0


async def test_a_home_that_is_too_young_to_be_known_is_not_taken(world):
    world.bus.make(home="young")
    world.hub.heard({"n1": True}, interrupted=False)
    await world.hub.take_home(KEY, "anonymous", "young")
    assert world.bus.sessions[KEY].home == "young"
    await world.pass_time(1)
    world.hub.heard({"n1": True, "young": True}, interrupted=False)
    await world.pass_time(1)
    world.hub.heard({"n1": True}, interrupted=False)  # now forgotten, for being dead so long
    await world.hub.take_home(KEY, "anonymous", "young")
    for _ in range(2):
        await world.pass_time(1)
        world.hub.heard({"n1": True}, interrupted=False)
    await world.hub.take_home(KEY, "anonymous", "young")
    assert world.bus.sessions[KEY].home == "n1"


async def test_a_deserted_home_asks_once_a_grace_while_its_run_is_quiet(world):
    world.bus.make()
    client = await world.join()
    world.bus.append("S")
    world.bus.sessions[KEY].open_run = "r1"
    world.hub.detach(client.attachment)
    await world.pass_time(600)
    asked = world.bus.calls["open"]
    await world.pass_time(600)
    assert world.bus.calls["open"] - asked <= 12
