"""The calls of services, as series: one look-up a call, bounded, and with the truth in them."""

from gateway.session.probe import ServiceProbe
from gateway.telemetry import catalogue
from gateway.telemetry.catalogue import PREFIX
from gateway.telemetry.metrics import Telemetry


def series(telemetry: Telemetry, name: str) -> dict[tuple[str, ...], object]:
    """Every series of a metric by its label values, in the catalogue's order."""
    [metric] = [one for one in catalogue.CATALOGUE if one.name == name]
    return {
        tuple(labels[label] for label in metric.labels): value
        for labels, value in telemetry.registry.get(PREFIX + name).get_all()
    }


def test_calls_are_counted_and_timed_and_failures_say_why():
    telemetry = Telemetry(version="1")
    redis: ServiceProbe = telemetry.service("redis")
    redis.called("acme", "open", 0.002)
    redis.called("", "take", 0.002)
    redis.failed("acme", "open", 3.0, "timeout")
    redis.failed("acme", "open", 0.0, "circuit_open")
    telemetry.service("database").called("acme", "read", 0.02)
    assert series(telemetry, "service_call_total") == {
        ("acme", "redis", "open"): 3,
        ("_all", "redis", "take"): 1,
        ("acme", "database", "read"): 1,
    }
    assert series(telemetry, "service_call_failures_total") == {
        ("acme", "redis", "open", "timeout"): 1,
        ("acme", "redis", "open", "circuit_open"): 1,
    }
    seconds = telemetry.registry.get(PREFIX + "service_call_seconds")
    took = seconds.get({"tenant_id": "acme", "service": "redis", "operation": "open"})
    assert (took["count"], took["sum"]) == (2, 3.002), "who was not asked took no time"


def test_tenants_past_the_bound_share_other_and_no_call_counts_as_an_overflow():
    telemetry = Telemetry(version="1", max_tenants=2)
    redis = telemetry.service("redis")
    for tenant in ("a", "b", "c", "d", "a"):
        redis.called(tenant, "open", 0.1)
    assert series(telemetry, "service_call_total") == {
        ("a", "redis", "open"): 2,
        ("b", "redis", "open"): 1,
        ("other", "redis", "open"): 2,
    }
    assert telemetry.registry.get(PREFIX + "metric_label_overflow_total").get({}) == 0
