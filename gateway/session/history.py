"""A user's sessions and messages, past and present: the archive, joined with what lives in Redis.

The archive is a moment behind, or longer when its database was away. So what a session says is
taken from the archive as far as it goes, and the rest from its live transcript.
"""

from dataclasses import dataclass, field, replace

from gateway.session.archive import (
    History,
    MessagePosition,
    MessageRecord,
    SessionFilter,
    SessionPosition,
    SessionRecord,
)
from gateway.session.errors import Refused
from gateway.session.model import Principal, SessionKey, SessionView
from gateway.session.ports import Sessions
from protocol.codes import ErrorCode


@dataclass(frozen=True, slots=True)
class SessionNow:
    """A session as it stands now; `live` is None when nobody could talk in it without an `open`."""

    record: SessionRecord
    live: SessionView | None


@dataclass(frozen=True, slots=True)
class SessionPage:
    """Some of a user's sessions, newest first; `following` is None when there are no more."""

    sessions: list[SessionRecord]
    following: SessionPosition | None


@dataclass(frozen=True, slots=True)
class LiveMessage:
    """A message of the live transcript, with its run, of which the archive knows nothing yet."""

    run_id: str
    json: bytes


@dataclass(frozen=True, slots=True)
class MessagePage:
    """Some of a session's messages, oldest first.

    Attributes:
        archived: at most as many as were asked for.
        live: what follows them and is not archived yet; on the first page only, and all of it.
        following: where older ones are found; None when there are none.
    """

    archived: list[MessageRecord]
    live: list[LiveMessage] = field(default_factory=list[LiveMessage])
    following: MessagePosition | None = None


class SessionHistory:
    """Reads what was and what is. It takes no home, and prolongs nothing's life.

    Raises (all): `Refused` with `session_not_found` for a session of another user, too;
    `Unavailable` when the archive or Redis does not answer.
    """

    def __init__(self, archive: History, sessions: Sessions) -> None:
        self._archive = archive
        self._sessions = sessions

    async def session(self, who: Principal, session_id: str) -> SessionNow:
        """One session; one that the archive does not know yet, too."""
        key = SessionKey(who.tenant, session_id)
        live, ended = await self._live(key, who.user)
        record = await self._archive.session(key, who.user)
        if record is None:
            if live is not None:
                return SessionNow(_unarchived(live), live)
            if ended:  # which the archive is about to learn
                raise Refused(ErrorCode.SESSION_ENDED, "this session is over")
            raise _not_found()
        if live is not None:
            return SessionNow(replace(record, status="active", ended_ms=0), live)
        if ended:
            return SessionNow(replace(record, status="completed"), None)
        if record.status == "active":  # it has just expired, or was lost
            record = replace(record, status="expired")
        return SessionNow(record, None)

    async def sessions(
        self, who: Principal, chosen: SessionFilter, *, after: SessionPosition | None, limit: int
    ) -> SessionPage:
        """At most `limit` of a user's sessions, as the archive has them."""
        found = await self._archive.sessions(
            who.tenant, who.user, chosen, after=after, limit=limit + 1
        )
        page = found[:limit]
        if len(found) <= limit:
            return SessionPage(page, None)
        last = page[-1]
        at_ms = last.created_ms if chosen.order == "created" else last.active_ms
        return SessionPage(page, SessionPosition(at_ms, last.key.session_id))

    async def messages(
        self, who: Principal, session_id: str, *, before: MessagePosition | None, limit: int
    ) -> MessagePage:
        """At most `limit` archived messages before a position.

        Without one: the newest, followed by what is not archived yet.
        """
        key = SessionKey(who.tenant, session_id)
        live, ended = await self._live(key, who.user)
        if live is None and not ended and await self._archive.session(key, who.user) is None:
            raise _not_found()
        tail, last_end_ms = await self._tail(key) if before is None else ([], None)
        # Runs that were archived since the tail was read: they are in it, and not on the page.
        doubled = {message.run_id for message in tail}
        while True:
            found = await self._archive.messages(key, before=before, limit=limit + 1)
            following = found[1].position if len(found) > limit else None
            page = [
                one
                for one in found[-limit:]
                if one.run_id not in doubled
                # And what was said since then would stand ahead of it.
                and (last_end_ms is None or one.position.at_ms <= last_end_ms)
            ]
            if page or following is None:
                return MessagePage(page, tail, following)
            before = following

    async def _tail(self, key: SessionKey) -> tuple[list[LiveMessage], int | None]:
        """The live transcript from the first message on that is not archived, and when the newest
        run ended as it was read; None where there is no such message.
        """
        source = await self._sessions.snapshot(key)
        if source is None or not source.messages:
            return [], None
        runs = source.message_runs
        archived = await self._archive.archived(key, list(dict.fromkeys(runs)))
        # What stands before an archived run was archived, too, and has been removed since.
        first = next((nth for nth, run_id in enumerate(runs) if run_id in archived), 0)
        tail = [
            LiveMessage(run_id, message)
            for run_id, message in list(zip(runs, source.messages, strict=True))[first:]
            if run_id not in archived
        ]
        return tail, source.last_end_ms if tail else None

    async def _live(self, key: SessionKey, user: str) -> tuple[SessionView | None, bool]:
        """The session as it lives; and whether it is over and still remembered."""
        try:
            return await self._sessions.open(key, user, node=""), False
        except Refused as refused:
            if refused.code == ErrorCode.SESSION_ENDED:
                return None, True
            if refused.code == ErrorCode.SESSION_NOT_FOUND:
                return None, False
            raise


def _not_found() -> Refused:
    return Refused(ErrorCode.SESSION_NOT_FOUND, "no such session")


def _unarchived(view: SessionView) -> SessionRecord:
    return SessionRecord(
        key=view.key,
        user=view.user,
        agent=view.agent,
        status="active",
        metadata=view.metadata,
        on_detach=view.on_detach,
        created_ms=view.created_ms,
        active_ms=view.created_ms,
        ended_ms=0,
        runs=0,
        messages=0,
    )
