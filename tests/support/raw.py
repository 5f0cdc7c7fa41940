"""A WebSocket client that does as it likes: raw bytes over a TCP connection."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

CONT, TEXT, CLOSE, PING, PONG = 0, 1, 8, 9, 10

OPEN = b'{"type":"open","id":"o","agent":"demo"}'


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's frame of at most 65,535 bytes, masked with nothing."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack("!H", size)
    return bytes([fin << 7 | opcode]) + length + bytes(4) + payload


def close_frame(code: int) -> bytes:
    """A server's close frame without a reason."""
    return b"\x88\x02" + struct.pack("!H", code)


def request(port: int, *headers: str, path: str = "/ws", host: str | None = None) -> bytes:
    """A handshake."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host or f'127.0.0.1:{port}'}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Raw:
    """One TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    async def until(self, end: bytes) -> bytes:
        """What comes up to and with those bytes."""
        async with asyncio.timeout(20):
            return await self.reader.readuntil(end)

    async def rest(self) -> bytes:
        """What comes until the server closes."""
        async with asyncio.timeout(20):
            data = b""
            try:
                while piece := await self.reader.read(65536):
                    data += piece
            except ConnectionError:
                pass  # closed, too
            return data


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[Raw]:
    """Connected, nothing said; with a small buffer for what is not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def websocket(port: int, *headers: str) -> AsyncIterator[Raw]:
    """With the handshake done."""
    async with connection(port) as raw:
        raw.send(request(port, *headers))
        assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        yield raw
