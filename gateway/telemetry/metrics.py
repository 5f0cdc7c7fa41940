"""`Telemetry`: the domain's probe. Each verb moves its series inline, through bound handles.

Label values: at most 200 tenants and 100 agents (by default) that this node has ever seen; those
that come later share the value `other`. A tenant that is named `other` shares it as well.

Series start at zero as soon as their tenant, or tenant and agent, is known: except `tokens_total`,
which is absent until tokens are reported, since usage that nobody reported is not zero usage.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Literal

from aioprometheus.collectors import Registry
from loguru import logger

from gateway.session.archive import JournalState
from gateway.session.breaker import Breaker
from gateway.session.model import Role
from gateway.session.probe import SessionProbe
from gateway.telemetry import catalogue
from gateway.telemetry.exposition import CONTENT_TYPE, TextFormatter
from gateway.telemetry.handles import BoundCounter, Series
from gateway.telemetry.logs import Logs
from gateway.telemetry.process import ProcessMetrics
from gateway.telemetry.services import RedisMetrics, ServiceCalls

OTHER = "other"

LOST_QUIET_S = 10.0
"""One line says that Redis lost writes, however many sessions it concerns."""

STREAK = 4
"""So many failures in a row are a streak: more than three."""


class Telemetry:
    """Implements `gateway.session.probe.Probe` and `gateway.session.archive.ArchiveProbe`.

    Attributes:
        registry: aioprometheus' registry that holds the metrics; nothing is global.
    """

    def __init__(
        self,
        *,
        version: str,
        max_tenants: int = 200,
        max_agents: int = 100,
        logs: Logs | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`logs` is the stream of which it shows the counts."""
        self._series = Series(catalogue.CATALOGUE, clock)
        self._formatter = TextFormatter()
        self.registry: Registry = self._series.registry
        overflow = self._series.counter(catalogue.METRIC_LABEL_OVERFLOW_TOTAL)
        self._tenants = _LabelValues(max_tenants, overflow)
        self._agents = _LabelValues(max_agents, overflow)
        self._by_tenant: dict[str, _TenantMetrics] = {}
        self._by_session: dict[tuple[str, str], _SessionMetrics] = {}
        self._draining = self._series.gauge(catalogue.DRAINING)
        self._slow = self._series.gauge(catalogue.SLOW_CONSUMERS)
        self._outbound = self._series.gauge(catalogue.OUTBOUND_BUFFER_BYTES)
        self._lost = self._series.counter(catalogue.REDIS_WRITES_LOST_TOTAL)
        self._lost_said_at = float("-inf")
        self._gaps = self._series.counter(catalogue.PUBSUB_GAPS_TOTAL)
        self._repaired = self._series.counter(catalogue.PUBSUB_REPAIRED_EVENTS_TOTAL)
        self._by_service: dict[str, _ServiceMetrics] = {}
        self._archive = _ArchiveMetrics(self._series)
        self._redis = RedisMetrics(self._series)
        self._process = ProcessMetrics(self._series, logs)
        self._series.gauge(catalogue.BUILD_INFO, version).set(1)

    def connection_opened(self, tenant: str) -> None:
        """A WebSocket has a principal and is open."""
        self._of_tenant(self._tenants.admit(tenant)).connections.add(1)

    def connection_closed(self, tenant: str) -> None:
        """It is gone."""
        self._of_tenant(self._tenants.find(tenant)).connections.add(-1)

    def writes_lost(self) -> None:
        """Redis lost writes of a session that this node follows; its clients are told."""
        self._lost.inc()
        now = time.monotonic()
        if now - self._lost_said_at > LOST_QUIET_S:  # one line, however many sessions
            self._lost_said_at = now
            logger.warning("Redis lost writes: sessions begin a new epoch, and clients are told")

    def pubsub_gap(self) -> None:
        """The numbers of a session's pushes jumped."""
        self._gaps.inc()

    def pubsub_repaired(self, events: int) -> None:
        """So many events came from the log, since their push had not come."""
        self._repaired.inc(events)

    def outbound(self, slow_consumers: int, buffer_bytes: int) -> None:
        """How many clients do not keep up, and how much waits for all; to be told before `render`.

        Not inline: the kernel takes bytes without a word.
        """
        self._slow.set(slow_consumers)
        self._outbound.set(buffer_bytes)

    def redis(
        self, *, commands_up: bool, pubsub_up: bool, reconnects: int, subscriber_reconnects: int
    ) -> None:
        """How the connections to Redis are; to be told before `render`, too."""
        self._redis.set(
            up={"commands": commands_up, "pubsub": pubsub_up},
            reconnects={"commands": reconnects, "pubsub": subscriber_reconnects},
        )

    async def watch_loop(self) -> None:
        """Looks how late the event loop is, until cancelled."""
        await self._process.watch_loop()

    def session(self, tenant: str, agent: str) -> SessionProbe:
        """Handles bound to one tenant and agent; sessions of the same two share them."""
        labels = self._tenants.admit(tenant), self._agents.admit(agent)
        found = self._by_session.get(labels)
        if found is None:
            found = _SessionMetrics(self._series, self._of_tenant(labels[0]), *labels)
            self._by_session[labels] = found
            self._of_service(f"agent:{labels[1]}")
        return found

    def draining(self) -> None:
        """This node is about to stop."""
        self._draining.set(1)

    def journal(self, state: JournalState) -> None:
        """How much waits in all journals, as of now."""
        self._archive.state = state

    def archived(self, seconds: float) -> None:
        """A batch was brought to the archive in so many seconds."""
        self._archive.batches.observe(seconds)

    def service(self, service: str) -> ServiceCalls:
        """Handles for the calls of a service."""
        return ServiceCalls(self._series, service, self._tenants.label)

    def follow(self, service: str, breaker: Breaker) -> None:
        """Shows a breaker of the node's own, from now on."""
        breaker.watch(lambda it: self.breaker_moved(service, it.state, it.failures))
        self.breaker_moved(service, breaker.state, breaker.failures)

    def breaker_moved(self, service: str, state: int, failures: int) -> None:
        """A service's breaker (0 closed, 1 half-open, 2 open), or its failures in a row, moved."""
        kind, _, agent = service.partition(":")
        self._of_service(f"{kind}:{self._agents.find(agent)}" if agent else kind).moved(
            state, failures
        )

    def refresh(self) -> None:
        """Brings up to date what is not moved inline; to be called before somebody looks."""
        self._series.remove_idle()
        self._archive.refresh()
        self._process.refresh()

    def render(self) -> tuple[bytes, str]:
        """All metrics as text, and its content type."""
        self.refresh()
        return self._formatter.marshall(self.registry), CONTENT_TYPE

    async def render_in_turns(self) -> tuple[bytes, str]:
        """The same; the event loop does what else it has to, every millisecond or so."""
        self.refresh()
        pieces = list[bytes]()
        for piece in self._formatter.pieces(self.registry):
            pieces.append(piece)
            await asyncio.sleep(0)
        return b"".join(pieces), CONTENT_TYPE

    def _of_service(self, label: str) -> "_ServiceMetrics":
        found = self._by_service.get(label)
        if found is None:
            found = self._by_service[label] = _ServiceMetrics(self._series, label)
        return found

    def _of_tenant(self, label: str) -> "_TenantMetrics":
        found = self._by_tenant.get(label)
        if found is None:
            found = self._by_tenant[label] = _TenantMetrics(self._series, label)
        return found


class _ServiceMetrics:
    """The series of one service."""

    __slots__ = ("_failures", "_seen", "_state", "_streaks")

    def __init__(self, series: Series, service: str) -> None:
        self._state = series.gauge(catalogue.CIRCUIT_BREAKER_STATE, service)
        self._failures = series.gauge(catalogue.SERVICE_CONSECUTIVE_FAILURES, service)
        self._streaks = series.counter(catalogue.SERVICE_FAILURE_STREAKS_TOTAL, service)
        self._seen = 0

    def moved(self, state: int, failures: int) -> None:
        """What it is now."""
        self._state.set(int(state))
        self._failures.set(failures)
        if self._seen < STREAK <= failures:
            self._streaks.inc()
        self._seen = failures


class _ArchiveMetrics:
    """The series of the way to the archive; shown even while they are zero."""

    __slots__ = ("_dead", "_depth", "_fill", "_lag", "batches", "state")

    def __init__(self, series: Series) -> None:
        labels = catalogue.ALL_TENANTS, catalogue.ARCHIVE
        self.state = JournalState()
        self.batches = series.histogram(catalogue.TASK_PROCESSING_SECONDS, *labels)
        self._depth = series.gauge(catalogue.QUEUE_DEPTH, *labels)
        self._lag = series.gauge(catalogue.QUEUE_LAG_SECONDS, *labels)
        self._fill = series.gauge(catalogue.ARCHIVE_JOURNAL_FILL)
        self._dead = series.gauge(catalogue.ARCHIVE_DEAD_LETTERS)

    def refresh(self) -> None:
        """What was seen last; the lag has grown since."""
        state = self.state
        self._depth.set(state.entries)
        self._lag.set(max(0.0, time.time() - state.oldest_ms / 1000) if state.oldest_ms else 0.0)
        self._fill.set(state.fill)
        self._dead.set(state.dead)


class _LabelValues:
    """The values that a label has on this node. What it admitted once, it keeps."""

    def __init__(self, limit: int, overflow: BoundCounter) -> None:
        self._limit = limit
        self._overflow = overflow
        self._known: set[str] = set()

    def admit(self, value: str) -> str:
        """The label value for `value`, which is new or known."""
        if value in self._known or value == OTHER:
            return value
        if len(self._known) < self._limit:
            self._known.add(value)
            return value
        self._overflow.inc()
        return OTHER

    def label(self, value: str) -> str:
        """As `admit`, for what happens too often to count how often it found no room."""
        if value not in self._known:
            if len(self._known) >= self._limit:
                return OTHER
            self._known.add(value)
        return value

    def find(self, value: str) -> str:
        """The label value for a `value` that was admitted before."""
        return value if value in self._known else OTHER


class _TenantMetrics:
    """The series of one tenant."""

    __slots__ = ("connections", "processed", "processing", "sessions")

    def __init__(self, series: Series, tenant: str) -> None:
        self.connections = series.gauge(catalogue.WEBSOCKET_CONNECTIONS_ACTIVE, tenant)
        self.sessions = series.gauge(catalogue.SESSIONS_ACTIVE, tenant)
        self.processed = {
            role: series.counter(catalogue.MESSAGES_PROCESSED_TOTAL, tenant, role)
            for role in catalogue.ROLES
        }
        self.processing = {
            role: series.histogram(catalogue.MESSAGE_PROCESSING_SECONDS, tenant, role)
            for role in catalogue.ROLES
        }


class _SessionMetrics:
    """Implements `SessionProbe` for all sessions of one tenant with one agent."""

    __slots__ = ("_completed", "_created", "_duration", "_input", "_of_tenant", "_output")

    def __init__(self, series: Series, of_tenant: _TenantMetrics, tenant: str, agent: str) -> None:
        self._of_tenant = of_tenant
        self._created = series.counter(catalogue.SESSIONS_CREATED_TOTAL, tenant, agent)
        self._completed = {
            status: series.counter(catalogue.SESSIONS_COMPLETED_TOTAL, tenant, agent, status)
            for status in catalogue.STATUSES
        }
        self._duration = series.histogram(catalogue.SESSION_DURATION_SECONDS, tenant, agent)
        self._output, self._input = (
            series.counter(catalogue.TOKENS_TOTAL, tenant, agent, kind, from_zero=False)
            for kind in ("output", "input")
        )

    def created(self) -> None:
        """A new session."""
        self._created.inc()

    def completed(
        self, status: Literal["completed", "expired", "failed"], duration_s: float
    ) -> None:
        """It ended."""
        self._completed[status].inc()
        self._duration.observe(duration_s)

    def home_taken(self) -> None:
        """This node counts it from now on."""
        self._of_tenant.sessions.add(1)

    def home_left(self) -> None:
        """This node counts it no more."""
        self._of_tenant.sessions.add(-1)

    def message_accepted(self, role: Role, seconds: float) -> None:
        """A message was read, accepted and acknowledged in so many seconds."""
        self._of_tenant.processed[role].inc()
        self._of_tenant.processing[role].observe(seconds)

    def tokens(self, output: int, into: int) -> None:
        """A frame with reported tokens passed."""
        if output > 0:
            self._output.inc(output)
        if into > 0:
            self._input.inc(into)

    def run_ended(self, role: str, delivery_s: float) -> None:
        """A terminal event passed; `role` is `assistant` when the run left a message.

        The delivery is timed for every run. It ends on another clock than it began on: what would
        be negative counts as zero.
        """
        if role == "assistant":
            self._of_tenant.processed["assistant"].inc()
        self._of_tenant.processing["assistant"].observe(max(0.0, delivery_s))
