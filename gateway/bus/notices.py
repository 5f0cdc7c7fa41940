"""`Notices` on Redis: the process's one subscriber, over sharded pub/sub.

One connection to each server (one in all, without Cluster) carries every channel of the process.
Sharded channels (`SSUBSCRIBE`) scale with the cluster; a single server has them as well.
"""

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from loguru import logger
from redis.asyncio import RedisCluster
from redis.asyncio.connection import AbstractConnection

from gateway.bus import keys
from gateway.bus.connection import Client, create_connection, in_time
from gateway.session.errors import Unavailable
from gateway.session.model import SessionKey

_CONFIRM_TIMEOUT_S = 3.0
_PING_S = 10.0
_SILENCE_S = 25.0
"""Without a byte for so long, pings included, a connection counts as dead."""
_BACKOFF_S = (0.05, 2.0)


@dataclass(eq=False, slots=True)
class _Follower:
    on_push: Callable[[bytes], None]
    on_restored: Callable[[], None] | None


@dataclass(eq=False, slots=True)
class _Channel:
    """A channel that somebody follows; `confirmed` once the server has said so."""

    name: str
    link: "_Link"
    followers: list[_Follower] = field(default_factory=list[_Follower])
    confirmed: asyncio.Event = field(default_factory=asyncio.Event)


class RedisNotices:
    """See `gateway.session.ports.Notices`. `run` must be running."""

    def __init__(self, client: Client) -> None:
        """`client` says where to connect; the subscriber's connections are its own."""
        self._client = client
        self._links: dict[str, _Link] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Keeps the connections until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            await asyncio.Event().wait()

    def session_events(
        self,
        key: SessionKey,
        on_push: Callable[[bytes], None],
        on_restored: Callable[[], None],
    ) -> AbstractAsyncContextManager[None]:
        """The pushes of a session's log."""
        return self._follow(keys.events_channel(key), _Follower(on_push, on_restored))

    def session_control(
        self, key: SessionKey, on_cancel: Callable[[str], None]
    ) -> AbstractAsyncContextManager[None]:
        """Cancellations within a session: the run id."""

        def on_push(data: bytes) -> None:
            on_cancel(data.decode())

        return self._follow(keys.control_channel(key), _Follower(on_push, None))

    def agent_ring(
        self, agent: str, on_ring: Callable[[], None]
    ) -> AbstractAsyncContextManager[None]:
        """A ring whenever a run of the agent is waiting."""

        def on_push(_data: bytes) -> None:
            on_ring()

        return self._follow(keys.ring_channel(agent), _Follower(on_push, on_ring))

    @asynccontextmanager
    async def _follow(self, name: str, follower: _Follower) -> AsyncGenerator[None]:
        if isinstance(self._client, RedisCluster):
            await self._client.initialize()
        link = self._link(name)
        channel = link.channels.get(name)
        if channel is None:
            channel = link.add(name)
        channel.followers.append(follower)
        try:
            try:
                async with asyncio.timeout(_CONFIRM_TIMEOUT_S):
                    await channel.confirmed.wait()
            except TimeoutError:
                raise Unavailable from None
            yield
        finally:
            channel.followers.remove(follower)
            if not channel.followers:
                link.remove(channel)

    def _link(self, channel: str) -> "_Link":
        name = ""
        if isinstance(self._client, RedisCluster):
            node: Any = self._client.get_node_from_key(channel)
            name = node.name
        link = self._links.get(name)
        if link is None:
            if self._group is None:
                raise Unavailable
            link = self._links[name] = _Link(lambda: create_connection(self._client, channel))
            self._group.create_task(link.run(), name=f"subscriber {name}")
        return link


class _Link:
    """One subscriber connection: made again whenever it breaks, subscriptions included."""

    def __init__(self, connect: Callable[[], AbstractConnection]) -> None:
        self.channels: dict[str, _Channel] = {}
        self._connect = connect
        self._commands: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()
        self._unconfirmed: dict[bytes, int] = {}
        self._heard_at = 0.0
        self._up = False
        self._was_up = False

    def add(self, name: str) -> _Channel:
        channel = self.channels[name] = _Channel(name, self)
        if self._up:
            self._subscribe(name)
        return channel

    def remove(self, channel: _Channel) -> None:
        if self.channels.get(channel.name) is channel:
            del self.channels[channel.name]
            if self._up:
                self._commands.put_nowait(("SUNSUBSCRIBE", channel.name))

    def _subscribe(self, name: str) -> None:
        raw = name.encode()
        self._unconfirmed[raw] = self._unconfirmed.get(raw, 0) + 1
        self._commands.put_nowait(("SSUBSCRIBE", name))

    async def run(self) -> None:
        pause_s = _BACKOFF_S[0]
        while True:
            connection = self._connect()
            try:
                async with in_time():
                    await connection.connect()
                pause_s = _BACKOFF_S[0]
                await self._serve(connection)
            except* Exception as group:  # noqa: BLE001 - whatever it is, the link is made anew
                if self._up or not self._was_up:
                    errors = [repr(error) for error in group.exceptions]
                    logger.bind(errors=errors).warning("subscriber connection lost")
            finally:
                self._up = False
                await connection.disconnect(nowait=True)
            await asyncio.sleep(pause_s * (0.5 + random.random()))
            pause_s = min(pause_s * 2, _BACKOFF_S[1])

    async def _serve(self, connection: AbstractConnection) -> None:
        self._commands = asyncio.Queue()
        self._unconfirmed.clear()
        for channel in self.channels.values():
            channel.confirmed.clear()
            self._subscribe(channel.name)
        restored = set(self.channels) if self._was_up else set[str]()
        self._up = self._was_up = True
        self._heard_at = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write(connection))
            group.create_task(self._ping())
            await self._read(connection, restored)

    async def _write(self, connection: AbstractConnection) -> None:
        while True:
            commands = [await self._commands.get()]
            while not self._commands.empty():
                commands.append(self._commands.get_nowait())
            await connection.send_packed_command(
                connection.pack_commands(commands), check_health=False
            )

    async def _ping(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_PING_S)
            if loop.time() - self._heard_at > _SILENCE_S:
                raise TimeoutError("the subscriber connection is silent")
            self._commands.put_nowait(("PING",))

    async def _read(self, connection: AbstractConnection, restored: set[str]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            message: list[Any] = cast(
                "Any", await connection.read_response(disable_decoding=True, timeout=math.inf)
            )
            self._heard_at = loop.time()
            if message[0] == b"smessage":
                self._deliver(message[1].decode(), message[2])
            elif message[0] == b"ssubscribe":
                self._confirm(message[1], restored)

    def _confirm(self, raw: bytes, restored: set[str]) -> None:
        left = self._unconfirmed.pop(raw, 1) - 1
        if left > 0:  # subscribed, left and subscribed again: only the last answer counts
            self._unconfirmed[raw] = left
            return
        name = raw.decode()
        channel = self.channels.get(name)
        if channel is None:
            return
        channel.confirmed.set()
        if name in restored:
            restored.discard(name)
            for follower in list(channel.followers):
                if follower.on_restored is not None:
                    follower.on_restored()

    def _deliver(self, name: str, data: bytes) -> None:
        channel = self.channels.get(name)
        if channel is None:
            return
        for follower in list(channel.followers):
            try:
                follower.on_push(data)
            except Exception:  # noqa: BLE001 - one follower's fault must not cost the others their events
                logger.opt(exception=True).error("a follower failed on a push")
