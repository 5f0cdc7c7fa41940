"""The fleet at a glance: what one node says of itself, and all that they say as one picture.

Pure. What counts a thing once over the fleet is added up over the nodes; what every node sees alike
(queues, workers) is the largest that any of them sees.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import msgspec

from gateway.telemetry import catalogue

SLOT_S = 2
"""The time that each number of a plot stands for."""

SHOWN = 150
"""Slots that are shown: five minutes."""

SLOTS = SHOWN + 30
"""Numbers of a plot: those that are shown, and the minute before, for the first rates."""

PLOTS = ("connections", "sessions", "messages", "tokens", "failures")
"""The first two are as of a slot's end, the others what came within it."""

LATENCIES: Mapping[str, tuple[catalogue.Histogram, str, str]] = {
    "accepted": (catalogue.MESSAGE_PROCESSING_SECONDS, "role", "user"),
    "first_event": (catalogue.TIME_TO_FIRST_EVENT_SECONDS, "", ""),
    "delivered": (catalogue.MESSAGE_PROCESSING_SECONDS, "role", "assistant"),
}
"""What is timed: message read to acknowledged; accepted to the first event of the agent; the last
event of a run in Redis to the socket."""

_SLOTS_A_MINUTE = 60 // SLOT_S
_SLOTS_OF_A_RATE = 10 // SLOT_S
_LATE_SLOTS = 5
"""A node whose last word is older has no say in where a plot ends."""

ILL = 2
"""So many failures in a row make a service ill, as they do for readiness; its breaker may be closed
all the same, as that of a database which is read and cannot be written.
"""

MOST_ROWS = 50
"""Tenants and queues that are shown, the largest; the sums are over all."""


class Agent(msgspec.Struct, omit_defaults=True):
    """Who serves an agent, and whether its runs fail."""

    workers: int = 0
    busy: int = 0
    free: int = 0
    breaker: int = 0
    failures: int = 0


class Queue(msgspec.Struct, omit_defaults=True):
    """What waits, and for how long the oldest has."""

    tenant: str
    queue: str
    depth: int = 0
    lag_s: float = 0.0


class Service(msgspec.Struct, omit_defaults=True):
    """A dependency of a node."""

    breaker: int = 0
    failures: int = 0


class Summary(msgspec.Struct, omit_defaults=True):
    """What a node says of itself.

    Attributes:
        sessions: those that have their home there, by tenant.
        cpu: cores that the process kept busy in the last ten seconds.
        slot: the number of the last slot, since the epoch; the plots end with it.
        latencies: how many values fell into each bucket in the time that is shown.
    """

    node: str
    url: str = ""
    metrics: str = ""
    version: str = ""
    started_ms: int = 0
    now_ms: int = 0
    draining: bool = False
    checks: dict[str, str] = {}
    cpu: float = 0.0
    memory_bytes: int = 0
    connections: int = 0
    sockets: int = 0
    active: int = 0
    capacity: int = 0
    sessions: dict[str, int] = {}
    agents: dict[str, Agent] = {}
    queues: list[Queue] = []
    services: dict[str, Service] = {}
    slot: int = 0
    plots: dict[str, list[int]] = {}
    latencies: dict[str, list[int]] = {}


class NodeRow(msgspec.Struct):
    """A node, as the table of nodes shows it."""

    node: str
    url: str
    metrics: str
    version: str
    up_s: float
    draining: bool
    checks: dict[str, str]
    cpu: float
    memory_bytes: int
    connections: int
    active: int


class AgentRow(msgspec.Struct):
    """An agent, with all that waits for it."""

    agent: str
    workers: int
    busy: int
    free: int
    waiting: int
    breaker: int
    failures: int


class Latency(msgspec.Struct):
    """Percentiles in seconds, None without a value; a value above `bound` is shown as `bound`."""

    count: int
    p50: float | None
    p95: float | None
    p99: float | None
    bound: float


class Overview(msgspec.Struct):
    """The fleet.

    Attributes:
        asked: the node that says this.
        silent_s: for how long Redis has not told of the other nodes; 0 when it has just now.
        plots: of the slots that ended at `end_s`, since the epoch, and before.
        totals: what came in the time that is shown.
    """

    asked: str
    silent_s: float
    connections: int
    sockets: int
    active: int
    capacity: int
    messages_per_minute: int
    tokens_per_second: float
    failures_per_minute: int
    totals: dict[str, int]
    slot_s: int
    end_s: int
    plots: dict[str, list[int]]
    latencies: dict[str, Latency]
    sessions: dict[str, int]
    agents: list[AgentRow]
    queues: list[Queue]
    services: dict[str, Service]
    nodes: list[NodeRow]


def merge(asked: Summary, others: Iterable[Summary], silent_s: float) -> Overview:
    """The fleet as the node `asked` sees it; what that says of itself is newer than its word."""
    nodes = {each.node: each for each in others} | {asked.node: asked}
    summaries = list(nodes.values())
    slot = _end(summaries)
    plots = {name: _plot(summaries, name, slot) for name in PLOTS}
    sessions: Counter[str] = Counter()
    for each in summaries:
        sessions.update(each.sessions)
    queues = _queues(summaries)
    tokens = plots["tokens"][-_SLOTS_OF_A_RATE:]
    return Overview(
        asked=asked.node,
        silent_s=silent_s,
        connections=sum(each.connections for each in summaries),
        sockets=sum(each.sockets for each in summaries),
        active=sum(each.active for each in summaries),
        capacity=sum(each.capacity for each in summaries),
        messages_per_minute=sum(plots["messages"][-_SLOTS_A_MINUTE:]),
        tokens_per_second=sum(tokens) / (SLOT_S * _SLOTS_OF_A_RATE),
        failures_per_minute=sum(plots["failures"][-_SLOTS_A_MINUTE:]),
        totals={name: sum(plots[name][-SHOWN:]) for name in ("messages", "tokens", "failures")},
        slot_s=SLOT_S,
        end_s=(slot + 1) * SLOT_S,
        plots=plots,
        latencies={name: _latency(summaries, name) for name in LATENCIES},
        sessions=dict(sessions.most_common(MOST_ROWS)),
        agents=_agents(summaries, queues),
        queues=queues,
        services=_services(summaries),
        nodes=[_row(each) for each in sorted(summaries, key=lambda it: it.started_ms)],
    )


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """The value below which a share of a histogram's values lies; as Prometheus estimates it.

    Values within a bucket are taken to be spread evenly; those above the last bound, to be it.
    """
    rank = sum(counts) * share
    if not rank:
        return None
    for number, reached in enumerate(accumulate(counts)):
        if reached < rank:
            continue
        if number == len(bounds):
            break
        low = bounds[number - 1] if number else 0.0
        inside = counts[number]
        return low + (bounds[number] - low) * (rank - (reached - inside)) / inside
    return float(bounds[-1])


def _end(summaries: Sequence[Summary]) -> int:
    """The last slot that every node has told of, or the plots would dip at their end."""
    newest = max(each.slot for each in summaries)
    return min(each.slot for each in summaries if each.slot >= newest - _LATE_SLOTS)


def _plot(summaries: Sequence[Summary], name: str, slot: int) -> list[int]:
    total = [0] * SLOTS
    for each in summaries:
        numbers = each.plots.get(name, [])
        # The place in `total` of the node's last number; what lies outside is not shown.
        shift = SLOTS - 1 + each.slot - slot
        for place, number in enumerate(reversed(numbers)):
            if 0 <= shift - place < SLOTS:
                total[shift - place] += number
    return total


def _latency(summaries: Sequence[Summary], name: str) -> Latency:
    bounds = LATENCIES[name][0].buckets
    counts = [0] * (len(bounds) + 1)
    for each in summaries:
        found = each.latencies.get(name, [])
        if len(found) == len(counts):  # a node of another version may have other buckets
            counts = [*map(int.__add__, counts, found)]
    p50, p95, p99 = (quantile(bounds, counts, share) for share in (0.5, 0.95, 0.99))
    return Latency(sum(counts), p50, p95, p99, float(bounds[-1]))


def _queues(summaries: Sequence[Summary]) -> list[Queue]:
    seen: dict[tuple[str, str], Queue] = {}
    for each in summaries:
        for one in each.queues:
            was = seen.get((one.tenant, one.queue), one)
            seen[one.tenant, one.queue] = Queue(
                one.tenant, one.queue, max(was.depth, one.depth), max(was.lag_s, one.lag_s)
            )
    return sorted(seen.values(), key=lambda it: (-it.depth, -it.lag_s))[:MOST_ROWS]


def _agents(summaries: Sequence[Summary], queues: Sequence[Queue]) -> list[AgentRow]:
    waiting: Counter[str] = Counter()
    for queue in queues:
        waiting[queue.queue] += queue.depth
    seen: dict[str, Agent] = {}
    for each in summaries:
        for name, one in each.agents.items():
            was = seen.get(name, one)
            seen[name] = Agent(
                max(was.workers, one.workers),
                max(was.busy, one.busy),
                max(was.free, one.free),
                max(was.breaker, one.breaker),
                max(was.failures, one.failures),
            )
    return [
        AgentRow(name, one.workers, one.busy, one.free, waiting[name], one.breaker, one.failures)
        for name, one in sorted(seen.items())
    ]


def _services(summaries: Sequence[Summary]) -> dict[str, Service]:
    """Each as the node sees it that sees it worst."""
    seen: dict[str, Service] = {}
    for each in summaries:
        for name, one in each.services.items():
            was = seen.get(name, one)
            seen[name] = Service(max(was.breaker, one.breaker), max(was.failures, one.failures))
    return dict(sorted(seen.items()))


def _row(each: Summary) -> NodeRow:
    return NodeRow(
        node=each.node,
        url=each.url,
        metrics=each.metrics,
        version=each.version,
        up_s=max(0.0, (each.now_ms - each.started_ms) / 1000),
        draining=each.draining,
        checks=each.checks,
        cpu=each.cpu,
        memory_bytes=each.memory_bytes,
        connections=each.connections,
        active=each.active,
    )
