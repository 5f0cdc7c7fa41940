"""Who follows which session on this node: joins, gaps, position checks.

A `Feed` does what can be done at once; the hub does what needs the bus. A feed that wants something
(`look`, a home to verify, nobody left to follow it) is put into one queue, at most once, and a
few workers settle it: so a Redis that comes back to ten thousand followed sessions is read in
order, and the loop stays free. A slow attachment is not the workers' business: its own connection
reads the log for it (`catch_up`), so it delays nobody.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gateway.session.agent_breakers import AgentBreakers
from gateway.session.archive import Recalled
from gateway.session.checks import Checks
from gateway.session.entry import Entry
from gateway.session.eraser import Eraser
from gateway.session.errors import Refused, Unavailable
from gateway.session.feed import Attachment, Feed
from gateway.session.home import Homes
from gateway.session.log import PAGE
from gateway.session.model import RunRef, SessionKey, SessionView
from gateway.session.outbox import Outbox
from gateway.session.ports import Clock, Notices, Sessions
from gateway.session.probe import Probe
from gateway.session.reading import Reading
from gateway.session.tracing import UNTRACED, Tracer
from gateway.session.unanswered import Unanswered
from gateway.session.wheel import Wheel
from protocol.codes import CloseCode
from protocol.frames import Cursor

WORKERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class HubTimes:
    """When the hub looks by itself."""

    check_running_s: float = 2.0
    check_idle_s: float = 30.0
    retry_s: float = 1.0
    resume_grace_s: float = 120.0
    node_lease_s: float = 10.0
    leave_timeout_s: float = 5.0


class Hub:
    """The sessions that this node follows.

    Attributes:
        breakers: which agents are left alone, as the runs in these sessions ended.
        unanswered: sessions that may have their home here, for all we know.
    """

    def __init__(
        self,
        *,
        sessions: Sessions,
        notices: Notices,
        recall: Callable[[SessionKey, str], Awaitable[Recalled | None]],
        eraser: Eraser,
        probe: Probe,
        node: str,
        clock: Clock,
        now_ms: Callable[[], int],
        wheel: Wheel,
        report: Callable[[str, Exception], None],
        on_run_cut: Callable[[RunRef, str], None] = lambda _ref, _agent: None,
        times: HubTimes | None = None,
        tracer: Tracer = UNTRACED,
    ) -> None:
        """`recall` asks the archive what a session that Redis lost begins with, see `History`;
        `on_run_cut` hears of runs that failed or were cancelled, and of their agent.
        """
        self._sessions = sessions
        self._notices = notices
        self._recall = recall
        self._eraser = eraser
        self._probe = probe
        self._clock = clock
        self._now_ms = now_ms
        self._wheel = wheel
        self._report = report
        self._on_run_cut = on_run_cut
        self._times = times or HubTimes()
        self._tracer = tracer
        self._feeds: dict[SessionKey, Feed] = {}
        self._queue: asyncio.Queue[Feed] = asyncio.Queue()
        self.breakers = AgentBreakers(clock, probe.breaker_moved, probe.agent_left_alone)
        self._homes = Homes(
            sessions,
            node,
            clock,
            wheel,
            self._enqueue,
            grace_s=self._times.resume_grace_s,
            patience_s=self._times.node_lease_s,
        )
        self.unanswered = Unanswered(sessions=sessions, node=node, adopt=self.adopt, report=report)
        self._checks = Checks(
            wheel,
            clock,
            is_followed=lambda feed: self._feeds.get(feed.key) is feed,
            wake=self._enqueue,
            running_s=self._times.check_running_s,
            idle_s=self._times.check_idle_s,
            attend_s=self._times.resume_grace_s / 3,
        )

        self._reading = Reading(
            sessions,
            self._homes,
            wheel,
            adopt=self.adopt,
            repair=self._repair,
            retry_s=self._times.retry_s,
        )

    def find(self, key: SessionKey) -> Feed | None:
        """The feed of a session that this node follows."""
        return self._feeds.get(key)

    # --- what connections and the service call ----------------------------------------------------

    def adopt(self, view: SessionView) -> Feed:
        """Takes note of a session as the bus has just answered it: its home, its runs."""
        feed = self._feeds.get(view.key)
        if feed is None:
            feed = self._feeds[view.key] = Feed(
                view,
                self._probe.session(view.key.tenant, view.agent),
                clock=self._clock,
                now_ms=self._now_ms,
                lease=self._homes.lease,
                on_stale=self._enqueue,
                on_busy=self._checks.soon,
                on_gap=self._probe.pubsub_gap,
                on_run_end=self._run_ended,
            )
            self._checks.begin(feed)
            # Usually a socket follows at once. Where none does, a home follows its session alone.
            self._wheel.after(self._times.retry_s, lambda: self._enqueue(feed))
        else:
            feed.hear(view)
        self._homes.adopt(feed, view)
        return feed

    async def attach(self, view: SessionView, after: Cursor | None, outbox: Outbox) -> Attachment:
        """Follows a session. The caller queues what comes first, then calls `start`.

        The subscription stands before the log is read, so nothing falls between the two.

        Raises:
            Refused: nothing is attached then.
        """
        feed = self.adopt(view)
        attachment = Attachment(feed, outbox, view)
        feed.attachments.add(attachment)
        feed.left_at = None
        try:
            async with feed.lock:
                await self._subscribe(feed)
            await self._reading.begin(attachment, after)
        except BaseException:
            self.detach(attachment)
            raise
        return attachment

    def detach(self, attachment: Attachment) -> None:
        """The connection follows no more. Doing so twice is harmless."""
        feed = attachment.feed
        if attachment in feed.attachments:
            feed.attachments.remove(attachment)
            if not feed.attachments:
                self._homes.deserted(feed)
                self._enqueue(feed)

    async def catch_up(self, attachment: Attachment) -> None:
        """Reads the log for an attachment that pulls, until its outbox is full or it is live.

        To be called by its connection whenever the socket has taken everything.
        """
        await self._reading.catch_up(attachment)

    def missing(self, key: SessionKey, user: str) -> bool:
        """Redis knows no such session, as its user has just been told. True: it is made again."""
        feed = self._feeds.get(key)
        if feed is None or feed.over or feed.user != user:
            return False
        feed.look()
        return True

    def ended(self, key: SessionKey) -> None:
        """The session is over, as somebody has just been told."""
        feed = self._feeds.get(key)
        if feed is not None:
            feed.over = True
            feed.look()

    def expect_run(self, key: SessionKey, run_id: str) -> None:
        """A run was accepted: from now on a silent channel is suspicious."""
        feed = self._feeds.get(key)
        if feed is not None:
            feed.expect(run_id)

    async def take_home(self, key: SessionKey, user: str, dead_home: str) -> None:
        """Becomes the home of a session whose home is dead or does not know of it, sockets or not.

        Raises:
            Refused: it is over, or Redis does not answer.
        """
        feed = self._feeds.get(key)
        if not (self._homes.stopping or (feed is not None and feed.home)):
            view = await self._homes.take(key, user, dead_home)
            if view is not None:
                self.adopt(view)

    def drain(self) -> None:
        """The node is going to stop: gives up every home that has no sockets here."""
        self._homes.stopping = True
        for feed in self._feeds.values():
            if feed.home and not feed.attachments:
                self._enqueue(feed)

    def heard(self, alive: dict[str, bool], interrupted: bool, until: float = float("inf")) -> None:
        """Which nodes live, and until when (by the clock) the others take this one for alive.

        After an interruption others may have taken our homes: ask again.
        """
        self._homes.heard(alive, interrupted=interrupted, until=until)
        for feed in self._feeds.values():
            doubtful = interrupted and (feed.home or feed.verify_home)
            if doubtful or self._homes.orphaned(feed):
                feed.verify_home = True
                self._enqueue(feed)

    # --- running ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Settles feeds until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(WORKERS):
                tasks.create_task(self._work(), name=f"hub-{number}")
            tasks.create_task(self.unanswered.run(), name="hub-unanswered")

    async def close(self) -> None:
        """Gives up every home and every subscription; to be called while `run` is running."""
        self._homes.stopping = True
        self.unanswered.forget()
        feeds, self._feeds = list(self._feeds.values()), {}  # so none is followed again
        limit = asyncio.Semaphore(WORKERS)

        async def leave(feed: Feed) -> None:
            async with limit, feed.lock:
                try:
                    await self._homes.leave(feed)
                    await self._unsubscribe(feed)
                except Unavailable:
                    pass  # the home's lease runs out by itself
                except Exception as error:  # noqa: BLE001 - the others want to leave, too
                    self._report("a session could not be left in order", error)

        try:
            async with asyncio.timeout(self._times.leave_timeout_s), asyncio.TaskGroup() as tasks:
                for feed in feeds:
                    tasks.create_task(leave(feed))
        except TimeoutError:
            pass
        for feed in feeds:
            feed.leave_home()

    def _run_ended(self, feed: Feed, entry: Entry) -> None:
        self.breakers.ended(feed.key.tenant, feed.agent, entry.kind, entry.code)
        if entry.kind in "CX":  # it may have waited still
            self._on_run_cut(RunRef(*feed.key, entry.run_id), feed.agent)
        self._tracer.run_ended(entry.run_id, entry.kind, entry.code)

    def _enqueue(self, feed: Feed) -> None:
        if not feed.queued:
            feed.queued = True
            self._queue.put_nowait(feed)

    async def _work(self) -> None:
        while True:
            feed = await self._queue.get()
            feed.queued = False
            try:
                async with feed.lock:
                    await self._settle(feed)
            except Unavailable:
                self._wheel.after(self._times.retry_s, lambda feed=feed: self._enqueue(feed))
            except Exception as error:  # noqa: BLE001 - one bad session must not stop the rest
                self._report(f"session {feed.key.session_id} could not be followed", error)

    async def _settle(self, feed: Feed) -> None:
        """Brings a feed into the state that it should be in. Under its lock."""
        if self._feeds.get(feed.key) is not feed:
            return
        view = await self._homes.settle(feed)
        if view is not None:
            self.adopt(view)
        await self._homes.count_rest(feed)
        if feed.wanted:
            await self._subscribe(feed)
            if feed.stale or feed.unread:
                await self._repair(feed)
        if not feed.wanted:
            await self._unsubscribe(feed)
            if feed.wanted:  # somebody came while we were away
                self._enqueue(feed)
            else:
                self._forget(feed)
        if not (feed.wanted and (feed.stale or feed.verify_home)):  # or it may turn out otherwise
            self._tracer.runs_lost(feed.unheard - feed.runs)
            feed.unheard.clear()

    def _forget(self, feed: Feed) -> None:
        del self._feeds[feed.key]
        self._checks.end(feed)

    # --- following --------------------------------------------------------------------------------

    async def _subscribe(self, feed: Feed) -> None:
        if feed.subscription is None:
            subscription = self._notices.session_events(feed.key, feed.on_push, feed.doubt)
            await subscription.__aenter__()
            feed.subscription = subscription
            feed.unread = True  # pushes from before were missed

    async def _unsubscribe(self, feed: Feed) -> None:
        subscription, feed.subscription = feed.subscription, None
        if subscription is not None:
            await subscription.__aexit__(None, None, None)

    async def _repair(self, feed: Feed) -> None:
        """Reads the log until the feed has everything that was in it when we looked."""
        try:
            while not await self._read_on(feed):
                pass
        except BaseException:
            feed.stale = True
            raise
        if feed.ended:
            self._finish(feed, CloseCode.SESSION_ENDED)

    async def _read_on(self, feed: Feed) -> bool:
        """One page for a feed. True when there is no more."""
        feed.stale = False  # what comes while we read asks for another look
        page = await self._sessions.read(feed.key, feed.cursor, PAGE, seen=feed.seen)
        feed.unread = False
        if page.status == "gone":
            await self._make_again(feed)
            return True
        if page.status != "ok":
            if page.status != "trimmed":
                self._probe.writes_lost()
            feed.restart(Cursor(page.epoch, page.last_seq))
            feed.verify_home = True  # which of its runs survived, the same answer tells
            self._enqueue(feed)
            return True
        feed.set_runs(feed.runs.difference(page.over))
        self._probe.pubsub_repaired(feed.absorb(page.entries))
        if feed.last_seq >= page.last_seq:
            feed.ended = page.ended  # the push that says so may be lost
            return True
        return not page.entries

    async def _make_again(self, feed: Feed) -> None:
        """Redis does not know the session, and nobody said that it is over: it came back empty.

        Its followers read a log of another epoch then, and are told.
        """
        view = None if feed.over else await self._open_again(feed)
        if view is None:
            feed.over = True
            self._finish(feed, CloseCode.SESSION_ENDED)
            return
        self._probe.writes_lost()
        feed.restart(view.cursor)
        self.adopt(view)

    async def _open_again(self, feed: Feed) -> SessionView | None:
        """Makes it with what the archive knows of it; None when it is over, or gone."""
        recalled: Recalled | None = None
        try:
            recalled = await self._recall(feed.key, feed.user)
        except Unavailable:
            pass  # the conversation goes on without what came before
        except Refused:
            return None
        view = await self._homes.ask(feed, agent=feed.agent, recalled=recalled)
        if recalled is not None and view is not None:
            return None if await self._eraser.came_between(view, recalled) else view
        return view

    def _finish(self, feed: Feed, code: CloseCode) -> None:
        feed.finish(code)
        feed.leave_home()
