"""Every metric that the gateway shows: name, labels, meaning, buckets. Nothing else names one.

A metric never gets a new label once it is published: a new fact gets a new metric.
"""

from dataclasses import dataclass, field
from typing import get_args

from gateway.session.probe import AuthFailure, Handshake
from protocol.codes import CloseCode

PREFIX = "nooble_orchestrator_"

STATUSES = ("completed", "expired", "failed")
"""How a session can end: the values of `status`."""

ROLES = ("user", "assistant", "tool", "system")
"""Who can speak: the values of `role`."""

OUTCOMES = ("resumed", "snapshot", "reset")
"""How a client comes back to a session: the values of `outcome`."""

HANDSHAKES = get_args(Handshake)
"""The values of `result`."""

CLOSE_CODES = frozenset({*CloseCode, 1001, 1002, 1003, 1005, 1006, 1007, 1011, 1013})
"""The values of `code`: those that mean something. A peer may invent others, which are `other`."""

AUTH_FAILURES = get_args(AuthFailure)
"""The values of `reason` of `auth_failures_total`."""

NO_TENANT = "_none"
"""The `tenant_id` of what failed before anybody had a principal."""

ALL_TENANTS, ARCHIVE = "_all", "archive"
"""The way to the archive as `tenant_id` (no tenant has such a name), `queue` and `task_type`."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `name` goes without the prefix, `labels` in the order in which they are bound.

    `prefix` is another one only where the name is everybody's, as that of `process_open_fds`.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    prefix: str = field(default=PREFIX, kw_only=True)

    @property
    def full_name(self) -> str:
        """The name as it is exposed."""
        return self.prefix + self.name


@dataclass(frozen=True, slots=True)
class Counter(Metric):
    """Only grows. Its series are never removed."""


@dataclass(frozen=True, slots=True)
class Gauge(Metric):
    """Goes up and down. A tenant's series that stays at zero is removed, see `handles`."""


@dataclass(frozen=True, slots=True)
class Histogram(Metric):
    """Counts observations by upper bound, bounds included; `+Inf` is understood."""

    buckets: tuple[float, ...] = ()


WEBSOCKET_CONNECTIONS_ACTIVE = Gauge(
    "websocket_connections_active",
    "WebSocket connections that are open and have a principal, on this node.",
    ("tenant_id",),
)
SESSIONS_ACTIVE = Gauge(
    "sessions_active",
    "Sessions that have their home on this node; the sum over all nodes counts each once.",
    ("tenant_id",),
)
SESSIONS_CREATED_TOTAL = Counter(
    "sessions_created_total",
    "New sessions; a resumed one is not new.",
    ("tenant_id", "agent_id"),
)
SESSIONS_COMPLETED_TOTAL = Counter(
    "sessions_completed_total",
    "Sessions that ended: completed (closed by client or API), expired or failed.",
    ("tenant_id", "agent_id", "status"),
)
SESSIONS_CAPACITY = Gauge(
    "sessions_capacity",
    "Sessions that this node is meant to hold; a measure for `sessions_active`, not a bound.",
)
SESSIONS_RESUMED_TOTAL = Counter(
    "sessions_resumed_total",
    "Sessions that a client came back to: resumed (from its cursor), snapshot (it had none), reset "
    "(its cursor could not be continued).",
    ("tenant_id", "outcome"),
)
SESSION_INIT_SECONDS = Histogram(
    "session_init_seconds",
    "Time from the request for a session (`open`, or POST) to its answer.",
    ("tenant_id", "agent_id"),
    buckets=(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
SESSION_DURATION_SECONDS = Histogram(
    "session_duration_seconds",
    "Time from the creation of a session to its end.",
    ("tenant_id", "agent_id"),
    buckets=(1, 5, 15, 60, 300, 900, 1800, 3600, 14400, 86400),
)
MESSAGES_PROCESSED_TOTAL = Counter(
    "messages_processed_total",
    "Messages accepted from users and tools, and messages with which runs ended.",
    ("tenant_id", "role"),
)
MESSAGE_PROCESSING_SECONDS = Histogram(
    "message_processing_seconds",
    "The gateway's own time for a message: frame read to acknowledgement written; for the "
    "assistant, last event of the run in Redis to handed to the socket.",
    ("tenant_id", "role"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10),
)
MESSAGE_FAILURES_TOTAL = Counter(
    "message_failures_total",
    "Messages that were refused, and runs that failed (role assistant). Class client: the sender "
    "is to mend it; server: we are.",
    ("tenant_id", "role", "error_class", "error_code"),
)
TIME_TO_FIRST_EVENT_SECONDS = Histogram(
    "time_to_first_event_seconds",
    "Time from the acceptance of a message to the first event of its agent.",
    ("tenant_id", "agent_id"),
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30, 60),
)
QUEUE_WAIT_SECONDS = Histogram(
    "queue_wait_seconds",
    "Time for which a run waited for a worker, from when it was its session's turn to the claim.",
    ("tenant_id", "agent_id"),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
RUN_DURATION_SECONDS = Histogram(
    "run_duration_seconds",
    "Time from a run's first claim to its end; status success, interrupt, cancelled or error.",
    ("tenant_id", "agent_id", "status"),
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
)
TOKENS_TOTAL = Counter(
    "tokens_total",
    "Tokens that agents reported, input and output; absent where none were reported.",
    ("tenant_id", "agent_id", "type"),
)
WEBSOCKET_OPEN_SOCKETS = Gauge(
    "websocket_open_sockets",
    "WebSockets of this node that are not gone, also those without a principal; more than "
    "`websocket_connections_active` for long is a leak, or an attack.",
)
WEBSOCKET_HANDSHAKES_TOTAL = Counter(
    "websocket_handshakes_total",
    "WebSocket handshakes: accepted, or why they were refused.",
    ("result",),
)
WEBSOCKET_DISCONNECTS_TOTAL = Counter(
    "websocket_disconnects_total",
    "WebSockets that ended, by close code (1006: without one), and by who or what ended them.",
    ("code", "reason"),
)
WEBSOCKET_FRAMES_TOTAL = Counter(
    "websocket_frames_total",
    "Data frames over WebSockets; direction in: from clients, out: to them.",
    ("direction",),
)
WEBSOCKET_BYTES_TOTAL = Counter(
    "websocket_bytes_total",
    "Payload bytes of those frames.",
    ("direction",),
)
AUTH_FAILURES_TOTAL = Counter(
    "auth_failures_total",
    "Requests and connections without a principal that may be served, by what was wrong.",
    ("reason",),
)
RATE_LIMITED_TOTAL = Counter(
    "rate_limited_total",
    "Messages and connections beyond a rate, by whose it is.",
    ("scope",),
)
HTTP_REQUESTS_TOTAL = Counter(
    "http_requests_total",
    "HTTP requests by route; those of no route are unmatched. WebSockets are not among them.",
    ("method", "endpoint", "status"),
)
HTTP_REQUEST_DURATION_SECONDS = Histogram(
    "http_request_duration_seconds",
    "Time from an HTTP request to the end of its answer.",
    ("method", "endpoint"),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
DRAINING = Gauge(
    "draining",
    "1 from the moment when this node was told to stop: it sends its clients to other nodes.",
)
SLOW_CONSUMERS = Gauge(
    "slow_consumers",
    "Connections whose client does not keep up: it reads on from the log, because more events came "
    "than may wait for it, or its socket takes no more bytes. As of the scrape.",
)
OUTBOUND_BUFFER_BYTES = Gauge(
    "outbound_buffer_bytes",
    "Bytes that wait in this process to be taken by WebSocket clients, over all connections. As of "
    "the scrape.",
)
REDIS_WRITES_LOST_TOTAL = Counter(
    "redis_writes_lost_total",
    "Sessions of which Redis lost writes, as this node found while it followed them: a new epoch "
    "began, and their clients got `reset`.",
)
PUBSUB_GAPS_TOTAL = Counter(
    "pubsub_gaps_total",
    "Jumps in the numbers of a session's pushed events: one before was lost, or is late.",
)
PUBSUB_REPAIRED_EVENTS_TOTAL = Counter(
    "pubsub_repaired_events_total",
    "Events that this node read from a session's log, since their push had not come: lost, late, "
    "or made while the node was not subscribed.",
)
PUBSUB_DELIVERY_SECONDS = Histogram(
    "pubsub_delivery_seconds",
    "Time from an event in Redis to its push at this node, by Redis' clock and ours.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)
REDIS_UP = Gauge(
    "redis_up",
    "1 while Redis answers this node; role commands: its calls, pubsub: its subscriber.",
    ("role",),
)
REDIS_RECONNECTS_TOTAL = Counter(
    "redis_reconnects_total",
    "Connections to Redis that were made anew after one was lost.",
    ("role",),
)
SERVICE_CALL_TOTAL = Counter(
    "service_call_total",
    "Calls of services: redis (by script), database (read, write), agent:NAME (run).",
    ("tenant_id", "service", "operation"),
)
SERVICE_CALL_SECONDS = Histogram(
    "service_call_seconds",
    "Time that calls of services took.",
    ("tenant_id", "service", "operation"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5, 30, 120, 600),
)
SERVICE_CALL_FAILURES_TOTAL = Counter(
    "service_call_failures_total",
    "Calls of services that failed. What a client cancels has not failed.",
    ("tenant_id", "service", "operation", "error_code"),
)
AGENT_WORKERS = Gauge(
    "agent_workers",
    "Workers that serve an agent, over the fleet: take the maximum over the nodes.",
    ("agent_id",),
)
AGENT_SLOTS = Gauge(
    "agent_slots",
    "Runs that an agent's workers have (state busy) or could take (free), over the fleet.",
    ("agent_id", "state"),
)
CIRCUIT_BREAKER_STATE = Gauge(
    "circuit_breaker_state",
    "0 closed, 1 half-open, 2 open. An agent has a breaker for each tenant: this is the worst.",
    ("service",),
)
SERVICE_CONSECUTIVE_FAILURES = Gauge(
    "service_consecutive_failures",
    "Calls of a service, or runs of an agent (of one tenant, the most), that failed in a row; of "
    "the database also writes, whatever was read meanwhile.",
    ("service",),
)
SERVICE_FAILURE_STREAKS_TOTAL = Counter(
    "service_failure_streaks_total",
    "Streaks of more than three failures in a row; shows one that began and ended unseen.",
    ("service",),
)
QUEUE_DEPTH = Gauge(
    "queue_depth",
    "What waits in a queue; `archive`: history that the database does not have yet. Every node "
    "shows the same queues: take the maximum over the nodes, not the sum.",
    ("tenant_id", "queue"),
)
QUEUE_LAG_SECONDS = Gauge(
    "queue_lag_seconds",
    "How long the oldest in a queue has waited; 0 when none waits.",
    ("tenant_id", "queue"),
)
TASK_PROCESSING_SECONDS = Histogram(
    "task_processing_seconds",
    "Time for a task; run, resume (an answered question or tool call): claim to end; archive: a "
    "batch of history, from the journals to the database.",
    ("tenant_id", "task_type"),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
)
ARCHIVE_JOURNAL_FILL = Gauge(
    "archive_journal_fill",
    "Bytes of the fullest journal as a part of what it may have. At 1 its sessions take no new "
    "messages; something is wrong from 0.8 on.",
)
ARCHIVE_DEAD_LETTERS = Gauge(
    "archive_dead_letters",
    "Entries that the archive refused and that wait for an operator: `gateway archive dead`.",
)
METRIC_LABEL_OVERFLOW_TOTAL = Counter(
    "metric_label_overflow_total",
    "Connections and sessions counted under the label value other, as the bound of distinct "
    "values was reached.",
)
EVENT_LOOP_LAG_SECONDS = Histogram(
    "event_loop_lag_seconds",
    "How late the event loop was at each tenth of a second, also at those that a stall covered.",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)
LOG_MESSAGES_TOTAL = Counter("log_messages_total", "Log lines by level.", ("level",))
LOGS_DROPPED_TOTAL = Counter(
    "logs_dropped_total",
    "Log lines that did not fit into the bound of what may wait, or could not be written.",
)
PROCESS_CPU_SECONDS_TOTAL = Counter(
    "process_cpu_seconds_total", "User and system CPU time spent.", prefix=""
)
PROCESS_RESIDENT_MEMORY_BYTES = Gauge(
    "process_resident_memory_bytes", "Resident memory size.", prefix=""
)
PROCESS_OPEN_FDS = Gauge("process_open_fds", "Open file descriptors.", prefix="")
PROCESS_MAX_FDS = Gauge("process_max_fds", "File descriptors that may be open.", prefix="")
PROCESS_START_TIME_SECONDS = Gauge(
    "process_start_time_seconds", "When the process began, since the epoch.", prefix=""
)
BUILD_INFO = Gauge("build_info", "1, with the version that runs.", ("version",))

CATALOGUE: tuple[Metric, ...] = (
    WEBSOCKET_CONNECTIONS_ACTIVE,
    SESSIONS_ACTIVE,
    SESSIONS_CREATED_TOTAL,
    SESSIONS_COMPLETED_TOTAL,
    SESSIONS_CAPACITY,
    SESSIONS_RESUMED_TOTAL,
    SESSION_INIT_SECONDS,
    SESSION_DURATION_SECONDS,
    MESSAGES_PROCESSED_TOTAL,
    MESSAGE_PROCESSING_SECONDS,
    MESSAGE_FAILURES_TOTAL,
    TIME_TO_FIRST_EVENT_SECONDS,
    QUEUE_WAIT_SECONDS,
    RUN_DURATION_SECONDS,
    TOKENS_TOTAL,
    WEBSOCKET_OPEN_SOCKETS,
    WEBSOCKET_HANDSHAKES_TOTAL,
    WEBSOCKET_DISCONNECTS_TOTAL,
    WEBSOCKET_FRAMES_TOTAL,
    WEBSOCKET_BYTES_TOTAL,
    AUTH_FAILURES_TOTAL,
    RATE_LIMITED_TOTAL,
    HTTP_REQUESTS_TOTAL,
    HTTP_REQUEST_DURATION_SECONDS,
    DRAINING,
    SLOW_CONSUMERS,
    OUTBOUND_BUFFER_BYTES,
    REDIS_WRITES_LOST_TOTAL,
    PUBSUB_GAPS_TOTAL,
    PUBSUB_REPAIRED_EVENTS_TOTAL,
    PUBSUB_DELIVERY_SECONDS,
    REDIS_UP,
    REDIS_RECONNECTS_TOTAL,
    SERVICE_CALL_TOTAL,
    SERVICE_CALL_SECONDS,
    SERVICE_CALL_FAILURES_TOTAL,
    AGENT_WORKERS,
    AGENT_SLOTS,
    CIRCUIT_BREAKER_STATE,
    SERVICE_CONSECUTIVE_FAILURES,
    SERVICE_FAILURE_STREAKS_TOTAL,
    QUEUE_DEPTH,
    QUEUE_LAG_SECONDS,
    TASK_PROCESSING_SECONDS,
    ARCHIVE_JOURNAL_FILL,
    ARCHIVE_DEAD_LETTERS,
    METRIC_LABEL_OVERFLOW_TOTAL,
    EVENT_LOOP_LAG_SECONDS,
    LOG_MESSAGES_TOTAL,
    LOGS_DROPPED_TOTAL,
    PROCESS_CPU_SECONDS_TOTAL,
    PROCESS_RESIDENT_MEMORY_BYTES,
    PROCESS_OPEN_FDS,
    PROCESS_MAX_FDS,
    PROCESS_START_TIME_SECONDS,
    BUILD_INFO,
)
