"""The probe's verbs move the right series, and aioprometheus' own readers see it."""

import time
from typing import Any

import pytest
from aioprometheus.collectors import Registry
from loguru import logger
from support.books import read, series

from gateway.session.archive import ArchiveProbe, JournalState
from gateway.session.breaker import Breaker
from gateway.session.context import current_ids
from gateway.session.model import RunRef
from gateway.session.probe import Probe
from gateway.telemetry import catalogue, metrics
from gateway.telemetry.catalogue import PREFIX
from gateway.telemetry.handles import IDLE_S, Series
from gateway.telemetry.metrics import Telemetry

TENANT = {"tenant_id": "acme"}
BOTH = {"tenant_id": "acme", "agent_id": "demo"}


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry(version="1.2.3")


def value(telemetry: Telemetry, name: str, labels: dict[str, str]) -> object:
    """What aioprometheus answers; None when it has no such series."""
    telemetry.refresh()
    try:
        return telemetry.registry.get(PREFIX + name).get(labels)
    except KeyError:
        return None


def count(telemetry: Telemetry, name: str) -> int:
    return len(telemetry.registry.get(PREFIX + name).get_all())


def series_in(text: bytes) -> set[str]:
    return {line.rpartition(" ")[0] for line in text.decode().splitlines() if line[0] != "#"}


def test_names_labels_and_kinds_are_the_documented_ones():
    documented = {
        "websocket_connections_active": ("Gauge", ("tenant_id",)),
        "sessions_active": ("Gauge", ("tenant_id",)),
        "sessions_created_total": ("Counter", ("tenant_id", "agent_id")),
        "sessions_completed_total": ("Counter", ("tenant_id", "agent_id", "status")),
        "sessions_capacity": ("Gauge", ()),
        "sessions_resumed_total": ("Counter", ("tenant_id", "outcome")),
        "session_init_seconds": ("Histogram", ("tenant_id", "agent_id")),
        "session_duration_seconds": ("Histogram", ("tenant_id", "agent_id")),
        "messages_processed_total": ("Counter", ("tenant_id", "role")),
        "message_processing_seconds": ("Histogram", ("tenant_id", "role")),
        "message_failures_total": ("Counter", ("tenant_id", "role", "error_class", "error_code")),
        "time_to_first_event_seconds": ("Histogram", ("tenant_id", "agent_id")),
        "queue_wait_seconds": ("Histogram", ("tenant_id", "agent_id")),
        "run_duration_seconds": ("Histogram", ("tenant_id", "agent_id", "status")),
        "tokens_total": ("Counter", ("tenant_id", "agent_id", "type")),
        "websocket_open_sockets": ("Gauge", ()),
        "websocket_handshakes_total": ("Counter", ("result",)),
        "websocket_disconnects_total": ("Counter", ("code", "reason")),
        "websocket_frames_total": ("Counter", ("direction",)),
        "websocket_bytes_total": ("Counter", ("direction",)),
        "auth_failures_total": ("Counter", ("reason",)),
        "rate_limited_total": ("Counter", ("scope",)),
        "http_requests_total": ("Counter", ("method", "endpoint", "status")),
        "http_request_duration_seconds": ("Histogram", ("method", "endpoint")),
        "draining": ("Gauge", ()),
        "ready": ("Gauge", ()),
        "dependency_up": ("Gauge", ("dependency",)),
        "slow_consumers": ("Gauge", ()),
        "outbound_buffer_bytes": ("Gauge", ()),
        "redis_writes_lost_total": ("Counter", ()),
        "pubsub_gaps_total": ("Counter", ()),
        "pubsub_repaired_events_total": ("Counter", ()),
        "pubsub_delivery_seconds": ("Histogram", ()),
        "redis_up": ("Gauge", ("role",)),
        "redis_reconnects_total": ("Counter", ("role",)),
        "service_call_total": ("Counter", ("tenant_id", "service", "operation")),
        "service_call_seconds": ("Histogram", ("tenant_id", "service", "operation")),
        "service_call_failures_total": (
            "Counter",
            ("tenant_id", "service", "operation", "error_code"),
        ),
        "agent_workers": ("Gauge", ("agent_id",)),
        "agent_slots": ("Gauge", ("agent_id", "state")),
        "circuit_breaker_state": ("Gauge", ("service",)),
        "service_consecutive_failures": ("Gauge", ("service",)),
        "service_failure_streaks_total": ("Counter", ("service",)),
        "queue_depth": ("Gauge", ("tenant_id", "queue")),
        "queue_lag_seconds": ("Gauge", ("tenant_id", "queue")),
        "task_processing_seconds": ("Histogram", ("tenant_id", "task_type")),
        "archive_journal_fill": ("Gauge", ()),
        "archive_dead_letters": ("Gauge", ()),
        "metric_label_overflow_total": ("Counter", ()),
        "event_loop_lag_seconds": ("Histogram", ()),
        "log_messages_total": ("Counter", ("level",)),
        "logs_dropped_total": ("Counter", ()),
        "process_cpu_seconds_total": ("Counter", ()),
        "process_resident_memory_bytes": ("Gauge", ()),
        "process_open_fds": ("Gauge", ()),
        "process_max_fds": ("Gauge", ()),
        "process_start_time_seconds": ("Gauge", ()),
        "build_info": ("Gauge", ("version",)),
    }
    assert PREFIX == "nooble_orchestrator_"
    found = {m.name: (type(m).__name__, m.labels) for m in catalogue.CATALOGUE}
    assert found == documented
    assert 2 in catalogue.MESSAGE_PROCESSING_SECONDS.buckets  # the alert's bound


def test_every_telemetry_has_a_registry_of_its_own(telemetry: Telemetry):
    other = Telemetry(version="1.2.3")
    telemetry.connection_opened("acme")
    assert value(other, "websocket_connections_active", TENANT) is None


def test_build_info_says_the_version(telemetry: Telemetry):
    assert value(telemetry, "build_info", {"version": "1.2.3"}) == 1


def test_known_series_start_at_zero(telemetry: Telemetry):
    telemetry.session("acme", "demo")
    assert value(telemetry, "metric_label_overflow_total", {}) == 0
    assert value(telemetry, "websocket_connections_active", TENANT) == 0
    assert value(telemetry, "sessions_active", TENANT) == 0
    assert value(telemetry, "sessions_created_total", BOTH) == 0
    for status in ("completed", "expired", "failed"):
        assert value(telemetry, "sessions_completed_total", BOTH | {"status": status}) == 0
    for role in ("user", "assistant", "tool"):
        assert value(telemetry, "messages_processed_total", TENANT | {"role": role}) == 0
        seconds = value(telemetry, "message_processing_seconds", TENANT | {"role": role})
        assert isinstance(seconds, dict)
        assert set(seconds.values()) == {0}
        assert len(seconds) == 13 + 3  # the bounds, +Inf, sum and count


def test_usage_that_no_agent_reported_is_absent_not_zero(telemetry: Telemetry):
    session = telemetry.session("acme", "demo")
    session.tokens(0, 0)
    assert count(telemetry, "tokens_total") == 0
    session.tokens(5, 0)
    assert value(telemetry, "tokens_total", BOTH | {"type": "output"}) == 5
    assert value(telemetry, "tokens_total", BOTH | {"type": "input"}) is None


def test_each_verb_moves_its_series_and_no_other(telemetry: Telemetry):
    probe: Probe = telemetry
    probe.connection_opened("acme")
    probe.connection_opened("acme")
    probe.connection_closed("acme")
    session = probe.session("acme", "demo")
    session.created()
    session.home_taken()
    session.home_taken()
    session.home_left()
    session.message_accepted("user", 0.004)
    session.message_accepted("user", 0.006)
    session.message_accepted("tool", 0.5)
    session.tokens(3, 0)
    session.tokens(4, 11)
    session.run_ended("F", "assistant", "-", "run", 1.5, 0.02)
    session.run_ended("C", "-", "-", "run", None, 0.02)
    session.completed("expired", 15.0)

    assert value(telemetry, "websocket_connections_active", TENANT) == 1
    assert value(telemetry, "sessions_active", TENANT) == 1
    assert value(telemetry, "sessions_created_total", BOTH) == 1
    by_status = {
        status: value(telemetry, "sessions_completed_total", BOTH | {"status": status})
        for status in catalogue.STATUSES
    }
    assert by_status == {"completed": 0, "expired": 1, "failed": 0}
    by_role = {
        role: value(telemetry, "messages_processed_total", TENANT | {"role": role})
        for role in catalogue.ROLES
    }
    assert by_role == {"user": 2, "tool": 1, "assistant": 1, "system": 0}
    assert value(telemetry, "tokens_total", BOTH | {"type": "output"}) == 7
    assert value(telemetry, "tokens_total", BOTH | {"type": "input"}) == 11

    user = value(telemetry, "message_processing_seconds", TENANT | {"role": "user"})
    assert isinstance(user, dict)
    assert (user[0.0025], user[0.005], user[0.01], user[float("inf")]) == (0, 1, 2, 2)
    assert (user["count"], user["sum"]) == (2, pytest.approx(0.01))
    assistant = value(telemetry, "message_processing_seconds", TENANT | {"role": "assistant"})
    assert isinstance(assistant, dict)
    assert (assistant["count"], assistant["sum"]) == (2, pytest.approx(0.04))
    duration = value(telemetry, "session_duration_seconds", BOTH)
    assert isinstance(duration, dict)
    assert (duration[5.0], duration[15.0]) == (0, 1)  # a bound belongs to its bucket


def moved(telemetry: Telemetry, *names: str) -> dict[Any, float]:
    """The series of these names that are not zero."""
    every = read(telemetry.render()[0].decode())
    return {key: number for key, number in every.items() if key[0] in names and number}


def test_how_clients_come_in():
    telemetry = Telemetry(version="1")
    session = telemetry.session("acme", "demo")
    for outcome in ("created", "created", "resumed", "snapshot", "reset"):
        session.opened(outcome, 0.5)
    assert moved(telemetry, "sessions_resumed_total", "session_init_seconds_sum") == {
        series("session_init_seconds_sum", **BOTH): 2.5,
        series("sessions_resumed_total", **TENANT, outcome="resumed"): 1,
        series("sessions_resumed_total", **TENANT, outcome="snapshot"): 1,
        series("sessions_resumed_total", **TENANT, outcome="reset"): 1,
    }


def test_a_run_from_its_turn_to_its_end():
    telemetry = Telemetry(version="1")
    session = telemetry.session("acme", "demo")
    session.run_claimed(0.25)
    session.first_event(0.5)
    session.run_ended("F", "assistant", "-", "run", 2.0, 0.0)
    session.run_ended("I", "assistant", "-", "resume", 3.0, 0.0)
    session.run_ended("C", "-", "-", "run", 4.0, 0.0)
    session.run_ended("X", "-", "timeout", "run", 8.0, 0.0)
    call = {**TENANT, "service": "agent:demo", "operation": "run"}
    names = "queue_wait", "time_to_first_event", "run_duration", "task_processing", "service_call"
    assert moved(telemetry, *(f"{name}_seconds_sum" for name in names), "service_call_total") == {
        series("queue_wait_seconds_sum", **BOTH): 0.25,
        series("time_to_first_event_seconds_sum", **BOTH): 0.5,
        series("run_duration_seconds_sum", **BOTH, status="success"): 2,
        series("run_duration_seconds_sum", **BOTH, status="interrupt"): 3,
        series("run_duration_seconds_sum", **BOTH, status="cancelled"): 4,
        series("run_duration_seconds_sum", **BOTH, status="error"): 8,
        series("task_processing_seconds_sum", **TENANT, task_type="run"): 14,
        series("task_processing_seconds_sum", **TENANT, task_type="resume"): 3,
        series("service_call_seconds_sum", **call): 17,
        series("service_call_total", **call): 4,
    }


def test_a_run_that_no_worker_had_is_a_call_only_when_it_failed_for_that():
    telemetry = Telemetry(version="1")
    session = telemetry.session("acme", "demo")
    session.run_ended("C", "-", "-", "run", None, 0.0)
    assert moved(telemetry, "service_call_total", "run_duration_seconds_count") == {}
    session.run_ended("X", "-", "no_worker", "run", None, 0.0)
    call = {**TENANT, "service": "agent:demo", "operation": "run"}
    names = "service_call_total", "service_call_failures_total", "message_failures_total"
    failure = {"role": "assistant", "error_class": "server", "error_code": "no_worker"}
    assert moved(telemetry, *names, "service_call_seconds_count") == {
        series("service_call_total", **call): 1,
        series("service_call_failures_total", **call, error_code="connection"): 1,
        series("message_failures_total", **TENANT, **failure): 1,
    }


def test_a_call_that_is_not_made_is_one_and_takes_no_time():
    telemetry = Telemetry(version="1")
    telemetry.session("acme", "demo").call_spared()
    call = {**TENANT, "service": "agent:demo", "operation": "run"}
    names = "service_call_total", "service_call_failures_total", "service_call_seconds_count"
    assert moved(telemetry, *names) == {
        series("service_call_total", **call): 1,
        series("service_call_failures_total", **call, error_code="circuit_open"): 1,
    }


def test_a_cancel_that_its_agent_did_not_hear_is_no_failed_call():
    telemetry = Telemetry(version="1")
    telemetry.session("acme", "demo").run_ended("X", "-", "cancelled", "run", 1.0, 0.0)
    assert moved(telemetry, "service_call_failures_total") == {}


def test_too_large_is_our_fault_in_a_run_and_the_senders_in_a_frame():
    telemetry = Telemetry(version="1")
    telemetry.session("acme", "demo").run_ended("X", "-", "too_large", "run", 1.0, 0.0)
    telemetry.message_failed("acme", "user", "too_large")
    labels = {**TENANT, "error_code": "too_large"}
    assert moved(telemetry, "message_failures_total") == {
        series("message_failures_total", role="assistant", error_class="server", **labels): 1,
        series("message_failures_total", role="user", error_class="client", **labels): 1,
    }


def test_who_has_no_principal_fails_for_no_tenant():
    telemetry = Telemetry(version="1")
    telemetry.message_failed("", "system", "forbidden")
    telemetry.message_failed("acme", "tool", "unavailable")
    telemetry.auth_failed("bad_tenant")
    nobody = {"tenant_id": "_none", "error_class": "client", "error_code": "forbidden"}
    ours = {**TENANT, "error_class": "server", "error_code": "unavailable"}
    assert moved(telemetry, "message_failures_total", "auth_failures_total") == {
        series("message_failures_total", role="system", **nobody): 1,
        series("message_failures_total", role="tool", **ours): 1,
        series("auth_failures_total", reason="bad_tenant"): 1,
    }


def test_what_alerts_look_at_is_there_before_it_happens():
    """A counter that appears with its first failure has no rate."""
    telemetry = Telemetry(version="1")
    telemetry.session("acme", "demo")
    every = read(telemetry.render()[0].decode())
    for role in ("user", "assistant"):
        labels = {"role": role, "error_class": "server", "error_code": "internal"}
        assert every[series("message_failures_total", **TENANT, **labels)] == 0
    call = {**TENANT, "service": "agent:demo", "operation": "run"}
    assert every[series("service_call_failures_total", **call, error_code="timeout")] == 0


def test_a_forced_end_and_an_agent_that_is_left_alone_are_a_line_each():
    lines: list[Any] = []
    sink = logger.add(lambda line: lines.append((current_ids(), line.record)), level="WARNING")
    try:
        telemetry = Telemetry(version="1")
        telemetry.run_forced(RunRef("acme", "s1", "r1"), "timeout")
        telemetry.agent_left_alone("acme", "demo")
    finally:
        logger.remove(sink)
    [(forced, record), (alone, other)] = lines
    assert (forced.tenant_id, forced.session_id, alone.tenant_id) == ("acme", "s1", "acme")
    assert record["extra"] == {"run_id": "r1", "code": "timeout"}
    assert other["extra"] == {"agent_id": "demo"}


def test_a_delivery_that_another_clock_makes_negative_counts_as_zero(telemetry: Telemetry):
    telemetry.session("acme", "demo").run_ended("F", "assistant", "-", "run", 1, -0.3)
    seconds = value(telemetry, "message_processing_seconds", TENANT | {"role": "assistant"})
    assert isinstance(seconds, dict)
    assert (seconds["sum"], seconds["count"], seconds[0.001]) == (0, 1, 1)


def test_a_run_that_is_counted_late_is_a_message_but_no_delivery(telemetry: Telemetry):
    """How late says how long a node was dead, not how long a client waited."""
    telemetry.session("acme", "demo").run_ended("F", "assistant", "-", "run", 1, None)
    labels = TENANT | {"role": "assistant"}
    assert value(telemetry, "messages_processed_total", labels) == 1
    seconds = value(telemetry, "message_processing_seconds", labels)
    assert isinstance(seconds, dict)
    assert seconds["count"] == 0


def test_what_one_event_moves_costs_no_look_up_by_labels(telemetry: Telemetry):
    """Some 1 us; by labels each of the four moves would cost 6. `loadtests/metrics.py` measures."""
    session, best = telemetry.session("acme", "demo"), 1.0
    for _ in range(50):
        began = time.perf_counter()
        for _ in range(100):
            session.tokens(1, 0)
            session.pushed(0.004)
            telemetry.sockets.frames_sent(1, 300)
        best = min(best, time.perf_counter() - began)
    assert best / 100 < 15e-6


def test_moves_through_aioprometheus_and_through_handles_add_up():
    series = Series(catalogue.CATALOGUE)
    registry: Registry = series.registry
    created = series.counter(catalogue.SESSIONS_CREATED_TOTAL, "acme", "demo")
    active = series.gauge(catalogue.SESSIONS_ACTIVE, "acme")
    duration = series.histogram(catalogue.SESSION_DURATION_SECONDS, "acme", "demo")
    created.inc()
    active.add(3)
    duration.observe(2)
    registry.get(PREFIX + "sessions_created_total").add(BOTH, 4)
    registry.get(PREFIX + "sessions_active").dec(TENANT)
    registry.get(PREFIX + "session_duration_seconds").observe(BOTH, 100)
    created.inc(2)
    assert registry.get(PREFIX + "sessions_created_total").get(BOTH) == 7
    assert registry.get(PREFIX + "sessions_active").get(TENANT) == 2
    seconds = registry.get(PREFIX + "session_duration_seconds").get(BOTH)
    assert (seconds[1], seconds[5], seconds[300], seconds["count"]) == (0, 1, 2, 2)
    assert seconds["sum"] == 102
    with pytest.raises(ValueError, match="only grows"):
        created.inc(-1)


def test_past_the_bound_of_pairs_a_tenants_agents_share_other_and_are_counted():
    """Each has more than a hundred series: 200 tenants with 100 agents would be two millions."""
    telemetry = Telemetry(version="1", max_pairs=2)
    for tenant, agent in (("a", "one"), ("b", "one"), ("a", "two"), ("a", "three"), ("a", "one")):
        telemetry.session(tenant, agent).created()
    created = "sessions_created_total"
    assert value(telemetry, created, {"tenant_id": "a", "agent_id": "one"}) == 2
    assert value(telemetry, created, {"tenant_id": "b", "agent_id": "one"}) == 1
    assert value(telemetry, created, {"tenant_id": "a", "agent_id": "other"}) == 2
    assert value(telemetry, created, {"tenant_id": "a", "agent_id": "two"}) is None
    assert value(telemetry, "metric_label_overflow_total", {}) == 2


def test_past_the_bound_tenants_and_agents_share_other_and_are_counted():
    telemetry = Telemetry(version="1", max_tenants=2, max_agents=1)
    for tenant in ("a", "b", "c", "d", "a"):
        telemetry.connection_opened(tenant)
    name = "websocket_connections_active"
    assert value(telemetry, name, {"tenant_id": "a"}) == 2
    assert value(telemetry, name, {"tenant_id": "b"}) == 1
    assert value(telemetry, name, {"tenant_id": "c"}) is None
    assert value(telemetry, name, {"tenant_id": "other"}) == 2
    assert value(telemetry, "metric_label_overflow_total", {}) == 2

    telemetry.connection_closed("c")  # leaves where it was counted, and is no new overflow
    assert value(telemetry, name, {"tenant_id": "other"}) == 1
    assert value(telemetry, "metric_label_overflow_total", {}) == 2

    telemetry.session("a", "one").created()
    telemetry.session("a", "two").created()
    telemetry.session("d", "three").created()
    created = "sessions_created_total"
    assert value(telemetry, created, {"tenant_id": "a", "agent_id": "one"}) == 1
    assert value(telemetry, created, {"tenant_id": "a", "agent_id": "other"}) == 1
    assert value(telemetry, created, {"tenant_id": "other", "agent_id": "other"}) == 1
    assert value(telemetry, "metric_label_overflow_total", {}) == 5


def test_however_many_tenants_come_the_series_are_bounded():
    telemetry = Telemetry(version="1")
    for number in range(1000):
        telemetry.connection_opened(f"tenant-{number}")
        telemetry.session("acme", f"agent-{number}")
    assert count(telemetry, "websocket_connections_active") == 201
    assert count(telemetry, "sessions_created_total") == 101


def test_a_gauge_is_shown_at_zero_for_a_while_and_then_removed():
    """However many look: two Prometheus servers must both see it come down."""
    clock = [0.0]
    telemetry = Telemetry(version="1", clock=lambda: clock[0])
    name = "websocket_connections_active"
    telemetry.connection_opened("acme")
    telemetry.connection_opened("quiet")
    telemetry.connection_closed("quiet")
    quiet = f'{PREFIX}{name}{{tenant_id="quiet"}} 0'.encode()
    for clock[0] in (0.0, 1.0, IDLE_S - 1):
        assert quiet in telemetry.render()[0].splitlines()
    clock[0] = IDLE_S
    text = telemetry.render()[0]
    assert b'active{tenant_id="quiet"}' not in text
    assert value(telemetry, name, TENANT) == 1

    telemetry.connection_opened("quiet")  # the handles find it again
    assert value(telemetry, name, {"tenant_id": "quiet"}) == 1
    telemetry.render()
    telemetry.connection_closed("quiet")
    clock[0] += IDLE_S
    assert quiet in telemetry.render()[0].splitlines(), "it was not zero all the time"


def test_counters_histograms_and_build_info_are_never_removed():
    now = 0.0
    telemetry = Telemetry(version="1", clock=lambda: now)
    telemetry.session("acme", "demo").home_taken()
    first = series_in(telemetry.render()[0])
    for _ in range(3):
        now += IDLE_S
        telemetry.journal(JournalState())  # of an old look nothing is shown
        last = series_in(telemetry.render()[0])
    assert first - last == {f'{PREFIX}websocket_connections_active{{tenant_id="acme"}}'}


def test_a_streak_is_counted_once_and_from_four_failures_on():
    telemetry = Telemetry(version="1")
    telemetry.session("acme", "demo")
    service = {"service": "agent:demo"}
    assert value(telemetry, "service_failure_streaks_total", service) == 0
    for failures in (1, 2, 3):
        telemetry.breaker_moved("agent:demo", 0, failures)
    assert value(telemetry, "service_failure_streaks_total", service) == 0
    for failures in (4, 5, 6):
        telemetry.breaker_moved("agent:demo", 2, failures)
    assert value(telemetry, "service_failure_streaks_total", service) == 1
    assert value(telemetry, "service_consecutive_failures", service) == 6
    assert value(telemetry, "circuit_breaker_state", service) == 2
    telemetry.breaker_moved("agent:demo", 0, 0)
    telemetry.breaker_moved("agent:demo", 0, 4)
    assert value(telemetry, "service_failure_streaks_total", service) == 2
    assert value(telemetry, "circuit_breaker_state", service) == 0


def test_a_refusal_by_our_fault_is_a_line_and_a_flood_of_them_is_not_many(monkeypatch):
    monkeypatch.setattr(metrics, "REFUSAL_QUIET_S", 1000.0)
    telemetry = Telemetry(version="1")
    lines: list[tuple[str | None, Any]] = []
    sink = logger.add(lambda it: lines.append((current_ids().tenant_id, it.record["extra"])))
    try:
        for _ in range(4):
            telemetry.message_failed("acme", "user", "unavailable", "demo")
        telemetry.message_failed("globex", "user", "unavailable")
        telemetry.message_failed("acme", "user", "busy")
        monkeypatch.setattr(metrics, "REFUSAL_QUIET_S", 0.0)
        telemetry.message_failed("acme", "user", "unavailable")
    finally:
        logger.remove(sink)
    found = [
        (tenant, extra["agent_id"], extra["code"], extra["suppressed"]) for tenant, extra in lines
    ]
    assert found == [
        ("acme", "demo", "unavailable", 0),
        ("globex", None, "unavailable", 0),
        ("acme", None, "unavailable", 3),
    ]


def test_readiness_is_shown_with_what_it_is_made_of():
    telemetry = Telemetry(version="1")
    for word, up in (("error", 0), ("ok", 1), ("error", 0)):
        telemetry.readiness(bool(up), {"redis": word, "database": "ok"})
        assert value(telemetry, "ready", {}) == up
        assert value(telemetry, "dependency_up", {"dependency": "redis"}) == up
        assert value(telemetry, "dependency_up", {"dependency": "database"}) == 1


def test_a_breaker_of_the_node_is_shown_from_the_start():
    telemetry = Telemetry(version="1")
    breaker = Breaker(lambda: 0.0, threshold=1)
    telemetry.follow("redis", breaker)
    assert value(telemetry, "circuit_breaker_state", {"service": "redis"}) == 0
    breaker.fail()
    assert value(telemetry, "circuit_breaker_state", {"service": "redis"}) == 2
    breaker.probe()
    assert value(telemetry, "circuit_breaker_state", {"service": "redis"}) == 1


def test_agents_past_the_bound_share_a_service():
    telemetry = Telemetry(version="1", max_agents=1)
    for agent in ("first", "second"):
        telemetry.session("acme", agent)
        telemetry.breaker_moved(f"agent:{agent}", 2, 5)
    assert value(telemetry, "circuit_breaker_state", {"service": "agent:other"}) == 2
    assert count(telemetry, "circuit_breaker_state") == 2


def test_agents_that_share_a_service_show_the_worst_and_count_each_streak_once():
    """Each is told of every second: a streak that is counted again and again fires for ever."""
    telemetry = Telemetry(version="1", max_agents=0)
    shared = {"service": "agent:other"}

    def shown() -> tuple[object, ...]:
        return tuple(
            value(telemetry, name, shared)
            for name in (
                "circuit_breaker_state",
                "service_consecutive_failures",
                "service_failure_streaks_total",
            )
        )

    for _ in range(5):  # whoever is told of last
        telemetry.breaker_moved("agent:bad", 2, 6)
        telemetry.breaker_moved("agent:poor", 0, 1)
        assert shown() == (2, 6, 1)
    telemetry.breaker_moved("agent:poor", 0, 4)
    assert shown() == (2, 6, 2)
    telemetry.breaker_moved("agent:bad", 0, 0)
    assert shown() == (0, 4, 2)
    telemetry.breaker_moved("agent:poor", 0, 0)
    assert shown() == (0, 0, 2)


ARCHIVE = {"tenant_id": "_all", "queue": "archive"}


def test_the_way_to_the_archive_is_shown_from_zero_on(telemetry):
    """An alert on its depth or lag must have something to compare with."""
    for _ in range(3):
        telemetry.render()
        assert value(telemetry, "queue_depth", ARCHIVE) == 0
        assert value(telemetry, "queue_lag_seconds", ARCHIVE) == 0


def test_the_lag_of_the_archive_grows_between_two_looks(telemetry):
    """Its birth is kept and its age computed at the scrape: a look that hangs must not hide it."""
    probe: ArchiveProbe = telemetry
    born_ms = int(time.time() * 1000) - 60_000
    probe.journal(JournalState(entries=7, oldest_ms=born_ms, fill=0.25, dead=2))
    probe.archived(0.02)
    telemetry.render()
    first = value(telemetry, "queue_lag_seconds", ARCHIVE)
    telemetry.render()
    assert 60 <= first < value(telemetry, "queue_lag_seconds", ARCHIVE) < 120
    assert value(telemetry, "queue_depth", ARCHIVE) == 7
    assert value(telemetry, "archive_journal_fill", {}) == 0.25
    assert value(telemetry, "archive_dead_letters", {}) == 2
    probe.journal(JournalState())
    telemetry.render()
    assert value(telemetry, "queue_lag_seconds", ARCHIVE) == 0
    assert value(telemetry, "archive_dead_letters", {}) == 0
