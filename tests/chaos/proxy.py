"""A TCP proxy that can be a bad network: it stands between one process and Redis.

It runs as a process of its own, so that it works whatever else is stopped, and takes its orders as
lines on standard input, each answered by a line. `Proxies` is the other end of that.

What packets that are dropped mean to TCP is one of two things. They come in the end, when the
network is back before somebody gives up (`hold`); or the connection is dead without anybody having
been told (`swallow`: bytes vanish, and such a connection never works again).
"""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import uvloop

Mode = Literal["pass", "hold", "swallow", "swallow_up", "swallow_down", "delay", "cut", "refuse"]
"""pass: as a wire. hold: nothing moves, and nothing is lost. swallow: bytes vanish (up: only those
to Redis, down: only those from it). delay: bytes come late. cut: connections end, new ones are
fine. refuse: there is nobody to connect to."""

DELAY_S = 0.3
_CHUNK = 256 * 1024


class _Pair:
    """One connection through the proxy."""

    def __init__(self, near: asyncio.StreamWriter) -> None:
        self.writers = [near]
        self.spoilt = False  # it lost bytes, so what follows would be read as nonsense

    def abort(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


class Proxy:
    """One port on loopback that leads to Redis's socket.

    Attributes:
        port: the port, the same after `refuse`.
    """

    def __init__(self, upstream: str) -> None:
        self.port = 0
        self._upstream = upstream
        self._mode: Mode = "pass"
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listens."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, limit=_CHUNK, backlog=512
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def set(self, mode: Mode) -> None:
        """From now on."""
        if self._mode == "refuse" and mode != "refuse":
            await self.open()
        self._mode = "pass" if mode == "cut" else mode
        (self._flowing.clear if mode == "hold" else self._flowing.set)()
        if mode == "refuse" and self._server is not None:
            self._server.close()
        for pair in list(self._pairs):
            if mode in ("cut", "refuse") or (pair.spoilt and not mode.startswith("swallow")):
                pair.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(writer)
        self._pairs.add(pair)
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(
                self._upstream, limit=_CHUNK
            )
            pair.writers.append(far_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(pair, reader, far_writer, up=True))
                group.create_task(self._pump(pair, far_reader, writer, up=False))
        except* OSError:
            pass  # Redis is down, or the connection was cut: so is the other side
        finally:
            self._pairs.discard(pair)
            pair.abort()

    async def _pump(
        self,
        pair: _Pair,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        up: bool,
    ) -> None:
        while data := await reader.read(_CHUNK):
            await self._flowing.wait()
            if self._mode == "delay":
                await asyncio.sleep(DELAY_S)
            if self._mode in ("swallow", "swallow_up" if up else "swallow_down"):
                pair.spoilt = True
            if writer.transport.is_closing():
                raise ConnectionResetError
            if not pair.spoilt:
                writer.write(data)
                await writer.drain()
        await self._flowing.wait()
        raise ConnectionResetError  # one side has ended, and nobody here closes half


async def serve(upstream: str, count: int) -> None:
    """Opens proxies, prints their ports, and obeys lines `NUMBER MODE` until there are no more."""
    proxies = [Proxy(upstream) for _ in range(count)]
    for proxy in proxies:
        await proxy.open()
    print(*(proxy.port for proxy in proxies), flush=True)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    while line := (await orders.readline()).decode().split():
        number, mode = line
        assert mode in get_args(Mode), mode
        await proxies[int(number)].set(mode)
        print("done", flush=True)


class Proxies:
    """A process with one proxy for each name."""

    def __init__(self, upstream: Path, names: Sequence[str]) -> None:
        """Starts them."""
        self._names = list(names)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(upstream), str(len(self._names))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders, self._answers = self._process.stdin, self._process.stdout
        self._ports = [int(port) for port in self._answers.readline().split()]

    def url(self, name: str) -> str:
        """`REDIS_URL` for the process of that name."""
        return f"redis://127.0.0.1:{self._ports[self._names.index(name)]}"

    def set(self, name: str, mode: Mode) -> None:
        """From the return of this call on."""
        self._orders.write(f"{self._names.index(name)} {mode}\n")
        self._orders.flush()
        assert self._answers.readline() == "done\n", "the proxy has died"

    def stop(self) -> None:
        """Ends the process and every connection with it."""
        self._orders.close()
        self._process.wait(10)
        self._answers.close()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
