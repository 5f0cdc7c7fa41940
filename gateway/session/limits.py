"""How often somebody may do something."""

from gateway.session.ports import Clock


class TokenBucket:
    """Allows `rate_per_s` on average and `burst` at once."""

    __slots__ = ("_burst", "_clock", "_rate_per_s", "_then", "_tokens")

    def __init__(self, rate_per_s: float, burst: float, clock: Clock) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._then = clock()

    def take(self) -> float:
        """Takes one token. Answers 0, or the seconds until there will be one (none is taken)."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate_per_s)
        self._then = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate_per_s
