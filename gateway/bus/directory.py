"""`Directory` on Redis: which agents exist and who serves them."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, cast

import msgspec

from gateway.bus import keys
from gateway.bus.scripts import Scripts
from gateway.session.model import AgentInfo, AgentStatus, WorkerInfo

_PRESENCE_MS = 15_000
_CACHE_S = 2.0


class RedisDirectory:
    """See `gateway.session.ports.Directory`."""

    def __init__(self, scripts: Scripts) -> None:
        """`scripts` are shared with the other parts of the bus."""
        self._scripts = scripts
        self._known: dict[str, AgentInfo] = {}
        self._known_at = float("-inf")

    async def announce(self, worker: WorkerInfo) -> None:
        """Says that a worker lives; to be repeated every 5 s."""
        await self._write(worker.agent)
        await self._presence(worker, _PRESENCE_MS)

    async def retire(self, worker: WorkerInfo) -> None:
        """Says that a worker leaves."""
        await self._presence(worker, 0)

    async def agents(self) -> list[AgentStatus]:
        """All agents that ever announced themselves, with who serves them now."""
        known = await self._read()
        return list(await asyncio.gather(*(self.status(known[name]) for name in sorted(known))))

    async def names(self) -> list[str]:
        """Their names."""
        return sorted(await self._read())

    async def status(self, info: AgentInfo) -> AgentStatus:
        """Who serves one agent now."""
        queued, *loads = await self._scripts.call("presence", keys.presence(info.name), "", 0, 0, 0)
        return AgentStatus(info, len(loads) // 2, sum(loads[::2]), sum(loads[1::2]), queued)

    async def find(self, name: str) -> AgentInfo | None:
        """One agent; what is known is at most 2 s old, an unknown name is looked up at once."""
        if name not in self._known or time.monotonic() - self._known_at > _CACHE_S:
            self._known = await self._read()
            self._known_at = time.monotonic()
        return self._known.get(name)

    async def _presence(self, worker: WorkerInfo, ttl_ms: int) -> None:
        await self._scripts.call(
            "presence",
            keys.presence(worker.agent.name),
            worker.worker_id,
            ttl_ms,
            worker.slots,
            worker.busy,
        )

    async def _write(self, info: AgentInfo) -> None:
        record = msgspec.json.encode(info)
        async with self._scripts.asking("announce"):
            await self._scripts.client.hset(keys.AGENTS, info.name, cast("Any", record))

    async def _read(self) -> dict[str, AgentInfo]:
        async with self._scripts.asking("agents"):
            records = await cast(
                "Awaitable[dict[bytes, bytes]]", self._scripts.client.hgetall(keys.AGENTS)
            )
        return {
            name.decode(): msgspec.json.decode(record, type=AgentInfo)
            for name, record in records.items()
        }
