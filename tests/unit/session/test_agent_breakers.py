"""Agents whose runs fail in a row are left alone: per tenant, and each run counts once."""

import pytest
from support.little_bus import KEY, CountingProbe

from gateway.session.agent_breakers import QUIET_S, SPAN_S, AgentBreakers
from gateway.session.breaker import BreakerState
from gateway.session.endings import Endings
from gateway.session.eraser import Eraser
from gateway.session.errors import Refused
from gateway.session.service import SessionService
from protocol.codes import ErrorCode
from protocol.frames import Message

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def probe() -> CountingProbe:
    return CountingProbe()


@pytest.fixture
def breakers(clock: Clock, probe: CountingProbe) -> AgentBreakers:
    return AgentBreakers(clock, probe.breaker_moved, probe.agent_left_alone)


def fail(breakers: AgentBreakers, clock: Clock, tenant: str = "acme", times: int = 5) -> None:
    for _ in range(times):
        clock.now += SPAN_S
        breakers.ended(tenant, "demo", "X", "internal")


def test_five_failed_runs_in_a_row_open_it(breakers: AgentBreakers, clock: Clock) -> None:
    fail(breakers, clock, times=4)
    breakers.admit("acme", "demo")
    fail(breakers, clock, times=1)
    with pytest.raises(Refused) as caught:
        breakers.admit("acme", "demo")
    assert caught.value.code is ErrorCode.CIRCUIT_OPEN
    assert caught.value.retry_after_ms is not None
    assert 5000 <= caught.value.retry_after_ms <= 6251


def test_when_its_pause_is_over_it_shows_so_though_nobody_asks(
    breakers: AgentBreakers, clock: Clock, probe: CountingProbe
) -> None:
    """An alert on open breakers would go on for an agent to which nobody writes any more."""
    fail(breakers, clock)
    breakers.look()
    assert probe.breakers["agent:demo"] == (OPEN, 5)
    clock.now += 10
    breakers.look()
    assert probe.breakers["agent:demo"] == (HALF_OPEN, 5)
    assert breakers.state("acme", "demo") is HALF_OPEN
    breakers.admit("acme", "demo")
    with pytest.raises(Refused):
        breakers.admit("acme", "demo")  # it was no probe that the look let through


def test_who_failed_and_is_not_asked_again_is_forgotten_in_the_end(
    breakers: AgentBreakers, clock: Clock, probe: CountingProbe
) -> None:
    fail(breakers, clock, "acme")
    clock.now += QUIET_S / 2
    fail(breakers, clock, "other", times=1)
    clock.now += QUIET_S / 2 + 1
    breakers.look()
    assert probe.breakers["agent:demo"] == (CLOSED, 1), "what is left is the other tenant's"
    clock.now += QUIET_S
    breakers.look()
    assert probe.breakers["agent:demo"] == (CLOSED, 0)


@pytest.mark.parametrize("code", ["internal", "worker_lost", "timeout", "no_worker"])
def test_what_is_a_failure(breakers: AgentBreakers, clock: Clock, code: str) -> None:
    for _ in range(5):
        clock.now += SPAN_S
        breakers.ended("acme", "demo", "X", code)
    assert breakers.state("acme", "demo") is OPEN


def test_it_is_told_when_it_is_left_alone_and_not_with_each_failure(
    breakers: AgentBreakers, clock: Clock, probe: CountingProbe
) -> None:
    fail(breakers, clock, times=4)
    assert "left alone acme demo" not in probe.facts
    fail(breakers, clock, times=3)
    fail(breakers, clock, "other", times=5)
    clock.now += 1000
    breakers.admit("acme", "demo")  # and fails: it is still the same
    fail(breakers, clock, times=1)
    assert probe.facts["left alone acme demo"] == 1
    assert probe.facts["left alone other demo"] == 1


@pytest.mark.parametrize(("kind", "code"), [("F", "-"), ("I", "-"), ("X", "no_such_customer")])
def test_what_shows_that_it_is_well(
    breakers: AgentBreakers, clock: Clock, kind: str, code: str
) -> None:
    fail(breakers, clock, times=4)
    breakers.ended("acme", "demo", kind, code)
    fail(breakers, clock, times=4)
    assert breakers.state("acme", "demo") is CLOSED


@pytest.mark.parametrize(("kind", "code"), [("C", "-"), ("X", "cancelled"), ("X", "too_large")])
def test_what_says_nothing(breakers: AgentBreakers, clock: Clock, kind: str, code: str) -> None:
    fail(breakers, clock, times=4)
    breakers.ended("acme", "demo", kind, code)
    assert breakers.state("acme", "demo") is CLOSED
    fail(breakers, clock, times=1)
    assert breakers.state("acme", "demo") is OPEN


def test_a_dead_worker_is_no_streak(breakers: AgentBreakers, clock: Clock) -> None:
    for _ in range(8):  # all that it held
        clock.now += 0.1
        breakers.ended("acme", "demo", "X", "worker_lost")
    assert breakers.state("acme", "demo") is CLOSED


def test_no_tenant_shuts_an_agent_for_another(breakers: AgentBreakers, clock: Clock) -> None:
    fail(breakers, clock, "acme")
    breakers.admit("other", "demo")
    breakers.admit("acme", "another-agent")
    breakers.ended("other", "demo", "F", "-")
    assert breakers.state("acme", "demo") is OPEN


def test_the_metric_shows_the_worst(
    breakers: AgentBreakers, clock: Clock, probe: CountingProbe
) -> None:
    fail(breakers, clock, "other", times=2)
    fail(breakers, clock, "acme")
    assert probe.breakers["agent:demo"] == (OPEN, 5)
    breakers.ended("acme", "demo", "F", "-")
    assert probe.breakers["agent:demo"] == (CLOSED, 2)
    breakers.ended("other", "demo", "F", "-")
    assert probe.breakers["agent:demo"] == (CLOSED, 0)


def test_one_message_is_let_through_and_decides(breakers: AgentBreakers, clock: Clock) -> None:
    fail(breakers, clock)
    clock.now += 10
    breakers.admit("acme", "demo")
    assert breakers.state("acme", "demo") is HALF_OPEN
    with pytest.raises(Refused):
        breakers.admit("acme", "demo")
    breakers.ended("acme", "demo", "C", "-")  # cancelled: the next one may try
    breakers.admit("acme", "demo")
    breakers.ended("acme", "demo", "F", "-")
    breakers.admit("acme", "demo")
    breakers.admit("acme", "demo")


@pytest.fixture
def service(world) -> SessionService:
    endings = Endings(
        sessions=world.bus,
        erasure=world.bus,
        probe=world.probe,
        clock=world.clock,
        report=world.report,
    )
    return SessionService(
        sessions=world.bus,
        queue=world.bus,
        directory=world.bus,
        hub=world.hub,
        endings=endings,
        history=world.archive,
        eraser=Eraser(history=world.archive, journal=world.bus, endings=endings),
        erasure=world.bus,
        journal=world.bus,
        node="n1",
        now_ms=lambda: world.now_ms,
    )


async def failing(world) -> None:
    """A session here, in which five runs have failed."""
    world.bus.make()
    await world.join()
    for number in range(5):
        world.clock.now += SPAN_S
        world.bus.append("X", run=f"r{number}", code="internal")
        await world.settle()


async def test_the_node_hears_how_runs_end_in_what_it_follows(world, service) -> None:
    await failing(world)
    view = await world.bus.open(KEY, "anonymous", node="n1")
    with pytest.raises(Refused) as caught:
        await service.message(view, Message("m1", "hi"))
    assert caught.value.code is ErrorCode.CIRCUIT_OPEN
    assert world.bus.accepted == []
    assert world.probe.facts["calls spared"] == 1
    assert world.probe.breakers["agent:demo"] == (OPEN, 5)


async def test_a_run_counts_once_however_often_its_end_is_seen(world) -> None:
    world.bus.make()
    await world.join()
    await world.join()
    world.clock.now += SPAN_S
    world.bus.append("X", run="r1", code="internal")
    await world.settle()
    await world.pass_time(60)  # position checks read the log again
    assert world.probe.breakers["agent:demo"] == (CLOSED, 1)


async def test_a_message_that_was_refused_is_no_probe(world, service) -> None:
    await failing(world)
    view = await world.bus.open(KEY, "anonymous", node="n1")
    world.clock.now += 10
    world.bus.down = True
    for _ in range(2):  # the first leaves its place to the second
        with pytest.raises(Refused) as caught:
            await service.message(view, Message("m1", "hi"))
        assert caught.value.code is ErrorCode.UNAVAILABLE
    world.bus.down = False
    assert (await service.message(view, Message("m1", "hi"))).status == "accepted"
    with pytest.raises(Refused) as caught:
        await service.message(view, Message("m2", "hi"))
    assert caught.value.code is ErrorCode.CIRCUIT_OPEN


async def test_what_was_accepted_before_is_answered_while_the_agent_is_left_alone(
    world, service
) -> None:
    """Its acknowledgement was lost, and the client sends it again."""
    world.bus.make()
    await world.join()
    view = await world.bus.open(KEY, "anonymous", node="n1")
    ack = await service.message(view, Message("m1", "hi"))
    for _ in range(5):
        world.clock.now += SPAN_S
        world.hub.breakers.ended(KEY.tenant, view.agent, "X", "internal")
    again = await service.message(view, Message("m1", "hi"))
    assert (again.status, again.run_id) == ("duplicate", ack.run_id)
    with pytest.raises(Refused) as caught:
        await service.message(view, Message("m2", "hi"))
    assert caught.value.code == ErrorCode.CIRCUIT_OPEN
    assert caught.value.retry_after_ms
