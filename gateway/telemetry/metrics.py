"""`Telemetry`: the domain's probe. Each verb moves its series inline, through bound handles.

Label values: at most 200 tenants and 100 agents (by default) that this node has ever seen; those
that come later share the value `other`. Of a tenant with an agent there are more than a hundred
series, so that pairs are bounded, too: in those that come later the agent is `other`. A tenant
that is named `other` shares it as well.

Series start at zero as soon as their tenant, or tenant and agent, is known: except `tokens_total`,
which is absent until tokens are reported, since usage that nobody reported is not zero usage.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

from aioprometheus.collectors import Registry
from loguru import logger

from gateway.session.archive import JournalState
from gateway.session.breaker import Breaker
from gateway.session.context import log_context
from gateway.session.model import Role, RunRef
from gateway.session.probe import AuthFailure, SessionProbe
from gateway.telemetry import catalogue
from gateway.telemetry.edges import HttpMetrics, SocketMetrics
from gateway.telemetry.exposition import CONTENT_TYPE, TextFormatter
from gateway.telemetry.failures import SERVERS
from gateway.telemetry.handles import BoundCounter, Series
from gateway.telemetry.logs import Logs
from gateway.telemetry.process import ProcessMetrics
from gateway.telemetry.queues import KNOWN_S, QueueMetrics
from gateway.telemetry.services import RedisMetrics, ServiceCalls
from gateway.telemetry.sessions import Failures, SessionMetrics, TenantMetrics

OTHER = "other"

MOST_PAIRS = 2000
"""Tenants with an agent that have series of their own."""

LOST_QUIET_S = 10.0
"""One line says that Redis lost writes, however many sessions it concerns."""

REFUSAL_QUIET_S = 1.0
"""One line in this time says that a tenant's messages are refused by our fault, by code."""

STREAK = 4
"""So many failures in a row are a streak: more than three."""


class Telemetry:
    """Implements `gateway.session.probe.Probe` and `gateway.session.archive.ArchiveProbe`.

    Attributes:
        registry: aioprometheus' registry that holds the metrics; nothing is global.
        queues: what waits for workers, and who they are.
        sockets: the probe of the node's WebSockets.
        http: of its HTTP requests.
    """

    def __init__(
        self,
        *,
        version: str,
        sessions_capacity: int = 0,
        max_tenants: int = 200,
        max_agents: int = 100,
        max_pairs: int = MOST_PAIRS,
        logs: Logs | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`logs` is the stream of which it shows the counts."""
        self._series = Series(catalogue.CATALOGUE, clock)
        self._formatter = TextFormatter()
        self.registry: Registry = self._series.registry
        overflow = self._overflow = self._series.counter(catalogue.METRIC_LABEL_OVERFLOW_TOTAL)
        self._max_pairs = max_pairs
        self._tenants = _LabelValues(max_tenants, overflow)
        self._agents = _LabelValues(max_agents, overflow)
        self._by_tenant: dict[str, TenantMetrics] = {}
        self._by_session: dict[tuple[str, str], SessionMetrics] = {}
        self.sockets = SocketMetrics(self._series)
        self.http = HttpMetrics(self._series)
        self._series.gauge(catalogue.SESSIONS_CAPACITY).set(sessions_capacity)
        self._auth_failures = {
            reason: self._series.counter(catalogue.AUTH_FAILURES_TOTAL, reason)
            for reason in catalogue.AUTH_FAILURES
        }
        self._of_nobody = Failures(self._series, catalogue.NO_TENANT)
        self._draining = self._series.gauge(catalogue.DRAINING)
        self._ready = self._series.gauge(catalogue.READY)
        self._slow = self._series.gauge(catalogue.SLOW_CONSUMERS)
        self._outbound = self._series.gauge(catalogue.OUTBOUND_BUFFER_BYTES)
        self._lost = self._series.counter(catalogue.REDIS_WRITES_LOST_TOTAL)
        self._lost_said_at = float("-inf")
        self._refusals: dict[tuple[str, str], tuple[float, int]] = {}
        self._gaps = self._series.counter(catalogue.PUBSUB_GAPS_TOTAL)
        self._repaired = self._series.counter(catalogue.PUBSUB_REPAIRED_EVENTS_TOTAL)
        self._series.histogram(catalogue.PUBSUB_DELIVERY_SECONDS)
        self._by_service: dict[str, _ServiceMetrics] = {}
        self._archive = _ArchiveMetrics(self._series, clock)
        self._redis = RedisMetrics(self._series)
        self.queues = QueueMetrics(self._series, self._tenants.label, self._agents.label, clock)
        self._process = ProcessMetrics(self._series, logs)
        self._series.gauge(catalogue.BUILD_INFO, version).set(1)

    def connection_opened(self, tenant: str) -> None:
        """A WebSocket has a principal and is open."""
        self._of_tenant(self._tenants.admit(tenant)).connections.add(1)

    def connection_closed(self, tenant: str) -> None:
        """It is gone."""
        self._of_tenant(self._tenants.find(tenant)).connections.add(-1)

    def auth_failed(self, reason: AuthFailure) -> None:
        """Somebody came who may not be served."""
        self._auth_failures[reason].inc()

    def agent_left_alone(self, tenant: str, agent: str) -> None:
        """A tenant's runs of an agent failed in a row: its breaker has opened."""
        with log_context(tenant_id=tenant):
            logger.bind(agent_id=agent).warning("an agent fails in a row and is left alone")

    def message_failed(self, tenant: str, role: Role, code: str, agent: str = "") -> None:
        """A frame or request was refused. Who has no principal yet has no tenant."""
        if tenant:
            self._of_tenant(self._tenants.admit(tenant)).failures.failed(role, code)
        else:
            self._of_nobody.failed(role, code)
        if code in SERVERS:
            self._say_refused(tenant, code, agent)

    def _say_refused(self, tenant: str, code: str, agent: str) -> None:
        """One line a second for each tenant and code, with how many were not said before, of
        whichever agent.
        """
        key = self._tenants.find(tenant) if tenant else catalogue.NO_TENANT, code
        now = time.monotonic()
        said_at, unsaid = self._refusals.get(key, (float("-inf"), 0))
        if now - said_at < REFUSAL_QUIET_S:
            self._refusals[key] = said_at, unsaid + 1
            return
        self._refusals[key] = now, 0
        with log_context(tenant_id=tenant or None):
            logger.bind(agent_id=agent or None, code=str(code), suppressed=unsaid).warning(
                "a message was refused"
            )

    def run_forced(self, ref: RunRef, code: str) -> None:
        """This node ended a run whose deadline had passed."""
        with log_context(tenant_id=ref.tenant, session_id=ref.session_id):
            logger.bind(run_id=ref.run_id, code=code).warning("a run was ended by force")

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

    async def watch_loop(self, report: Callable[[str, Exception], None]) -> None:
        """Looks how late the event loop is, until cancelled."""
        await self._process.watch_loop(report)

    def session(self, tenant: str, agent: str) -> SessionProbe:
        """Handles bound to one tenant and agent; sessions of the same two share them."""
        labels = self._tenants.admit(tenant), self._agents.admit(agent)
        found = self._by_session.get(labels)
        if found is None and len(self._by_session) >= self._max_pairs and labels[1] != OTHER:
            self._overflow.inc()
            labels = labels[0], OTHER  # one more for each tenant at most
            found = self._by_session.get(labels)
        if found is None:
            found = SessionMetrics(self._series, self._of_tenant(labels[0]), self.queues, *labels)
            self._by_session[labels] = found
            self._of_service(f"agent:{labels[1]}")
        return found

    def draining(self) -> None:
        """This node is about to stop."""
        self._draining.set(1)

    def readiness(self, ready: bool, checks: Mapping[str, str]) -> None:
        """Whether this node may be given clients, and `ok` or `error` by dependency."""
        self._ready.set(int(ready))
        for dependency, state in checks.items():
            self._series.gauge(catalogue.DEPENDENCY_UP, dependency).set(int(state == "ok"))

    def journal(self, state: JournalState) -> None:
        """How much waits in all journals, as of now."""
        self._archive.seen(state)

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
        label = f"{kind}:{self._agents.find(agent)}" if agent else kind
        self._of_service(label).moved(service, state, failures)

    def refresh(self) -> None:
        """Brings up to date what is not moved inline; to be called before somebody looks."""
        self._series.remove_idle()
        for service in self._by_service.values():
            service.refresh()
        self._archive.refresh()
        self.queues.refresh()
        self._process.refresh()

    def render(self) -> tuple[bytes, str]:
        """All metrics as text, and its content type."""
        self.refresh()
        return self._formatter.marshall(self.registry), CONTENT_TYPE

    async def render_in_turns(self) -> tuple[bytes, str]:
        """The same, as of the last `refresh`; every millisecond or so the event loop does what else
        it has to.
        """
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

    def _of_tenant(self, label: str) -> TenantMetrics:
        found = self._by_tenant.get(label)
        if found is None:
            found = self._by_tenant[label] = TenantMetrics(self._series, label)
        return found


class _ServiceMetrics:
    """The series of one service, or of all agents that share a label value: the worst is shown."""

    __slots__ = ("_failures", "_ill", "_moved", "_state", "_streaks")

    def __init__(self, series: Series, label: str) -> None:
        self._state = series.gauge(catalogue.CIRCUIT_BREAKER_STATE, label)
        self._failures = series.gauge(catalogue.SERVICE_CONSECUTIVE_FAILURES, label)
        self._streaks = series.counter(catalogue.SERVICE_FAILURE_STREAKS_TOTAL, label)
        # State and failures of those that are not well: no more than have a breaker.
        self._ill: dict[str, tuple[int, int]] = {}
        self._moved = False

    def moved(self, service: str, state: int, failures: int) -> None:
        """What it is now. All that are ill tell it each second: the worst is looked for later."""
        _, before = self._ill.pop(service, (0, 0))
        if before < STREAK <= failures:
            self._streaks.inc()
        if state or failures:
            self._ill[service] = int(state), failures
        self._moved = True

    def refresh(self) -> None:
        """Shows the worst."""
        if self._moved:
            self._moved = False
            self._state.set(max((state for state, _ in self._ill.values()), default=0))
            self._failures.set(max((failures for _, failures in self._ill.values()), default=0))


class _ArchiveMetrics:
    """The series of the way to the archive; shown even while they are zero.

    Every node sees the same journals, see `gateway.telemetry.queues`.
    """

    __slots__ = ("_clock", "_dead", "_depth", "_fill", "_lag", "_looked_at", "_state", "batches")

    def __init__(self, series: Series, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._looked_at = clock()
        labels = catalogue.ALL_TENANTS, catalogue.ARCHIVE
        self._state = JournalState()
        self.batches = series.histogram(catalogue.TASK_PROCESSING_SECONDS, *labels)
        self._depth = series.gauge(catalogue.QUEUE_DEPTH, *labels)
        self._lag = series.gauge(catalogue.QUEUE_LAG_SECONDS, *labels)
        self._fill = series.gauge(catalogue.ARCHIVE_JOURNAL_FILL)
        self._dead = series.gauge(catalogue.ARCHIVE_DEAD_LETTERS)

    def seen(self, state: JournalState) -> None:
        """How it is now."""
        self._state = state
        self._looked_at = self._clock()

    def refresh(self) -> None:
        """What was seen last, if that is not long ago; the lag has grown since."""
        if self._clock() - self._looked_at > KNOWN_S:
            for gauge in (self._depth, self._lag, self._fill, self._dead):
                gauge.remove()
            return
        state = self._state
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
