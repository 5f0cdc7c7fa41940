"""`Notices` on Redis: the process's one subscriber, over sharded pub/sub.

One connection to each server (one in all, without Cluster) carries every channel of the process.
Sharded channels (`SSUBSCRIBE`) scale with the cluster; a single server has them as well.

That a connection is silent says nothing: perhaps nothing happens. So each has a channel to itself,
on which the process publishes by the ordinary way; when nothing comes back, what others publish
would not come either, and the connection is made anew.
"""

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import uuid4

from loguru import logger
from redis.asyncio import RedisCluster
from redis.asyncio.connection import AbstractConnection

from gateway.bus import keys
from gateway.bus.connection import Client, create_connection, in_time
from gateway.bus.scripts import FAULTS
from gateway.session.errors import Unavailable
from gateway.session.model import SessionKey
from gateway.session.patience import Patience

_CONFIRM_TIMEOUT_S = 3.0
_PROBE_S = 5.0
_AGAIN_S = 1.0
"""After a probe that could not be published, which is no reason to make the connection anew."""
_ECHO_TIMEOUT_S = 3.0
_BATCH = 200
"""So many commands in one turn of the event loop: after an interruption there may be thousands."""
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
            if not isinstance(self._client, RedisCluster):
                self._link(keys.due(0))  # the one of the only server, so that `up` tells of it
            await asyncio.Event().wait()

    @property
    def up(self) -> bool:
        """True while every connection stands, as far as is known: a silent one is found in 8 s."""
        return all(link.up for link in self._links.values())

    @property
    def reconnects(self) -> int:
        """How often a connection was made anew after it was lost."""
        return sum(link.reconnects for link in self._links.values())

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
                async with Patience(_CONFIRM_TIMEOUT_S):
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
            link = self._links[name] = _Link(
                lambda: create_connection(self._client, channel),
                self._publish,
                keys.probe_channel(channel, uuid4().hex),
            )
            # Not in the context of who comes first: it serves all, and outlives him.
            self._group.create_task(link.run(), name=f"subscriber {name}", context=Context())
        return link

    async def _publish(self, channel: str) -> None:
        async with in_time():
            client: Any = self._client
            await client.execute_command("SPUBLISH", channel, "")


class _Link:
    """One subscriber connection: made again whenever it breaks, subscriptions included."""

    def __init__(
        self,
        connect: Callable[[], AbstractConnection],
        publish: Callable[[str], Awaitable[None]],
        probe: str,
    ) -> None:
        """`publish` publishes anything on the channel `probe`."""
        self.channels: dict[str, _Channel] = {}
        self.reconnects = 0
        self._connect = connect
        self._publish = publish
        self._commands: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()
        self._unconfirmed: dict[bytes, int] = {}
        self._up = False
        self._was_up = False
        self._hears = False
        self._pause_s = _BACKOFF_S[0]
        self._heard = asyncio.Event()
        self._probe = self.add(probe)

    @property
    def up(self) -> bool:
        """True while it stands, and pushes come over it."""
        return self._up and self._hears

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
        while True:
            try:
                await self._serve(self._connect())
            except* Exception as group:  # noqa: BLE001 - whatever it is, the link is made anew
                if self._up or not self._was_up:
                    errors = [repr(error) for error in group.exceptions]
                    logger.bind(errors=errors).warning("subscriber connection lost")
            self._up = False
            await asyncio.sleep(self._pause_s * (0.5 + random.random()))
            self._pause_s = min(self._pause_s * 2, _BACKOFF_S[1])

    async def _serve(self, connection: AbstractConnection) -> None:
        try:
            async with in_time():
                await connection.connect()
            await self._follow_all(connection)
        finally:
            await connection.disconnect(nowait=True)

    async def _follow_all(self, connection: AbstractConnection) -> None:
        self._commands = asyncio.Queue()
        self._unconfirmed.clear()
        for channel in self.channels.values():
            channel.confirmed.clear()
            self._subscribe(channel.name)
        restored = set(self.channels) if self._was_up else set[str]()
        self.reconnects += self._was_up
        self._up = self._was_up = True
        self._hears = False
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write(connection))
            group.create_task(self._watch())
            await self._read(connection, restored)

    async def _write(self, connection: AbstractConnection) -> None:
        while True:
            commands = [await self._commands.get()]
            while not self._commands.empty() and len(commands) < _BATCH:
                commands.append(self._commands.get_nowait())
            await connection.send_packed_command(
                connection.pack_commands(commands), check_health=False
            )
            await asyncio.sleep(0)  # sending alone does not yield

    async def _watch(self) -> None:
        async with Patience(_CONFIRM_TIMEOUT_S):
            await self._probe.confirmed.wait()
        while True:
            self._heard.clear()
            try:
                await self._publish(self._probe.name)
            except FAULTS:
                # Others publish nothing either: the connection may stay, but nothing is heard.
                self._hears = False
                await asyncio.sleep(min(_PROBE_S, _AGAIN_S))
            else:
                # Any push will do: under load our own may wait behind many.
                async with Patience(_ECHO_TIMEOUT_S):
                    await self._heard.wait()
                self._hears = True
                self._pause_s = _BACKOFF_S[0]
                await asyncio.sleep(_PROBE_S)

    async def _read(self, connection: AbstractConnection, restored: set[str]) -> None:
        while True:
            message: list[Any] = cast(
                "Any", await connection.read_response(disable_decoding=True, timeout=math.inf)
            )
            if message[0] == b"smessage":
                self._heard.set()
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
