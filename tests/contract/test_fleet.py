"""What nodes tell of themselves: known to all, and gone with the node."""

import asyncio
from uuid import uuid4

from gateway.bus import keys
from gateway.bus.bus import Bus


def node() -> str:
    return f"node-{uuid4().hex}"


def key_of(name: str) -> str:
    return f"node:{{{keys.NODES}}}:{name}"


async def test_what_a_node_says_is_known_to_all_while_it_beats(bus: Bus) -> None:
    """A node that has left, or was never heard to beat, is nobody's neighbour."""
    one, other, silent = node(), node(), node()
    for each in (one, other):
        await bus.deadlines.beat(each)
    await bus.announcements.announce(one, "127.0.0.1:1", b"first")
    await bus.announcements.announce(silent, "127.0.0.1:3", b"never")
    known = await bus.announcements.announce(other, "127.0.0.1:2", b"\xff{}")
    assert {n: known.get(n) for n in (one, other, silent)} == {
        one: "127.0.0.1:1",
        other: "127.0.0.1:2",
        silent: None,
    }
    await bus.announcements.announce(one, "127.0.0.1:1", b"second")
    said = await bus.announcements.summaries()
    assert (said[one], said[other]) == (b"second", b"\xff{}")
    assert await bus.client.pttl(key_of(one)) > 0, "nobody would ever remove it"
    await bus.deadlines.leave(one)
    assert one not in await bus.announcements.summaries()
    assert one not in await bus.announcements.announce(other, "127.0.0.1:2", b"")


async def test_a_dead_node_vanishes_and_leaves_no_key(quick_bus: Bus) -> None:
    """kill -9: its lease ends, then what it said expires."""
    dead = node()
    await quick_bus.deadlines.beat(dead)
    await quick_bus.announcements.announce(dead, "127.0.0.1:1", b"")
    async with asyncio.timeout(30):
        while dead in await quick_bus.announcements.summaries():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        while await quick_bus.client.exists(key_of(dead)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
