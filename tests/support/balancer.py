"""A TCP load balancer, as stands before a fleet of nodes: it asks which of them are ready."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx

ASK_EVERY_S = 0.1
CHUNK = 64 * 1024


class Balancer:
    """Gives each connection to the next ready node."""

    def __init__(self, urls: list[str]) -> None:
        """`urls` are the nodes' addresses."""
        self._urls = urls
        self._ready = list(urls)
        self._turn = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def ws(self) -> str:
        """Where clients connect to."""
        return f"ws://127.0.0.1:{self.port}/ws"

    async def watch(self) -> None:
        """Asks the nodes until it is cancelled."""
        async with httpx.AsyncClient(timeout=10, verify=False) as http:
            while True:
                self._ready = [url for url in self._urls if await self._is_ready(http, url)]
                await asyncio.sleep(ASK_EVERY_S)

    async def _is_ready(self, http: httpx.AsyncClient, url: str) -> bool:
        try:
            return (await http.get(url + "/health/readiness")).status_code == 200
        except httpx.TransportError:
            return False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._ready:
            return
        self._turn += 1
        node = urlsplit(self._ready[self._turn % len(self._ready)])
        there, back = await asyncio.open_connection(node.hostname, node.port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pipe(reader, back))
                group.create_task(_pipe(there, writer))
        except* OSError:
            pass
        finally:
            back.transport.abort()

    def stop(self) -> None:
        """Lets go of every connection."""
        for task in self._tasks:
            task.cancel()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


@asynccontextmanager
async def balancing(urls: list[str]) -> AsyncGenerator[Balancer]:
    """A running balancer."""
    balancer = Balancer(urls)
    server = await asyncio.start_server(balancer.serve, "127.0.0.1", 0)
    balancer.port = server.sockets[0].getsockname()[1]
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(balancer.watch())
        try:
            yield balancer
        finally:
            server.close()
            balancer.stop()
            watching.cancel()
