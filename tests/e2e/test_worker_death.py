"""Workers and nodes that die or freeze: no run is held twice, none stays open."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.agents import expected
from support.socket import TERMINAL, seqs, socket
from support.stack import COUNTING, Stack
from support.theatre import theatre
from support.unruly import CALLED

UNRULY = "support.unruly:unruly"
PHOENIX = "support.unruly:phoenix"
LEASE = {"GATEWAY_LIMIT_LEASE_S": "3"}
"""Longer than a busy machine keeps a healthy worker waiting."""


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Stack]:
    """One node and one worker with a short lease."""
    with Stack.running(tmp_path, agent=COUNTING, **LEASE) as running:
        yield running


async def test_a_frozen_worker_that_wakes_can_append_nothing(mortal: Stack) -> None:
    async with socket(mortal.ws_of()) as client:
        await client.open(agent="counting")
        await client.ask("message", content="count 400 10")
        while len(client.events) < 10:
            await client.receive()
        mortal.workers[0].signal(signal.SIGSTOP)
        end = await client.until_event(*TERMINAL)
        assert (end["event"]["type"], end["event"]["code"]) == ("RUN_ERROR", "worker_lost")
        said = client.text()
        mortal.workers[0].signal(signal.SIGCONT)
        mortal.workers[0].wait_for_line("another claim holds it")

        # The woken worker serves the next message; nothing of the old run comes with it.
        ack = await client.ask("message", content="count 20 1")
        await client.until_event(*TERMINAL)
        assert client.text(end["run_id"]) == said
        assert client.text(ack["run_id"]) == expected(20)
        assert seqs(client.events) == list(range(1, len(client.events) + 1))

    async with socket(mortal.ws_of()) as late:
        await late.open(session_id=client.session_id)
        assert late.snapshot is not None
        [messages] = [e["messages"] for e in late.snapshot["events"]]
        assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]
        assert messages[1]["content"] == said
        assert messages[1]["metadata"] == {"incomplete": True}
        assert "metadata" not in messages[3]


async def test_a_worker_that_dies_before_its_first_event_is_replaced(tmp_path: Path) -> None:
    with Stack.running(tmp_path, agent=UNRULY, **LEASE) as stack:
        async with socket(stack.ws_of()) as client:
            await client.open(agent="unruly")
            await client.ask("message", content="late")
            stack.workers[0].wait_for_line(CALLED)
            stack.workers[0].kill()
            stack.add_worker(UNRULY)
            end = await client.until_event(*TERMINAL)
            assert end["event"]["outcome"] == {"type": "success"}
            assert client.text() == "attempt 2"
            assert sum(e["event"]["type"] == "RUN_STARTED" for e in client.events) == 1


async def test_a_worker_that_freezes_before_its_first_event_is_replaced(tmp_path: Path) -> None:
    """Woken, it finds that another holds its run: its agent is stopped, and is never heard."""
    with Stack.running(tmp_path, agent=UNRULY, **LEASE) as stack:
        frozen = stack.workers[0]
        async with socket(stack.ws_of()) as client:
            await client.open(agent="unruly")
            await client.ask("message", content="late")
            frozen.wait_for_line(CALLED)
            frozen.signal(signal.SIGSTOP)
            stack.add_worker(UNRULY)
            end = await client.until_event(*TERMINAL)
            assert end["event"]["type"] == "RUN_FINISHED"
            assert client.text() == "attempt 2"
            frozen.signal(signal.SIGCONT)
            frozen.wait_for_line("another claim holds it")
            await client.ask("cancel")
            assert seqs(client.events) == list(range(1, len(client.events) + 1))
            assert sum(e["event"]["type"] == "RUN_STARTED" for e in client.events) == 1


async def test_a_run_that_kills_every_worker_is_given_up(tmp_path: Path) -> None:
    """So a poisoned message costs as many workers as it has attempts, and no more."""
    limits = {**LEASE, "GATEWAY_LIMIT_MAX_ATTEMPTS": "2"}
    with Stack.running(tmp_path, workers=3, agent=UNRULY, **limits) as stack:
        async with socket(stack.ws_of()) as client:
            await client.open(agent="unruly")
            await client.ask("message", content="die")
            end = await client.until_event(*TERMINAL)
            assert (end["event"]["type"], end["event"]["code"]) == ("RUN_ERROR", "worker_lost")
            assert "attempt 2" in end["event"]["message"]
            assert sum(worker.popen.poll() is None for worker in stack.workers) == 1
            ack = await client.ask("message", content="count 20 1")
            await client.until_event(*TERMINAL)
            assert client.text(ack["run_id"]) == expected(20)


async def test_a_restartable_run_is_made_anew_when_its_worker_is_killed(tmp_path: Path) -> None:
    """The lost run ends as any other; one of its own answers the same message, once."""
    with Stack.running(tmp_path, agent=PHOENIX, **LEASE) as stack:
        async with socket(stack.ws_of()) as client:
            await client.open(agent="phoenix")
            lost = (await client.ask("message", id="m1", content="count 400 5"))["run_id"]
            while len(client.events) < 10:
                await client.receive()
            stack.workers[0].kill()
            stack.add_worker(PHOENIX)
            end = await client.until_event(*TERMINAL)
            assert (end["run_id"], end["event"]["code"]) == (lost, "worker_lost")
            started = await client.until_event("RUN_STARTED")
            assert started["run_id"] != lost
            assert started["event"]["parentRunId"] == lost
            asked = client.events[0]["event"]["input"]
            assert started["event"]["input"] == {**asked, "runId": started["run_id"]}
            end = await client.until_event(*TERMINAL)
            assert (end["run_id"], end["event"]["type"]) == (started["run_id"], "RUN_FINISHED")
            assert client.text(started["run_id"]) == expected(400)
            assert seqs(client.events) == list(range(1, len(client.events) + 1))
            again = await client.ask("message", id="m1", content="count 400 5")
            assert (again["status"], again["run_id"]) == ("duplicate", lost)

        async with socket(stack.ws_of()) as late:
            await late.open(session_id=client.session_id)
            assert late.snapshot is not None
            [messages] = [e["messages"] for e in late.snapshot["events"]]
            assert [m["role"] for m in messages] == ["user", "assistant", "assistant"]
            assert messages[1]["metadata"] == {"incomplete": True}
            assert messages[2]["content"] == expected(400)


async def test_a_run_takes_and_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    """The run time-out, and the wait for a worker whose only slot is taken."""
    limits = {"GATEWAY_LIMIT_RUN_TIMEOUT_S": "8", "GATEWAY_LIMIT_QUEUE_WAIT_S": "1"}
    with Stack.running(tmp_path, workers=0, **limits) as stack:
        stack.add_worker(COUNTING, "--slots", "1")
        stack.wait_until_ready()
        async with socket(stack.ws_of()) as slow, socket(stack.ws_of()) as waiting:
            for client, content in ((slow, "silent"), (waiting, "count 1 1")):
                await client.open(agent="counting")
                await client.ask("message", content=content)
                if client is slow:
                    await client.until_event("RUN_STARTED")
            for client in (waiting, slow):
                end = await client.until_event(*TERMINAL)
                assert (end["event"]["type"], end["event"]["code"]) == ("RUN_ERROR", "timeout")
            assert [e["event"]["type"] for e in waiting.events] == ["RUN_STARTED", "RUN_ERROR"]


async def test_a_run_ends_when_its_worker_and_its_node_are_killed_together(
    mortal: Stack,
) -> None:
    async with socket(mortal.ws_of()) as client:
        await client.open(agent="counting")
        await client.ask("message", content="count 400 10")
        while len(client.events) < 10:
            await client.receive()
        mortal.workers[0].kill()
        mortal.kill_node()
        assert await client.closed() == 1006
    mortal.start_node()
    async with socket(mortal.ws_of()) as back:
        await back.open(session_id=client.session_id, after=client.cursor)
        assert back.opened["resumed"] is True
        end = await back.until_event(*TERMINAL)
        assert (end["event"]["type"], end["event"]["code"]) == ("RUN_ERROR", "worker_lost")
    events = client.events + back.events
    assert seqs(events) == list(range(1, len(events) + 1))


async def test_no_run_stays_open_when_everything_is_killed_together(tmp_path: Path) -> None:
    """Node, worker and Redis: what is in its file ends, and is answered, all the same."""
    with theatre(tmp_path, nodes=1, agent=COUNTING, **LEASE) as (stack, server):
        async with socket(stack.ws_of()) as client:
            await client.open(agent="counting")
            first = await client.ask("message", content="count 400 10")
            second = await client.ask("message", content="count 20 1")
            assert second["status"] == "queued"
            while len(client.events) < 10:
                await client.receive()
            stack.workers[0].kill()
            stack.kill_node()
            server.kill()
            await client.closed()
        server.start()
        stack.start_node()
        stack.add_worker(COUNTING)
        async with socket(stack.ws_of()) as back:
            await back.open(session_id=client.session_id, after=client.cursor)
            assert back.opened["resumed"] is True
            lost = await back.until_event(*TERMINAL)
            assert (lost["run_id"], lost["event"]["code"]) == (first["run_id"], "worker_lost")
            end = await back.until_event(*TERMINAL)
            assert (end["run_id"], end["event"]["type"]) == (second["run_id"], "RUN_FINISHED")
            assert back.text(second["run_id"]) == expected(20)
        events = client.events + back.events
        assert seqs(events) == list(range(1, len(events) + 1))


async def test_a_message_without_any_worker_ends(tmp_path: Path) -> None:
    with Stack.running(tmp_path, agent=COUNTING, GATEWAY_LIMIT_QUEUE_WAIT_S="0.5") as stack:
        assert stack.workers[0].stop() == 0
        async with socket(stack.ws_of()) as client:
            await client.open(agent="counting")
            await client.ask("message", content="count 1 1")
            end = await client.until_event(*TERMINAL)
            assert (end["event"]["type"], end["event"]["code"]) == ("RUN_ERROR", "no_worker")


async def test_a_stopping_worker_finishes_what_it_has_begun(mortal: Stack) -> None:
    async with socket(mortal.ws_of()) as client:
        await client.open(agent="counting")
        await client.ask("message", content="count 100 5")
        await client.until_event("TEXT_MESSAGE_CONTENT")
        mortal.workers[0].terminate()
        assert (await client.until_event(*TERMINAL))["event"]["type"] == "RUN_FINISHED"
        assert client.text() == expected(100)
        assert mortal.workers[0].stop() == 0


async def test_a_node_that_stops_closes_its_sockets_with_a_reconnect_code(
    mortal: Stack,
) -> None:
    async with socket(mortal.ws_of()) as client:
        await client.open(agent="counting")
        mortal.nodes[0].terminate()
        assert await client.closed() == 1012
        assert mortal.nodes[0].stop() == 0
