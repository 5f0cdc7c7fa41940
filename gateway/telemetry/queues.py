"""The queues of the agents, and who serves them. Implements `gateway.session.queues.QueueProbe`.

The birth of the oldest run that waits is kept, and its age computed when somebody looks.

What every node sees alike is queried as the maximum over the nodes, so a node that can look no more
must not insist on what it saw last: after `KNOWN_S` it shows none of it, until its next look.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence

from gateway.session.queues import AgentLoad, Waiting
from gateway.telemetry import catalogue
from gateway.telemetry.handles import BoundGauge, Series

KNOWN_S = 20.0
"""For so long after a look its result is shown: a few looks may fail."""

_Labels = tuple[str, str]
"""Tenant and agent, as label values."""


class QueueMetrics:
    """The series of queues and agents."""

    def __init__(
        self,
        series: Series,
        tenant: Callable[[str], str],
        agent: Callable[[str], str],
        clock: Callable[[], float],
    ) -> None:
        """`tenant` and `agent` answer the label value of each."""
        self._series = series
        self._clock = clock
        self._looked_at = clock()
        self._tenant = tenant
        self._agent = agent
        self._queues: dict[_Labels, _Queue] = {}
        self._agents: dict[str, _Agent] = {}

    def queue_seen(self, tenant: str, agent: str, waiting: Waiting) -> None:
        """One queue as of now."""
        labels = self._tenant(tenant), self._agent(agent)
        if labels == (tenant, agent):  # what several share, only a look at all of them can tell
            self._find(labels).set(waiting)

    def run_claimed(self, labels: _Labels) -> None:
        """A run of the queue got a worker."""
        queue = self._queues.get(labels)
        if queue is not None and queue.waiting.depth:
            depth, oldest_ms = queue.waiting
            queue.set(Waiting(depth - 1, oldest_ms if depth > 1 else 0))

    def agents_seen(self, loads: Sequence[AgentLoad]) -> None:
        """All queues, and who serves them; who is not among them has no workers."""
        self._looked_at = self._clock()
        found: dict[_Labels, Waiting] = {}
        totals: dict[str, Counter[str]] = {}
        for load in loads:
            agent = self._agent(load.agent)
            totals.setdefault(agent, Counter()).update(
                workers=load.workers, busy=load.busy, free=max(0, load.slots - load.busy)
            )
            for tenant, waiting in load.waiting.items():
                labels = self._tenant(tenant), agent
                found[labels] = _together(found.get(labels), waiting)
        for labels in self._queues.keys() - found.keys():
            self._queues.pop(labels).set(_EMPTY)
        for labels, waiting in found.items():
            self._find(labels).set(waiting)
        for agent in totals.keys() - self._agents.keys():
            self._agents[agent] = _Agent(self._series, agent)
        for agent, shown in self._agents.items():
            shown.set(totals.get(agent, _NOBODY))

    def refresh(self) -> None:
        """The first of each queue has waited longer since; a look that is old tells nothing."""
        if self._clock() - self._looked_at > KNOWN_S:
            for shown in (*self._queues.values(), *self._agents.values()):
                shown.remove()
            return
        now_ms = time.time() * 1000
        for queue in self._queues.values():
            queue.age(now_ms)

    def _find(self, labels: _Labels) -> "_Queue":
        found = self._queues.get(labels)
        if found is None:
            found = self._queues[labels] = _Queue(self._series, labels)
        return found


_EMPTY = Waiting(0, 0)
_NOBODY = Counter[str]()


def _together(one: Waiting | None, other: Waiting) -> Waiting:
    if one is None:
        return other
    return Waiting(one.depth + other.depth, min(one.oldest_ms, other.oldest_ms))


class _Queue:
    """The series of one queue."""

    __slots__ = ("_depth", "_lag", "waiting")

    def __init__(self, series: Series, labels: _Labels) -> None:
        self.waiting = _EMPTY
        self._depth = series.gauge(catalogue.QUEUE_DEPTH, *labels)
        self._lag = series.gauge(catalogue.QUEUE_LAG_SECONDS, *labels)

    def set(self, waiting: Waiting) -> None:
        self.waiting = waiting
        self._depth.set(waiting.depth)
        if not waiting.depth:
            self._lag.set(0)

    def age(self, now_ms: float) -> None:
        if self.waiting.oldest_ms:
            self._lag.set(max(0.0, (now_ms - self.waiting.oldest_ms) / 1000))

    def remove(self) -> None:
        self._depth.remove()
        self._lag.remove()


class _Agent:
    """The series of one agent's workers."""

    __slots__ = ("_slots", "_workers")

    def __init__(self, series: Series, agent: str) -> None:
        self._workers = series.gauge(catalogue.AGENT_WORKERS, agent)
        self._slots: dict[str, BoundGauge] = {
            state: series.gauge(catalogue.AGENT_SLOTS, agent, state) for state in ("busy", "free")
        }

    def set(self, total: Counter[str]) -> None:
        self._workers.set(total["workers"])
        for state, gauge in self._slots.items():
            gauge.set(total[state])

    def remove(self) -> None:
        for gauge in (self._workers, *self._slots.values()):
            gauge.remove()
