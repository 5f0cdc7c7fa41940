"""Questions and client tools: whatever dies between question and answer, one answer counts."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.socket import TERMINAL, Socket, seqs, socket
from support.stack import DEMO, Stack
from support.theatre import theatre

KINDS = ["answer", "tool_result"]
TTL_S = 8


@pytest.fixture(scope="module")
def fleeting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two nodes; questions wait for a short time only."""
    folder = tmp_path_factory.mktemp("fleeting")
    with Stack.running(folder, nodes=2, GATEWAY_LIMIT_INTERRUPT_TTL_S=str(TTL_S)) as running:
        yield running


async def questioned(client: Socket, kind: str) -> dict[str, Any]:
    """A run that has ended with a question or a tool call; answers what must be sent for it."""
    await client.ask("message", content={"answer": "/ask", "tool_result": "/tool"}[kind])
    end = await client.until_event(*TERMINAL)
    outcome = end["event"]["outcome"]
    if kind == "answer":
        [question] = outcome["interrupts"]
        entry = {"interrupt_id": question["id"], "status": "resolved", "payload": "of course"}
        return {"entries": [entry]}
    [call_id] = outcome["pendingToolCallIds"]
    return {"tool_call_id": call_id, "content": "of course"}


async def insist(client: Socket, kind: str, **fields: Any) -> dict[str, Any]:
    """Sends a command again, under its id, for as long as the gateway cannot take it."""
    for _ in range(150):
        reply = await client.ask(kind, **fields)
        if reply.get("code") != "unavailable":
            return reply
        assert reply["retryable"]
        await asyncio.sleep(0.1)
    raise AssertionError("unavailable for ever")


@asynccontextmanager
async def back(stack: Stack, number: int, client: Socket) -> AsyncGenerator[Socket]:
    """The same client, on another connection; what it saw before is in its events."""
    async with socket(stack.ws_of(number)) as again:
        await again.open(session_id=client.session_id, after=client.cursor)
        assert again.opened["resumed"]
        again.events = [*client.events, *again.events]
        yield again


async def answered(client: Socket, run_id: str) -> None:
    """The run that carries the answer ends well; it is the only one that followed."""
    while not ends(client, run_id):
        await client.receive()
    [end] = ends(client, run_id)
    assert end["event"]["outcome"] == {"type": "success"}
    assert "of course" in client.text(run_id)
    assert seqs(client.events) == list(range(1, len(client.events) + 1))
    started = [e["run_id"] for e in client.events if e["event"]["type"] == "RUN_STARTED"]
    assert started[1:] == [run_id]


def ends(client: Socket, run_id: str) -> list[dict[str, Any]]:
    """The last event of a run, if it has come."""
    return [e for e in client.events if e["run_id"] == run_id and e["event"]["type"] in TERMINAL]


async def test_the_node_dies_between_question_and_answer(tmp_path: Path) -> None:
    """And in the moment of the answer: the client sends it again, and it counts once."""
    with theatre(tmp_path) as (stack, _):
        async with socket(stack.ws_of(0)) as person, socket(stack.ws_of(0)) as tool:
            for client in (person, tool):
                await client.open(agent="demo")
            answer = await questioned(person, "answer")
            result = await questioned(tool, "tool_result")
            await tool.send("tool_result", id="r1", **result)
            stack.kill_node(0)
            await person.closed()
            await tool.closed()
        async with back(stack, 1, person) as client:
            assert client.opened["state"] == "awaiting_input"
            [asked] = client.opened["interrupts"]
            assert asked["id"] == answer["entries"][0]["interrupt_id"]
            ack = await client.ask("answer", **answer)
            assert ack["status"] == "accepted"
            await answered(client, ack["run_id"])
        async with back(stack, 1, tool) as client:
            ack = await client.ask("tool_result", id="r1", **result)
            assert ack["status"] in ("accepted", "duplicate")
            await answered(client, ack["run_id"])


async def test_the_worker_dies_between_question_and_answer(tmp_path: Path) -> None:
    """No worker waits for a person: another one goes on."""
    with theatre(tmp_path) as (stack, _):
        async with socket(stack.ws_of(0)) as person, socket(stack.ws_of(0)) as tool:
            for client in (person, tool):
                await client.open(agent="demo")
            for client, kind in ((person, "answer"), (tool, "tool_result")):
                reply = await questioned(client, kind)
                stack.workers[-1].kill()
                ack = await client.ask(kind, **reply)
                assert ack["status"] == "accepted"
                stack.add_worker(DEMO)
                await answered(client, ack["run_id"])


async def test_redis_dies_between_question_and_answer(tmp_path: Path) -> None:
    """With its append-only file it comes back with the question; meanwhile: `unavailable`."""
    with theatre(tmp_path) as (stack, server):
        async with socket(stack.ws_of(0)) as person, socket(stack.ws_of(1)) as tool:
            replies = {}
            for client, kind in ((person, "answer"), (tool, "tool_result")):
                await client.open(agent="demo")
                replies[kind] = await questioned(client, kind)
            server.kill()
            for client, kind in ((person, "answer"), (tool, "tool_result")):
                refused = await client.ask(kind, id="a1", **replies[kind])
                assert refused["code"] == "unavailable"
            server.start()
            for client, kind in ((person, "answer"), (tool, "tool_result")):
                ack = await insist(client, kind, id="a1", **replies[kind])
                assert ack["status"] in ("accepted", "duplicate")
                await answered(client, ack["run_id"])


@pytest.mark.parametrize("kind", KINDS)
async def test_of_two_who_answer_at_once_one_counts(fleeting: Stack, kind: str) -> None:
    async with socket(fleeting.ws_of(0)) as first, socket(fleeting.ws_of(1)) as second:
        await first.open(agent="demo")
        await second.open(session_id=first.session_id)
        reply = await questioned(first, kind)
        await second.until_event(*TERMINAL)
        replies = await asyncio.gather(first.ask(kind, **reply), second.ask(kind, **reply))
        [won] = [each for each in replies if each["type"] == "ack"]
        [lost] = [each for each in replies if each["type"] == "error"]
        assert won["status"] == "accepted"
        assert (lost["code"], lost["retryable"]) == ("interrupt_expired", False)
        for client in (first, second):
            await answered(client, won["run_id"])
        assert first.events == second.events


@pytest.mark.parametrize("kind", KINDS)
async def test_a_question_that_nobody_answers_expires(fleeting: Stack, kind: str) -> None:
    """Everybody is told, a late answer is refused, and the conversation can go on."""
    async with socket(fleeting.ws_of(0)) as first, socket(fleeting.ws_of(1)) as second:
        await first.open(agent="demo")
        await second.open(session_id=first.session_id)
        reply = await questioned(first, kind)
        for client in (first, second):
            closed = await client.until_event("CUSTOM")
            assert closed["event"]["name"] == "nooble.input_closed"
            assert closed["event"]["value"] == {"reason": "expired"}
            late = await client.ask(kind, **reply)
            assert (late["code"], late["retryable"]) == ("interrupt_expired", False)
        async with socket(fleeting.ws_of(1)) as newcomer:
            await newcomer.open(session_id=first.session_id)
            assert newcomer.opened["state"] == "idle"
            assert newcomer.opened["interrupts"] == newcomer.opened["pending_tool_calls"] == []
        ack = await first.ask("message", content="/burst 3")
        assert ack["status"] == "accepted"
        assert (await first.until_event(*TERMINAL))["run_id"] == ack["run_id"]
