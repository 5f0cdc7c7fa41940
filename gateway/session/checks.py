"""Position checks: what catches a lost last event, since a gap shows only when another one follows.

A session is looked at in the log when its channel was silent for a while: a short one while a run
is open. A node asks at times who the home is, as pushes say nothing of that, and tells Redis of its
clients where the session's runs are cancelled without them.
"""

import random
from collections.abc import Callable

from gateway.session.feed import Feed
from gateway.session.ports import Clock
from gateway.session.wheel import Wheel

_HOME_PATIENCE = 10
"""A home asks so much more rarely: others tell it (`!home`) when they have taken its place."""


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
        attend_s: float,
    ) -> None:
        """`attend_s` is how often Redis must hear of clients, where it must."""
        self._wheel = wheel
        self._clock = clock
        self._is_followed = is_followed
        self._wake = wake
        self._running_s = running_s
        self._idle_s = idle_s
        self._attend_s = min(idle_s, attend_s)

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
        interval_s = self._running_s if feed.runs else self._idle_s
        return min(interval_s, self._ask_after_s(feed))

    def _ask_after_s(self, feed: Feed) -> float:
        """How long a session needs no `open` by this node."""
        if feed.attends:
            return self._attend_s
        return self._idle_s * (_HOME_PATIENCE if feed.home else 1)

    def _arm(self, feed: Feed, delay_s: float) -> None:
        self.end(feed)
        feed.check = self._wheel.after(delay_s, lambda: self._check(feed))

    def _check(self, feed: Feed) -> None:
        if not self._is_followed(feed):
            return  # somebody read on for it when it was left
        interval_s = self._interval_s(feed)
        now = self._clock()
        if now - feed.home_asked_at >= self._ask_after_s(feed):
            feed.verify_home = True
            self._wake(feed)
        quiet_s = now - feed.active_at
        if quiet_s < interval_s:
            self._arm(feed, interval_s - quiet_s)
            return
        feed.look()
        self._arm(feed, interval_s)
