"""The home of a session: the one node that counts it and keeps following it.

A node takes a home with `open` when there is none or its node is dead. It keeps it while it has
sockets, a run is open, or the resume grace lasts; then nobody has it, until another node that has
sockets hears of it, or a socket returns. A node that stops gives up what it has no sockets for.

What a home counts is a stretch of the log: from `home_seq`, where it took over, to where it left or
was taken for dead. So each event is counted by one node, whenever it gets to it: after a pause a
node counts only what was its own, once it has asked. What a dead node had not counted of its
stretch is lost with it.
"""

from collections.abc import Callable

from gateway.session.archive import Recalled
from gateway.session.errors import Refused, Unavailable
from gateway.session.feed import Feed, Lease
from gateway.session.log import Moved, read_stretch
from gateway.session.model import SessionKey, SessionView
from gateway.session.ports import Clock, Sessions
from gateway.session.wheel import Wheel
from protocol.codes import ErrorCode
from protocol.frames import Cursor


class Homes:
    """Which feeds of this node are home. `wake` asks the hub to settle a feed.

    Attributes:
        lease: until when the others take this node for alive.
        stopping: True when homes are given up as soon as nobody here needs them.
    """

    def __init__(
        self,
        sessions: Sessions,
        node: str,
        clock: Clock,
        wheel: Wheel,
        wake: Callable[[Feed], None],
        *,
        grace_s: float,
        patience_s: float,
    ) -> None:
        """For `patience_s` after an interruption nobody is taken for dead: nobody could beat."""
        self._sessions = sessions
        self._node = node
        self._clock = clock
        self._wheel = wheel
        self._wake = wake
        self._grace_s = grace_s
        self._patience_s = patience_s
        self._patient_until = float("-inf")
        self.lease = Lease()
        self.stopping = False
        self._nodes: dict[str, bool] = {}
        self._strangers: dict[str, float] = {}
        self._heard_at = self._asked_at = float("-inf")

    def adopt(self, feed: Feed, view: SessionView) -> None:
        """Takes note of who the home is."""
        now = self._clock()
        if now >= self.lease.until:
            feed.verify_home = True  # after the next beat: this answer may be older than our death
            return
        feed.home_node = view.home
        feed.home_asked_at = now
        if view.home == self._node:
            if feed.fresh and view.made_here:
                feed.probe.created()
            feed.fresh = False
            feed.take_home(view.home_seq)
        else:
            feed.lose_home(view.home_seq)
        if feed.uncounted is not None:
            self._wake(feed)
        if not feed.home and self._dead(feed):
            feed.verify_home = True
            self._wake(feed)
        if not feed.attachments and feed.left_at is None:
            self.deserted(feed)

    def deserted(self, feed: Feed) -> None:
        """The last socket left, or there was none: the resume grace begins."""
        feed.left_at = self._clock()
        if feed.home:
            delay_s = 0.0 if self.stopping else self._grace_s
            self._wheel.after(delay_s, lambda: self._wake(feed))

    def heard(self, alive: dict[str, bool], *, interrupted: bool, until: float) -> None:
        """Takes note of which nodes live, as the last beat was told, and until when we do."""
        self._nodes = alive
        for node in set(self._strangers) & set(alive):
            del self._strangers[node]
        self.lease.until = until
        if interrupted:
            self._patient_until = self._clock() + self._patience_s
        # It was asked for after the answer before it was heard.
        self._asked_at, self._heard_at = self._heard_at, self._clock()

    def orphaned(self, feed: Feed) -> bool:
        """True when sockets here follow a session whose home is dead."""
        return not feed.home and bool(feed.attachments) and self._dead(feed)

    def _dead(self, feed: Feed) -> bool:
        if self._clock() < self._patient_until:
            return False
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
        if self.stopping and not (feed.home or feed.attends):
            feed.verify_home = False  # it is for another node to take
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
        view = await self.ask(feed) if feed.runs and not self.stopping else None
        if view is not None:
            feed.set_runs(run.run_id for run in view.runs)
            self.adopt(feed, view)
        if not (feed.home and self._grace_over(feed)):
            return
        if feed.runs and not self.stopping:
            self.deserted(feed)  # for another grace
            return
        asked_at = feed.home_asked_at
        await self.leave(feed)
        if feed.attachments or feed.home_asked_at != asked_at:
            # Somebody came meanwhile and found us home: ask once more who it is.
            view = await self.ask(feed)
            if view is not None:
                self.adopt(feed, view)

    async def ask(
        self, feed: Feed, *, agent: str | None = None, recalled: Recalled | None = None
    ) -> SessionView | None:
        """The session as it is now; takes its home when it has none. None when it is over, or not
        there; with an `agent` given it is made in that case, of what is `recalled` of it. A node
        that stops takes no home.
        """
        dead_home = feed.home_node if self._dead(feed) else ""
        node = "" if self.stopping and not feed.home else self._node
        try:
            return await self._sessions.open(
                feed.key,
                feed.user,
                node=node,
                agent=agent,
                dead_home=dead_home,
                on_detach=feed.on_detach,
                attending=bool(feed.attachments),
                recalled=recalled,
            )
        except Unavailable:
            raise
        except Refused as refused:
            if refused.code == ErrorCode.SESSION_ENDED:
                feed.over = True  # its last run may still be ending
            else:
                feed.set_runs(())
            feed.look()
            return None

    async def take(self, key: SessionKey, user: str, dead_home: str) -> SessionView | None:
        """Takes the home of a session that nobody here may have heard of. None while its home may
        merely be too young to be known here.
        """
        if dead_home not in ("", self._node) and dead_home not in self._nodes:
            met_at = self._strangers.setdefault(dead_home, self._clock())
            if met_at >= self._asked_at:  # a beat after we met it will tell
                return None
        return await self._sessions.open(key, user, node=self._node, dead_home=dead_home)

    async def leave(self, feed: Feed) -> None:
        """Gives the home up."""
        if not feed.home:
            return
        counted_seq = feed.counted_seq
        feed.uncounted = (counted_seq, None)  # what passes from now on is the next home's
        try:
            await self._sessions.leave(feed.key, self._node, counted_seq=counted_seq)
        except BaseException:
            feed.verify_home = True
            raise
        feed.leave_home()
        feed.uncounted = None
        feed.home_node = ""

    async def count_rest(self, feed: Feed) -> None:
        """Counts from the log what was this node's to count, and passed when it could not know."""
        while feed.uncounted is not None and not feed.verify_home:
            first, last = feed.uncounted
            upto = Cursor(feed.epoch, feed.last_seq if last is None else last)
            try:
                async for entries in read_stretch(self._sessions, feed.key, first + 1, upto):
                    if feed.uncounted != (first, last):
                        break  # it was lost just now, or begins anew
                    for entry in entries:
                        feed.count(entry)
                    first = entries[-1].seq
                    feed.uncounted = (first, last)
            except Moved:
                pass  # what the log does not have any more, nobody counts
            done = last is not None or feed.last_seq == upto.seq
            if done and feed.uncounted == (first, last):
                feed.uncounted = None

    def _grace_over(self, feed: Feed) -> bool:
        left_at = feed.left_at
        return (
            not feed.attachments
            and left_at is not None
            and (self.stopping or self._clock() - left_at >= self._grace_s)
        )
