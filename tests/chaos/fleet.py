"""What is broken: two nodes, three workers, one Redis, and a bad network for each of them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from support.server import RedisServer
from support.stack import Process, Stack
from support.witness import JOURNAL

from chaos.proxy import Proxies

NODES, WORKERS = 2, 3
AGENT = "support.witness:witness"
_HEALTHY_TIMEOUT_S = 60.0
_DRAIN_TIMEOUT_S = 60.0


class Fleet:
    """The processes, and how each of them is harmed.

    Attributes:
        redis: the server itself.
        history: the archive, a file that both nodes use.
        stack: nodes and workers.
        proxies: the network; named like the processes.
        names: of all processes but Redis.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        """Starts Redis and the network."""
        self.journal = folder / "journal"
        self.journal.mkdir()
        self.history = folder / "history.db"
        self.names = [f"node-{n}" for n in range(NODES)] + [f"worker-{n}" for n in range(WORKERS)]
        self.redis = RedisServer(folder / "redis")
        self.redis.start()
        self.proxies = Proxies(self.redis.socket, self.names)
        self.stack = Stack(
            f"unix://{self.redis.socket}",
            folder,
            {**environment, JOURNAL: str(self.journal)},
            {name: self.proxies.url(name) for name in self.names},
        )

    @classmethod
    @contextmanager
    def running(cls, folder: Path, environment: Mapping[str, str]) -> "Iterator[Fleet]":
        """A running fleet."""
        fleet = cls(folder, environment)
        try:
            for _ in range(WORKERS):
                fleet.stack.add_worker(AGENT)
            for _ in range(NODES):
                fleet.stack.add_node()
            fleet.stack.wait_until_ready()
            yield fleet
        finally:
            try:
                fleet.stack.stop()
            finally:
                fleet.proxies.stop()
                fleet.redis.stop()

    @property
    def urls(self) -> list[str]:
        """The nodes, for WebSockets."""
        return [self.stack.ws_of(number) for number in range(NODES)]

    def process(self, name: str) -> Process:
        """The process of that name."""
        kind, _, number = name.partition("-")
        return (self.stack.nodes if kind == "node" else self.stack.workers)[int(number)]

    async def start(self, name: str) -> None:
        """Starts it again, and waits until it serves."""
        kind, _, number = name.partition("-")
        if kind == "node":
            await asyncio.to_thread(self.stack.start_node, int(number))
        else:
            await asyncio.to_thread(self.stack.start_worker, int(number), AGENT)

    async def drain(self, name: str) -> None:
        """SIGTERM, and waits until it is gone.

        Raises:
            AssertionError: it did not end, or not with 0.
        """
        process = self.process(name)
        process.terminate()
        code = await asyncio.to_thread(process.popen.wait, _DRAIN_TIMEOUT_S)
        assert code == 0, f"{name} ended with {code}:\n{process.output()[-2000:]}"

    async def healthy(self) -> None:
        """Waits until every node is ready and every worker there.

        Raises:
            AssertionError: a process died of itself, or does not get well.
        """
        dead = [name for name in self.names if self.process(name).popen.poll() is not None]
        assert not dead, "\n".join(
            f"{name} has died:\n{self.process(name).output()[-2000:]}" for name in dead
        )
        async with httpx.AsyncClient(timeout=30, verify=False) as client:
            for number in range(NODES):
                url = f"{self.stack.url_of(number)}/health/readiness"
                await _until(lambda url=url: _ready(client, url), f"node-{number} is not ready")
            url = f"{self.stack.url_of(0)}/api/v1/agents"
            await _until(lambda: _has_workers(client, url), "workers are missing")

    def output(self) -> dict[str, str]:
        """What all processes printed, by name."""
        return {name: self.process(name).log.read_text(errors="replace") for name in self.names}


async def _until(check: Callable[[], Awaitable[bool]], complaint: str) -> None:
    deadline = time.monotonic() + _HEALTHY_TIMEOUT_S
    while not await check():
        assert time.monotonic() < deadline, complaint
        await asyncio.sleep(0.1)


async def _ready(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code == 200
    except httpx.TransportError:
        return False


async def _has_workers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        response = await client.get(url)
    except httpx.TransportError:
        return False
    if response.status_code != 200:
        return False
    return sum(agent["workers"] for agent in response.json()["agents"]) >= WORKERS
