"""The main dashboard: the user's section 6.1, and before it the connections, one's first look."""

from panels import UP, Panel, Query, Row, percentiles
from promql import JOB, a_minute, highest, level, lowest, most, quantile, rate, share

from gateway.telemetry import catalogue as c


def failed() -> str:
    """As the alert HighErrorRate counts: of what was asked for, what failed by our fault."""
    operators = "/(metrics|health|console)(/.*)?"
    above = _added(
        rate(c.MESSAGE_FAILURES_TOTAL, error_class="server"),
        rate(c.HTTP_REQUESTS_TOTAL, status="5..", endpoint=f"!{operators}"),
    )
    below = _added(
        rate(c.MESSAGES_PROCESSED_TOTAL, role="user|tool"),
        rate(c.MESSAGE_FAILURES_TOTAL, role="!assistant"),
        rate(c.HTTP_REQUESTS_TOTAL, endpoint=f"!unmatched|{operators}"),
    )
    return f"clamp_max(({above}) / ({below}), 1)"


def _added(*terms: str) -> str:
    return " + ".join(f"({term} or vector(0))" for term in terms)


MAIN = (
    Row(
        "Connections",
        (
            Panel(
                "Live connections",
                "WebSockets that are open and have a principal, over all nodes.",
                "short",
                (Query(level(c.WEBSOCKET_CONNECTIONS_ACTIVE), ""),),
                kind="number",
                width=4,
            ),
            Panel(
                "Active sessions",
                "Sessions that a node counts now; each has one home.",
                "short",
                (Query(level(c.SESSIONS_ACTIVE), ""),),
                kind="number",
                width=4,
            ),
            Panel(
                "Capacity in use",
                "Active sessions as a part of what the nodes are meant to hold.",
                "percentunit",
                (Query(f"{level(c.SESSIONS_ACTIVE)} / {level(c.SESSIONS_CAPACITY)}", ""),),
                kind="number",
                warn=0.7,
                alarm=0.8,
                width=4,
            ),
            Panel(
                "Sockets without a principal",
                "Sockets that have not sent their `open`. Many for long: a leak, or an attack.",
                "short",
                (
                    Query(
                        f"{level(c.WEBSOCKET_OPEN_SOCKETS)} - "
                        f"({level(c.WEBSOCKET_CONNECTIONS_ACTIVE)} or vector(0))",
                        "",
                    ),
                ),
                kind="number",
                warn=50,
                alarm=100,
                width=4,
            ),
            Panel(
                "Slow clients",
                "Clients that do not keep up with their events and read on from the log.",
                "short",
                (Query(level(c.SLOW_CONSUMERS), ""),),
                kind="number",
                warn=10,
                alarm=100,
                width=4,
            ),
            Panel(
                "Nodes that drain",
                "Nodes that were told to stop and send their clients to others.",
                "short",
                (Query(level(c.DRAINING), ""),),
                kind="number",
                warn=1,
                width=4,
            ),
            Panel(
                "Ready",
                "1 while a node may be given clients; one that drains is not ready.",
                "short",
                (Query(level(c.READY, "instance"), "{{instance}}"),),
            ),
            Panel(
                "Live connections by tenant",
                "WebSockets that are open and have a principal.",
                "short",
                (Query(level(c.WEBSOCKET_CONNECTIONS_ACTIVE, "tenant_id"), "{{tenant_id}}"),),
            ),
            Panel(
                "Live connections by node",
                "How evenly the nodes share the clients; a deploy moves them from node to node.",
                "short",
                (Query(level(c.WEBSOCKET_CONNECTIONS_ACTIVE, "instance"), "{{instance}}"),),
            ),
            Panel(
                "Sockets by node",
                "All sockets, also those without a principal.",
                "short",
                (Query(level(c.WEBSOCKET_OPEN_SOCKETS, "instance"), "{{instance}}"),),
            ),
            Panel(
                "Handshakes",
                "A minute, by what came of them: accepted, or why they were refused.",
                "cpm",
                (Query(a_minute(c.WEBSOCKET_HANDSHAKES_TOTAL, "result"), "{{result}}"),),
            ),
            Panel(
                "Disconnects",
                "A minute, by close code and by who or what ended them; 1006 came without a word.",
                "cpm",
                (
                    Query(
                        a_minute(c.WEBSOCKET_DISCONNECTS_TOTAL, "code", "reason"),
                        "{{code}} {{reason}}",
                    ),
                ),
            ),
            Panel(
                "Sessions that clients came back to",
                "A minute: resumed from their cursor, with a snapshot, or reset.",
                "cpm",
                (Query(a_minute(c.SESSIONS_RESUMED_TOTAL, "outcome"), "{{outcome}}"),),
            ),
            Panel(
                "Frames",
                "Data frames a second, from clients and to them.",
                "cps",
                (Query(rate(c.WEBSOCKET_FRAMES_TOTAL, "direction"), "{{direction}}"),),
            ),
            Panel(
                "Traffic",
                "Payload bytes a second, from clients and to them.",
                "Bps",
                (Query(rate(c.WEBSOCKET_BYTES_TOTAL, "direction"), "{{direction}}"),),
            ),
            Panel(
                "Bytes that wait for clients",
                "What nodes hold since the clients' sockets do not take it yet.",
                "bytes",
                (Query(level(c.OUTBOUND_BUFFER_BYTES, "instance"), "{{instance}}"),),
            ),
        ),
    ),
    Row(
        "High-level metrics",
        (
            Panel(
                "Active sessions by tenant",
                "Sessions that a node counts now.",
                "short",
                (Query(level(c.SESSIONS_ACTIVE, "tenant_id"), "{{tenant_id}}"),),
            ),
            Panel(
                "Messages per minute",
                "Accepted from users and tools, and those with which runs ended.",
                "cpm",
                (Query(a_minute(c.MESSAGES_PROCESSED_TOTAL, "role"), "{{role}}"),),
            ),
            Panel(
                "Error rate",
                "Messages and HTTP requests that failed by our fault, of all that were asked for. "
                "HTTP requests have no tenant.",
                "percentunit",
                (Query(failed(), "failed"),),
                warn=0.01,
                alarm=0.05,
            ),
            Panel(
                "The gateway's own latency",
                "Frame read to `ack` written; the last event of a run in Redis to its socket.",
                "s",
                percentiles(c.MESSAGE_PROCESSING_SECONDS),
                warn=1,
                alarm=2,
            ),
            Panel(
                "Time to the first event",
                "From a message to the first event of its agent, as users feel it.",
                "s",
                percentiles(c.TIME_TO_FIRST_EVENT_SECONDS),
                warn=5,
                alarm=10,
            ),
            Panel(
                "Time of a run",
                "From the first claim of a run to its end.",
                "s",
                percentiles(c.RUN_DURATION_SECONDS),
            ),
            Panel(
                "CPU by node",
                "One is a whole core; a node is one process and uses no more.",
                "percentunit",
                (Query(rate(c.PROCESS_CPU_SECONDS_TOTAL, "instance"), "{{instance}}"),),
                warn=0.7,
                alarm=0.9,
            ),
            Panel(
                "Memory by node",
                "Resident memory.",
                "bytes",
                (Query(level(c.PROCESS_RESIDENT_MEMORY_BYTES, "instance"), "{{instance}}"),),
            ),
            Panel(
                "Tokens per second",
                "That agents reported, in and out.",
                "cps",
                (Query(rate(c.TOKENS_TOTAL, "agent_id", "type"), "{{agent_id}} {{type}}"),),
            ),
            Panel(
                "Sessions begun and ended",
                "A minute.",
                "cpm",
                (
                    Query(a_minute(c.SESSIONS_CREATED_TOTAL), "created"),
                    Query(a_minute(c.SESSIONS_COMPLETED_TOTAL, "status"), "{{status}}"),
                ),
            ),
            Panel(
                "Failed messages",
                "A minute: refused messages and failed runs (assistant), by whose fault it is.",
                "cpm",
                (
                    Query(
                        most(
                            a_minute(c.MESSAGE_FAILURES_TOTAL, "role", "error_class", "error_code")
                        ),
                        "{{role}} {{error_class}} {{error_code}}",
                    ),
                ),
            ),
            Panel(
                "How sessions begin and how long they last",
                "95th percentiles: `open` to `opened`, and creation to end.",
                "s",
                (
                    Query(quantile(0.95, c.SESSION_INIT_SECONDS), "begin"),
                    Query(quantile(0.95, c.SESSION_DURATION_SECONDS), "last"),
                ),
            ),
            Panel(
                "HTTP requests",
                "A minute, by route and status.",
                "cpm",
                (
                    Query(
                        a_minute(c.HTTP_REQUESTS_TOTAL, "method", "endpoint", "status"),
                        "{{method}} {{endpoint}} {{status}}",
                    ),
                ),
                width=12,
            ),
            Panel(
                "HTTP latency",
                "95th percentile by route.",
                "s",
                (
                    Query(
                        quantile(0.95, c.HTTP_REQUEST_DURATION_SECONDS, "method", "endpoint"),
                        "{{method}} {{endpoint}}",
                    ),
                ),
                width=12,
            ),
        ),
    ),
    Row(
        "Status of services",
        (
            Panel(
                "Gateway nodes",
                "Nodes that Prometheus reaches.",
                "short",
                (Query(f'up{{job="{JOB}", instance=~"$instance"}}', "{{instance}}"),),
                kind="states",
                names=UP,
                width=8,
            ),
            Panel(
                "Dependencies",
                "As readiness sees them on the node that sees them worst: read, and written.",
                "short",
                (Query(lowest(c.DEPENDENCY_UP, "dependency"), "{{dependency}}"),),
                kind="states",
                names=UP,
                width=8,
            ),
            Panel(
                "Redis",
                "As the nodes see it: their calls, and their subscription. The worst of them.",
                "short",
                (
                    Query(
                        lowest(c.REDIS_UP, "role"),
                        "{{role}}",
                    ),
                ),
                kind="states",
                names=UP,
                width=8,
            ),
            Panel(
                "Failures in a row",
                "By service; more than three are an alert.",
                "short",
                (Query(highest(c.SERVICE_CONSECUTIVE_FAILURES, "service"), "{{service}}"),),
                warn=1,
                alarm=4,
            ),
            Panel(
                "Latency of services",
                "95th percentile of calls.",
                "s",
                (Query(quantile(0.95, c.SERVICE_CALL_SECONDS, "service"), "{{service}}"),),
            ),
            Panel(
                "Error rate of services",
                "Calls that failed, of all.",
                "percentunit",
                (
                    Query(
                        share(c.SERVICE_CALL_FAILURES_TOTAL, c.SERVICE_CALL_TOTAL, "service"),
                        "{{service}}",
                    ),
                ),
                warn=0.01,
                alarm=0.05,
            ),
            Panel(
                "Versions",
                "Nodes by the version that they run.",
                "short",
                (Query(level(c.BUILD_INFO, "version"), "{{version}}"),),
            ),
            Panel(
                "Workers",
                "By agent, over the fleet.",
                "short",
                (Query(level(c.AGENT_WORKERS, "agent_id"), "{{agent_id}}"),),
            ),
            Panel(
                "Since the last start",
                "Age of each node's process.",
                "s",
                (
                    Query(
                        f"time() - {level(c.PROCESS_START_TIME_SECONDS, 'instance')}",
                        "{{instance}}",
                    ),
                ),
            ),
        ),
    ),
)
