"""The series of tenants, and of each tenant's sessions with an agent."""

from gateway.session.model import Role
from gateway.session.probe import Outcome, SessionEnd
from gateway.telemetry import catalogue
from gateway.telemetry.failures import CALL_CODES, SERVERS, call_failure_of, failure_of
from gateway.telemetry.handles import BoundCounter, Series
from gateway.telemetry.queues import QueueMetrics

_RUN_STATUSES = {"F": "success", "I": "interrupt", "C": "cancelled", "X": "error"}
"""The values of `status` of a run, by the kind of its last entry."""

_TASKS = ("run", "resume")


class Failures:
    """The failed messages of one tenant."""

    __slots__ = ("_counters", "_series", "_tenant")

    def __init__(self, series: Series, tenant: str) -> None:
        self._series = series
        self._tenant = tenant
        self._counters: dict[tuple[Role, str], BoundCounter] = {}
        for code in SERVERS:  # what alerts look at is there before the first of them
            self._find("user", code)
            self._find("assistant", code)

    def failed(self, role: Role, code: str) -> None:
        """A message was refused, or a run failed."""
        self._find(role, code).inc()

    def _find(self, role: Role, code: str) -> BoundCounter:
        error_class, label = failure_of(code)
        found = self._counters.get((role, label))
        if found is None:
            labels = self._tenant, role, error_class, label
            found = self._series.counter(catalogue.MESSAGE_FAILURES_TOTAL, *labels)
            self._counters[role, label] = found
        return found


class TenantMetrics:
    """The series of one tenant."""

    __slots__ = (
        "connections",
        "failures",
        "processed",
        "processing",
        "resumed",
        "sessions",
        "tasks",
    )

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
        self.resumed = {
            outcome: series.counter(catalogue.SESSIONS_RESUMED_TOTAL, tenant, outcome)
            for outcome in catalogue.OUTCOMES
        }
        self.tasks = {
            task: series.histogram(catalogue.TASK_PROCESSING_SECONDS, tenant, task)
            for task in _TASKS
        }
        self.failures = Failures(series, tenant)


class SessionMetrics:
    """Implements `SessionProbe` for all sessions of one tenant with one agent."""

    __slots__ = (
        "_calls",
        "_calls_failed",
        "_calls_took",
        "_completed",
        "_created",
        "_duration",
        "_first_event",
        "_init",
        "_input",
        "_labels",
        "_of_tenant",
        "_output",
        "_queues",
        "_runs",
        "_waited",
        "pushed",
    )

    def __init__(
        self,
        series: Series,
        of_tenant: TenantMetrics,
        queues: QueueMetrics,
        tenant: str,
        agent: str,
    ) -> None:
        self._of_tenant = of_tenant
        self._queues = queues
        self._labels = tenant, agent
        self._created = series.counter(catalogue.SESSIONS_CREATED_TOTAL, tenant, agent)
        self._completed = {
            status: series.counter(catalogue.SESSIONS_COMPLETED_TOTAL, tenant, agent, status)
            for status in catalogue.STATUSES
        }
        self._init = series.histogram(catalogue.SESSION_INIT_SECONDS, tenant, agent)
        self._duration = series.histogram(catalogue.SESSION_DURATION_SECONDS, tenant, agent)
        self._output, self._input = (
            series.counter(catalogue.TOKENS_TOTAL, tenant, agent, kind, from_zero=False)
            for kind in ("output", "input")
        )
        self.pushed = series.histogram(catalogue.PUBSUB_DELIVERY_SECONDS).observe
        self._waited = series.histogram(catalogue.QUEUE_WAIT_SECONDS, tenant, agent)
        self._first_event = series.histogram(catalogue.TIME_TO_FIRST_EVENT_SECONDS, tenant, agent)
        self._runs = {
            kind: series.histogram(catalogue.RUN_DURATION_SECONDS, tenant, agent, status)
            for kind, status in _RUN_STATUSES.items()
        }
        call = tenant, f"agent:{agent}", "run"
        self._calls = series.counter(catalogue.SERVICE_CALL_TOTAL, *call)
        self._calls_took = series.histogram(catalogue.SERVICE_CALL_SECONDS, *call)
        self._calls_failed = {
            code: series.counter(catalogue.SERVICE_CALL_FAILURES_TOTAL, *call, code)
            for code in CALL_CODES
        }

    def created(self) -> None:
        """A new session."""
        self._created.inc()

    def opened(self, outcome: Outcome, seconds: float) -> None:
        """Who asked for the session was answered after so many seconds."""
        self._init.observe(seconds)
        if outcome != "created":
            self._of_tenant.resumed[outcome].inc()

    def completed(self, status: SessionEnd, duration_s: float) -> None:
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

    def call_spared(self) -> None:
        """A message made no run, since its agent is left alone. It took no time."""
        self._calls.inc()
        self._calls_failed["circuit_open"].inc()

    def run_claimed(self, waited_s: float) -> None:
        """A run got its first worker."""
        self._waited.observe(waited_s)
        self._queues.run_claimed(self._labels)

    def first_event(self, waited_s: float) -> None:
        """The agent's first event passed."""
        self._first_event.observe(waited_s)

    def run_ended(
        self, kind: str, role: str, code: str, task: str, took_s: float | None, delivery_s: float
    ) -> None:
        """A terminal event passed.

        The delivery is timed for every run. It ends on another clock than it began on: what would
        be negative counts as zero. A run that no worker had is no call of its agent, unless it
        failed for that.
        """
        tenant = self._of_tenant
        if role == "assistant":
            tenant.processed["assistant"].inc()
        tenant.processing["assistant"].observe(max(0.0, delivery_s))
        if took_s is not None:
            self._runs[kind].observe(took_s)
            tenant.tasks[task].observe(took_s)
            self._calls_took.observe(took_s)
        if took_s is not None or kind == "X":
            self._calls.inc()
        if kind == "X":
            tenant.failures.failed("assistant", code)
            failure = call_failure_of(code)
            if failure is not None:
                self._calls_failed[failure].inc()
