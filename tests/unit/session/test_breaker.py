"""The breaker: closed, open, half-open, one probe at a time, pauses that grow to a bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.session.breaker import Breaker, BreakerState

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


def create(time: Time, jitter: float = 0.0) -> Breaker:
    return Breaker(time, threshold=3, pause_s=5.0, most_s=60.0, probe_s=30.0, jitter=lambda: jitter)


@pytest.fixture
def breaker(time: Time) -> Breaker:
    return create(time)


def fail(breaker: Breaker, times: int = 3) -> None:
    for _ in range(times):
        breaker.fail()


def test_it_is_closed_until_so_many_failures_in_a_row(breaker: Breaker) -> None:
    fail(breaker, 2)
    assert (breaker.state, breaker.failures, breaker.admit()) == (CLOSED, 2, 0)
    breaker.fail()
    assert (breaker.state, breaker.failures, breaker.admit()) == (OPEN, 3, 5)


def test_a_success_in_between_begins_the_count_anew(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.succeed()
    fail(breaker, 2)
    assert breaker.state is CLOSED


def test_many_failures_of_one_moment_are_one_cause(time: Time) -> None:
    breaker = Breaker(time, threshold=3, span_s=2.0)
    fail(breaker, 10)
    assert breaker.state is CLOSED
    time.now += 2
    breaker.fail()
    assert breaker.state is OPEN


def test_it_says_when_to_come_back(breaker: Breaker, time: Time) -> None:
    fail(breaker)
    time.now += 3
    assert breaker.admit() == 2
    time.now += 2
    assert breaker.admit() == 0


def test_while_a_probe_is_out_nobody_is_told_to_wait_for_the_longest_it_may_take(
    time: Time,
) -> None:
    breaker = create(time)
    fail(breaker)
    breaker.probe()
    assert breaker.admit() == 5
    time.now += 28
    assert breaker.admit() == 2


def test_one_probe_goes_in_and_the_others_wait(breaker: Breaker, time: Time) -> None:
    fail(breaker)
    time.now += 5
    assert breaker.state is OPEN, "nobody has asked yet"
    assert breaker.admit() == 0
    assert breaker.state is HALF_OPEN
    assert breaker.admit() == 5


def test_a_probe_that_succeeds_closes_it(breaker: Breaker, time: Time) -> None:
    fail(breaker)
    time.now += 5
    breaker.admit()
    breaker.succeed()
    assert (breaker.state, breaker.failures, breaker.admit()) == (CLOSED, 0, 0)


def test_a_probe_that_fails_opens_it_for_twice_as_long(breaker: Breaker, time: Time) -> None:
    fail(breaker)
    for pause_s in (10, 20, 40, 60, 60):
        time.now += 1000
        assert breaker.admit() == 0
        breaker.fail()
        assert (breaker.state, breaker.admit()) == (OPEN, pause_s)


def test_after_a_success_the_pauses_begin_small_again(breaker: Breaker, time: Time) -> None:
    fail(breaker)
    time.now += 5
    breaker.admit()
    breaker.fail()
    breaker.succeed()
    fail(breaker)
    assert breaker.admit() == 5


def test_the_pause_has_a_jitter_of_up_to_a_quarter(time: Time) -> None:
    breaker = create(time, jitter=1.0)
    fail(breaker)
    assert breaker.admit() == 6.25


def test_a_probe_without_a_verdict_is_given_up(breaker: Breaker, time: Time) -> None:
    fail(breaker)
    time.now += 5
    breaker.admit()
    time.now += 30
    assert breaker.admit() == 0, "another one"
    assert breaker.admit() == 5


def test_a_probe_that_did_not_get_to_ask_leaves_its_place(breaker: Breaker, time: Time) -> None:
    fail(breaker)
    time.now += 5
    breaker.admit()
    breaker.release()
    assert breaker.admit() == 0
    assert breaker.admit() == 5


def test_a_release_does_not_open_the_way_before_its_time(breaker: Breaker) -> None:
    fail(breaker)
    breaker.release()  # somebody who went in while it was closed
    assert (breaker.state, breaker.admit()) == (OPEN, 5)


def test_those_who_went_in_before_do_not_make_the_pause_longer(
    breaker: Breaker, time: Time
) -> None:
    fail(breaker)
    time.now += 4
    fail(breaker, 100)
    assert breaker.admit() == 1
    time.now += 1
    breaker.admit()
    breaker.fail()
    assert breaker.admit() == 10


def test_who_must_ask_is_the_probe(breaker: Breaker) -> None:
    breaker.probe()
    assert breaker.state is CLOSED, "nothing to probe"
    fail(breaker)
    breaker.probe()
    assert (breaker.state, breaker.admit()) == (HALF_OPEN, 5)
    breaker.fail()
    assert breaker.state is OPEN


def test_every_change_is_told_once(breaker: Breaker, time: Time) -> None:
    heard: list[tuple[BreakerState, int]] = []
    breaker.watch(lambda it: heard.append((it.state, it.failures)))
    breaker.succeed()
    fail(breaker)
    time.now += 5
    breaker.admit()
    breaker.admit()
    breaker.succeed()
    breaker.succeed()
    assert heard == [(CLOSED, 1), (CLOSED, 2), (OPEN, 3), (HALF_OPEN, 3), (CLOSED, 0)]


@given(st.lists(st.sampled_from(["admit", "fail", "succeed", "release", "probe", "wait"])))
def test_it_never_shuts_for_longer_than_its_bounds(steps: list[str]) -> None:
    time = Time()
    breaker = create(time, jitter=1.0)
    for step in steps:
        if step == "wait":
            time.now += 7
        elif step == "admit":
            assert breaker.admit() <= 75
        else:
            getattr(breaker, step)()
        assert (breaker.state is CLOSED) == (breaker.failures < 3)
    time.now += 75
    assert breaker.admit() == 0
