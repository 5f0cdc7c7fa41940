"""Queues and workers as series: shared names add up, idle ones end, and the lag grows by itself."""

import time

import pytest

from gateway.session.queues import AgentLoad, QueueProbe, Waiting
from gateway.telemetry.catalogue import PREFIX
from gateway.telemetry.metrics import Telemetry

LABELS = {"tenant_id": "acme", "queue": "demo"}


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry(version="1", max_tenants=2, max_agents=2)


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    try:
        return telemetry.registry.get(PREFIX + name).get(labels)
    except KeyError:
        return None


def ago_ms(seconds: float) -> int:
    return int((time.time() - seconds) * 1000)


def test_a_dispatch_and_a_claim_move_the_depth_at_once(telemetry: Telemetry):
    probe: QueueProbe = telemetry.queues
    probe.queue_seen("acme", "demo", Waiting(2, ago_ms(60)))
    session = telemetry.session("acme", "demo")
    assert value(telemetry, "queue_depth", **LABELS) == 2
    session.run_claimed(0.1)
    assert value(telemetry, "queue_depth", **LABELS) == 1
    telemetry.refresh()
    assert value(telemetry, "queue_lag_seconds", **LABELS) >= 60
    session.run_claimed(0.1)
    session.run_claimed(0.1)  # another node's: there is none that could be less than none
    telemetry.refresh()
    assert value(telemetry, "queue_depth", **LABELS) == 0
    assert value(telemetry, "queue_lag_seconds", **LABELS) == 0


def test_the_lag_grows_between_two_looks(telemetry: Telemetry):
    """A look that hangs must not hide it."""
    telemetry.queues.queue_seen("acme", "demo", Waiting(1, ago_ms(60)))
    telemetry.refresh()
    first = value(telemetry, "queue_lag_seconds", **LABELS)
    telemetry.refresh()
    assert first is not None
    assert 60 <= first < (value(telemetry, "queue_lag_seconds", **LABELS) or 0) < 600


def test_a_look_shows_all_and_ends_what_is_gone(telemetry: Telemetry):
    telemetry.queues.queue_seen("acme", "demo", Waiting(3, ago_ms(9)))
    loads = [
        AgentLoad("demo", 2, 16, 5, {"other-one": Waiting(7, ago_ms(1))}),
        AgentLoad("idle", 0, 0, 0, {}),
    ]
    telemetry.queues.agents_seen(loads)
    assert value(telemetry, "queue_depth", **LABELS) == 0
    assert value(telemetry, "queue_depth", tenant_id="other-one", queue="demo") == 7
    assert value(telemetry, "agent_workers", agent_id="demo") == 2
    assert value(telemetry, "agent_slots", agent_id="demo", state="busy") == 5
    assert value(telemetry, "agent_slots", agent_id="demo", state="free") == 11
    assert value(telemetry, "agent_workers", agent_id="idle") == 0, "an alert needs the zero"


def test_what_shares_a_label_value_adds_up(telemetry: Telemetry):
    oldest = ago_ms(100)
    loads = [
        AgentLoad(agent, 1, 8, 2, {f"t{n}": Waiting(1, oldest + n) for n in range(5)})
        for agent in ("a", "b", "c", "d")
    ]
    telemetry.queues.agents_seen(loads)
    assert value(telemetry, "queue_depth", tenant_id="t0", queue="a") == 1
    assert value(telemetry, "queue_depth", tenant_id="other", queue="a") == 3
    assert value(telemetry, "queue_depth", tenant_id="other", queue="other") == 6
    assert value(telemetry, "agent_workers", agent_id="other") == 2
    assert value(telemetry, "agent_slots", agent_id="other", state="free") == 12
    telemetry.queues.queue_seen("t4", "a", Waiting(1, oldest))  # says nothing of the others
    assert value(telemetry, "queue_depth", tenant_id="other", queue="a") == 3
    telemetry.refresh()
    lag = value(telemetry, "queue_lag_seconds", tenant_id="other", queue="a")
    assert lag == pytest.approx(100, abs=60)
