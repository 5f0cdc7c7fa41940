"""What the archive answers: `History` of the domain. Every list is read by the key it is sorted by,
so that a page costs the same wherever it stands.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Row,
    Select,
    String,
    exists,
    func,
    literal,
    select,
    tuple_,
)

from gateway.archive.database import Database
from gateway.archive.erasure import erase
from gateway.archive.errors import BadRecord
from gateway.archive.schema import messages, runs, sessions, tombstones, usage_daily
from gateway.session.archive import (
    MessagePosition,
    MessageRecord,
    Recalled,
    SessionFilter,
    SessionPosition,
    SessionRecord,
    UsageRecord,
)
from gateway.session.errors import Refused
from gateway.session.model import SessionKey
from protocol.codes import ErrorCode

_NO_METADATA = "{}"
_ON_DETACH = "continue"


class Reader:
    """The archive, as the domain reads it. Raises (all): `HistoryAway`."""

    def __init__(
        self,
        database: Database,
        *,
        now_ms: Callable[[], int],
        transcript_messages: int,
        transcript_bytes: int,
    ) -> None:
        """`database` stays the caller's; the bounds are those of live transcripts."""
        self._database = database
        self._now_ms = now_ms
        self._transcript_messages = transcript_messages
        self._transcript_bytes = transcript_bytes

    async def recall(
        self, key: SessionKey, user: str, *, creating: bool = False
    ) -> Recalled | None:
        """See `History`."""
        if creating:
            its = (*_is(tombstones, key), tombstones.c.user_id == user)
            if await self._one(key.tenant, select(tombstones.c.at_ms).where(*its)) is not None:
                raise Refused(ErrorCode.SESSION_ENDED, "the session that this key made was erased")
        found = await self._one(
            key.tenant,
            select(sessions).where(
                *_is(sessions, key),
                sessions.c.user_id == user,
                ~exists().where(*_names(key, user, sessions.c.created_ms)),
            ),
        )
        if found is None or not found.agent_id:
            return None
        if found.status == "completed":
            raise Refused(ErrorCode.SESSION_ENDED, "the session has ended")
        return Recalled(
            agent=found.agent_id,
            metadata=(found.metadata or _NO_METADATA).encode(),
            on_detach=found.on_detach or _ON_DETACH,
            messages=await self._transcript(key),
            state=None if found.state is None else found.state.encode(),
            begun_ms=found.created_ms,
            last_end_ms=await self._last_end(key),
        )

    async def _last_end(self, key: SessionKey) -> int:
        found = await self._one(
            key.tenant, select(func.max(runs.c.ended_ms)).where(*_is(runs, key))
        )
        return 0 if found is None else found[0] or 0

    async def _transcript(self, key: SessionKey) -> list[tuple[str, bytes]]:
        m = messages.c
        newest = (
            select(m.run_id, m.json, m.at_ms, m.nth)
            .where(*_is(messages, key))
            .order_by(m.at_ms.desc(), m.nth.desc())
            .limit(self._transcript_messages)
            .subquery()
        )
        n = newest.c
        length = func.length(n.json)
        upto = func.sum(length).over(order_by=(n.at_ms.desc(), n.nth.desc()))
        sized = select(newest, (upto - length).label("newer")).subquery()
        # Characters are no more than bytes; the rest is cut off below. One is kept, however large.
        found = await self._all(
            key.tenant,
            select(sized)
            .where(sized.c.newer < self._transcript_bytes)
            .order_by(sized.c.at_ms.desc(), sized.c.nth.desc()),
        )
        kept: list[tuple[str, bytes]] = []
        left = self._transcript_bytes
        for row in found:
            message = row.json.encode()
            left -= len(message)
            if left < 0 and kept:
                break
            kept.append((row.run_id, message))
        return kept[::-1]

    async def is_erased(self, key: SessionKey, user: str, begun_ms: int) -> bool:
        """See `History`."""
        begun = literal(begun_ms, BigInteger)
        return (
            await self._one(key.tenant, select(tombstones).where(*_names(key, user, begun)))
            is not None
        )

    async def session(self, key: SessionKey, user: str) -> SessionRecord | None:
        """See `History`."""
        found = await self._one(key.tenant, _sessions(key.tenant, user).where(*_is(sessions, key)))
        return None if found is None else _session_record(found)

    async def sessions(
        self,
        tenant: str,
        user: str,
        chosen: SessionFilter,
        *,
        after: SessionPosition | None,
        limit: int,
    ) -> list[SessionRecord]:
        """See `History`."""
        s = sessions.c
        at = s.active_ms if chosen.order == "active" else s.created_ms
        wanted = _sessions(tenant, user)
        if chosen.agent is not None:
            wanted = wanted.where(s.agent_id == chosen.agent)
        if chosen.status is not None:
            wanted = wanted.where(s.status == chosen.status)
        if chosen.created_from_ms is not None:
            wanted = wanted.where(s.created_ms >= chosen.created_from_ms)
        if chosen.created_to_ms is not None:
            wanted = wanted.where(s.created_ms < chosen.created_to_ms)
        if after is not None:
            place = tuple_(literal(after.at_ms, BigInteger), literal(after.session_id, String))
            wanted = wanted.where(tuple_(at, s.session_id) < place)
        found = await self._all(
            tenant, wanted.order_by(at.desc(), s.session_id.desc()).limit(limit)
        )
        return [_session_record(row) for row in found]

    async def messages(
        self, key: SessionKey, *, before: MessagePosition | None, limit: int
    ) -> list[MessageRecord]:
        """See `History`."""
        m, r = messages.c, runs.c
        wanted = select(messages).where(*_is(messages, key))
        if before is not None:
            place = tuple_(literal(before.at_ms, BigInteger), literal(before.nth, BigInteger))
            wanted = wanted.where(tuple_(m.at_ms, m.nth) < place)
        # The page first, then its runs. In one step PostgreSQL, which expects few messages in a
        # session, joins and sorts all that there are: 350 ms instead of 0.3 in one of 85,000.
        page = wanted.order_by(m.at_ms.desc(), m.nth.desc()).limit(limit).subquery()
        p = page.c
        same_run = (r.tenant_id == p.tenant_id) & (r.session_id == p.session_id)
        found = await self._all(
            key.tenant,
            select(p.at_ms, p.nth, p.run_id, p.json, r.kind, r.code).join_from(
                page, runs, same_run & (r.run_id == p.run_id)
            ),
        )
        return [
            MessageRecord(
                position=MessagePosition(row.at_ms, row.nth),
                run_id=row.run_id,
                json=row.json.encode(),
                kind=row.kind,
                code=row.code,
            )
            for row in sorted(found, key=lambda row: (row.at_ms, row.nth))
        ]

    async def archived(self, key: SessionKey, run_ids: Sequence[str]) -> set[str]:
        """See `History`."""
        if not run_ids:
            return set()
        found = await self._all(
            key.tenant, select(runs.c.run_id).where(*_is(runs, key), runs.c.run_id.in_(run_ids))
        )
        return {row.run_id for row in found}

    async def usage(
        self,
        tenant: str,
        *,
        first_day: str,
        last_day: str,
        agent: str | None = None,
        model: str | None = None,
    ) -> list[UsageRecord]:
        """See `History`."""
        u = usage_daily.c
        wanted = select(usage_daily).where(
            u.tenant_id == tenant, u.day >= first_day, u.day <= last_day
        )
        if agent is not None:
            wanted = wanted.where(u.agent_id == agent)
        if model is not None:
            wanted = wanted.where(u.model == model)
        return [
            UsageRecord(
                day=row.day,
                agent=row.agent_id,
                model=row.model,
                runs=row.runs,
                input_tokens=row.input_tokens,
                output_tokens=row.output_tokens,
            )
            for row in await self._all(tenant, wanted.order_by(u.day, u.agent_id, u.model))
        ]

    async def erase(
        self, tenant: str, user: str, session_id: str = "", *, at_ms: int | None = None
    ) -> int:
        """See `History`."""
        now_ms = self._now_ms() if at_ms is None else at_ms
        try:
            return await erase(self._database, tenant, user, session_id, now_ms=now_ms)
        except BadRecord:
            return 0  # as in `_all`

    async def _one(self, tenant: str, wanted: Any) -> Row[Any] | None:
        found = await self._all(tenant, wanted)
        return found[0] if found else None

    async def _all(self, tenant: str, wanted: Any) -> Sequence[Row[Any]]:
        try:
            async with self._database.reading(tenant) as connection:
                return (await connection.execute(wanted)).all()
        except BadRecord:
            return []  # asked for what cannot be written, and so is not there


def _is(table: Any, key: SessionKey) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return table.c.tenant_id == key.tenant, table.c.session_id == key.session_id


def _names(
    key: SessionKey, user: str, begun_ms: ColumnElement[int]
) -> tuple[ColumnElement[bool], ...]:
    """The tombstones of a session that was begun then."""
    t = tombstones.c
    of_user = (t.session_id == "") & (t.at_ms >= begun_ms)
    this = t.session_id == key.session_id
    return t.tenant_id == key.tenant, t.user_id == user, this | of_user


def _sessions(tenant: str, user: str) -> Select[Any]:
    """A user's. One of which only the end is known has no agent, and is nothing to show."""
    s = sessions.c
    return select(sessions).where(s.tenant_id == tenant, s.user_id == user, s.agent_id != "")


def _session_record(row: Row[Any]) -> SessionRecord:
    return SessionRecord(
        key=SessionKey(row.tenant_id, row.session_id),
        user=row.user_id,
        agent=row.agent_id,
        status=row.status,
        metadata=(row.metadata or _NO_METADATA).encode(),
        on_detach=row.on_detach or _ON_DETACH,
        created_ms=row.created_ms,
        active_ms=row.active_ms,
        ended_ms=row.ended_ms,
        runs=row.runs,
        messages=row.messages,
    )
