"""Ids, the wheel of timers, and the token bucket."""

import uuid

from support.little_bus import ManualClock

from gateway.session.ids import derived, uuid7
from gateway.session.limits import TokenBucket
from gateway.session.wheel import Wheel


def test_uuid7_has_the_layout_of_rfc_9562() -> None:
    now_ms = 0x017F22E279B0  # the RFC's own example, appendix A.6
    made = uuid.UUID(uuid7(now_ms))
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert made.int >> 80 == now_ms


def test_uuid7_is_random_and_sorts_by_time() -> None:
    made = [uuid7(1000) for _ in range(1000)]
    assert len(set(made)) == 1000
    assert max(made) < uuid7(1001)


def test_derived_ids_keep_their_parts_apart() -> None:
    assert derived("a", "b", "c") == derived("a", "b", "c")
    assert derived("a", "bc") != derived("ab", "c")


def wheel() -> tuple[Wheel, ManualClock, list[Exception]]:
    clock, errors = ManualClock(), list[Exception]()
    return Wheel(clock, lambda _, error: errors.append(error), tick_s=0.1), clock, errors


def test_the_wheel_is_never_early_and_at_most_a_tick_late() -> None:
    turning, clock, _ = wheel()
    fired: list[float] = []
    turning.after(1.05, lambda: fired.append(clock.now))
    while not fired:
        clock.now += 0.01
        turning.advance()
    assert 1.05 <= fired[0] - 1000 <= 1.05 + 0.1 + 0.01 + 1e-6


def test_a_cancelled_timer_never_fires() -> None:
    turning, clock, _ = wheel()
    fired: list[str] = []
    timer = turning.after(0.2, lambda: fired.append("cancelled"))
    turning.after(0.2, lambda: fired.append("kept"))
    timer.cancel()
    timer.cancel()
    clock.now += 5
    turning.advance()
    assert fired == ["kept"]


def test_a_failing_timer_stops_no_other_and_one_may_arm_another() -> None:
    turning, clock, errors = wheel()
    fired: list[str] = []

    def fail() -> None:
        raise ValueError("bad timer")

    turning.after(0.1, fail)
    turning.after(0.1, lambda: turning.after(0.1, lambda: fired.append("second")))
    clock.now += 0.25
    turning.advance()
    assert [str(error) for error in errors] == ["bad timer"]
    assert fired == []
    clock.now += 0.25
    turning.advance()
    assert fired == ["second"]


def test_the_bucket_allows_a_burst_then_the_rate() -> None:
    clock = ManualClock()
    bucket = TokenBucket(10, 20, clock)
    assert [bucket.take() for _ in range(20)] == [0.0] * 20
    assert round(bucket.take(), 6) == 0.1
    clock.now += 0.1 + 1e-9
    assert bucket.take() == 0
    assert bucket.take() > 0
    clock.now += 3600
    assert [bucket.take() for _ in range(20)] == [0.0] * 20
    assert bucket.take() > 0, "idle time saves up no more than the burst"
