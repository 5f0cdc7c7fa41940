"""Guarantee 2 at its edges: resuming, on the real engine, through a real hub."""

import asyncio
import random

import pytest
from support.bus import connected_bus, cut_subscribers
from support.following import Client, Following, following, until
from support.talk import Talk, event

from gateway.bus import keys
from gateway.bus.bus import Bus
from gateway.session.errors import Fenced
from gateway.session.model import AgentEvent, Claim, Limits
from protocol.frames import Cursor

MIB = 1024 * 1024


def word(text: str) -> AgentEvent:
    return AgentEvent(event("TEXT_MESSAGE_CONTENT", messageId="m", delta=text))


class Saying:
    """A worker that holds a run, and what it has said so far."""

    def __init__(self, talk: Talk, claim: Claim) -> None:
        self.talk = talk
        self.claim = claim
        self.said: list[str] = []

    async def say(self, *texts: str) -> None:
        events = list(map(word, texts))
        runs = self.talk.bus.runs
        await runs.append(self.claim.ref, self.claim.claim_id, len(self.said), events)
        self.said += texts

    async def finish(self) -> None:
        message = b'{"id":"m","role":"assistant","content":"said"}'
        await self.talk.finish(self.claim, len(self.said), messages=[message])


async def said_by_runs(talk: Talk, *lengths: int) -> None:
    """Finished runs of so many events each, beside their first and their last."""
    for length in lengths:
        saying = Saying(talk, await talk.running())
        await saying.say(*["x" * 20] * length)
        await saying.finish()


async def caught_up(talk: Talk, *clients: Client) -> None:
    """Waits until all have everything."""
    view = await talk.bus.sessions.open(talk.key, talk.user, node="")
    await until(lambda: all(client.has_read(view.cursor) for client in clients))


@pytest.fixture
async def talk(bus: Bus) -> Talk:
    talk = Talk(bus)
    await talk.open()
    return talk


# --- cursors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epoch", "seq", "reason"),
    [("", 1, "cursor_too_old"), ("other", 9, "epoch_changed"), ("", 10**9, "writes_lost")],
)
async def test_a_cursor_that_cannot_be_continued_gets_reset_and_snapshot_and_then_what_follows(
    redis_url: str, epoch: str, seq: int, reason: str
) -> None:
    async with connected_bus(redis_url, Limits(log_bytes=1500)) as bus, following(bus) as node:
        talk = Talk(bus)
        await talk.open()
        await said_by_runs(talk, 5, 5, 5)
        client = await node.join(talk.key, Cursor(epoch or talk.epoch, seq))
        await said_by_runs(talk, 2)
        await caught_up(talk, client)
        assert client.resets == [reason]
        assert [frame["type"] for frame in client.frames] == ["reset", "snapshot"] + ["event"] * 4
        assert client.seqs == [22, 23, 24, 25]


async def redis_loses(talk: Talk, *, down_to: int) -> None:
    """The log's tail goes, as after a power loss."""
    name = keys.session(talk.key)
    await talk.bus.client.delete(name.replace("s:", "l:", 1))
    await talk.bus.client.hset(name, mapping={"seq": down_to, "log_bytes": 0})


async def test_a_loss_that_only_clients_saw_is_told_to_all_of_them(talk: Talk) -> None:
    """Else the second one, back when the log has grown past its cursor, would silently read on."""
    await said_by_runs(talk, 20)
    await redis_loses(talk, down_to=5)
    async with following(talk.bus) as node:
        first = await node.join(talk.key, Cursor(talk.epoch, 20))
        await said_by_runs(talk, 20)
        second = await node.join(talk.key, Cursor(talk.epoch, 15))
        await caught_up(talk, first, second)
        assert first.resets == ["writes_lost"]
        assert second.resets == ["epoch_changed"]


async def test_what_a_node_has_seen_and_redis_lost_is_told_to_everybody(talk: Talk) -> None:
    async with following(talk.bus) as node, following(talk.bus, "n2") as other:
        before = [await node.join(talk.key), await other.join(talk.key)]
        await said_by_runs(talk, 5)
        await caught_up(talk, *before)
        cursor = before[0].cursor
        await redis_loses(talk, down_to=0)
        back = await node.join(talk.key, cursor)
        await until(lambda: all(client.resets for client in before))
        await said_by_runs(talk, 1)
        await caught_up(talk, back, *before)
        assert [client.resets for client in before] == [["writes_lost"]] * 2
        assert back.resets[0] == "writes_lost"


async def test_a_log_that_is_trimmed_while_it_is_read_page_by_page_is_told(redis_url: str) -> None:
    limits = Limits(log_bytes=200_000)
    async with connected_bus(redis_url, limits) as bus, following(bus) as node:
        talk = Talk(bus)
        await talk.open()
        await said_by_runs(talk, 600)
        client = await node.join(talk.key, Cursor(talk.epoch, 0), limit_bytes=20_000)
        client.readable.clear()
        await until(lambda: client.outbox.size_bytes > 15_000)
        await said_by_runs(talk, 600, 600, 600)
        client.readable.set()
        await until(lambda: client.resets)
        await said_by_runs(talk, 1)
        await caught_up(talk, client)
        assert client.resets == ["cursor_too_old"]
        first = [frame["seq"] for frame in client.frames if frame["type"] == "event"]
        assert first[:50] == list(range(1, 51)), "what it could still read came first"


# --- long answers ---------------------------------------------------------------------------------


async def test_joiners_in_the_middle_of_20_000_events_hear_all_of_it(talk: Talk) -> None:
    """And so do those that come back again and again, and one that reads slowly."""
    saying = Saying(talk, await talk.running())
    joined: list[Client] = []
    chance = random.Random(7)

    async def come_and_go(node: Following, client: Client) -> None:
        for _ in range(10):
            wanted = min(len(saying.said) + 800, 20_000)
            await until(lambda wanted=wanted: len(saying.said) >= wanted)
            node.leave(client)
            back = await node.join(talk.key, client.cursor)
            back.frames[:0] = client.frames
            client = back
        joined.append(client)

    async def join_late(node: Following, at: int, limit_bytes: int) -> None:
        await until(lambda: len(saying.said) >= at)
        joined.append(await node.join(talk.key, limit_bytes=limit_bytes))

    async with following(talk.bus) as node:
        async with asyncio.TaskGroup() as group:
            group.create_task(come_and_go(node, await node.join(talk.key)))
            for at, limit_bytes in [(1, MIB), (7000, MIB), (12_345, 4000), (19_900, 20_000)]:
                group.create_task(join_late(node, at, limit_bytes))
            while len(saying.said) < 20_000:
                count = min(chance.randrange(1, 400), 20_000 - len(saying.said))
                await saying.say(*(f"{len(saying.said) + n} " for n in range(count)))
                await asyncio.sleep(0.005)
        await caught_up(talk, *joined)
        assert len(joined) == 5
        for client in joined:
            assert client.text() == "".join(saying.said)
            assert client.resets == []
        await saying.finish()


async def test_a_joiner_of_a_very_large_open_run_gets_it_as_events(talk: Talk) -> None:
    """Guarantee 5: no frame is larger than clients take, no outbox larger than its bound."""
    saying = Saying(talk, await talk.running())
    for number in range(120):
        await saying.say(f"{number:06}" * 10_000)
    async with following(talk.bus) as node:
        client = await node.join(talk.key)
        await caught_up(talk, client)
        assert client.kinds[:2] == ["snapshot", "event"]
        assert client.seqs == list(range(1, 122))
        assert client.text() == "".join(saying.said)
        assert client.most_bytes <= MIB
        await saying.say("end")
        await caught_up(talk, client)


# --- an empty restart -----------------------------------------------------------------------------


async def test_followers_of_sessions_that_redis_forgot_are_told_and_go_on(talk: Talk) -> None:
    async with following(talk.bus) as node, following(talk.bus, "n2") as other:
        clients = [await node.join(talk.key), await other.join(talk.key)]
        open_run = await talk.running()
        await talk.append(open_run, 0, "A")
        await caught_up(talk, *clients)
        await talk.bus.client.flushall()
        await cut_subscribers(talk.bus.client)
        await until(lambda: all(client.kinds[-2:] == ["reset", "snapshot"] for client in clients))
        await said_by_runs(talk, 3)
        await caught_up(talk, *clients)
        for client in clients:
            assert client.resets == ["writes_lost"]
            assert client.seqs == [1, 2, 3, 4, 5]
            assert client.closed is None


async def test_a_loss_that_only_a_worker_can_prove_is_told(talk: Talk) -> None:
    """The node that saw the lost events died with them; soon others have their numbers."""
    held = await talk.running()
    await talk.append(held, 0, "A", "B")
    client = talk.bus.client
    before = {
        name: await client.dump(name) for name in await client.keys(f"*{talk.key.session_id}*")
    }
    await talk.append(held, 2, "C", "D", "E")
    cursor = Cursor(talk.epoch, 6)
    for name, value in before.items():
        await client.restore(name, 0, value, replace=True)
    with pytest.raises(Fenced):
        await talk.append(held, 5, "F")
    async with following(talk.bus) as node:
        late = await node.join(talk.key, cursor)
        await until(lambda: late.frames)
        assert late.resets == ["epoch_changed"]
