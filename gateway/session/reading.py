"""What one attachment reads for itself: how it begins, and the log while it is behind.

It delays nobody else by that: only its own connection waits for it.
"""

from collections.abc import Awaitable, Callable

from gateway.session.entry import read_entry
from gateway.session.errors import Refused, Unavailable
from gateway.session.feed import Attachment, Feed
from gateway.session.home import Homes
from gateway.session.log import PAGE
from gateway.session.model import Seen, SessionView
from gateway.session.ports import Sessions
from gateway.session.snapshot import take_snapshot
from gateway.session.wheel import Wheel
from protocol.codec import encode
from protocol.codes import CloseCode, ErrorCode
from protocol.frames import Cursor, Reset

_CLAIM_REASONS = {
    "epoch": "epoch_changed",
    "trimmed": "cursor_too_old",
    "ahead": "writes_lost",
    "gone": "writes_lost",
}
"""Why a client's own cursor cannot be continued, by the status of the page."""


class Reading:
    """Reads for the attachments of a node."""

    def __init__(
        self,
        sessions: Sessions,
        homes: Homes,
        wheel: Wheel,
        *,
        adopt: Callable[[SessionView], object],
        repair: Callable[[Feed], Awaitable[None]],
        retry_s: float,
    ) -> None:
        """`adopt` takes note of a session; `repair` brings its feed to the log, under its lock."""
        self._sessions = sessions
        self._homes = homes
        self._wheel = wheel
        self._adopt = adopt
        self._repair = repair
        self._retry_s = retry_s

    async def begin(self, attachment: Attachment, after: Cursor | None) -> None:
        """Stages what comes first: events after the cursor, or a snapshot.

        Raises:
            Refused: there is no such session, or Redis does not answer.
        """
        feed, reason = attachment.feed, ""
        if after is not None:
            page = await self._sessions.read(feed.key, after, PAGE, seen=Seen(after.ts))
            if page.status == "ok":
                attachment.resumed = True
                attachment.epoch, attachment.seq = after.epoch, after.seq
                attachment.staged.extend(read_entry(raw) for raw in page.entries)
                feed.saw(Cursor(page.epoch, page.last_seq))
                return
            reason = _CLAIM_REASONS[page.status]
        if not await self._stage_snapshot(attachment, reason):
            raise Refused(ErrorCode.SESSION_NOT_FOUND, "no such session")

    async def catch_up(self, attachment: Attachment) -> None:
        """Reads the log for an attachment that pulls, until its outbox is full or it is live.

        Without Redis it gives up for now and wakes the connection later.
        """
        try:
            while attachment.outbox.pulling and attachment.outbox.close_code is None:
                if attachment.go_live() or attachment.outbox.size_bytes:
                    return
                if not await self._pull(attachment):
                    self._wheel.after(self._retry_s, attachment.outbox.wake)
                    return
        except Unavailable:
            self._wheel.after(self._retry_s, attachment.outbox.wake)

    async def _pull(self, attachment: Attachment) -> bool:
        """One page for an attachment. False when there is nothing to do but wait."""
        feed = attachment.feed
        page = await self._sessions.read(feed.key, attachment.cursor, PAGE)
        if page.status == "gone" and feed.over:
            attachment.outbox.finish(CloseCode.SESSION_ENDED)
            return True
        if page.status not in {"ok", "gone"}:
            # An epoch ends only by a loss; had it ended before this attachment, `attach` knew.
            lost = page.status != "trimmed"
            await self._reset(attachment, "writes_lost" if lost else "cursor_too_old")
            return True
        if page.status == "ok":
            feed.saw(Cursor(page.epoch, page.last_seq))
        for raw in page.entries:
            if not attachment.fill(read_entry(raw)):
                break
        if page.entries:
            return True
        # There is no more for it, yet the feed is elsewhere: bring the feed to the log.
        async with feed.lock:
            await self._repair(feed)
        return page.status == "gone" or attachment.go_live()

    async def _reset(self, attachment: Attachment, reason: str) -> None:
        feed = attachment.feed
        view = await self._homes.ask(feed)
        if view is None:  # over, or gone: then the next page says so
            if feed.over:
                attachment.outbox.finish(CloseCode.SESSION_ENDED)
            return
        self._adopt(view)
        attachment.view = view
        if await self._stage_snapshot(attachment, reason):
            attachment.start()

    async def _stage_snapshot(self, attachment: Attachment, reason: str) -> bool:
        """A snapshot, after a `reset` if there is a reason. False when there is no such session."""
        taken = await take_snapshot(self._sessions, attachment.feed.key)
        if taken is None:
            return False
        if taken.cursor != attachment.view.cursor:
            # A run that was open then may be over, with a question: no event after the snapshot
            # would say so. What is newer than the snapshot does no harm.
            view = await self._homes.ask(attachment.feed)
            if view is not None:
                self._adopt(view)
                attachment.view = view
        reset = [encode(Reset(reason, attachment.view.runs))] if reason else []
        attachment.staged = [*reset, taken.frame]
        attachment.epoch, attachment.seq = taken.cursor.epoch, taken.cursor.seq
        attachment.feed.saw(taken.seen)
        return True
