"""Queues and workers as series: shared names add up, idle ones end, and the lag grows by itself."""

import time

import pytest
from support.little_bus import ManualClock

from gateway.session.archive import JournalState
from gateway.session.queues import AgentLoad, QueueProbe, Waiting
from gateway.telemetry.catalogue import PREFIX
from gateway.telemetry.metrics import Telemetry

LABELS = {"tenant_id": "acme", "queue": "demo"}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def telemetry(clock: ManualClock) -> Telemetry:
    return Telemetry(version="1", max_tenants=2, max_agents=2, clock=clock)


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


def test_an_agent_that_nobody_lists_any_more_has_no_workers(telemetry: Telemetry):
    """Redis came back empty, and its workers did not: the alert needs the zero."""
    telemetry.queues.agents_seen([AgentLoad("demo", 1, 8, 3, {})])
    telemetry.queues.agents_seen([])
    assert value(telemetry, "agent_workers", agent_id="demo") == 0
    assert value(telemetry, "agent_slots", agent_id="demo", state="busy") == 0
    assert value(telemetry, "agent_slots", agent_id="demo", state="free") == 0


SHARED = (
    *("agent_workers", "agent_slots", "queue_depth", "queue_lag_seconds"),
    *("archive_journal_fill", "archive_dead_letters"),
)


def shared(telemetry: Telemetry) -> set[str]:
    """Which of the shared metrics have a value in the exposition."""
    lines = telemetry.render()[0].decode().splitlines()
    return {
        name
        for name in SHARED
        if any(PREFIX + name in line[:60] for line in lines if line[0] != "#")
    }


def test_a_node_that_can_look_no_more_is_silent_about_what_all_share(
    telemetry: Telemetry, clock: ManualClock
):
    """Else the maximum over the nodes is for ever what one saw before it was cut off: workers that
    are gone, a journal that is full no more."""
    load = AgentLoad("demo", 1, 8, 3, {"acme": Waiting(2, ago_ms(60))})
    telemetry.queues.agents_seen([load])
    telemetry.journal(JournalState(entries=5, oldest_ms=ago_ms(9), fill=0.9, dead=1))
    clock.now += 19
    assert shared(telemetry) == set(SHARED), "a few looks may fail"
    clock.now += 2
    telemetry.journal(JournalState(entries=5, oldest_ms=ago_ms(9), fill=0.9, dead=1))
    archive = {"tenant_id": "_all", "queue": "archive"}
    telemetry.refresh()
    assert value(telemetry, "queue_depth", **LABELS) is None
    assert value(telemetry, "queue_depth", **archive) == 5
    clock.now += 21
    assert shared(telemetry) == set()
    telemetry.queues.agents_seen([load])
    telemetry.journal(JournalState())
    assert shared(telemetry) == set(SHARED), "it looks again"
    assert value(telemetry, "agent_workers", agent_id="demo") == 1
    assert value(telemetry, "queue_depth", **LABELS) == 2
    assert value(telemetry, "archive_journal_fill") == 0


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
