"""Position checks: what catches a lost last event, since a gap shows only when another one follows.

A session is looked at in the log when its channel was silent for a while: a short one while a run
is open. A node that is not its home asks at times who is, as pushes say nothing of that.
"""

import random
from collections.abc import Callable

from gateway.session.feed import Feed
from gateway.session.ports import Clock
from gateway.session.wheel import Wheel


class Checks:
    """The position checks of the feeds of this node.

    `is_followed` says whether a feed still is one of them, `wake` asks the hub to settle it.
    """

    def __init__(
        self,
        wheel: Wheel,
        clock: Clock,
        *,
        is_followed: Callable[[Feed], bool],
        wake: Callable[[Feed], None],
        running_s: float,
        idle_s: float,
    ) -> None:
        self._wheel = wheel
        self._clock = clock
        self._is_followed = is_followed
        self._wake = wake
        self._running_s = running_s
        self._idle_s = idle_s

    def begin(self, feed: Feed) -> None:
        """The feed is followed from now on; not all that came together are checked together."""
        self._arm(feed, self._interval_s(feed) * (0.5 + random.random() / 2))

    def soon(self, feed: Feed) -> None:
        """A run is open from now on."""
        self._arm(feed, self._running_s)

    def end(self, feed: Feed) -> None:
        """The feed is followed no more."""
        if feed.check is not None:
            feed.check.cancel()

    def _interval_s(self, feed: Feed) -> float:
        return self._running_s if feed.runs else self._idle_s

    def _arm(self, feed: Feed, delay_s: float) -> None:
        self.end(feed)
        feed.check = self._wheel.after(delay_s, lambda: self._check(feed))

    def _check(self, feed: Feed) -> None:
        if not self._is_followed(feed):
            return  # somebody read on for it when it was left
        interval_s = self._interval_s(feed)
        now = self._clock()
        if not feed.home and now - feed.home_asked_at >= self._idle_s:
            feed.verify_home = True
            self._wake(feed)
        quiet_s = now - feed.active_at
        if quiet_s < interval_s:
            self._arm(feed, interval_s - quiet_s)
            return
        feed.look()
        self._arm(feed, interval_s)
