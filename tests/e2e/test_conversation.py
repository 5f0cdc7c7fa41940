"""A message travels: client, gateway, Redis, worker and back; `/metrics` tells the truth of it."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from support.agents import expected
from support.socket import TERMINAL, Socket, seqs, socket
from support.stack import COUNTING, Stack

P = "nooble_orchestrator_"
TENANT = 'tenant_id="default"'
BOTH = 'agent_id="counting",tenant_id="default"'
COMPLETED = f'{P}sessions_completed_total{{agent_id="counting",status="completed",{TENANT}}}'


@pytest.fixture
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of its own, since every count on it is checked."""
    with Stack.running(tmp_path_factory.mktemp("counting"), agent=COUNTING) as running:
        yield running


async def wait_for(stack: Stack, series: str, value: float) -> None:
    """Waits until a series has a value: what follows a closed socket is not yet done."""
    deadline = time.monotonic() + 45
    while (found := stack.metrics().get(series, 0.0)) != value:
        assert time.monotonic() < deadline, f"{series} is {found}, not {value}"
        await asyncio.sleep(0.02)


async def test_two_clients_see_one_streamed_answer_and_the_metrics_tell_the_truth(
    counting: Stack,
) -> None:
    async with socket(counting.ws_of()) as first, socket(counting.ws_of()) as second:
        await first.open(agent="counting")
        await second.open(session_id=first.session_id)
        await wait_for(counting, f"{P}websocket_connections_active{{{TENANT}}}", 2)
        await wait_for(counting, f"{P}sessions_active{{{TENANT}}}", 1)

        ack = await first.ask("message", content="count 100 3")
        assert ack["status"] == "accepted"
        for client in (first, second):
            end = await client.until_event(*TERMINAL)
            assert end["event"]["type"] == "RUN_FINISHED"
            assert end["event"]["usage"] == [
                {"model": "counting", "inputTokens": 3, "outputTokens": 102}
            ]

        assert first.events == second.events
        assert seqs(first.events) == list(range(1, len(first.events) + 1))
        assert first.text() == expected(100)
        kinds = [e["event"]["type"] for e in first.events]
        assert kinds[:2] == ["RUN_STARTED", "TEXT_MESSAGE_START"]
        assert kinds[-2:] == ["TEXT_MESSAGE_END", "RUN_FINISHED"]
        assert {e["run_id"] for e in first.events} == {ack["run_id"]}
        [asked] = first.events[0]["event"]["input"]["messages"]
        assert asked["content"] == "count 100 3"

        for series, value in (
            (f"{P}sessions_created_total{{{BOTH}}}", 1),
            (f'{P}messages_processed_total{{role="user",{TENANT}}}', 1),
            (f'{P}messages_processed_total{{role="assistant",{TENANT}}}', 1),
            (f'{P}message_processing_seconds_count{{role="user",{TENANT}}}', 1),
            (f'{P}message_processing_seconds_count{{role="assistant",{TENANT}}}', 1),
            (f'{P}tokens_total{{{BOTH},type="output"}}', 102),
            (f'{P}tokens_total{{{BOTH},type="input"}}', 3),
        ):
            await wait_for(counting, series, value)

    await wait_for(counting, f"{P}websocket_connections_active{{{TENANT}}}", 0)
    metrics = counting.metrics()
    assert metrics[f"{P}sessions_active{{{TENANT}}}"] == 1, "within the resume grace"
    assert metrics[COMPLETED] == 0

    async with socket(counting.ws_of()) as back:
        await back.open(session_id=first.session_id)
        assert (await back.ask("close"))["status"] == "accepted"
        assert await back.closed() == 1000
    await wait_for(counting, f"{P}sessions_active{{{TENANT}}}", 0)
    await wait_for(counting, COMPLETED, 1)
    await wait_for(counting, f"{P}session_duration_seconds_count{{{BOTH}}}", 1)
    assert counting.metrics()[f"{P}sessions_created_total{{{BOTH}}}"] == 1


async def test_a_joiner_in_mid_answer_gets_a_snapshot_and_the_rest(stack: Stack) -> None:
    async with socket(stack.ws_of()) as first, socket(stack.ws_of()) as late:
        await first.open(agent="demo")
        await first.ask("message", content="/slow 60")
        while len(first.events) < 10:
            await first.receive()
        await late.open(session_id=first.session_id)
        assert late.snapshot is not None
        kinds = [event["type"] for event in late.snapshot["events"]]
        assert kinds[:2] == ["RUN_STARTED", "MESSAGES_SNAPSHOT"]
        assert kinds.count("TEXT_MESSAGE_CONTENT") == 1, "adjacent deltas are merged"
        so_far = late.snapshot["events"][kinds.index("TEXT_MESSAGE_CONTENT")]["delta"]
        assert late.opened["state"] == "running"
        await first.ask("cancel")
        for client in (first, late):
            await client.until_event(*TERMINAL)
        assert so_far + late.text() == first.text()
        assert seqs(late.events)[0] == late.snapshot["cursor"]["seq"] + 1


async def test_a_client_that_was_away_gets_exactly_what_it_missed(stack: Stack) -> None:
    async with socket(stack.ws_of()) as watcher:
        await watcher.open(agent="demo")
        async with socket(stack.ws_of()) as client:
            await client.open(session_id=watcher.session_id)
            await watcher.ask("message", content="keep talking")
            while len(client.events) < 10:
                await client.receive()
        await watcher.until_event(*TERMINAL)
        async with socket(stack.ws_of()) as back:
            await back.open(session_id=watcher.session_id, after=client.cursor)
            assert back.opened["resumed"] is True
            await back.until_event(*TERMINAL)
        assert client.events + back.events == watcher.events


async def test_resuming_with_nothing_missed_is_silent(stack: Stack) -> None:
    async with socket(stack.ws_of()) as client:
        await client.open(agent="demo")
        await client.ask("message", content="/help")
        await client.until_event(*TERMINAL)
    async with socket(stack.ws_of()) as back:
        await back.open(session_id=client.session_id, after=client.cursor)
        assert back.opened["resumed"] is True
        await back.ask("cancel")
        assert back.events == []


async def test_cancel_stops_a_running_answer_in_order(stack: Stack) -> None:
    async with socket(stack.ws_of()) as client:
        await client.open(agent="demo")
        await client.ask("message", content="/slow 60")
        await client.until_event("TEXT_MESSAGE_CONTENT")
        assert (await client.ask("cancel"))["status"] == "accepted"
        end = await client.until_event(*TERMINAL)
        assert end["event"]["outcome"] == {"type": "cancelled"}
        kinds = [e["event"]["type"] for e in client.events]
        assert kinds[-2:] == ["TEXT_MESSAGE_END", "RUN_FINISHED"]
        ack = await client.ask("message", content="/help")
        assert ack["status"] == "accepted"


async def test_a_question_is_answered_and_the_next_run_carries_it(stack: Stack) -> None:
    async with socket(stack.ws_of()) as client, socket(stack.ws_of()) as other:
        await client.open(agent="demo")
        await client.ask("message", content="/ask")
        end = await client.until_event(*TERMINAL)
        [question] = end["event"]["outcome"]["interrupts"]
        await other.open(session_id=client.session_id)
        assert other.opened["state"] == "awaiting_input"
        assert [q["id"] for q in other.opened["interrupts"]] == [question["id"]]
        refused = await client.ask("message", content="never mind")
        assert (refused["type"], refused["code"]) == ("error", "interrupt_pending")
        entry = {"interrupt_id": question["id"], "status": "resolved", "payload": True}
        assert (await client.ask("answer", entries=[entry]))["status"] == "accepted"
        late = await other.ask("answer", entries=[entry])
        assert late["code"] == "interrupt_expired"
        started = await client.until_event("RUN_STARTED")
        assert started["event"]["input"]["resume"] == [
            {"interruptId": question["id"], "status": "resolved", "payload": True}
        ]
        assert (await client.until_event(*TERMINAL))["event"]["outcome"] == {"type": "success"}


async def test_a_client_tool_is_called_and_its_result_carried_on(stack: Stack) -> None:
    async with socket(stack.ws_of()) as client:
        await client.open(agent="demo")
        await client.ask("message", content="/tool")
        call = await client.until_event("TOOL_CALL_START")
        call_id = call["event"]["toolCallId"]
        end = await client.until_event(*TERMINAL)
        assert end["event"]["outcome"]["pendingToolCallIds"] == [call_id]
        await client.ask("tool_result", tool_call_id=call_id, content="a quarter past nine")
        end = await client.until_event(*TERMINAL)
        assert end["event"]["outcome"] == {"type": "success"}
        assert "a quarter past nine" in client.text(end["run_id"])


async def test_a_failing_agent_ends_its_run_without_telling_why(stack: Stack) -> None:
    async with socket(stack.ws_of()) as client:
        await client.open(agent="demo")
        await client.ask("message", content="/fail")
        end = await client.until_event(*TERMINAL)
        assert end["event"]["type"] == "RUN_ERROR"
        assert end["event"]["code"] == "internal"
        stack.workers[0].wait_for_line("Traceback")
        assert "Traceback" not in str(client.events)


async def test_a_burst_arrives_complete(stack: Stack) -> None:
    async with socket(stack.ws_of()) as client:
        await client.open(agent="demo")
        await client.ask("message", content="/burst 5000")
        end = await client.until_event(*TERMINAL)
        assert end["event"]["usage"][0]["outputTokens"] == 5000
        assert seqs(client.events) == list(range(1, len(client.events) + 1))


async def test_messages_while_busy_by_when_busy(stack: Stack) -> None:
    async with socket(stack.ws_of()) as client:
        await client.open(agent="demo")
        slow = await client.ask("message", content="/slow 60")
        assert (await client.ask("message", content="x", when_busy="reject"))["code"] == "busy"
        waits = await client.ask("message", content="/help")
        assert waits["status"] == "queued"
        urgent = await client.ask("message", content="/help", when_busy="interrupt")
        ended = [(await client.until_event(*TERMINAL))["run_id"] for _ in range(3)]
        assert ended == [slow["run_id"], urgent["run_id"], waits["run_id"]]


async def test_the_same_message_twice_is_one_run(stack: Stack) -> None:
    async with socket(stack.ws_of()) as client:
        await client.open(agent="demo")
        first = await client.ask("message", id="m1", content="/help")
        again = await client.ask("message", id="m1", content="/help")
        assert (again["status"], again["run_id"]) == ("duplicate", first["run_id"])
        conflict = await client.ask("message", id="m1", content="/fail")
        assert conflict["code"] == "id_conflict"
        await client.until_event(*TERMINAL)
        await client.ask("cancel")
        assert sum(e["event"]["type"] == "RUN_STARTED" for e in client.events) == 1


async def test_an_unknown_agent_and_a_foreign_session(stack: Stack) -> None:
    async with socket(stack.ws_of()) as owner:
        await owner.open(agent="demo")
        for fields, code in (
            ({"agent": "nobody"}, "agent_not_found"),
            ({"session_id": "x"}, "session_not_found"),
        ):
            async with socket(stack.ws_of()) as client:
                refused = await client.ask("open", **fields)
                assert refused["code"] == code
                assert await client.closed() == 4404
        stranger = {"additional_headers": {"X-Tenant-ID": "other"}}
        async with socket(stack.ws_of(), **stranger) as client:
            refused = await client.ask("open", session_id=owner.session_id)
            assert refused["code"] == "session_not_found"


async def one_turn(client: Socket, text: str) -> str:
    """A message and its whole answer."""
    ack = await client.ask("message", content=text)
    await client.until_event(*TERMINAL)
    return client.text(ack["run_id"])


async def test_many_sessions_at_once_do_not_mix(stack: Stack) -> None:
    async def talk(number: int) -> None:
        async with socket(stack.ws_of()) as client:
            await client.open(agent="demo")
            said = await one_turn(client, f"I am number {number}")
            assert f"“I am number {number}”" in said
            assert seqs(client.events) == list(range(1, len(client.events) + 1))

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(talk(number))
