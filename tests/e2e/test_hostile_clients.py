"""Guarantee 5: clients that mean no good cost a node bounded memory, end, and delay nobody."""

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from pathlib import Path

from support import raw
from support.bus import connected_bus
from support.following import until
from support.raw import CONT, OPEN, PING, TEXT, Raw, frame
from support.socket import Socket, seqs, socket
from support.stack import Stack
from support.talk import Talk, event

from gateway.bus.bus import Bus
from gateway.session.model import AgentEvent, SessionKey

MIB = 1024 * 1024
P = "nooble_orchestrator_"
CONNECTIONS = P + 'websocket_connections_active{tenant_id="default"}'
SLOW, BUFFERED = P + "slow_consumers", P + "outbound_buffer_bytes"
OPEN_OLD = b'{"type":"open","id":"o","session_id":"%s"}'
STREAMS = 8
STREAM_BYTES = 12 * MIB
EVENT_BYTES = 48 * 1024
FLOODERS = 10


def rss_bytes(pid: int) -> int:
    """The memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


async def stream(bus: Bus, session_id: str) -> int:
    """A long answer; a worker of our own gives it. Answers how many events."""
    talk = Talk(bus, SessionKey("default", session_id), "anonymous", "demo")
    claim = await talk.running()
    said = AgentEvent(event("CUSTOM", name="n", value="x" * EVENT_BYTES))
    count = STREAM_BYTES // EVENT_BYTES
    for ordinal in range(0, count, 4):
        await bus.runs.append(claim.ref, claim.claim_id, ordinal, [said] * 4)
        await asyncio.sleep(0.005)
    await talk.finish(claim, count)
    return count + 2


async def flood(client: Raw, first: bytes, small: bytes) -> None:
    """Sends without end and reads nothing."""
    client.send(frame(TEXT, OPEN), first)
    try:
        while not client.writer.is_closing():
            client.send(small * 1000)
            await client.writer.drain()
            await asyncio.sleep(0)
    except ConnectionError:
        pass  # the node ended it


async def ask_all_the_time(client: Socket, latencies: list[float]) -> None:
    while True:
        started = time.monotonic()
        await client.send("ping", t=started)
        await client.until("pong", t=started)
        latencies.append(time.monotonic() - started)
        await asyncio.sleep(0.05)


class Watch:
    """What a node says of itself, and what it takes, as long as it is watched."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._pid = stack.nodes[0].popen.pid
        self.metrics: dict[str, float] = {}
        self.rss = self.before = self.most = rss_bytes(self._pid)
        self.most_slow = 0.0

    async def run(self) -> None:
        while True:
            self.metrics = await asyncio.to_thread(self._stack.metrics)
            self.rss = rss_bytes(self._pid)
            self.most = max(self.most, self.rss)
            self.most_slow = max(self.most_slow, self.metrics[SLOW])
            await asyncio.sleep(0.1)


async def test_three_kinds_of_hostile_clients(folder: Path) -> None:
    """One never reads what is streamed to it, one floods pings, one sends endless fragments."""
    async with AsyncExitStack() as exits:
        stack = exits.enter_context(Stack.running(folder, GATEWAY_LIMIT_STALL_TIMEOUT_S="2"))
        bus = await exits.enter_async_context(connected_bus(stack.redis_url))
        neighbour = await exits.enter_async_context(socket(stack.ws_of()))
        await neighbour.open(agent="demo")
        ids: list[str] = []
        for _ in range(STREAMS):
            async with socket(stack.ws_of()) as client:
                ids.append((await client.open(agent="demo")).session_id)
        reader = await exits.enter_async_context(socket(stack.ws_of()))
        await reader.open(session_id=ids[0])
        port = int(stack.url.rpartition(":")[2])
        raws = [
            await exits.enter_async_context(raw.websocket(port))
            for _ in range(STREAMS + 2 * FLOODERS)
        ]
        deaf, pinging, dripping = raws[:STREAMS], raws[STREAMS:-FLOODERS], raws[-FLOODERS:]
        watch = Watch(stack)
        latencies: list[float] = []
        async with asyncio.TaskGroup() as tasks:
            own = [
                tasks.create_task(watch.run()),
                tasks.create_task(ask_all_the_time(neighbour, latencies)),
            ]
            for client, session_id in zip(deaf, ids, strict=True):
                client.send(frame(TEXT, OPEN_OLD % session_id.encode()))
            await until(lambda: watch.metrics.get(CONNECTIONS) == 2 + STREAMS)
            for client in pinging:
                tasks.create_task(flood(client, b"", frame(PING, b"x" * 125)))
            for client in dripping:
                first, small = frame(TEXT, b"{", fin=False), frame(CONT, b" ", fin=False)
                tasks.create_task(flood(client, first, small))
            streams = [tasks.create_task(stream(bus, session_id)) for session_id in ids]
            started = time.monotonic()
            await reader.until_event("RUN_FINISHED")
            await until(
                lambda: (
                    watch.metrics[CONNECTIONS] == 2
                    and watch.metrics[BUFFERED] == 0
                    and watch.metrics[SLOW] == 0
                )
            )
            gone_s = time.monotonic() - started
            for task in own:
                task.cancel()
        print(
            f"before {watch.before / MIB:.0f}, most {watch.most / MIB:.0f}, "
            f"after {watch.rss / MIB:.0f} MiB; gone in {gone_s:.1f} s; "
            f"slowest answer {max(latencies) * 1000:.0f} ms"
        )
        assert seqs(reader.events) == list(range(1, streams[0].result() + 1))
        assert watch.most - watch.before < 32 * MIB, "of 96 MiB that they did not read"
        assert statistics.median(latencies) < 0.5
        assert watch.most_slow >= STREAMS / 2
