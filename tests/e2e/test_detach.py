"""What happens to a run when its last client leaves is the session's choice."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.agents import expected
from support.bus import connected_bus
from support.socket import TERMINAL, Socket, seqs, socket
from support.stack import COUNTING, Stack

from gateway.session.model import SessionKey

GRACE_S = 3
PATIENCE_S = GRACE_S * 4 / 3 + 2
"""Past it a run that nobody follows is over: the time in Redis, and a sweep."""
LONG = "count 600 12"
"""Takes more than 7 s."""
ENDLESS = "count 100000 12"


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[Stack]:
    """Two nodes with a short resume grace."""
    with Stack.running(
        tmp_path, nodes=2, agent=COUNTING, GATEWAY_LIMIT_RESUME_GRACE_S=str(GRACE_S)
    ) as running:
        yield running


async def started(client: Socket, on_detach: str, content: str = LONG) -> str:
    """A new session with a long run that has begun; answers the run's id."""
    await client.open(agent="counting", on_detach=on_detach)
    ack = await client.ask("message", content=content)
    await client.until_event("TEXT_MESSAGE_CONTENT")
    return ack["run_id"]


async def idle(stack: Stack, session_id: str) -> None:
    """Waits for the end of the run, without being a client."""
    key = SessionKey("default", session_id)
    async with asyncio.timeout(40), connected_bus(stack.redis_url) as bus:
        while (  # noqa: ASYNC110
            await bus.sessions.open(key, "anonymous", node="")
        ).state != "idle":
            await asyncio.sleep(0.05)


async def rest_of(stack: Stack, client: Socket) -> Socket:
    """What the client missed, up to the end of the run."""
    async with socket(stack.ws_of(1)) as back:
        await back.open(session_id=client.session_id, after=client.cursor)
        await back.until_event(*TERMINAL)
        events = client.events + back.events
        assert seqs(events) == list(range(1, len(events) + 1))
        return back


async def test_a_run_is_kept_while_any_node_has_a_client_and_goes_on_by_default(
    twins: Stack,
) -> None:
    async def moved() -> None:
        async with socket(twins.ws_of(0)) as first, socket(twins.ws_of(1)) as second:
            run_id = await started(first, "cancel")
            await second.open(session_id=first.session_id, after=first.cursor)
            await first.connection.close()  # the home, by the way
            end = await second.until_event(*TERMINAL)
            assert end["event"]["type"] == "RUN_FINISHED"
            assert first.text(run_id) + second.text(run_id) == expected(600)

    async def left() -> None:
        async with socket(twins.ws_of(0)) as client:
            await started(client, "continue")
        await idle(twins, client.session_id)
        back = await rest_of(twins, client)
        assert client.text() + back.text() == expected(600)

    async with asyncio.TaskGroup() as group:
        group.create_task(moved())
        group.create_task(left())


async def test_a_run_is_cancelled_when_its_clients_or_all_their_nodes_are_gone(
    twins: Stack,
) -> None:
    async def left() -> Socket:
        async with socket(twins.ws_of(1)) as client:
            await started(client, "cancel", ENDLESS)
        return client

    async def bereft() -> Socket:
        async with socket(twins.ws_of(0)) as client:
            await started(client, "cancel", ENDLESS)
            twins.kill_node(0)
            assert await client.closed() == 1006
        return client

    # The node that remains has been there for a grace: one that has just come judges nobody.
    await asyncio.sleep(GRACE_S)
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(left()), group.create_task(bereft())]
    for task in clients:
        client = task.result()
        async with asyncio.timeout(PATIENCE_S + 15):
            await idle(twins, client.session_id)
        back = await rest_of(twins, client)
        kinds = [e["event"]["type"] for e in back.events]
        assert kinds[-2:] == ["TEXT_MESSAGE_END", "RUN_FINISHED"]
        assert back.events[-1]["event"]["outcome"] == {"type": "cancelled"}
        said = client.text() + back.text()
        assert expected(100_000).startswith(said)
