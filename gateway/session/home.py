"""The home of a session: the one node that counts it and keeps following it.

A node takes a home with `open` when there is none or its node is dead. It keeps it while it has
sockets, a run is open, or the resume grace lasts; then nobody has it, until another node that has
sockets asks again at its position check, or a socket returns.
"""

from collections.abc import Callable

from gateway.session.errors import Refused, Unavailable
from gateway.session.feed import Feed
from gateway.session.model import SessionView
from gateway.session.ports import Clock, Sessions
from gateway.session.wheel import Wheel
from protocol.codes import ErrorCode


class Homes:
    """Which feeds of this node are home. `wake` asks the hub to settle a feed."""

    def __init__(
        self,
        sessions: Sessions,
        node: str,
        clock: Clock,
        wheel: Wheel,
        wake: Callable[[Feed], None],
        *,
        grace_s: float,
    ) -> None:
        self._sessions = sessions
        self._node = node
        self._clock = clock
        self._wheel = wheel
        self._wake = wake
        self._grace_s = grace_s
        self._nodes: dict[str, bool] = {}
        self._heard_at = self._asked_at = float("-inf")

    def adopt(self, feed: Feed, view: SessionView) -> None:
        """Takes note of who the home is."""
        feed.home_node = view.home
        feed.home_asked_at = self._clock()
        feed.set_home(view.home == self._node)
        if not feed.home and self._dead(feed):
            feed.verify_home = True
            self._wake(feed)
        if not feed.attachments and feed.left_at is None:
            self.deserted(feed)

    def deserted(self, feed: Feed) -> None:
        """The last socket left, or there was none: the resume grace begins."""
        feed.left_at = self._clock()
        if feed.home:
            self._wheel.after(self._grace_s, lambda: self._wake(feed))

    def heard(self, alive: dict[str, bool]) -> None:
        """Takes note of which nodes live, as the last beat was told."""
        self._nodes = alive
        # It was asked for after the answer before it was heard.
        self._asked_at, self._heard_at = self._heard_at, self._clock()

    def orphaned(self, feed: Feed) -> bool:
        """True when sockets here follow a session whose home is dead."""
        return not feed.home and bool(feed.attachments) and self._dead(feed)

    def _dead(self, feed: Feed) -> bool:
        lives = self._nodes.get(feed.home_node)
        if lives is None and feed.home_node:
            # Forgotten for being dead so long; or so new that we had not heard of it yet, when a
            # beat after we met it will tell.
            return feed.home_asked_at < self._asked_at
        return lives is False

    async def settle(self, feed: Feed) -> SessionView | None:
        """Leaves a home whose grace is over; asks who the home is, where that is in doubt."""
        if feed.home and self._grace_over(feed):
            await self._give_up(feed)
        if not (feed.verify_home and feed.wanted):
            return None
        feed.verify_home = False
        try:
            return await self.ask(feed)
        except Unavailable:
            feed.verify_home = True
            raise

    async def _give_up(self, feed: Feed) -> None:
        # A run keeps its home. What this node knows of runs may be more than there are.
        view = await self.ask(feed) if feed.runs else None
        if view is not None:
            feed.set_runs(run.run_id for run in view.runs)
            self.adopt(feed, view)
        if not (feed.home and self._grace_over(feed)):
            return
        if feed.runs:
            self._wheel.after(self._grace_s, lambda: self._wake(feed))
            return
        asked_at = feed.home_asked_at
        await self.leave(feed)
        if feed.attachments or feed.home_asked_at != asked_at:
            # Somebody came meanwhile and found us home: ask once more who it is.
            view = await self.ask(feed)
            if view is not None:
                self.adopt(feed, view)

    async def ask(self, feed: Feed, *, agent: str | None = None) -> SessionView | None:
        """The session as it is now; takes its home when it has none. None when it is over, or not
        there; with an `agent` given it is made in that case.
        """
        dead_home = feed.home_node if self._dead(feed) else ""
        try:
            return await self._sessions.open(
                feed.key,
                feed.user,
                node=self._node,
                agent=agent,
                dead_home=dead_home,
                on_detach=feed.on_detach,
                attending=bool(feed.attachments),
            )
        except Unavailable:
            raise
        except Refused as refused:
            if refused.code == ErrorCode.SESSION_ENDED:
                feed.over = True  # its last run may still be ending
            else:
                feed.runs.clear()
            feed.look()
            return None

    async def leave(self, feed: Feed) -> None:
        """Gives the home up."""
        if not feed.home:
            return
        await self._sessions.leave(feed.key, self._node)
        feed.set_home(False)
        feed.home_node = ""

    def _grace_over(self, feed: Feed) -> bool:
        left_at = feed.left_at
        return (
            not feed.attachments
            and left_at is not None
            and self._clock() - left_at >= self._grace_s
        )
