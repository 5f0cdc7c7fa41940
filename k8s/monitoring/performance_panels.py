"""The performance dashboard: the user's section 6.2, and what a node itself does with its time."""

from panels import BREAKER, Panel, Query, Row, percentiles
from promql import a_minute, highest, level, most, quantile, rate, share

from gateway.telemetry import catalogue as c

PERFORMANCE = (
    Row(
        "Communication with services",
        (
            Panel(
                "Calls",
                "A second, by service and operation: redis (scripts), database, agents (runs).",
                "cps",
                (
                    Query(
                        rate(c.SERVICE_CALL_TOTAL, "service", "operation"),
                        "{{service}} {{operation}}",
                    ),
                ),
            ),
            Panel(
                "Duration of calls",
                "95th percentile by service and operation.",
                "s",
                (
                    Query(
                        quantile(0.95, c.SERVICE_CALL_SECONDS, "service", "operation"),
                        "{{service}} {{operation}}",
                    ),
                ),
            ),
            Panel(
                "Error rate",
                "Calls that failed, of all, by service and operation.",
                "percentunit",
                (
                    Query(
                        share(
                            c.SERVICE_CALL_FAILURES_TOTAL,
                            c.SERVICE_CALL_TOTAL,
                            "service",
                            "operation",
                        ),
                        "{{service}} {{operation}}",
                    ),
                ),
                warn=0.01,
                alarm=0.05,
            ),
            Panel(
                "Circuit breakers",
                "The worst of all nodes and tenants. Open: calls are refused at once.",
                "short",
                (Query(highest(c.CIRCUIT_BREAKER_STATE, "service"), "{{service}}"),),
                kind="states",
                names=BREAKER,
            ),
            Panel(
                "Duration of calls, percentiles",
                "By service.",
                "s",
                percentiles(c.SERVICE_CALL_SECONDS, "service"),
            ),
            Panel(
                "Failed calls",
                "A minute, by service and what was wrong.",
                "cpm",
                (
                    Query(
                        most(a_minute(c.SERVICE_CALL_FAILURES_TOTAL, "service", "error_code")),
                        "{{service}} {{error_code}}",
                    ),
                ),
            ),
            Panel(
                "Streaks of failures",
                "A minute: more than three in a row.",
                "cpm",
                (Query(a_minute(c.SERVICE_FAILURE_STREAKS_TOTAL, "service"), "{{service}}"),),
            ),
            Panel(
                "From Redis to the node",
                "Time that pushed events take.",
                "s",
                percentiles(c.PUBSUB_DELIVERY_SECONDS),
            ),
            Panel(
                "Pushes that did not come",
                "A minute: gaps that were found, events that were read instead, connections made "
                "anew, sessions of which Redis lost writes.",
                "cpm",
                (
                    Query(a_minute(c.PUBSUB_GAPS_TOTAL), "gaps"),
                    Query(a_minute(c.PUBSUB_REPAIRED_EVENTS_TOTAL), "repaired events"),
                    Query(a_minute(c.REDIS_RECONNECTS_TOTAL, "role"), "reconnects {{role}}"),
                    Query(a_minute(c.REDIS_WRITES_LOST_TOTAL), "sessions with lost writes"),
                ),
            ),
        ),
    ),
    Row(
        "Queues",
        (
            Panel(
                "Depth by tenant",
                "Runs that wait for a worker; of `_all`, history that waits for the archive.",
                "short",
                (Query(level(c.QUEUE_DEPTH, "tenant_id", "queue"), "{{tenant_id}} {{queue}}"),),
                warn=50,
                alarm=100,
            ),
            Panel(
                "Throughput",
                "Tasks a second: runs, resumed runs, batches of history.",
                "cps",
                (Query(rate(c.TASK_PROCESSING_SECONDS, "task_type"), "{{task_type}}"),),
            ),
            Panel(
                "Lag",
                "How long the oldest in a queue has waited.",
                "s",
                (
                    Query(
                        level(c.QUEUE_LAG_SECONDS, "tenant_id", "queue"),
                        "{{tenant_id}} {{queue}}",
                    ),
                ),
                warn=10,
                alarm=30,
            ),
            Panel(
                "Wait for a worker",
                "From a run's turn to its claim.",
                "s",
                percentiles(c.QUEUE_WAIT_SECONDS),
                warn=5,
                alarm=10,
            ),
            Panel(
                "Runs that ended",
                "A minute, by how.",
                "cpm",
                (Query(a_minute(c.RUN_DURATION_SECONDS, "status"), "{{status}}"),),
            ),
            Panel(
                "Duration of tasks",
                "95th percentile: claim to end; for history, a batch.",
                "s",
                (Query(quantile(0.95, c.TASK_PROCESSING_SECONDS, "task_type"), "{{task_type}}"),),
            ),
            Panel(
                "Slots of workers",
                "Runs that workers have, or could take, by agent.",
                "short",
                (Query(level(c.AGENT_SLOTS, "agent_id", "state"), "{{agent_id}} {{state}}"),),
            ),
            Panel(
                "Room for history",
                "The fullest journal. When it is full, its sessions take no new messages.",
                "percentunit",
                (Query(level(c.ARCHIVE_JOURNAL_FILL), "fullest"),),
                warn=0.5,
                alarm=0.8,
            ),
            Panel(
                "Dead letters",
                "Entries that the archive refused: `gateway archive dead`.",
                "short",
                (Query(level(c.ARCHIVE_DEAD_LETTERS), "entries"),),
                warn=1,
                alarm=1,
            ),
        ),
    ),
    Row(
        "Nodes",
        (
            Panel(
                "Lag of the event loop",
                "99th percentile by node. All that a node does waits for it.",
                "s",
                (Query(quantile(0.99, c.EVENT_LOOP_LAG_SECONDS, "instance"), "{{instance}}"),),
                warn=0.1,
                alarm=0.25,
            ),
            Panel(
                "File descriptors",
                "Open ones as a part of what may be open.",
                "percentunit",
                (
                    Query(
                        f"{level(c.PROCESS_OPEN_FDS, 'instance')} / "
                        f"{level(c.PROCESS_MAX_FDS, 'instance')}",
                        "{{instance}}",
                    ),
                ),
                warn=0.6,
                alarm=0.8,
            ),
            Panel(
                "Log lines",
                "A minute, by level; and those that were dropped.",
                "cpm",
                (
                    Query(a_minute(c.LOG_MESSAGES_TOTAL, "level"), "{{level}}"),
                    Query(a_minute(c.LOGS_DROPPED_TOTAL), "dropped"),
                ),
            ),
            Panel(
                "Turned away",
                "A minute: without a valid principal, or beyond a rate.",
                "cpm",
                (
                    Query(a_minute(c.AUTH_FAILURES_TOTAL, "reason"), "{{reason}}"),
                    Query(a_minute(c.RATE_LIMITED_TOTAL, "scope"), "rate of a {{scope}}"),
                ),
                width=12,
            ),
            Panel(
                "Counted as `other`",
                "A minute: there were more tenants or agents than a node tells apart.",
                "cpm",
                (Query(a_minute(c.METRIC_LABEL_OVERFLOW_TOTAL), "overflow"),),
                width=12,
            ),
        ),
    ),
)
