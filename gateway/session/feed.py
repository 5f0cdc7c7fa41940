"""One followed session on this node: the order of its events, who hears them, what is counted.

All of it is synchronous: a push comes in, frames go to outboxes. What needs the bus (subscribing,
reading the log, the home) is the hub's, which a feed asks through `on_stale`.

An attachment is *live* or it *pulls* (see `outbox`). It goes live in the very step in which it has
read as far as the feed, so there is nothing to buffer and nothing to merge when it joins.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager

from gateway.session.counting import count
from gateway.session.entry import TERMINAL_KINDS, Entry, parse_push, read_entry
from gateway.session.model import Seen, SessionKey, SessionView
from gateway.session.outbox import Outbox
from gateway.session.ports import Clock
from gateway.session.probe import SessionProbe
from gateway.session.wheel import Timer
from protocol.codes import CloseCode
from protocol.frames import Cursor, OnDetach


class Lease:
    """Until when this node counts as alive for the others, by the clock.

    After that, until it has asked, it cannot know whether its homes are its own.
    """

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until = float("inf")


AHEAD_BYTES = 256 * 1024
"""Pushes that wait while a gap before them is read from the log."""


class Attachment:
    """A connection that follows a session.

    Attributes:
        epoch, seq: the last event that was queued for it.
        resumed: False when it began with a snapshot.
        staged: what it begins with, in order: frames, and entries of the log.
        view: the session, not older than the snapshot with which it began.
        on_run_end: called after a run's last event was queued, while somebody waits for that.
    """

    __slots__ = ("epoch", "feed", "on_run_end", "outbox", "resumed", "seq", "staged", "view")

    def __init__(self, feed: "Feed", outbox: Outbox, view: SessionView) -> None:
        self.feed = feed
        self.outbox = outbox
        self.epoch = ""
        self.seq = 0
        self.resumed = False
        self.view = view
        self.staged: list[bytes | Entry] = []
        self.on_run_end: Callable[[], None] | None = None

    @property
    def cursor(self) -> Cursor:
        """Where to read on."""
        return Cursor(self.epoch, self.seq)

    def start(self) -> None:
        """Queues what it begins with; from now on events follow."""
        staged, self.staged = self.staged, []
        for item in staged:
            if isinstance(item, bytes):
                self.outbox.put(item)
            elif not self.fill(item):
                break
        if not self.go_live():
            self.outbox.wake()

    def fill(self, entry: Entry) -> bool:
        """Queues an entry of the log; False when the outbox is full."""
        if not self.outbox.fill(entry.frame):
            return False
        self.seq = entry.seq
        return True

    def go_live(self) -> bool:
        """Live from now on, when it has read as far as the feed."""
        feed = self.feed
        if self.epoch != feed.epoch or self.seq < feed.last_seq or self.staged:
            return False
        self.outbox.go_live()
        if feed.ended and not feed.stale:
            self.outbox.finish(CloseCode.SESSION_ENDED)
        return True


class Feed:
    """The events of one session as they pass this node.

    Attributes:
        epoch, last_seq: the last event that passed.
        attachments: the sockets of this node that follow it.
        runs: runs that are not over, as far as this node knows.
        unheard: runs that are not among them any more, though their end has not passed.
        fresh: this node made the session, and has not counted that yet.
        home: True while this node counts the session.
        home_node: who does, when last heard.
        home_seq: as home, this node counts what comes after it.
        uncounted: what passed after `first` and up to `last` (None: all) is this node's to count,
            and was not: the hub reads it from the log.
        stale: the log may hold more than has passed; the hub is to look.
        unread: nobody has read the log since the subscription was made.
        doubtful: Redis may have lost what passed; pushes wait until the log was asked.
        verify_home: the hub is to ask who the home is.
        over: the session is over, as somebody said; its last run may still be ending.
        ended: it is over and the log complete; sockets close once they have everything.
        active_at: when the last push came, by the clock.
        left_at: when the last socket left, None while there is one.
    """

    def __init__(
        self,
        view: SessionView,
        probe: SessionProbe,
        *,
        clock: Clock,
        now_ms: Callable[[], int],
        lease: Lease,
        on_stale: "Callable[[Feed], None]",
        on_busy: "Callable[[Feed], None]",
        on_gap: Callable[[], None],
        on_run_end: "Callable[[Feed, Entry], None]",
    ) -> None:
        self.key: SessionKey = view.key
        self.user = view.user
        self.agent = view.agent
        self.probe = probe
        self.epoch = view.cursor.epoch
        self.last_seq = view.cursor.seq
        self.attachments: set[Attachment] = set()
        self.runs = {run.run_id for run in view.runs}
        self.unheard: set[str] = set()
        self.fresh = view.made_here
        self.home = False
        self.home_node = view.home
        self.on_detach: OnDetach = view.on_detach
        self.home_seq = view.home_seq
        self.uncounted: tuple[int, int | None] | None = None
        self.home_asked_at = self.active_at = clock()
        self.left_at: float | None = None
        self.stale = False
        self.unread = False
        self.verify_home = False
        self.doubtful = False
        self.over = False
        self.ended = False
        self.lock = asyncio.Lock()
        self.queued = False
        self.subscription: AbstractAsyncContextManager[None] | None = None
        self.check: Timer | None = None
        self._clock = clock
        self._now_ms = now_ms
        self._lease = lease
        self._sure = True
        self._on_stale = on_stale
        self._on_busy = on_busy
        self._on_gap = on_gap
        self._on_run_end = on_run_end
        self._last_ms = 0
        self._ahead: dict[int, Entry] = {}
        self._ahead_bytes = 0

    @property
    def cursor(self) -> Cursor:
        """The last event that passed."""
        return Cursor(self.epoch, self.last_seq)

    @property
    def seen(self) -> Seen:
        """What else passed here, so that a loss shows."""
        return Seen(self._last_ms, tuple(self.runs))

    @property
    def wanted(self) -> bool:
        """True while somebody needs its events, or its memory: of a run that a client was told of
        here, and that Redis may have lost, nobody else knows.
        """
        return self.home or bool(self.attachments) or bool(self.runs)

    @property
    def attends(self) -> bool:
        """True while Redis must hear of its clients, or the session's runs are cancelled."""
        return self.on_detach == "cancel" and bool(self.attachments)

    # --- events come in ---------------------------------------------------------------------------

    def on_push(self, data: bytes) -> None:
        """A push of the session's channel."""
        self.active_at = self._clock()
        self._sure = self.active_at < self._lease.until
        pushed = parse_push(data)
        if isinstance(pushed, list):
            for entry in pushed:
                self._offer(entry)
            took_ms = self._now_ms() - pushed[-1].ts_ms
            self.probe.pushed(took_ms / 1000 if took_ms > 0 else 0.0)
        elif pushed.name == "home":
            if self.attachments:  # where nobody has any, an open run's due time finds a home
                self.ask_home()
        else:  # `reset`, `ended`: the log says the rest
            self.over = self.over or pushed.name == "ended"
            self.look()

    def look(self) -> None:
        """Asks the hub to read the log."""
        self.stale = True
        self._on_stale(self)

    def doubt(self) -> None:
        """Redis may have lost what passed here: nothing more passes until the log was asked."""
        self.doubtful = True
        self.look()

    def saw(self, cursor: Cursor) -> None:
        """Somebody read the log up to there, after the subscription was confirmed."""
        if cursor.epoch != self.epoch or cursor.seq > self.last_seq:
            self.look()
        elif cursor.seq == self.last_seq:
            self.unread = False

    def absorb(self, raw_entries: list[bytes]) -> int:
        """Entries read from the log, which continue it, pass as if pushed. Answers how many were
        news.
        """
        self.doubtful = False
        before = self.last_seq
        self._sure = self._clock() < self._lease.until
        for raw in raw_entries:
            entry = read_entry(raw)
            if entry.seq == self.last_seq + 1:
                self._pass(entry)
        self._drain_ahead()
        return self.last_seq - before

    def restart(self, cursor: Cursor) -> None:
        """The log cannot be continued from here: go on at its head; everybody reads for himself."""
        self.epoch, self.last_seq = cursor.epoch, cursor.seq
        self.home_seq = min(self.home_seq, cursor.seq)
        self.uncounted = None
        self._last_ms = 0
        self.doubtful = False
        self.set_runs(())
        self._ahead.clear()
        self._ahead_bytes = 0
        for attachment in self.attachments:
            attachment.outbox.pulling = True
            attachment.outbox.wake()

    def _offer(self, entry: Entry) -> None:
        if entry.epoch != self.epoch:
            self.look()
        elif entry.seq == self.last_seq + 1 and not self.doubtful:
            self._pass(entry)
            self._drain_ahead()
        elif entry.seq > self.last_seq:
            if not (self._ahead or self.unread or self.doubtful):
                self._on_gap()
            self._keep_ahead(entry)
            self.look()
        elif entry.ts_ms > self._last_ms > 0:
            self.doubt()  # a duplicate is older: this was written anew under an old number

    def _keep_ahead(self, entry: Entry) -> None:
        if self._ahead_bytes + len(entry.frame) > AHEAD_BYTES:
            self._ahead.clear()  # the log has them; reading it once more is the price
            self._ahead_bytes = 0
        if self._ahead.setdefault(entry.seq, entry) is entry:
            self._ahead_bytes += len(entry.frame)

    def _drain_ahead(self) -> None:
        if not self._ahead:
            return
        while entry := self._ahead.pop(self.last_seq + 1, None):
            self._pass(entry)
        self._ahead = {seq: entry for seq, entry in self._ahead.items() if seq > self.last_seq}
        self._ahead_bytes = sum(len(entry.frame) for entry in self._ahead.values())

    # --- and go out -------------------------------------------------------------------------------

    def _pass(self, entry: Entry) -> None:
        seq = self.last_seq = entry.seq
        self._last_ms = entry.ts_ms
        frame = entry.frame
        for attachment in self.attachments:
            # It may have read further than the feed: then it has this one.
            if attachment.seq < seq and attachment.outbox.push(frame):
                attachment.seq = seq
        if entry.kind != "E":
            self._turn(entry)
            self._pass_by_home(entry)
        elif entry.output_tokens or entry.since_ms:
            self._pass_by_home(entry)

    def _turn(self, entry: Entry) -> None:
        """A run begins or ends."""
        if entry.kind == "S":
            self.expect(entry.run_id)
        elif entry.kind in TERMINAL_KINDS:
            self.runs.discard(entry.run_id)
            self.unheard.discard(entry.run_id)
            for attachment in self.attachments:
                if attachment.on_run_end is not None:
                    attachment.on_run_end()
            self._on_run_end(self, entry)
            if self.over:
                self.look()

    def expect(self, run_id: str) -> None:
        """A run is on its way."""
        if not self.runs:
            self._on_busy(self)
        self.runs.add(run_id)

    def hear(self, view: SessionView) -> None:
        """Takes note of how far the log is, and of the runs, as the bus has just answered it."""
        if view.cursor.epoch == self.epoch and view.cursor.seq < self.last_seq:
            return  # it is older than what has passed
        found = {run.run_id for run in view.runs}
        if view.cursor != self.cursor or self.runs - found:
            self.look()  # what is gone is over, or lost; the log's reader asks which
        if view.cursor.epoch == self.epoch:
            self.set_runs(self.runs | found)

    def set_runs(self, run_ids: Iterable[str]) -> None:
        """The runs that are not over, as the bus says."""
        old, self.runs = self.runs, set(run_ids)
        self.unheard |= old - self.runs
        if self.runs and not old:
            self._on_busy(self)

    # --- the home ---------------------------------------------------------------------------------

    @property
    def counted_seq(self) -> int:
        """As home, this node has counted so far."""
        return self.last_seq if self.uncounted is None else self.uncounted[0]

    def ask_home(self) -> None:
        """Asks the hub who the home is."""
        self.verify_home = True
        self._on_stale(self)

    def take_home(self, seq: int) -> None:
        """This node counts the session, and of its events what comes after `seq`."""
        if not self.home:
            self.home = True
            self.probe.home_taken()
            self.uncounted = (seq, None) if seq < self.last_seq else None
        self.home_seq = seq

    def leave_home(self) -> None:
        """This node counts it no more."""
        if self.home:
            self.home = False
            self.probe.home_left()

    def lose_home(self, seq: int) -> None:
        """Another node took the home, and counts what comes after `seq`; the rest is still ours."""
        if self.home:
            first = self.counted_seq
            self.uncounted = (first, seq) if first < seq else None
            self.leave_home()

    def count(self, entry: Entry) -> None:
        """As home."""
        count(entry, self.probe, self._now_ms)

    def _pass_by_home(self, entry: Entry) -> None:
        if not self.home or self.uncounted is not None or entry.seq <= self.home_seq:
            return
        if self._sure:
            self.count(entry)
        else:
            self.uncounted = (entry.seq - 1, None)
            self.verify_home = True  # the next beat comes after an interruption, and asks

    # --- the end ----------------------------------------------------------------------------------

    def finish(self, code: int) -> None:
        """Closes every socket; after the end of a session one that pulls reads to the end first."""
        self.set_runs(())
        for attachment in self.attachments:
            if not attachment.outbox.pulling or code != CloseCode.SESSION_ENDED:
                attachment.outbox.finish(code)
            else:
                attachment.outbox.wake()
