"""What becomes of a session's runs when its last client has been away for the resume grace."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Literal

import pytest
from support.bus import connected_bus
from support.talk import Talk

from gateway.bus.bus import Bus
from gateway.session.model import Limits

GRACE = Limits(resume_grace_s=0.45)


@pytest.fixture
async def grace_bus(redis_url: str) -> AsyncIterator[Bus]:
    """A bus whose resume grace passes within the test, and nothing else does."""
    async with connected_bus(redis_url, GRACE) as connected:
        yield connected


async def opened(bus: Bus, on_detach: Literal["continue", "cancel"] = "cancel") -> Talk:
    talk = Talk(bus)
    await talk.open(on_detach=on_detach)
    return talk


async def attend(talk: Talk) -> None:
    """A node says that it has clients on the session."""
    await talk.bus.sessions.open(talk.key, talk.user, node="node-b", attending=True)


async def detach_due(talk: Talk) -> float | None:
    """When the session's runs are cancelled for want of clients."""
    [at] = [
        score
        for number in range(128)
        for member, score in await talk.bus.client.zrange(
            f"due:{{p{number}}}", 0, -1, withscores=True
        )
        if member == f"detach|{talk.key.tenant}:{talk.key.session_id}|".encode()
    ] or [None]
    return at


async def test_a_session_says_what_it_was_created_with(grace_bus: Bus) -> None:
    for choice in ("continue", "cancel"):
        talk = await opened(grace_bus, choice)
        later = await grace_bus.sessions.open(talk.key, talk.user, node="b", on_detach="continue")
        assert later.on_detach == choice


async def test_with_nobody_there_a_running_run_is_cancelled(grace_bus: Bus) -> None:
    talk = await opened(grace_bus)
    claim = await talk.running()
    await talk.advance("detach")
    assert await talk.state() == "cancelling"
    assert (await grace_bus.runs.renew([(claim.ref, claim.claim_id)]))[0].cancelled
    assert await talk.finish(claim, kind="C") is None
    assert await talk.kinds() == "SC"
    assert await detach_due(talk) is None


async def test_with_nobody_there_a_queued_run_and_all_behind_it_end_in_order(
    grace_bus: Bus,
) -> None:
    talk = await opened(grace_bus)
    runs = [(await talk.message(text)).run_id for text in ("a", "b", "c")]
    await talk.advance("detach")
    assert await talk.kinds() == "SCSCSC"
    assert [entry.run_id for entry in await talk.log()][::2] == runs
    assert await talk.state() == "idle"
    assert (await talk.message("and again")).status == "accepted"


async def test_while_a_node_says_that_clients_are_there_the_run_goes_on(
    bus: Bus, grace_bus: Bus
) -> None:
    talk = await opened(grace_bus)
    await talk.running()
    due = await talk.due("detach")
    await attend(replace(talk, bus=bus))  # its grace does not pass within the test
    await grace_bus.deadlines.advance(due)
    assert await talk.state() == "running"
    await attend(talk)
    await talk.advance("detach")
    assert await talk.state() == "cancelling"


async def test_who_only_looks_is_nobody(grace_bus: Bus) -> None:
    """A home without sockets asks, too: it must not keep a run going that nobody follows."""
    talk = await opened(grace_bus)
    await talk.running()
    before = await detach_due(talk)
    await grace_bus.sessions.open(talk.key, talk.user, node="node-b")
    assert await detach_due(talk) == before


async def test_by_default_a_run_goes_on_with_nobody_there(grace_bus: Bus) -> None:
    talk = await opened(grace_bus, "continue")
    await talk.running()
    await attend(talk)
    assert await detach_due(talk) is None


@pytest.mark.parametrize("kind", ["F", "I"])
async def test_without_a_run_nothing_is_due(grace_bus: Bus, kind: str) -> None:
    """Nor does a time that was set for an old run hit a new one."""
    talk = await opened(grace_bus)
    claim = await talk.running()
    assert await detach_due(talk) is not None
    interrupts = b'[{"id":"q1"}]' if kind == "I" else b""
    await talk.finish(claim, kind=kind, interrupts=interrupts)
    assert await detach_due(talk) is None
    await attend(talk)
    assert await detach_due(talk) is None


async def test_the_next_run_does_not_get_a_new_grace(grace_bus: Bus) -> None:
    """Or a session with many messages would go on for as many graces with nobody there."""
    talk = await opened(grace_bus)
    claim = await talk.running()
    before = await detach_due(talk)
    pending = (await talk.message("next")).run_id
    assert await talk.finish(claim) == pending
    assert await talk.claim(pending) is not None
    assert await detach_due(talk) == before


async def test_a_run_that_goes_back_to_the_queue_does_not_get_a_new_grace(grace_bus: Bus) -> None:
    talk = await opened(grace_bus)
    claim = await talk.running()
    before = await detach_due(talk)
    assert await grace_bus.runs.hand_back(claim.ref, claim.claim_id)
    assert await detach_due(talk) == before


async def test_the_end_of_a_session_leaves_nothing_due(grace_bus: Bus) -> None:
    talk = await opened(grace_bus)
    claim = await talk.running()
    await grace_bus.sessions.close(talk.key, talk.user)
    await talk.finish(claim, kind="C")
    assert await detach_due(talk) is None
