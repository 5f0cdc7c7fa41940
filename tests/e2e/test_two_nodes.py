"""Two nodes, two workers, one Redis: any client on any node, any run on any worker."""

from typing import Any

import anyio
import pytest
from support.agents import expected
from support.following import until
from support.socket import TERMINAL, seqs, socket
from support.stack import Stack

P = "nooble_orchestrator_"


async def test_a_client_resumes_on_the_other_node_in_mid_answer(pair: Stack) -> None:
    async with socket(pair.ws_of(0)) as first:
        await first.open(agent="counting")
        ack = await first.ask("message", content="count 150 5")
        while len(first.events) < 10:
            await first.receive()
    async with socket(pair.ws_of(1)) as second:
        await second.open(session_id=first.session_id, after=first.cursor)
        assert second.opened["resumed"] is True
        await second.until_event(*TERMINAL)
    events = first.events + second.events
    assert seqs(events) == list(range(1, len(events) + 1))
    assert first.text() + second.text() == expected(150)
    assert {event["run_id"] for event in events} == {ack["run_id"]}


async def test_a_client_that_reconnects_ten_times_within_one_answer(pair: Stack) -> None:
    """Now here, now there, cut off without a word; it hears every event once."""
    events: list[dict[str, Any]] = []
    session: dict[str, Any] = {"agent": "counting"}
    for turn in range(11):
        async with socket(pair.ws_of(turn % 2)) as client:
            await client.open(**session)
            if turn == 0:
                await client.ask("message", content="count 800 5")
            else:
                assert client.opened["resumed"] is True
            if turn == 10:
                await client.until_event(*TERMINAL)
            while len(client.events) < 2:  # so that the answer is not over before the last turn
                await client.receive()
            client.connection.transport.abort()
        events += client.events
        cursor = {"epoch": client.cursor["epoch"], "seq": events[-1]["seq"]}
        session = {"session_id": client.session_id, "after": cursor}
    assert seqs(events) == list(range(1, len(events) + 1))
    said = [e["event"] for e in events if e["event"]["type"] == "TEXT_MESSAGE_CONTENT"]
    assert "".join(event["delta"] for event in said) == expected(800)


async def test_clients_on_both_nodes_see_the_same(pair: Stack) -> None:
    async with socket(pair.ws_of(0)) as first, socket(pair.ws_of(1)) as second:
        await first.open(agent="counting")
        await second.open(session_id=first.session_id)
        await second.ask("message", content="count 50 2")
        for client in (first, second):
            await client.until_event(*TERMINAL)
        assert first.events == second.events
        assert first.text() == expected(50)


async def test_a_session_is_counted_by_one_node(pair: Stack) -> None:
    series = f'{P}sessions_active{{tenant_id="counted-once"}}'
    tokens = f'{P}tokens_total{{agent_id="counting",tenant_id="counted-once",type="output"}}'
    options = {"additional_headers": {"X-Tenant-ID": "counted-once"}}
    async with (
        socket(pair.ws_of(0), **options) as first,
        socket(pair.ws_of(1), **options) as second,
    ):
        await first.open(agent="counting")
        await second.open(session_id=first.session_id)
        await first.ask("message", content="count 20 1")
        for client in (first, second):
            await client.until_event(*TERMINAL)

        def counts() -> tuple[float, float]:
            both = [pair.metrics(0), pair.metrics(1)]
            return (
                sum(metrics.get(series, 0) for metrics in both),
                sum(metrics.get(tokens, 0) for metrics in both),
            )

        await until(lambda: counts() == (1, 22))


async def test_both_workers_take_part(pair: Stack) -> None:
    clients = 12
    seen = [0] * clients

    async def talk(number: int) -> None:
        async with socket(pair.ws_of(number % 2)) as client:
            await client.open(agent="counting")
            await client.ask("message", content="count 100 10")
            while (await client.receive())["type"] != "event":
                pass
            busy = [status["busy"] for status in pair.get("/api/v1/agents")["agents"]]
            seen[number] = busy[0]
            await client.until_event(*TERMINAL)
            assert client.text() == expected(100)

    async with anyio.create_task_group() as group:
        for number in range(clients):
            group.start_soon(talk, number)
    [agent] = pair.get("/api/v1/agents")["agents"]
    assert (agent["workers"], agent["slots"]) == (2, 16)
    # One worker has 8 slots, so 12 runs at once need both.
    assert pair.workers[0].popen.poll() is None
    assert pair.workers[1].popen.poll() is None


@pytest.mark.parametrize("number", [0, 1])
async def test_each_node_knows_the_agents(pair: Stack, number: int) -> None:
    [agent] = pair.get("/api/v1/agents", number)["agents"]
    assert (agent["agent_id"], agent["workers"]) == ("counting", 2)
