"""Every metric that the gateway shows: name, labels, meaning, buckets. Nothing else names one.

A metric never gets a new label once it is published: a new fact gets a new metric.
"""

from dataclasses import dataclass

PREFIX = "nooble_orchestrator_"

STATUSES = ("completed", "expired", "failed")
"""How a session can end: the values of `status`."""

ROLES = ("user", "assistant", "tool", "system")
"""Who can speak: the values of `role`."""

ALL_TENANTS, ARCHIVE = "_all", "archive"
"""The way to the archive as `tenant_id` (no tenant has such a name), `queue` and `task_type`."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `name` goes without the prefix, `labels` in the order in which they are bound."""

    name: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """The name as it is exposed."""
        return PREFIX + self.name


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
TOKENS_TOTAL = Counter(
    "tokens_total",
    "Tokens that agents reported, input and output; absent where none were reported.",
    ("tenant_id", "agent_id", "type"),
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
CIRCUIT_BREAKER_STATE = Gauge(
    "circuit_breaker_state",
    "0 closed, 1 half-open, 2 open. An agent has a breaker for each tenant: this is the worst.",
    ("service",),
)
SERVICE_CONSECUTIVE_FAILURES = Gauge(
    "service_consecutive_failures",
    "Calls of a service, or runs of an agent (of one tenant, the most), that failed in a row.",
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
    "Time for a task; `archive`: a batch of history, from the journals to the database.",
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
BUILD_INFO = Gauge("build_info", "1, with the version that runs.", ("version",))

CATALOGUE: tuple[Metric, ...] = (
    WEBSOCKET_CONNECTIONS_ACTIVE,
    SESSIONS_ACTIVE,
    SESSIONS_CREATED_TOTAL,
    SESSIONS_COMPLETED_TOTAL,
    SESSION_DURATION_SECONDS,
    MESSAGES_PROCESSED_TOTAL,
    MESSAGE_PROCESSING_SECONDS,
    TOKENS_TOTAL,
    DRAINING,
    SLOW_CONSUMERS,
    OUTBOUND_BUFFER_BYTES,
    REDIS_WRITES_LOST_TOTAL,
    PUBSUB_GAPS_TOTAL,
    PUBSUB_REPAIRED_EVENTS_TOTAL,
    CIRCUIT_BREAKER_STATE,
    SERVICE_CONSECUTIVE_FAILURES,
    SERVICE_FAILURE_STREAKS_TOTAL,
    QUEUE_DEPTH,
    QUEUE_LAG_SECONDS,
    TASK_PROCESSING_SECONDS,
    ARCHIVE_JOURNAL_FILL,
    ARCHIVE_DEAD_LETTERS,
    METRIC_LABEL_OVERFLOW_TOTAL,
    BUILD_INFO,
)
