"""What waits for the workers of each agent, as this node knows it.

The queues are the fleet's: each node shows the same ones. What a node brings there it shows at
once, and what others do as of its last look, every five seconds.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from gateway.session.errors import Unavailable
from gateway.session.model import RunRef

MOST_OVER = 10_000
"""Runs that are over and may still stand in a queue; of more, workers find out themselves."""

SLICE = 20
"""So many of them are taken out at once: nobody else is served meanwhile, and each may stand deep
in its queue."""


class Waiting(NamedTuple):
    """How many runs wait in a queue, and since when the first of them (0: none does)."""

    depth: int
    oldest_ms: int


class AgentLoad(NamedTuple):
    """An agent's workers, and what waits for them by tenant; tenants without any are not there."""

    agent: str
    workers: int
    slots: int
    busy: int
    waiting: Mapping[str, Waiting]


class AgentQueues(Protocol):
    """The queues of all agents, as an onlooker sees them. Raises (all): `Unavailable`."""

    async def survey(self) -> list[AgentLoad]:
        """All agents that ever announced themselves."""
        ...

    async def withdraw(self, agent: str, runs: Sequence[RunRef]) -> None:
        """Takes runs that are over out of the agent's queues, if they are there."""
        ...


class QueueProbe(Protocol):
    """Telemetry of the queues."""

    def queue_seen(self, tenant: str, agent: str, waiting: Waiting) -> None:
        """One queue as of now."""
        ...

    def agents_seen(self, loads: Sequence[AgentLoad]) -> None:
        """All of them, and who serves them."""
        ...


class Queues:
    """Brings runs to where workers look for them, and looks what waits there."""

    def __init__(
        self,
        *,
        dispatch: Callable[[RunRef, str], Awaitable[Waiting]],
        queues: AgentQueues,
        probe: QueueProbe,
        report: Callable[[str, Exception], None],
        interval_s: float = 5.0,
    ) -> None:
        """`dispatch` is that of the `RunQueue`; it looks every `interval_s`."""
        self._dispatch = dispatch
        self._queues = queues
        self._probe = probe
        self._report = report
        self._interval_s = interval_s
        self._over: list[tuple[str, RunRef]] = []

    async def dispatch(self, ref: RunRef, agent: str) -> None:
        """Puts a run into its tenant's queue of the agent, once, and rings."""
        self._probe.queue_seen(ref.tenant, agent, await self._dispatch(ref, agent))

    def over(self, ref: RunRef, agent: str) -> None:
        """A run ended, perhaps while it waited: then it waits no more, though it stands there."""
        if len(self._over) < MOST_OVER:
            self._over.append((agent, ref))

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while True:
            try:
                await self.look()
            except Unavailable:
                pass
            except Exception as error:  # noqa: BLE001 - the next look may succeed
                self._report("the queues could not be looked at", error)
            await asyncio.sleep(self._interval_s)

    async def look(self) -> None:
        """One look.

        Raises:
            Unavailable: Redis does not answer; what was seen last is shown for a while.
        """
        for _ in range(0, len(self._over), SLICE):
            over = self._over[:SLICE]
            await self._withdraw(over)
            del self._over[: len(over)]
        self._probe.agents_seen(await self._queues.survey())

    async def _withdraw(self, over: list[tuple[str, RunRef]]) -> None:
        by_agent: dict[str, list[RunRef]] = {}
        for agent, ref in over:
            by_agent.setdefault(agent, []).append(ref)
        for agent, runs in by_agent.items():
            await self._queues.withdraw(agent, runs)
