"""Redis pauses, dies, comes back, or cannot be reached: nobody is cut off, and nothing is lost.

Real processes. The leases are short, so that a pause outlasts them within a test.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest
from chaos.proxy import Proxies
from support.agents import expected
from support.server import RedisServer
from support.socket import TERMINAL, Socket, seqs, socket
from support.stack import COUNTING, Stack

BOUND_S = 6.0
"""A call is waited for for 3 s; on a busy machine the rest takes long, too."""
AT_ONCE_S = 0.5
LEASE_S = 4.0
LONG_S = 5.0
"""Longer than a lease, and than a call is waited for."""
SHORT_S = 1.5


class World:
    """A stack on a Redis that can fail, with a network that can fail between them."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.redis = RedisServer(folder / "redis")
        self.redis.start()
        self.net = Proxies(self.redis.socket, ["node-0", "worker-0"])
        urls = {name: self.net.url(name) for name in ("node-0", "worker-0")}
        self.stack = Stack(f"unix://{self.redis.socket}", folder, environment, urls)

    def start(self) -> None:
        self.stack.add_worker(COUNTING)
        self.stack.add_node()
        self.stack.wait_until_ready()

    def stop(self) -> None:
        for name in ("node-0", "worker-0"):
            self.net.set(name, "pass")
        try:
            self.stack.stop()
        finally:
            self.net.stop()
            self.redis.stop()

    def lines(self) -> list[str]:
        """What the processes have logged, but for sessions: a thread writes it, some time later."""
        processes = [*self.stack.nodes, *self.stack.workers]
        lines = [line for process in processes for line in process.output().splitlines()]
        return [line for line in lines if '"session opened"' not in line]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Every test mends what it broke."""
    world = World(tmp_path_factory.mktemp("away"), GATEWAY_LIMIT_LEASE_S=str(LEASE_S))
    try:
        world.start()
        yield world
    finally:
        world.stop()


async def ping(client: Socket) -> float:
    """How long the node takes to answer what needs no Redis."""
    began = time.monotonic()
    await client.send("ping", t=began)
    await client.until("pong", t=began)
    return time.monotonic() - began


async def refused(client: Socket, **message: Any) -> float:
    """How long a new message takes to be refused."""
    began = time.monotonic()
    answer = await client.ask("message", **message)
    assert (answer["type"], answer["code"]) == ("error", "unavailable"), answer
    assert answer["retryable"] is True
    assert 0 < answer["retry_after_ms"] <= 5000
    return time.monotonic() - began


async def outage(client: Socket, until: float, **message: Any) -> None:
    """What a client sees until Redis is back: an error soon, then at once, and pongs at once."""
    assert await refused(client, **message) < BOUND_S
    pongs = [await ping(client)]
    while time.monotonic() < until:
        pongs.append(await ping(client))
        with anyio.move_on_after(0.2):
            await client.receive()
    assert statistics.median(pongs) < AT_ONCE_S
    # Usually it is the node's beat that asks Redis again, and waits; now and then it is a message.
    assert min([await refused(client, **message) for _ in range(3)]) < AT_ONCE_S


async def sent_until_accepted(client: Socket, **message: Any) -> dict[str, Any]:
    """As a client does: the same id again, until it is answered."""
    with anyio.fail_after(45):
        while True:
            answer = await client.ask("message", **message)
            if answer["type"] == "ack":
                return answer
            assert answer["code"] == "unavailable"
            await anyio.sleep(0.2)


def ends(client: Socket) -> list[dict[str, Any]]:
    """The ends of runs that a client has seen, in their order."""
    return [event for event in client.events if event["event"]["type"] in TERMINAL]


def pause(world: World) -> Callable[[], None]:
    world.redis.pause()
    return world.redis.resume


def kill(world: World) -> Callable[[], None]:
    world.redis.kill()
    return world.redis.start


def restart(world: World) -> Callable[[], None]:
    world.redis.stop()
    return world.redis.start


def cut_the_node_off(world: World) -> Callable[[], None]:
    world.net.set("node-0", "swallow")
    return lambda: world.net.set("node-0", "pass")


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [(pause, LONG_S), (kill, SHORT_S), (restart, SHORT_S), (cut_the_node_off, LONG_S)],
)
async def test_an_outage_ends_nothing_and_loses_nothing(
    world: World, fault: Callable[[World], Callable[[], None]], seconds: float
) -> None:
    async with socket(world.stack.ws_of()) as client:
        await client.open(agent="counting")
        # One streams, two wait behind it: all are acknowledged before.
        acks = [await client.ask("message", content=f"count {n} 10") for n in (300, 20, 30)]
        while len(client.events) < 10:
            await client.receive()

        # It may get through all the same, late: so it is repeated, and makes one run.
        message = {"id": uuid4().hex, "content": "count 5 1"}
        until = time.monotonic() + seconds
        mend = fault(world)
        await outage(client, until, **message)
        mend()

        answer = await sent_until_accepted(client, **message)
        while len(ends(client)) < 4:
            await client.receive()
    assert [end["event"]["type"] for end in ends(client)] == ["RUN_FINISHED"] * 4
    runs = [ack["run_id"] for ack in [*acks, answer]]
    assert [end["run_id"] for end in ends(client)] == runs, "in order, each once"
    texts = [client.text(run_id) for run_id in runs]
    assert texts == [expected(number) for number in (300, 20, 30, 5)]
    assert seqs(client.events) == list(range(1, len(client.events) + 1))


async def test_a_worker_that_is_cut_off_for_less_than_its_lease_goes_on(world: World) -> None:
    async with socket(world.stack.ws_of()) as client:
        await client.open(agent="counting")
        await client.ask("message", content="count 200 10")
        while len(client.events) < 10:
            await client.receive()
        world.net.set("worker-0", "swallow")
        await anyio.sleep(SHORT_S)
        assert (await client.ask("message", content="count 20 1"))["status"] == "queued"
        world.net.set("worker-0", "pass")
        while len(ends(client)) < 2:
            await client.receive()
    assert [end["event"]["type"] for end in ends(client)] == ["RUN_FINISHED"] * 2
    assert client.text() == expected(200) + expected(20)
    assert seqs(client.events) == list(range(1, len(client.events) + 1))


async def test_writes_that_redis_lost_are_told(world: World) -> None:
    """A power failure: what was not yet on disk is gone, and who saw it is told."""
    async with socket(world.stack.ws_of()) as client:
        await client.open(agent="counting")
        await client.ask("message", content="count 10 1")
        await client.until_event(*TERMINAL)
        kept = world.redis.written()
        await client.ask("message", content="count 10 1")
        await client.until_event(*TERMINAL)
        world.redis.kill()
        world.redis.lose_since(kept)
        world.redis.start()
        reset = await client.until("reset")
        assert reset["reason"] in ("writes_lost", "epoch_changed")
        snapshot = await client.until("snapshot")
        assert snapshot["cursor"]["epoch"] != client.cursor["epoch"]
        [messages] = [event["messages"] for event in snapshot["events"]]
        assert [message["role"] for message in messages] == ["user", "assistant"]
        ack = await sent_until_accepted(client, content="count 3 1")
        await client.until_event(*TERMINAL)
        assert client.text(ack["run_id"]) == expected(3)


async def test_an_empty_redis_is_told_and_nobody_is_left_in_silence(world: World) -> None:
    """Not a word of the session is left: its clients begin anew, on the sockets that they have."""
    async with socket(world.stack.ws_of()) as client, socket(world.stack.ws_of()) as other:
        await client.open(agent="counting")
        await other.open(session_id=client.session_id)
        await client.ask("message", content="count 300 10")
        while len(client.events) < 10 or len(other.events) < 10:
            await client.receive()
            await other.receive()
        before = client.cursor["epoch"]
        world.redis.kill()
        world.redis.lose_all()
        world.redis.start()
        for each in (client, other):
            assert (await each.until("reset"))["reason"] == "writes_lost"
            snapshot = await each.until("snapshot")
            assert snapshot["cursor"]["epoch"] != before
            messages = [event["messages"] for event in snapshot["events"] if "messages" in event]
            assert messages in ([], [[]])
            each.forget()
        ack = await sent_until_accepted(client, content="count 3 1")
        for each in (client, other):
            await each.until_event(*TERMINAL)
            assert each.text() == expected(3)
            assert {event["run_id"] for event in each.events} == {ack["run_id"]}
    world.stack.wait_for_agents(workers=1)  # it says so every 5 s


async def test_an_outage_costs_a_node_with_many_sessions_little(world: World) -> None:
    """Nothing spins while Redis is away, and the log says it once."""
    seconds = 3.0
    async with AsyncExitStack() as stack:
        clients: list[Socket] = []
        for _ in range(200):
            clients.append(await stack.enter_async_context(socket(world.stack.ws_of())))
            await clients[-1].open(agent="counting")
        process = world.stack.nodes[0].popen.pid
        before, cpu_s = len(world.lines()), cpu_seconds(process)
        began = time.monotonic()
        world.redis.kill()
        await outage(clients[0], began + seconds, content="count 1 1")
        spent_s, took_s = cpu_seconds(process) - cpu_s, time.monotonic() - began
        said = world.lines()[before:]
        world.redis.start()
        for client in clients[:20]:
            await sent_until_accepted(client, content="count 1 1")
            await client.until_event(*TERMINAL)
    assert spent_s < took_s * 0.3, f"{spent_s:.2f} s of CPU in {took_s:.2f} s"
    assert len(said) <= 8, "\n".join(said)


def cpu_seconds(process_id: int) -> float:
    """What a process has spent."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
