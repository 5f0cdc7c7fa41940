"""Messages of a session: the transcript, a message without a socket, and its cancellation."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Literal
from uuid import uuid4

from msgspec import UNSET, Raw

from gateway.edges.api.bodies import (
    MessageCreate,
    MessageList,
    MessageQuery,
    RunAccepted,
    SessionMessage,
    timestamp,
)
from gateway.edges.api.cursors import messages_cursor, messages_position
from gateway.edges.api.operation import Call, Operation
from gateway.session.archive import MessageRecord
from gateway.session.errors import Refused
from gateway.session.history import SessionHistory
from gateway.session.model import SessionKey, SessionView
from gateway.session.ports import Clock
from gateway.session.probe import Probe
from gateway.session.service import SessionService
from protocol.codes import ErrorCode
from protocol.frames import Ack, Cancel, Message

_OUTCOMES: dict[str, Literal["success", "interrupt", "cancelled", "error"]] = {
    "F": "success",
    "I": "interrupt",
    "C": "cancelled",
    "X": "error",
}


class MessageCalls:
    """Messages of a session, and the runs that they make."""

    def __init__(
        self, service: SessionService, history: SessionHistory, probe: Probe, clock: Clock
    ) -> None:
        self._service = service
        self._history = history
        self._probe = probe
        self._clock = clock

    def operations(self) -> list[Operation[Any, Any]]:
        """Their rows of the table."""
        many = "/api/v1/sessions/{session_id}/messages"
        return [
            Operation(
                "GET",
                many,
                "listMessages",
                "Reads the transcript, the newest page first",
                self._read,
                answers=MessageList,
                query=MessageQuery,
            ),
            Operation(
                "POST",
                many,
                "sendMessage",
                "Says something: makes one run, which every client of the session sees",
                self._send,
                answers=RunAccepted,
                status=HTTPStatus.ACCEPTED,
                refuses=(
                    ErrorCode.BUSY,
                    ErrorCode.ID_CONFLICT,
                    ErrorCode.INTERRUPT_PENDING,
                    ErrorCode.SESSION_ENDED,
                    ErrorCode.CIRCUIT_OPEN,
                ),
                body=MessageCreate,
                keyed=True,
            ),
            Operation(
                "POST",
                "/api/v1/sessions/{session_id}/runs/{run_id}/cancel",
                "cancelRun",
                "Cancels a run; of one that is over nothing changes",
                self._cancel,
                answers=RunAccepted,
                status=HTTPStatus.ACCEPTED,
                refuses=(ErrorCode.ID_CONFLICT,),
                keyed=True,
            ),
        ]

    async def _read(self, call: Call[None, MessageQuery]) -> MessageList:
        cursor = call.query.cursor
        page = await self._history.messages(
            call.who,
            call.path["session_id"],
            before=None if cursor is UNSET else messages_position(cursor),
            limit=call.query.limit,
        )
        messages = [_message(record) for record in page.archived]
        messages += [SessionMessage(Raw(live.json), live.run_id) for live in page.live]
        return MessageList(messages, messages_cursor(page.following) if page.following else None)

    async def _send(self, call: Call[MessageCreate, None]) -> RunAccepted:
        started, agent = self._clock(), ""
        try:
            view = await self._service.find(call.who, call.path["session_id"])
            agent = view.agent
            return await self._say(call, view, started)
        except Refused as refused:
            self._probe.message_failed(call.who.tenant, "user", refused.code, agent)
            raise
        except Exception:
            self._probe.message_failed(call.who.tenant, "user", ErrorCode.INTERNAL, agent)
            raise

    async def _say(
        self, call: Call[MessageCreate, None], view: SessionView, started: float
    ) -> RunAccepted:
        body = call.body
        frame = Message(
            id=call.key or str(uuid4()),
            content=body.content,
            when_busy=body.when_busy,
            tools=body.tools,
            context=body.context,
            state=body.state,
            metadata=body.metadata,
            traceparent=call.traceparent,
        )
        ack = await _keyed(lambda: self._service.message(view, frame))
        if ack.status != "duplicate":
            bound = self._probe.session(view.key.tenant, view.agent)
            bound.message_accepted("user", self._clock() - started)
        return RunAccepted(ack.run_id or "", ack.status)

    async def _cancel(self, call: Call[None, None]) -> RunAccepted:
        run_id = call.path["run_id"]
        key = SessionKey(call.who.tenant, call.path["session_id"])
        frame = Cancel(call.key or str(uuid4()), run_id)
        ack = await _keyed(lambda: self._service.cancel(key, call.who.user, frame))
        return RunAccepted(run_id, ack.status)


async def _keyed(ask: Callable[[], Awaitable[Ack]]) -> Ack:
    try:
        return await ask()
    except Refused as refused:
        if refused.code == ErrorCode.ID_CONFLICT:
            refused.param = "Idempotency-Key"
        raise


def _message(record: MessageRecord) -> SessionMessage:
    return SessionMessage(
        Raw(record.json),
        record.run_id,
        outcome=_OUTCOMES[record.kind] if record.kind else UNSET,
        code=record.code or UNSET,
        at=timestamp(record.position.at_ms),
    )
