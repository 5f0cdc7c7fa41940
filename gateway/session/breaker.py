"""A breaker: a service that fails in a row is not asked for a while, then by one caller first.

    closed ──failures in a row──► open ──its time is over──► half-open (one probe is out)
       ▲                            ▲                            │
       └──────────success───────────┴──────────failure───────────┘

Own code, since the libraries of this kind wrap a call and judge it when it returns. A run is judged
minutes after it was accepted, by an event that passes elsewhere.
"""

import random
from collections.abc import Callable
from enum import IntEnum

from gateway.session.ports import Clock


class BreakerState(IntEnum):
    """Whether a service is asked; the value is the metric's."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Counts failures in a row. Whoever asks calls `admit`, then `succeed`, `fail` or `release`.

    Attributes:
        state: moves by calls only: an open breaker stays so until somebody asks.
        failures: in a row, up to now.
    """

    __slots__ = (
        "_clock",
        "_failed_at",
        "_failing_since",
        "_jitter",
        "_listeners",
        "_most_s",
        "_openings",
        "_pause_s",
        "_probe_s",
        "_span_s",
        "_threshold",
        "_until",
        "failures",
        "state",
    )

    def __init__(
        self,
        clock: Clock,
        *,
        threshold: int = 5,
        span_s: float = 0.0,
        pause_s: float = 5.0,
        most_s: float = 60.0,
        probe_s: float = 60.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Closed.

        Args:
            clock: tells the time.
            threshold: so many failures in a row open it,
            span_s: when the first of them is so long ago: one cause may fail many at once.
            pause_s: how long it is open the first time; twice as long after each failed probe,
            most_s: and no longer than this; up to a quarter is added, so that nodes differ.
            probe_s: a probe that is not heard of for so long is given up, and another let in.
            jitter: from 0 to 1.
        """
        self.state = BreakerState.CLOSED
        self.failures = 0
        self._clock = clock
        self._threshold = threshold
        self._span_s = span_s
        self._pause_s = pause_s
        self._most_s = most_s
        self._probe_s = probe_s
        self._jitter = jitter
        self._openings = 0
        self._failed_at = 0.0
        self._failing_since = 0.0
        self._until = 0.0
        self._listeners: list[Callable[[Breaker], None]] = []

    @property
    def now(self) -> BreakerState:
        """The state as time has it: half-open from when its pause is over, whoever asks."""
        if self.state is BreakerState.OPEN and self._clock() >= self._until:
            return BreakerState.HALF_OPEN
        return self.state

    @property
    def quiet_s(self) -> float:
        """How long the last failure is ago."""
        return self._clock() - self._failed_at

    def watch(self, listener: Callable[["Breaker"], None]) -> None:
        """`listener` is called whenever `state` or `failures` has changed."""
        self._listeners.append(listener)

    def admit(self) -> float:
        """Answers 0 when the service may be asked, else the seconds until that is worth a try."""
        if self.state is not BreakerState.CLOSED:
            left_s = self._until - self._clock()
            if left_s > 0:
                probing = self.state is BreakerState.HALF_OPEN
                return min(left_s, self._pause_s) if probing else left_s
            self.probe()
        return 0.0

    def probe(self) -> None:
        """The caller asks whatever the state is: while it is not closed, he is the probe."""
        if self.state is not BreakerState.CLOSED:
            self._until = self._clock() + self._probe_s
            self._move(BreakerState.HALF_OPEN, self.failures)

    def succeed(self) -> None:
        """It answered."""
        if self.failures or self.state is not BreakerState.CLOSED:
            self._openings = 0
            self._move(BreakerState.CLOSED, 0)

    def fail(self) -> None:
        """It failed."""
        state, now, failures = self.state, self._clock(), self.failures + 1
        self._failed_at = now
        if failures == 1:
            self._failing_since = now
        enough = failures >= self._threshold and now - self._failing_since >= self._span_s
        if enough and state is not BreakerState.OPEN:
            # One that is open already hears from callers who went in before: no news.
            pause_s = min(self._most_s, self._pause_s * 2 ** min(self._openings, 16))
            self._openings += 1
            self._until = now + pause_s * (1 + self._jitter() / 4)
            state = BreakerState.OPEN
        self._move(state, failures)

    def release(self) -> None:
        """The caller did not get to ask, or the answer says nothing: another may try at once."""
        if self.state is BreakerState.HALF_OPEN:
            self._until = self._clock()

    def _move(self, state: BreakerState, failures: int) -> None:
        if (state, failures) != (self.state, self.failures):
            self.state, self.failures = state, failures
            for listener in self._listeners:
                listener(self)
