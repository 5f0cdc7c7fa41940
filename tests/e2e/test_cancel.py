"""Cancel: how soon a streaming agent hears it, and what becomes of one that does not listen."""

import statistics
import time
from collections.abc import Iterator

import pytest
from support.agents import expected
from support.socket import TERMINAL, Socket, seqs, socket
from support.stack import Stack

UNRULY = "support.unruly:unruly"
TIGHT = ("--slots", "2", "--grace", "1")
HURRIED = {"GATEWAY_LIMIT_LEASE_S": "3", "GATEWAY_LIMIT_CANCEL_GRACE_S": "1"}


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """With the documented limits: a renewal, which brings a cancel too, comes every 10 s."""
    with Stack.running(tmp_path_factory.mktemp("patient"), agent=UNRULY) as running:
        yield running


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A worker with two slots, a short lease and short graces."""
    folder = tmp_path_factory.mktemp("hurried")
    with Stack.running(folder, workers=0, **HURRIED) as running:
        running.add_worker(UNRULY, *TIGHT)
        running.wait_until_ready()
        yield running


async def begun(client: Socket, content: str) -> str:
    """A run that has said something; answers its id."""
    ack = await client.ask("message", content=content)
    await client.until_event("TEXT_MESSAGE_CONTENT")
    return ack["run_id"]


async def test_a_cancel_reaches_a_streaming_agent_within_100_ms(patient: Stack) -> None:
    """From the client's frame to the client's last event: more than the way to the worker."""
    took_s: list[float] = []
    async with socket(patient.ws_of()) as client:
        await client.open(agent="unruly")
        while len(took_s) < 9 or (min(took_s) >= 0.1 and len(took_s) < 50):
            run_id = await begun(client, "count 100000 5")
            sent_at = time.monotonic()
            await client.send("cancel")
            end = await client.until_event(*TERMINAL)
            took_s.append(time.monotonic() - sent_at)
            assert (end["run_id"], end["event"]["outcome"]) == (run_id, {"type": "cancelled"})
        assert seqs(client.events) == list(range(1, len(client.events) + 1))
    # The machine may be busy, so one must be as fast as that; without pub/sub it would be 5 s.
    assert min(took_s) < 0.1, took_s
    assert statistics.median(took_s) < 1, took_s


async def test_what_a_cancelled_agent_left_open_is_closed_before_the_end(patient: Stack) -> None:
    async with socket(patient.ws_of()) as client:
        await client.open(agent="unruly")
        await begun(client, "open")
        await client.ask("cancel")
        end = await client.until_event(*TERMINAL)
        kinds = [event["event"]["type"] for event in client.events]
        assert kinds[-3:] == ["TEXT_MESSAGE_END", "TOOL_CALL_END", "RUN_FINISHED"]
        assert end["event"]["outcome"] == {"type": "cancelled"}


async def test_an_agent_that_ignores_its_cancel_is_cut_off_and_let_go(hurried: Stack) -> None:
    """Its client waits for the grace, and its slots are free again a little later."""
    async with socket(hurried.ws_of()) as client, socket(hurried.ws_of()) as other:
        ends = []
        for one in (client, other):
            await one.open(agent="unruly")
            await begun(one, "hold")
            await one.ask("cancel")
        for one in (client, other):
            end = await one.until_event(*TERMINAL)
            ends.append((end["event"]["type"], end["event"]["code"]))
        assert ends == [("RUN_ERROR", "cancelled")] * 2

        ack = await client.ask("message", content="count 20 1")
        await client.until_event(*TERMINAL)
        assert client.text(ack["run_id"]) == expected(20)
        assert seqs(client.events) == list(range(1, len(client.events) + 1))
    hurried.workers[0].wait_for_line('"the agent ignores its cancellation; it was let go"')
    assert '"agent_id":"unruly"' in hurried.workers[0].output()


async def test_an_agent_that_blocks_its_worker_keeps_no_client_waiting(hurried: Stack) -> None:
    """Nothing in that worker can act, for any of its runs: the deadlines do."""
    async with socket(hurried.ws_of()) as client, socket(hurried.ws_of()) as neighbour:
        await neighbour.open(agent="unruly")
        await begun(neighbour, "count 100000 5")
        await client.open(agent="unruly")
        await begun(client, "block 8")
        await client.ask("cancel")
        end = await client.until_event(*TERMINAL)
        assert (end["event"]["type"], end["event"]["code"]) == ("RUN_ERROR", "cancelled")
        lost = await neighbour.until_event(*TERMINAL)
        assert (lost["event"]["type"], lost["event"]["code"]) == ("RUN_ERROR", "worker_lost")

        # Awake again, it serves; nothing of the old runs comes with it.
        for one in (client, neighbour):
            ack = await one.ask("message", content="count 20 1")
            await one.until_event(*TERMINAL)
            assert one.text(ack["run_id"]) == expected(20)
            assert seqs(one.events) == list(range(1, len(one.events) + 1))


async def test_a_worker_stops_although_an_agent_does_not(hurried: Stack) -> None:
    worker = hurried.workers[0]
    async with socket(hurried.ws_of()) as client:
        await client.open(agent="unruly")
        await begun(client, "hold")
        worker.terminate()
        end = await client.until_event(*TERMINAL)
        assert (end["event"]["type"], end["event"]["code"]) == ("RUN_ERROR", "worker_lost")
        assert worker.popen.wait(30) == 0
    hurried.start_worker(0, UNRULY, *TIGHT)  # whoever comes next needs one
