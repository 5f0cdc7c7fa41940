"""Sessions: create, list, read, end, erase."""

from hashlib import sha256
from http import HTTPStatus
from typing import Any

import msgspec
from loguru import logger
from msgspec import UNSET, Raw

from gateway.edges.api.bodies import (
    Erased,
    Session,
    SessionCreate,
    SessionList,
    SessionQuery,
    milliseconds,
    timestamp,
)
from gateway.edges.api.cursors import sessions_cursor, sessions_position
from gateway.edges.api.operation import Call, Operation
from gateway.session.archive import SessionFilter, SessionRecord
from gateway.session.context import log_context
from gateway.session.errors import Refused
from gateway.session.history import SessionHistory
from gateway.session.ids import derived, uuid7
from gateway.session.model import SessionView
from gateway.session.ports import Clock
from gateway.session.probe import Probe
from gateway.session.service import SessionService
from protocol.codes import ErrorCode
from protocol.frames import Close

_canonical = msgspec.json.Encoder(order="sorted").encode


class SessionCalls:
    """Sessions: create, list, read, end, erase."""

    def __init__(
        self, service: SessionService, history: SessionHistory, probe: Probe, clock: Clock
    ) -> None:
        self._service = service
        self._history = history
        self._probe = probe
        self._clock = clock

    def operations(self) -> list[Operation[Any, Any]]:
        """Their rows of the table."""
        one = "/api/v1/sessions/{session_id}"
        return [
            Operation(
                "POST",
                "/api/v1/sessions",
                "createSession",
                "Creates a session, which a client opens on `/ws` by its id",
                self._create,
                answers=Session,
                status=HTTPStatus.CREATED,
                refuses=(ErrorCode.AGENT_NOT_FOUND, ErrorCode.ID_CONFLICT, ErrorCode.SESSION_ENDED),
                body=SessionCreate,
                keyed=True,
            ),
            Operation(
                "GET",
                "/api/v1/sessions",
                "listSessions",
                "Lists the caller's sessions, newest first",
                self._find,
                answers=SessionList,
                query=SessionQuery,
            ),
            Operation(
                "GET",
                one,
                "readSession",
                "Reads a session, and how it stands now if it lives",
                self._read,
                answers=Session,
                refuses=(ErrorCode.SESSION_ENDED,),
            ),
            Operation(
                "DELETE",
                one,
                "endSession",
                "Ends a session: its open run is cancelled, its history stays",
                self._end,
                status=HTTPStatus.NO_CONTENT,
            ),
            Operation(
                "DELETE",
                f"{one}/data",
                "eraseSession",
                "Erases a session and all that was said in it, live and archived, for good",
                self._erase,
                status=HTTPStatus.NO_CONTENT,
            ),
            Operation(
                "DELETE",
                "/api/v1/users/{user_id}/data",
                "eraseUser",
                "Erases all sessions of a user, likewise: the caller's own, no other's",
                self._erase_user,
                answers=Erased,
            ),
        ]

    async def _create(self, call: Call[SessionCreate, None]) -> Session:
        started, who, body = self._clock(), call.who, call.body
        if body.user_id not in (None, who.user):
            # Else the session would belong to somebody whom no socket could prove to be.
            raise Refused(ErrorCode.FORBIDDEN, f"you are user {who.user!r} here", param="user_id")
        try:
            view = await self._service.create(
                who,
                body.agent_id,
                body.metadata,
                session_id=None if call.key is None else derived(who.tenant, who.user, call.key),
                on_detach=body.on_detach,
                digest=digest(body),
            )
        except Refused as refused:
            if refused.param == "agent":
                refused.param = "agent_id"
            elif refused.code == ErrorCode.ID_CONFLICT:
                refused.param = "Idempotency-Key"
            raise
        bound = self._probe.session(who.tenant, view.agent)
        bound.opened("created", self._clock() - started)
        with log_context(session_id=view.key.session_id):
            logger.bind(agent_id=view.agent, user_id=view.user).info("session created")
        call.headers["Location"] = f"/api/v1/sessions/{view.key.session_id}"
        return _created(view)

    async def _find(self, call: Call[None, SessionQuery]) -> SessionList:
        query = call.query
        cursor, start, end = query.cursor, query.created_from, query.created_to
        page = await self._history.sessions(
            call.who,
            SessionFilter(
                agent=query.agent_id or None,
                status=query.status or None,
                created_from_ms=None if start is UNSET else milliseconds(start),
                created_to_ms=None if end is UNSET else milliseconds(end),
                order=query.order,
            ),
            after=None if cursor is UNSET else sessions_position(cursor, query.order),
            limit=query.limit,
        )
        return SessionList(
            [_session(record) for record in page.sessions],
            sessions_cursor(query.order, page.following) if page.following else None,
        )

    async def _read(self, call: Call[None, None]) -> Session:
        now = await self._history.session(call.who, call.path["session_id"])
        shown, live = _session(now.record), now.live
        if live is None:
            return shown
        return msgspec.structs.replace(
            shown,
            state=live.state,
            cursor=live.cursor,
            runs=live.runs,
            interrupts=live.interrupts,
            pending_tool_calls=live.pending_tools,
        )

    async def _end(self, call: Call[None, None]) -> None:
        try:
            # An expired one is made live for it, so that its end is written as any other.
            view = await self._service.find(call.who, call.path["session_id"])
            await self._service.close(view, Close(uuid7(view.created_ms)))
        except Refused as refused:
            if refused.code != ErrorCode.SESSION_ENDED:
                raise
        else:
            logger.bind(agent_id=view.agent, user_id=view.user).info("session ended")

    async def _erase(self, call: Call[None, None]) -> None:
        await self._service.erase(call.who, call.path["session_id"])
        logger.bind(user_id=call.who.user).info("session erased")

    async def _erase_user(self, call: Call[None, None]) -> Erased:
        who = call.who
        if call.path["user_id"] != who.user:
            raise Refused(ErrorCode.FORBIDDEN, f"you are user {who.user!r} here", param="user_id")
        erased = await self._service.erase_user(who)
        logger.bind(user_id=who.user, sessions=erased).info("user erased")
        return Erased(erased)


def digest(body: SessionCreate) -> str:
    """What the body asks for: equal for equal content, however it was spelled."""
    content = msgspec.structs.replace(body, user_id=None)  # which can only be the caller
    return sha256(_canonical(content)).hexdigest()[:32]


def _created(view: SessionView) -> Session:
    return Session(
        session_id=view.key.session_id,
        agent_id=view.agent,
        tenant_id=view.key.tenant,
        user_id=view.user,
        status="active",
        metadata=Raw(view.metadata),
        on_detach=view.on_detach,
        created_at=timestamp(view.created_ms),
        state=view.state,
        cursor=view.cursor,
    )


def _session(record: SessionRecord) -> Session:
    return Session(
        session_id=record.key.session_id,
        agent_id=record.agent,
        tenant_id=record.key.tenant,
        user_id=record.user,
        status=record.status,
        metadata=Raw(record.metadata),
        on_detach=record.on_detach,
        created_at=timestamp(record.created_ms),
        active_at=timestamp(record.active_ms),
        ended_at=timestamp(record.ended_ms) if record.ended_ms else UNSET,
        run_count=record.runs,
        message_count=record.messages,
    )
