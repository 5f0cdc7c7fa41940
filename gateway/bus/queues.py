"""`AgentQueues` on Redis: what waits for the workers of all agents, as an onlooker sees it."""

from collections.abc import Sequence
from typing import Any

from gateway.bus import keys
from gateway.bus.directory import RedisDirectory
from gateway.bus.scripts import Scripts, source
from gateway.session.model import RunRef
from gateway.session.queues import AgentLoad, Waiting

_TENANTS = 500
"""So many queues of an agent are looked at in one call: nobody else is served meanwhile."""


class RedisQueues:
    """See `gateway.session.queues.AgentQueues`."""

    def __init__(self, scripts: Scripts, directory: RedisDirectory) -> None:
        """`directory` says which agents there are."""
        self._scripts = scripts
        self._directory = directory

    async def survey(self) -> list[AgentLoad]:
        """All agents that ever announced themselves: in one round trip to each server, unless very
        many tenants wait for one.
        """
        names = await self._directory.names()
        if not names:
            return []
        script = source("survey")
        answers = await self._scripts.pipeline(
            "survey", *(("EVAL", script, 1, keys.waiting(name), _TENANTS) for name in names)
        )
        return [await self._load(*item) for item in zip(names, answers, strict=True)]

    async def _load(self, name: str, answer: list[Any]) -> AgentLoad:
        workers, slots, busy, left, *queues = answer
        for start in range(0, len(left), _TENANTS):
            tenants = left[start : start + _TENANTS]
            more = await self._scripts.call("survey", keys.waiting(name), _TENANTS, *tenants)
            queues += more[4:]
        waiting = {
            tenant.decode(): Waiting(depth, int(since or 0))
            for tenant, depth, since in zip(queues[::3], queues[1::3], queues[2::3], strict=True)
        }
        return AgentLoad(name, workers, slots, busy, waiting)

    async def withdraw(self, agent: str, runs: Sequence[RunRef]) -> None:
        """Takes runs that are over out of the agent's queues."""
        await self._scripts.call("withdraw", keys.waiting(agent), *map(keys.reference, runs))
