"""Guarantee 2: events arrive in order, without gap or duplicate, whatever the channel does."""

import asyncio
import random

import msgspec
import pytest
from support.little_bus import KEY

from gateway.session.errors import Unavailable
from gateway.session.log import PAGE
from gateway.session.model import SessionKey
from gateway.session.outbox import Outbox
from protocol.codes import CloseCode
from protocol.frames import Cursor


def upto(last: int, first: int = 1) -> list[int]:
    return list(range(first, last + 1))


# --- the live path --------------------------------------------------------------------------------


async def test_every_follower_gets_every_event_once_and_the_frame_is_shared(world):
    world.bus.make()
    first, second = await world.join(), await world.join()
    for _ in range(5):
        world.bus.append()
    assert first.outbox.take(1 << 20)[-1] is second.outbox.take(1 << 20)[-1], (
        "encoded once, not per socket"
    )
    first.awake.set()
    for _ in range(5):
        world.bus.append()
    await world.settle()
    assert second.seqs == upto(10, 6)
    assert world.bus.calls["subscribe"] == 1


async def test_events_of_one_turn_leave_in_one_batch(world):
    world.bus.make()
    client = await world.join()
    await world.settle()
    for _ in range(3):
        world.bus.append()
    assert len(client.outbox.take(1 << 20)) == 3


async def test_a_push_that_another_clock_makes_early_took_no_time(world):
    world.bus.make()
    await world.join()
    world.bus.append(ts_ms=world.now_ms - 300)
    world.bus.append(ts_ms=world.now_ms + 300)
    assert world.probe.pushes == [0.3, 0]


async def test_a_duplicate_is_dropped(world):
    session = world.bus.make()
    client = await world.join()
    world.bus.append()
    world.bus.append()
    world.bus.deliver(session.log[0])
    world.bus.deliver(session.log[1])
    await world.settle()
    assert client.seqs == [1, 2]


async def test_a_gap_is_read_from_the_log(world):
    world.bus.make()
    client = await world.join()
    await world.settle()
    world.bus.append()
    world.bus.lose = 3
    for _ in range(5):
        world.bus.append()
    await world.settle()
    assert client.seqs == upto(6)
    assert world.probe.facts["gaps"] == 1
    assert world.probe.facts["repaired"] in {3, 5}


async def test_swapped_pushes_come_out_in_order(world):
    world.bus.make()
    client = await world.join()
    world.bus.hold = True
    for _ in range(4):
        world.bus.append()
    for index in (2, 0, 3, 1):
        world.bus.deliver(world.bus.held[index])
    await world.settle()
    assert client.seqs == upto(4)


async def test_pushes_during_a_repair_are_kept(world):
    """Or a fast stream would be read from the log for ever, always a step behind."""
    world.bus.make()
    client = await world.join()
    await world.settle()
    world.bus.lose = 1
    world.bus.append()
    world.bus.gate = asyncio.Event()
    world.bus.append()  # shows the gap
    await world.settle()
    for _ in range(5):
        world.bus.append()  # while the log is being read
    reads = world.bus.calls["read"]
    world.bus.gate.set()
    await world.settle()
    assert client.seqs == upto(7)
    assert world.bus.calls["read"] <= reads + 1


async def test_a_large_gap_is_read_in_pages(world):
    world.bus.make()
    client = await world.join()
    world.bus.lose = 2000
    for _ in range(2001):
        world.bus.append()
    await world.settle()
    assert client.seqs == upto(2001)


async def test_a_gap_of_large_events_is_read_to_the_end(world):
    """Pages are bounded in bytes, too: one that is shorter than was asked for is not the last."""
    world.bus.make()
    client = await world.join(limit_bytes=1 << 30)
    await world.settle()
    world.bus.lose = 20
    for _ in range(21):
        world.bus.append(event={"type": "CUSTOM", "name": "n", "value": "x" * 50_000})
    await world.settle()
    assert client.seqs == upto(21)


async def test_a_lost_last_event_is_found_within_2_s_of_an_open_run(world):
    world.bus.make()
    client = await world.join()
    world.bus.append("S")
    await world.settle()
    world.bus.lose = 1
    world.bus.append("F")
    await world.pass_time(1.5)
    assert client.seqs == [1]
    await world.pass_time(1.0)
    assert client.seqs == [1, 2]


async def test_an_accepted_run_is_watched_before_its_first_event(world):
    world.bus.make()
    client = await world.join()
    world.hub.expect_run(KEY, "r1")
    world.bus.lose = 1
    world.bus.append("S")
    await world.pass_time(2.5)
    assert client.seqs == [1]


async def test_a_quiet_session_is_read_every_30_s_and_not_more(world):
    world.bus.make()
    await world.join()
    await world.settle()
    before = world.bus.calls["read"]
    await world.pass_time(300)
    assert 9 <= world.bus.calls["read"] - before <= 11


async def test_a_streaming_session_is_not_read(world):
    world.bus.make()
    await world.join()
    world.bus.append("S")
    await world.settle()
    before = world.bus.calls["read"]
    for _ in range(40):
        await world.pass_time(0.5)
        world.bus.append()
    assert world.bus.calls["read"] == before


async def test_a_restored_subscription_is_followed_by_a_look(world):
    world.bus.make()
    client = await world.join()
    world.bus.lose = 3
    for _ in range(3):
        world.bus.append()
    await world.settle()
    assert client.seqs == []
    world.bus.restore()
    await world.settle()
    assert client.seqs == upto(3)


async def test_redis_down_during_a_repair_is_tried_again(world):
    world.bus.make()
    client = await world.join()
    world.bus.lose = 1
    world.bus.append()
    await world.settle()
    world.bus.down = True
    world.bus.append()
    await world.pass_time(5)
    assert client.seqs == []
    world.bus.down = False
    await world.pass_time(2)
    assert client.seqs == [1, 2]


@pytest.mark.parametrize("seed", range(25))
async def test_a_hostile_channel_shows_nowhere(world, seed):
    """Lost, doubled, swapped pushes and reconnects, in any order; every client sees 1, 2, 3, ..."""
    chance = random.Random(seed)
    session = world.bus.make()
    clients = [await world.join(), await world.join(limit_bytes=2000)]
    for _ in range(200):
        world.bus.hold = chance.random() < 0.2
        world.bus.lose = 1 if chance.random() < 0.2 else 0
        world.bus.append()
        if chance.random() < 0.2:
            world.bus.deliver(chance.choice(session.log))
        if chance.random() < 0.2 and world.bus.held:
            world.bus.deliver(world.bus.held.pop(chance.randrange(len(world.bus.held))))
        if chance.random() < 0.05:
            world.bus.restore()
        if chance.random() < 0.1:
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
        if chance.random() < 0.05:
            old = clients.pop(chance.randrange(len(clients))) if clients else await world.join()
            world.hub.detach(old.attachment)
            old.writer.cancel()
            if "snapshot" not in old.kinds:
                continue
            seen = old.seqs or [old.frames[0]["cursor"]["seq"]]
            cursor = Cursor("e1", seen[-1])
            fresh = await world.join(cursor, limit_bytes=chance.choice([500, 1 << 20]))
            fresh.frames[:0] = old.frames
            clients.append(fresh)
    world.bus.hold, world.bus.lose = False, 0
    await world.pass_time(31)
    for client in clients:
        assert client.seqs == upto(200, client.frames[0]["cursor"]["seq"] + 1)


# --- joining --------------------------------------------------------------------------------------


async def test_a_newcomer_gets_a_snapshot_and_then_what_follows(world):
    world.bus.make().messages.append(b'{"id":"m1","role":"user","content":"hi"}')
    world.bus.append("S", {"type": "RUN_STARTED"})
    client = await world.join()
    world.bus.append()
    await world.settle()
    assert client.kinds == ["snapshot", "event"]
    assert client.frames[0]["cursor"] == {"epoch": "e1", "seq": 1}
    assert client.seqs == [2]
    assert client.attachment.resumed is False


async def test_what_is_told_with_a_snapshot_is_not_older_than_it(world):
    """A run that ended in between, perhaps with a question, ends in no event after the snapshot."""
    world.bus.make()
    world.bus.append("S")
    before = await world.bus.open(KEY, "anonymous", node="n1")
    assert [run.run_id for run in before.runs] == ["r1"]
    world.bus.append("F", {"type": "RUN_FINISHED"})
    for after in (None, Cursor("e0", 1)):
        attachment = await world.hub.attach(before, after, Outbox(lambda: None))
        assert attachment.view.runs == []
    reset = msgspec.json.decode(attachment.staged[0])
    assert (reset["type"], reset["runs"]) == ("reset", [])


async def test_a_resume_continues_after_its_cursor(world):
    world.bus.make()
    for _ in range(600):
        world.bus.append()
    client = await world.join(Cursor("e1", 17))
    world.bus.append()
    await world.settle()
    assert client.attachment.resumed is True
    assert client.seqs == upto(601, 18)
    assert "snapshot" not in client.kinds


async def test_a_resume_stages_one_page_and_no_more(world):
    """A storm of clients that come back must not hold all that they missed."""
    world.bus.make()
    for _ in range(200):
        world.bus.append(event={"type": "CUSTOM", "name": "n", "value": "x" * 50_000})
    view = await world.bus.open(KEY, "anonymous", node="n1")
    attachment = await world.hub.attach(view, Cursor("e1", 0), Outbox(lambda: None))
    assert sum(len(entry.frame) for entry in attachment.staged) <= 256 * 1024
    world.hub.detach(attachment)
    client = await world.join(Cursor("e1", 0))
    for _ in range(20):
        await world.settle()
    assert client.seqs == upto(200)
    assert client.most_bytes <= 256 * 1024 + 60_000


async def test_events_between_the_reading_and_the_joining_are_not_lost(world):
    """The log is read, then events come, then the reading answers: also for the first in."""
    for after in (Cursor("e1", 0), None):
        world.bus.make()
        world.bus.append("S")
        world.bus.gate = asyncio.Event()
        joining = world.start(world.join(after))
        await world.settle()
        world.bus.append()
        world.bus.append()
        world.bus.gate.set()
        client = await joining
        world.bus.append("F")
        await world.settle()
        assert client.seqs == (upto(4) if after else upto(4, 2))
        world.hub.detach(client.attachment)
        await world.settle()


async def test_events_between_open_and_the_subscription_are_not_lost(world):
    world.bus.make()
    view = await world.bus.open(KEY, "anonymous", node="n1")
    world.bus.append()
    world.bus.append()
    world.hub.adopt(view)
    client = await world.join(Cursor("e1", 0))
    await world.settle()
    assert client.seqs == [1, 2]


async def test_one_subscription_for_many_joining_at_once(world):
    world.bus.make()
    clients = await asyncio.gather(*(world.join() for _ in range(20)))
    world.bus.append()
    await world.settle()
    assert world.bus.calls["subscribe"] == 1
    assert all(client.seqs == [1] for client in clients)


async def test_last_out_unsubscribes_and_the_next_in_subscribes_again(world):
    world.bus.make(home="elsewhere")
    client = await world.join()
    world.hub.detach(client.attachment)
    world.hub.detach(client.attachment)
    await world.settle()
    assert world.bus.followers[KEY] == []
    assert world.hub.find(KEY) is None
    again = await world.join()
    world.bus.append()
    await world.settle()
    assert again.seqs == [1]


async def test_first_in_during_last_out(world):
    """The race that first-in, last-out counting is known for: the new one must hear events."""
    world.bus.make(home="elsewhere")
    for steps in range(12):
        leaving = await world.join()
        await world.settle()
        world.hub.detach(leaving.attachment)
        for _ in range(steps):
            await asyncio.sleep(0)
        coming = await world.join()
        seq = world.bus.append()
        await world.settle()
        assert coming.seqs == [seq], f"after {steps} steps"
        assert len(world.bus.followers[KEY]) == 1
        world.hub.detach(coming.attachment)
        await world.settle()


async def test_a_join_without_redis_is_refused_and_leaves_nothing(world):
    world.bus.make(home="elsewhere")
    view = await world.bus.open(KEY, "anonymous", node="n1")
    world.bus.down = True
    with pytest.raises(Unavailable):
        await world.hub.attach(view, None, Outbox(lambda: None))
    world.bus.down = False
    await world.settle()
    assert world.hub.find(KEY) is None


# --- resets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [
        (Cursor("e0", 3), "epoch_changed"),
        (Cursor("e1", 1), "cursor_too_old"),
        (Cursor("e1", 9), "writes_lost"),
        (Cursor("e1", 4, ts=7), "writes_lost"),  # another event has taken its number
    ],
)
async def test_a_cursor_that_cannot_be_continued_is_told(world, cursor, reason):
    session = world.bus.make()
    for _ in range(5):
        world.bus.append()
    del session.log[:3]
    session.trimmed = 3
    client = await world.join(cursor)
    world.bus.append()
    await world.settle()
    assert client.kinds == ["reset", "snapshot", "event"]
    assert client.frames[0]["reason"] == reason
    assert client.seqs == [6]


async def test_a_new_epoch_resets_every_follower(world):
    world.bus.make()
    clients = [await world.join(), await world.join()]
    world.bus.append()
    await world.settle()
    world.bus.new_epoch(keep=0)
    world.bus.push(b"!reset e2")
    await world.settle()
    world.bus.append()
    await world.settle()
    for client in clients:
        assert client.kinds == ["snapshot", "event", "reset", "snapshot", "event"]
        assert client.frames[3]["cursor"]["epoch"] == "e2"
        assert client.seqs == [1]


async def test_a_new_epoch_shows_in_an_event_too(world):
    """The `!reset` push itself may be lost."""
    world.bus.make()
    client = await world.join()
    world.bus.append()
    world.bus.new_epoch()
    world.bus.append()
    await world.settle()
    assert client.kinds[-2:] == ["reset", "snapshot"]
    world.bus.append()
    await world.settle()
    assert client.seqs == [3]


async def test_lost_writes_are_found_by_the_position_check(world):
    world.bus.make()
    client = await world.join()
    for _ in range(3):
        world.bus.append()
    await world.settle()
    world.bus.new_epoch("e1", keep=1)
    await world.pass_time(31)
    assert "reset" in client.kinds
    seq = world.bus.append()
    await world.settle()
    assert client.seqs == [seq]


@pytest.mark.parametrize("events", [1, 2, 3, 9])
@pytest.mark.parametrize("heard", [True, False])
async def test_lost_writes_are_found_though_others_took_their_numbers(world, events, heard):
    """Guarantee 2: an agent that answers anew soon brings the log to where it was."""
    world.bus.make()
    client = await world.join()
    for _ in range(3):
        world.bus.append(ts_ms=1000)
    await world.settle()
    world.bus.new_epoch("e1", keep=1)
    world.bus.lose = 0 if heard else events
    for _ in range(events):
        world.bus.append(ts_ms=2000)
    if not heard:
        world.bus.restore()
    await world.settle()
    assert client.resets == ["writes_lost"]
    assert client.kinds[:5] == ["snapshot", "event", "event", "event", "reset"], (
        "nothing of the new history stands under the old one"
    )


async def test_after_an_interruption_nothing_passes_before_the_log_was_asked(world):
    """The next number proves nothing, when Redis may have lost what came before it."""
    world.bus.make()
    client = await world.join()
    for _ in range(3):
        world.bus.append(ts_ms=1000)
    await world.settle()
    world.bus.new_epoch("e1", keep=1)
    world.bus.lose = 2
    for _ in range(2):
        world.bus.append(ts_ms=2000)
    world.bus.restore()
    world.bus.append(ts_ms=2000)
    await world.settle()
    assert client.kinds[:5] == ["snapshot", "event", "event", "event", "reset"]


async def test_a_run_that_redis_lost_is_told(world):
    """Guarantee 1: no event is missing, only what was acknowledged."""
    session = world.bus.make()
    client = await world.join()
    world.hub.expect_run(KEY, "r1")
    session.lost_runs.add("r1")
    world.bus.restore()
    await world.settle()
    assert client.resets == ["writes_lost"]
    world.bus.restore()
    await world.settle()
    assert client.resets == ["writes_lost"], "once"
    assert world.ends.heard == [("r1", "lost")]


async def test_a_run_that_redis_lost_is_told_to_who_has_left_meanwhile(world):
    """The node that took the message remembers it until its run is over."""
    session = world.bus.make(home="elsewhere")
    client = await world.join()
    world.hub.expect_run(KEY, "r1")
    world.hub.detach(client.attachment)
    await world.settle()
    session.lost_runs.add("r1")
    world.bus.restore()
    await world.settle()
    assert world.bus.sessions[KEY].epoch != "e1"
    assert world.hub.find(KEY) is None
    assert world.ends.heard == [("r1", "lost")]


async def test_a_run_whose_end_was_not_heard_is_not_remembered_for_ever(world):
    """Its acknowledgement may come after its last event."""
    world.bus.make(home="elsewhere")
    client = await world.join()
    world.bus.append("S")
    world.bus.append("F", {"type": "RUN_FINISHED"})
    await world.settle()
    world.hub.expect_run(KEY, "r1")
    world.hub.detach(client.attachment)
    await world.pass_time(5)
    assert world.hub.find(KEY) is None
    assert world.ends.heard[0] == ("r1", "F")


async def test_a_run_that_outlives_a_loss_is_not_lost(world):
    """Redis lost what passed, not the run: its end is still to come."""
    session = world.bus.make()
    await world.join()
    world.hub.expect_run(KEY, "r1")
    world.hub.expect_run(KEY, "r2")
    world.bus.append("S", run="r1")
    world.bus.append(run="r1")
    await world.settle()
    session.lost_runs.add("r2")
    world.bus.restore()
    await world.settle()
    assert world.ends.heard == [("r2", "lost")]
    world.bus.append("F", {"type": "RUN_FINISHED"}, run="r1")
    await world.settle()
    assert world.ends.heard == [("r2", "lost"), ("r1", "F")]


async def test_an_end_that_is_read_some_pages_later_is_an_end(world):
    """The log says at once that the run is over; it is not lost for that."""
    world.bus.make()
    await world.join()
    world.bus.append("S")
    await world.settle()
    world.bus.hold = True
    for _ in range(PAGE + 5):
        world.bus.append()
    world.bus.append("F", {"type": "RUN_FINISHED"})
    world.bus.restore()
    await world.settle()
    assert world.ends.heard == [("r1", "F")]


@pytest.mark.parametrize("home", ["", "elsewhere"])
async def test_a_session_that_redis_lost_is_made_again_and_its_followers_are_told(world, home):
    """Redis came back empty: nobody is left in silence, whoever is home."""
    world.bus.make(home=home)
    live, slow = await world.join(), await world.join(limit_bytes=300)
    slow.readable.clear()
    for _ in range(20):
        world.bus.append()
    await world.settle()
    del world.bus.sessions[KEY]
    world.bus.restore()
    await world.settle()
    slow.readable.set()
    await world.settle()
    assert world.bus.append() == 1
    await world.settle()
    for client in (live, slow):
        [reset, snapshot, event] = client.frames[-3:]
        assert (reset["type"], reset["reason"], reset["runs"]) == ("reset", "writes_lost", [])
        assert snapshot["cursor"] == {"epoch": "e2", "seq": 0}
        assert event["seq"] == 1
        assert client.closed is None
    assert world.probe.facts["active"] == 1
    assert world.probe.facts["created"] == 0


async def test_a_session_that_redis_lost_is_made_again_when_redis_is_back_for_good(world):
    world.bus.make()
    client = await world.join()
    await world.settle()
    del world.bus.sessions[KEY]
    opened = world.bus.open

    async def fails(*args, **kwargs):
        world.bus.open = opened
        raise Unavailable

    world.bus.open = fails
    world.bus.restore()
    await world.pass_time(2)
    assert client.kinds[-2:] == ["reset", "snapshot"]


async def test_a_session_that_is_over_is_not_made_again(world):
    world.bus.make()
    client = await world.join()
    await world.settle()
    world.hub.ended(KEY)
    del world.bus.sessions[KEY]
    await world.settle()
    assert client.closed == CloseCode.SESSION_ENDED
    assert world.bus.sessions == {}


async def test_a_run_of_a_session_that_is_gone_is_lost(world):
    world.bus.make()
    await world.join()
    world.hub.expect_run(KEY, "r1")
    del world.bus.sessions[KEY]
    world.hub.ended(KEY)
    await world.settle()
    assert world.ends.heard == [("r1", "lost")]


# --- slow clients ---------------------------------------------------------------------------------


async def test_a_slow_client_holds_a_bounded_outbox_and_misses_nothing(world):
    world.bus.make()
    slow = await world.join(limit_bytes=1000)
    quick = await world.join()
    await world.settle()
    slow.readable.clear()
    for _ in range(500):
        world.bus.append()
        await asyncio.sleep(0)
    await world.settle()
    assert quick.seqs == upto(500), "another client is not delayed"
    assert slow.outbox.pulling
    slow.readable.set()
    await world.settle()
    for _ in range(20):
        await world.settle()
    assert slow.seqs == upto(500)
    assert slow.most_bytes <= 1000
    assert not slow.outbox.pulling
    world.bus.append()
    await world.settle()
    assert slow.seqs == upto(501)


async def test_a_slow_client_behind_the_log_gets_a_reset(world):
    session = world.bus.make()
    slow = await world.join(limit_bytes=300)
    await world.settle()
    slow.readable.clear()
    for _ in range(50):
        world.bus.append()
        await asyncio.sleep(0)
    del session.log[:40]
    session.trimmed = 40
    slow.readable.set()
    await world.settle()
    assert "cursor_too_old" in [frame.get("reason") for frame in slow.frames]
    world.bus.append()
    await world.settle()
    assert slow.seqs == [51]


async def test_a_pulling_client_waits_for_redis(world):
    world.bus.make()
    slow = await world.join(limit_bytes=300)
    await world.settle()
    slow.readable.clear()
    for _ in range(50):
        world.bus.append()
    world.bus.down = True
    slow.readable.set()
    await world.pass_time(3)
    assert slow.closed is None
    world.bus.down = False
    await world.pass_time(2)
    assert slow.seqs == upto(50)


# --- the end --------------------------------------------------------------------------------------


async def test_the_end_closes_after_the_last_event(world):
    world.bus.make()
    client = await world.join()
    world.bus.append("S")
    world.bus.append("C")
    world.bus.end()
    await world.settle()
    assert client.seqs == [1, 2]
    assert client.closed == CloseCode.SESSION_ENDED


async def test_the_end_waits_for_an_event_whose_push_was_lost(world):
    world.bus.make()
    client = await world.join()
    world.bus.append("S")
    await world.settle()
    world.bus.lose = 1
    world.bus.append("C")
    world.bus.end()
    await world.settle()
    assert client.seqs == [1, 2]
    assert client.closed == CloseCode.SESSION_ENDED


async def test_the_end_waits_for_a_slow_client(world):
    world.bus.make()
    slow = await world.join(limit_bytes=300)
    await world.settle()
    slow.readable.clear()
    for _ in range(20):
        world.bus.append()
    world.bus.end()
    await world.settle()
    slow.readable.set()
    await world.settle()
    assert slow.seqs == upto(20)
    assert slow.closed == CloseCode.SESSION_ENDED


async def test_the_end_is_found_when_its_push_was_lost(world):
    world.bus.make()
    client = await world.join()
    world.bus.append("S")
    world.bus.append("C")
    await world.settle()
    world.bus.lose = 1
    world.bus.end()
    await world.pass_time(31)
    assert client.closed == CloseCode.SESSION_ENDED
    assert world.probe.facts["active"] == 0


async def test_the_end_waits_for_the_last_run(world):
    """Closed with a run open: its followers still hear how that ended."""
    world.bus.make()
    client = await world.join()
    world.bus.append("S")
    world.bus.end()
    await world.settle()
    assert client.closed is None
    world.bus.append("C")
    await world.pass_time(2.5)
    assert client.seqs == [1, 2]
    assert client.closed == CloseCode.SESSION_ENDED


async def test_the_end_does_not_overtake_a_repair_in_several_pages(world):
    """Who reaches the feed between two pages must not be closed before the second."""
    world.bus.make()
    client = await world.join()
    await world.settle()
    world.bus.lose = 601
    for _ in range(600):
        world.bus.append()
    world.bus.end()
    read = world.bus.read

    async def read_while_a_slow_client_arrives(*args, **options):
        page = await read(*args, **options)
        client.outbox.pulling = True
        client.attachment.go_live()
        assert client.outbox.close_code is None
        return page

    world.bus.read = read_while_a_slow_client_arrives
    world.bus.restore()
    await world.settle()
    assert client.seqs == upto(600)
    assert client.closed == CloseCode.SESSION_ENDED


async def test_an_expired_session_closes_its_sockets_as_ended(world):
    world.bus.make()
    client = await world.join()
    await world.settle()
    del world.bus.sessions[KEY]
    world.bus.push(b"!ended")
    await world.settle()
    assert client.closed == CloseCode.SESSION_ENDED


async def test_sessions_do_not_hear_each_other(world):
    other = SessionKey("globex", "s1")
    world.bus.make()
    world.bus.make(other)
    mine, theirs = await world.join(), await world.join(key=other)
    world.bus.append(key=other)
    await world.settle()
    assert mine.seqs == []
    assert theirs.seqs == [1]


async def test_a_feed_that_was_left_while_it_read_on_is_not_checked_for_ever(world):
    world.bus.make(home="elsewhere")
    client = await world.join()
    await world.settle()
    feed = world.hub.find(KEY)
    world.hub.detach(client.attachment)
    await world.settle()
    assert world.hub.find(KEY) is None
    feed.expect("r1")
    await world.pass_time(3)
    armed = [timer for slot in world.wheel._slots.values() for timer in slot]
    assert feed.check not in armed
