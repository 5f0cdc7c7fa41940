"""What a node's metrics were in the last minutes, and what it says of itself to the fleet."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping

from aioprometheus.collectors import Registry

from gateway.telemetry import catalogue
from gateway.telemetry.overview import (
    LATENCIES,
    MOST_ROWS,
    PLOTS,
    SHOWN,
    SLOT_S,
    SLOTS,
    Agent,
    Queue,
    Service,
    Summary,
)
from gateway.telemetry.reading import Reader

_AGENT = "agent:"
_CPU_SLOTS = 10 // SLOT_S
_SLOT_MS = SLOT_S * 1000

_GROWING = {
    "messages": (catalogue.MESSAGES_PROCESSED_TOTAL, "", ""),
    "tokens": (catalogue.TOKENS_TOTAL, "type", "output"),
    "failures": (catalogue.MESSAGE_FAILURES_TOTAL, "error_class", "server"),
}
"""The plots of what came within a slot, by the counter that says so."""


class Recorder:
    """Reads the metrics at the end of each slot of time.

    Attributes:
        address: host and port where the node shows its metrics.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        node: str,
        url: str,
        address: str,
        version: str,
        checks: Callable[[], Mapping[str, str]],
        refresh: Callable[[], None],
        now_ms: Callable[[], int],
        report: Callable[[str, Exception], None],
    ) -> None:
        """`url` is for clients, `address` shows the metrics, `checks` are those of readiness.

        `refresh` brings up to date the metrics that are not moved inline.
        """
        self._reader = Reader(registry)
        self._checks = checks
        self._refresh = refresh
        self._now_ms = now_ms
        self._report = report
        self.address = address
        self._own = Summary(node, url=url, metrics=address, version=version, started_ms=now_ms())
        self._slot = self._slot_now() - 1
        self._plots = {name: deque([0], maxlen=SLOTS) for name in PLOTS}
        self._cpu = deque[float](maxlen=_CPU_SLOTS + 1)
        self._counted = dict.fromkeys(_GROWING, 0.0)
        self._buckets = {
            name: deque([[0] * (len(metric.buckets) + 1)], maxlen=SHOWN + 1)
            for name, (metric, _, _) in LATENCIES.items()
        }

    async def run(self) -> None:
        """Records until it is cancelled."""
        while True:
            await asyncio.sleep((_SLOT_MS - self._now_ms() % _SLOT_MS) / 1000)
            try:
                await self.record()
            except Exception as error:  # noqa: BLE001 - what only looks does not end the node
                self._report("the metrics could not be recorded", error)

    async def record(self) -> None:
        """Writes down the slots that have ended since the last time; those that were slept through
        are empty.
        """
        buckets = {name: await self._reader.counts(*what) for name, what in LATENCIES.items()}
        gauges = {"connections": self._connections(), "sessions": self._active()}
        self._refresh()
        ended = self._slot_now() - 1
        passed = min(ended - self._slot, SLOTS)
        if passed <= 0:
            return  # the clock was set back, or a timer was early
        self._slot = ended
        for name, value in gauges.items():
            self._plots[name].extend([value] * passed)
        for name, (counter, label, value) in _GROWING.items():
            total = self._reader.total(counter, label, value)
            self._plots[name].extend([0] * (passed - 1))
            self._plots[name].append(round(total - self._counted[name]))
            self._counted[name] = total
        cpu_s = self._reader.total(catalogue.PROCESS_CPU_SECONDS_TOTAL)
        self._cpu.extend([cpu_s] * min(passed, _CPU_SLOTS))
        for name, counts in buckets.items():
            self._buckets[name].extend([counts] * passed)

    def summary(self) -> Summary:
        """How the node does now."""
        self._refresh()
        own, reader = self._own, self._reader
        own.now_ms = self._now_ms()
        own.draining = bool(reader.total(catalogue.DRAINING))
        own.checks = dict(self._checks())
        own.connections, own.active = self._connections(), self._active()
        own.memory_bytes = int(reader.total(catalogue.PROCESS_RESIDENT_MEMORY_BYTES))
        own.cpu = self._cpu_now()
        own.sockets = int(reader.total(catalogue.WEBSOCKET_OPEN_SOCKETS))
        own.capacity = int(reader.total(catalogue.SESSIONS_CAPACITY))
        largest = reader.largest(catalogue.SESSIONS_ACTIVE, MOST_ROWS)
        own.sessions = {labels["tenant_id"]: int(value) for labels, value in largest}
        own.agents, own.services = self._agents()
        own.queues = self._queues()
        own.slot = self._slot
        own.plots = {name: list(numbers) for name, numbers in self._plots.items()}
        own.latencies = {
            name: [new - old for new, old in zip(rows[-1], rows[0], strict=True)]
            for name, rows in self._buckets.items()
        }
        return own

    def _cpu_now(self) -> float:
        cpu = self._cpu
        return round((cpu[-1] - cpu[0]) / (SLOT_S * (len(cpu) - 1)), 3) if len(cpu) > 1 else 0.0

    def _slot_now(self) -> int:
        return self._now_ms() // _SLOT_MS

    def _connections(self) -> int:
        return int(self._reader.total(catalogue.WEBSOCKET_CONNECTIONS_ACTIVE))

    def _active(self) -> int:
        return int(self._reader.total(catalogue.SESSIONS_ACTIVE))

    def _agents(self) -> tuple[dict[str, Agent], dict[str, Service]]:
        """Agents by name, and the node's other services."""
        agents: dict[str, Agent] = {}
        services: dict[str, Service] = {}
        each = self._reader.each
        for labels, value in each(catalogue.AGENT_WORKERS):
            agents.setdefault(labels["agent_id"], Agent()).workers = int(value)
        for labels, value in each(catalogue.AGENT_SLOTS):
            agent = agents.setdefault(labels["agent_id"], Agent())
            setattr(agent, "busy" if labels["state"] == "busy" else "free", int(value))
        for gauge, field in (
            (catalogue.CIRCUIT_BREAKER_STATE, "breaker"),
            (catalogue.SERVICE_CONSECUTIVE_FAILURES, "failures"),
        ):
            for labels, value in each(gauge):
                name = labels["service"]
                if name.startswith(_AGENT):
                    of = agents.setdefault(name.removeprefix(_AGENT), Agent())
                else:
                    of = services.setdefault(name, Service())
                setattr(of, field, int(value))
        return agents, services

    def _queues(self) -> list[Queue]:
        lags = {
            (labels["tenant_id"], labels["queue"]): value
            for labels, value in self._reader.largest(catalogue.QUEUE_LAG_SECONDS, MOST_ROWS)
        }
        return [
            Queue(tenant, queue, int(value), round(lags.get((tenant, queue), 0.0), 1))
            for labels, value in self._reader.largest(catalogue.QUEUE_DEPTH, MOST_ROWS)
            for tenant, queue in [(labels["tenant_id"], labels["queue"])]
        ]
