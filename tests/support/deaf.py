"""A way to Redis on which subscribers may go deaf: their connection stands, and nothing comes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


class Way:
    """Attributes:
    deaf: subscribers hear nothing from now on, on new connections either.
    subscribers: how many connections have subscribed to anything.
    dropped: what did not get through.
    """

    def __init__(self, path: str) -> None:
        self.deaf = False
        self.subscribers = 0
        self.dropped = bytearray()
        self._path = path
        self._muted: set[asyncio.StreamWriter] = set()
        self._subscribed: set[asyncio.StreamWriter] = set()

    def mute(self) -> None:
        """The subscribers of now hear nothing any more; those that come later do."""
        self._muted |= self._subscribed

    def unmute(self) -> None:
        """They hear again, as if nothing had been."""
        self._muted.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until one of its sides is gone, however it went."""
        try:
            await self._carry(reader, writer)
        except* OSError:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(self._path)

        async def answers() -> None:
            while data := await there.read(65536):
                if writer in self._muted or (self.deaf and writer in self._subscribed):
                    self.dropped += data
                else:
                    writer.write(data)
            writer.close()

        async with asyncio.TaskGroup() as tasks:
            answering = tasks.create_task(answers())
            try:
                while data := await reader.read(65536):
                    if b"SSUBSCRIBE" in data and writer not in self._subscribed:
                        self._subscribed.add(writer)
                        self.subscribers += 1
                    back.write(data)
            finally:
                back.close()
                writer.close()
                answering.cancel()


@asynccontextmanager
async def deafening(url: str, folder: Path) -> AsyncIterator[tuple[Way, str]]:
    """The way to a server on a unix socket, and the URL that leads over it."""
    way = Way(url.removeprefix("unix://"))
    path = folder / "way.sock"
    server = await asyncio.start_unix_server(way.serve, path)
    try:
        yield way, f"unix://{path}"
    finally:
        server.close()
