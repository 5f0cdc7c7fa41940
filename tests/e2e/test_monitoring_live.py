"""A real Prometheus over two gateways: every panel has data, and the user's five alerts fire and
clear when what they speak of happens.

Ranges and `for` are shortened, see `WINDOW_S` and `HOLD_S`; the rules are otherwise as they are in
k8s/monitoring, thresholds included. Each test mends what it broke, and begins when its alert is
silent, so they need no order.
"""

import asyncio
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
from chaos.proxy import Proxies
from support.monitoring import alert_queries, live, panel_queries, rule_groups, tool_or_skip
from support.prometheus import Prometheus, hurried, shortened
from support.server import RedisServer
from support.stack import DEMO, Stack

from gateway.client import Refusal, Session, connect
from gateway.telemetry.catalogue import CATALOGUE, Histogram

ROOT = Path(__file__).parent.parent.parent
WINDOW_S, HOLD_S = 5, 1
CAPACITY = 60
CROWD = 110
"""More than 100 waiting runs; of the capacity of two nodes more than 80 %, of no node's 95 %."""
HANG_S = 2.3
"""Longer than a message may take, and not as long as a call of Redis is waited for."""
OWN = {"up", "ALERTS", "ALERTS_FOR_STATE"}
"""What Prometheus itself makes."""
LOAD_S, PATIENCE_S = 5.0, 45.0
NODES = ("node-0", "node-1")


class World:
    """Two gateways, a worker, the Redis and the network between them, and who looks at them."""

    def __init__(self, folder: Path) -> None:
        self.redis = RedisServer(folder / "redis")
        self.redis.start()
        self.net = Proxies(self.redis.socket, NODES)
        self.stack = Stack(
            f"unix://{self.redis.socket}",
            folder,
            {
                "GATEWAY_LIMIT_SESSIONS_CAPACITY": str(CAPACITY),
                "GATEWAY_LIMIT_RESUME_GRACE_S": "1",
                "GATEWAY_DRAIN_S": "0",
            },
            {name: self.net.url(name) for name in NODES},
        )

    def start(self) -> None:
        """Starts all, and does not wait for it."""
        self.worker = self.stack.add_worker(DEMO, "--slots", "32")
        for _ in NODES:
            self.stack.add_node()

    def stop(self) -> None:
        try:
            self.stack.stop()
        finally:
            self.net.stop()
            self.redis.stop()

    def hang(self, *, on: bool) -> None:
        """No answer of Redis comes to the gateways, or those that did not come, do."""
        for name in NODES:
            self.net.set(name, "hold" if on else "pass")


def declared() -> set[str]:
    """The catalogue's names, as series have them."""
    names: set[str] = set()
    for metric in CATALOGUE:
        histogram = isinstance(metric, Histogram)
        ends = ("_bucket", "_sum", "_count") if histogram else ("",)
        names |= {metric.full_name + end for end in ends}
    return names


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Every test mends what it broke."""
    tool_or_skip("prometheus")
    world = World(tmp_path_factory.mktemp("monitored"))
    try:
        world.start()
        yield world
    finally:
        world.stop()


@pytest.fixture(scope="module")
async def prometheus(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Prometheus]:
    """It was told of one node, heard of the other from it, and has scraped both."""
    addresses = [world.stack.url_of(number).removeprefix("http://") for number in (0, 1)]
    discovery = {"url": f"{world.stack.url}/metrics/targets", "refresh_interval": "1s"}
    async with Prometheus.running(
        tmp_path_factory.mktemp("prometheus"),
        [{"job_name": "nooble-gateway", "http_sd_configs": [discovery]}],
        hurried(rule_groups(), window_s=WINDOW_S, hold_s=HOLD_S),
    ) as running:
        await asyncio.to_thread(world.stack.wait_until_ready)
        await running.wait_for_targets(*addresses)
        yield running


async def fires_and_clears(
    prometheus: Prometheus, fault: AbstractAsyncContextManager[None], *alerts: str
) -> None:
    """The alerts fire while the fault lasts, not before, and not for good."""
    await prometheus.wait_for_alerts(silent=alerts)
    async with fault:
        await prometheus.wait_for_alerts(firing=alerts)
    await prometheus.wait_for_alerts(silent=alerts)


async def say(session: Session, text: str) -> None:
    """A message, and the answer to its end; what is refused is refused."""
    with suppress(Refusal):
        async for _ in await session.send(text):
            pass


async def insist(session: Session, text: str) -> None:
    """A message, again until it is taken."""
    while True:
        with suppress(Refusal):
            await session.send(text)
            return
        await asyncio.sleep(0.3)


@asynccontextmanager
async def crowd(world: World, size: int) -> AsyncIterator[list[Session]]:
    """So many sessions, on both nodes by turns."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                connect(world.stack.ws_of(number % len(NODES)), agent="demo", tenant="crowd")
            )
            for number in range(size)
        ]


@asynccontextmanager
async def repeating(do: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Does it over and over."""

    async def for_ever() -> None:
        while True:
            await do()
            await asyncio.sleep(0.3)  # more than ten messages a second would be refused

    async with asyncio.TaskGroup() as group:
        task = group.create_task(for_ever())
        yield
        task.cancel()


@asynccontextmanager
async def load(world: World, log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A few users of the load test; at the end they are told to finish."""
    with log.open("wb") as output:
        locust = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless"),
            *("--users", "8", "--spawn-rate", "8", "--stop-timeout", "30", "--only-summary"),
            *("--host", f"{world.stack.url_of(0)},{world.stack.url_of(1)}"),
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
        )
    try:
        yield locust
        locust.send_signal(signal.SIGTERM)
        await locust.wait()
    finally:
        if locust.returncode is None:
            locust.kill()
            await locust.wait()


async def test_under_load_every_query_has_data_and_no_event_is_lost(
    world: World, prometheus: Prometheus, tmp_path: Path
) -> None:
    queries = {each.expression: each.where for each in [*panel_queries(), *alert_queries()]}
    log = tmp_path / "locust.log"
    async with (
        load(world, log) as locust,
        crowd(world, 1) as [session],
        httpx.AsyncClient(verify=False, base_url=world.stack.url) as http,
    ):
        enough, deadline = time.monotonic() + LOAD_S, time.monotonic() + PATIENCE_S
        while queries or time.monotonic() < enough:
            assert locust.returncode is None, log.read_text()
            assert time.monotonic() < deadline, f"no data: {queries}"
            await say(session, "/fail")
            await say(session, "/burst 1")  # or the agent's breaker opens
            await http.get("/api/v1/agents")
            for query in list(queries):
                asked = shortened(live(query, interval=f"{WINDOW_S}s"), WINDOW_S)
                if await prometheus.query(asked):
                    del queries[query]
            await asyncio.sleep(0.5)
    assert locust.returncode == 0, log.read_text()
    scraped = {
        name
        for name in await prometheus.names()
        if name not in OWN and not re.search("^scrape_|:", name)
    }
    assert scraped - declared() == set(), "the catalogue lacks them"
    assert declared() - scraped == set(), "nobody ever shows them"


async def test_an_agent_that_fails_raises_high_error_rate(
    world: World, prometheus: Prometheus
) -> None:
    async with (
        crowd(world, 1) as [session],
        httpx.AsyncClient(verify=False, base_url=world.stack.url) as http,
    ):

        async def fail() -> None:
            await say(session, "/fail")
            await say(session, "/burst 1")  # or the agent's breaker opens
            for _ in range(6):  # of less than ten there is no rate
                await http.get("/api/v1/agents")

        await fires_and_clears(prometheus, repeating(fail), "HighErrorRate")


async def test_a_redis_that_is_gone_raises_service_connection_failure(
    world: World, prometheus: Prometheus
) -> None:
    @asynccontextmanager
    async def gone() -> AsyncIterator[None]:
        world.redis.kill()
        try:
            yield
        finally:
            await asyncio.to_thread(world.redis.start)

    await fires_and_clears(prometheus, gone(), "ServiceConnectionFailure", "RedisDown")


async def test_a_redis_that_hangs_again_and_again_raises_high_latency(
    world: World, prometheus: Prometheus
) -> None:
    async with crowd(world, 15) as sessions:

        async def hang() -> None:
            world.hang(on=True)
            try:
                async with asyncio.TaskGroup() as group:
                    for session in sessions:
                        group.create_task(say(session, "/burst 1"))
                    await asyncio.sleep(HANG_S)
                    world.hang(on=False)
            finally:
                world.hang(on=False)

        await fires_and_clears(prometheus, repeating(hang), "HighLatency")


async def test_a_crowd_without_a_worker_raises_queue_backlog_and_high_session_count(
    world: World, prometheus: Prometheus
) -> None:
    @asynccontextmanager
    async def waiting() -> AsyncIterator[None]:
        world.worker.signal(signal.SIGSTOP)
        try:
            async with crowd(world, CROWD) as sessions:
                for session in sessions:
                    await insist(session, "/burst 1")
                yield
        finally:
            world.worker.signal(signal.SIGCONT)

    await fires_and_clears(prometheus, waiting(), "QueueBacklog", "HighSessionCount")
