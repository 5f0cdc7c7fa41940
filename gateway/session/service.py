"""The verbs of a session, for every edge: open, message, answer, tool result, cancel, close, erase.

A session that Redis does not know is asked for in the archive, and made live again from it.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec

from gateway.session.archive import Erasure, History, Journal, Recalled
from gateway.session.breaker import BreakerState
from gateway.session.endings import Endings
from gateway.session.eraser import Eraser
from gateway.session.errors import Refused, Unavailable
from gateway.session.hub import Hub
from gateway.session.ids import uuid7
from gateway.session.model import (
    Accepted,
    NewAnswer,
    NewMessage,
    NewToolResult,
    Principal,
    SessionKey,
    SessionView,
)
from gateway.session.ports import Directory, Dispatcher, Sessions
from gateway.session.tracing import UNTRACED, Tracer, valid_traceparent
from protocol.codes import ErrorCode
from protocol.events import ResumeEntry
from protocol.frames import Ack, Answer, Cancel, Close, Cursor, Message, OnDetach, ToolResult

_encode = msgspec.json.Encoder().encode
_canonical = msgspec.json.Encoder(order="sorted").encode


class SessionService:
    """What a client may ask of a session. An `Ack` means that what was asked will not be lost.

    Raises (every verb): `Refused` with the code for the client, `Unavailable` among them.
    """

    def __init__(
        self,
        *,
        sessions: Sessions,
        queue: Dispatcher,
        directory: Directory,
        hub: Hub,
        endings: Endings,
        history: History,
        eraser: Eraser,
        erasure: Erasure,
        journal: Journal,
        node: str,
        now_ms: Callable[[], int],
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._sessions = sessions
        self._queue = queue
        self._directory = directory
        self._hub = hub
        self._endings = endings
        self._history = history
        self._eraser = eraser
        self._erasure = erasure
        self._journal = journal
        self._node = node
        self._now_ms = now_ms
        self._tracer = tracer

    async def create(
        self,
        who: Principal,
        agent: str,
        metadata: dict[str, Any] | None,
        *,
        session_id: str | None = None,
        on_detach: OnDetach = "continue",
        digest: str = "",
    ) -> SessionView:
        """A new session; with a `session_id` given, the one that an earlier call made.

        That call must have asked for the same, by `digest`, or it is an `id_conflict`; one that was
        erased since is not made again (`session_ended`).
        """
        if await self._directory.find(agent) is None:
            raise Refused(ErrorCode.AGENT_NOT_FOUND, f"no agent named {agent!r}", param="agent")
        key = SessionKey(who.tenant, session_id or uuid7(self._now_ms()))
        self._tracer.tell(tenant_id=key.tenant, session_id=key.session_id)
        recalled: Recalled | None = None
        if session_id is not None:
            with suppress(Unavailable):  # creating does not wait for the archive
                recalled = await self._history.recall(key, who.user, creating=True)
        if recalled is not None and (recalled.agent, recalled.on_detach, _object(recalled)) != (
            agent,
            on_detach,
            metadata or {},
        ):
            raise Refused(ErrorCode.ID_CONFLICT, "this key was used for another session")
        view = await self._open(
            key,
            who.user,
            agent=agent,
            metadata=metadata,
            on_detach=on_detach,
            digest=digest,
            recalled=recalled,
        )
        await self._adopt(view, recalled)
        return view

    async def find(self, who: Principal, session_id: str) -> SessionView:
        """A session of this user, for a client that comes to follow it.

        One that has expired is made live again.
        """
        key = SessionKey(who.tenant, session_id)
        self._tracer.tell(tenant_id=key.tenant, session_id=key.session_id)
        recalled: Recalled | None = None
        try:
            view = await self._open(key, who.user, attending=True)
        except Refused as refused:
            refused = self._unless_lost(refused, key, who.user)
            if refused.code != ErrorCode.SESSION_NOT_FOUND:
                raise refused from None
            recalled = await self._history.recall(key, who.user)
            if recalled is None:
                raise refused from None
            view = await self._open(
                key, who.user, agent=recalled.agent, recalled=recalled, attending=True
            )
        await self._adopt(view, recalled)
        return view

    async def _open(self, key: SessionKey, user: str, **options: Any) -> SessionView:
        """As `Sessions.open`, for this node; the home that it may have taken is not forgotten."""
        try:
            return await self._sessions.open(key, user, node=self._node, **options)
        except Unavailable:
            self._hub.unanswered.note(key, user)
            raise

    async def _adopt(self, view: SessionView, recalled: Recalled | None) -> None:
        """This node knows of it from now on; unless it was erased since it was `recalled`."""
        self._hub.adopt(view)
        if recalled is not None and await self._eraser.came_between(view, recalled):
            self._hub.ended(view.key)
            raise Refused(ErrorCode.SESSION_NOT_FOUND, "no such session")

    async def message(self, view: SessionView, frame: Message, *, connection: str = "") -> Ack:
        """A user message: makes one run.

        `connection`, here and below, is the `traceparent` of the connection that it came over.
        """
        new = NewMessage(
            key=view.key,
            user=view.user,
            frame_id=frame.id,
            run_id=uuid7(self._now_ms()),
            body_digest=digest(frame),
            message=_encode({"id": frame.id, "role": "user", "content": frame.content}),
            run_fields=run_fields(frame),
            when_busy=frame.when_busy,
            traceparent=frame.traceparent or "",
            seen=self._seen(view),
        )
        return await self._accept(view, new, connection)

    async def answer(self, view: SessionView, frame: Answer, *, connection: str = "") -> Ack:
        """The answers to the interrupts on which the last run ended."""
        new = NewAnswer(
            key=view.key,
            user=view.user,
            frame_id=frame.id,
            run_id=uuid7(self._now_ms()),
            body_digest=digest(frame),
            interrupt_ids=[entry.interrupt_id for entry in frame.entries],
            entries=_encode(
                [ResumeEntry(e.interrupt_id, e.status, e.payload) for e in frame.entries]
            ),
            traceparent=frame.traceparent or "",
            seen=self._seen(view),
        )
        return await self._accept(view, new, connection)

    async def tool_result(
        self, view: SessionView, frame: ToolResult, *, connection: str = ""
    ) -> Ack:
        """The result of a tool that the client ran."""
        message: dict[str, Any] = {
            "id": frame.id,
            "role": "tool",
            "toolCallId": frame.tool_call_id,
            "content": frame.content,
        }
        if frame.error is not None:
            message["error"] = frame.error
        new = NewToolResult(
            key=view.key,
            user=view.user,
            frame_id=frame.id,
            run_id=uuid7(self._now_ms()),
            body_digest=digest(frame),
            tool_call_id=frame.tool_call_id,
            message=_encode(message),
            traceparent=frame.traceparent or "",
            seen=self._seen(view),
        )
        return await self._accept(view, new, connection)

    async def cancel(self, key: SessionKey, user: str, frame: Cancel) -> Ack:
        """Cancels a run, by default the open one."""
        try:
            accepted = await self._sessions.cancel(key, user, frame.run_id, frame_id=frame.id)
        except Refused as refused:
            raise self._unless_lost(refused, key, user) from None
        return await self._acknowledge(frame.id, accepted)

    async def close(self, view: SessionView, frame: Close) -> Ack:
        """Ends the session."""
        await self._endings.close(view.key, view.user)
        return Ack(frame.id, "accepted")

    async def erase(self, who: Principal, session_id: str) -> None:
        """Removes a session of this user, and all that was said in it, for good.

        Nothing of it is left when this returns, or comes back later. To be repeated when it fails.
        """
        key = SessionKey(who.tenant, session_id)
        if not (await self._lives(key, who.user) or await self._history.session(key, who.user)):
            raise Refused(ErrorCode.SESSION_NOT_FOUND, "no such session")
        await self._erase(key, who.user)
        await self._erasure.settle([key], who.user)

    async def erase_user(self, who: Principal) -> int:
        """Removes all sessions of this user, likewise. Answers how many there were, at least."""
        # By Redis's clock: by ours, were it ahead, what begins from now on would not be archived.
        at_ms = await self._erasure.now_ms()
        archived = await self._history.erase(who.tenant, who.user, at_ms=at_ms)
        alive = await self._erasure.sessions_of(who.tenant, who.user)
        for key in alive:
            await self._erase(key, who.user)
        await self._journal.drop_dead(who.tenant, who.user)
        await self._erasure.settle(alive, who.user)
        return max(archived, len(alive))

    async def _erase(self, key: SessionKey, user: str) -> None:
        if await self._eraser.erase(key, user):
            self._hub.ended(key)  # the push that says so may come after the next request

    async def _lives(self, key: SessionKey, user: str) -> bool:
        """Whether Redis knows it as this user's, be it over or not."""
        try:
            await self._sessions.open(key, user, node="")
        except Refused as refused:
            if refused.code == ErrorCode.SESSION_NOT_FOUND:
                return False
            if refused.code != ErrorCode.SESSION_ENDED:
                raise
        return True

    def agent_state(self, who: Principal, agent: str) -> BreakerState:
        """Whether this tenant's messages reach the agent, as far as this node knows."""
        return self._hub.breakers.state(who.tenant, agent)

    def _seen(self, view: SessionView) -> Cursor | None:
        """The last event that passed here: a log that is shorter has lost writes."""
        feed = self._hub.find(view.key)
        return None if feed is None else feed.cursor

    async def _accept(
        self, view: SessionView, new: NewMessage | NewAnswer | NewToolResult, connection: str
    ) -> Ack:
        within = valid_traceparent(new.traceparent)
        with self._tracer.accepting(
            view.key, view.agent, new.run_id, traceparent=within, connection=connection
        ) as span:
            ack = await self._put(view, replace(new, traceparent=span.traceparent))
            if ack.run_id == new.run_id:  # a duplicate as well, where the bus had to repeat it
                span.accepted()
            else:
                span.made_none(
                    "duplicate" if ack.status == "duplicate" else "none", ack.run_id or ""
                )
            return ack

    async def _put(self, view: SessionView, new: NewMessage | NewAnswer | NewToolResult) -> Ack:
        breakers, tenant = self._hub.breakers, view.key.tenant
        closed: Refused | None = None
        try:
            breakers.admit(tenant, view.agent)
        except Refused as refused:
            closed, new = refused, replace(new, run_id="")  # what is known is answered all the same
        try:
            accepted = await self._sessions.accept(new)
        except Refused as refused:
            if closed is not None and refused.code == ErrorCode.CIRCUIT_OPEN:
                if feed := self._hub.find(view.key):
                    feed.probe.call_spared()
                raise closed from None
            if closed is None:
                breakers.release(tenant, view.agent)
            if refused.code == ErrorCode.SESSION_ENDED:
                self._hub.ended(view.key)  # followers may have missed it
            raise self._unless_lost(refused, view.key, view.user) from None
        if accepted.run_id and accepted.status != "duplicate":
            self._hub.expect_run(view.key, accepted.run_id)
        elif closed is None:
            breakers.release(tenant, view.agent)
        ack = await self._acknowledge(new.frame_id, accepted)
        now = self._seen(view)
        if new.seen and now and now.epoch != new.seen.epoch:
            # Redis lost writes, perhaps this one; and the `reset` that says so may be out already.
            raise Unavailable("this session has just begun anew")
        return ack

    def _unless_lost(self, refused: Refused, key: SessionKey, user: str) -> Refused:
        """The refusal, or another one for a session that is about to be there again."""
        if refused.code == ErrorCode.SESSION_NOT_FOUND and self._hub.missing(key, user):
            return Unavailable("this session was lost and begins anew")
        return refused

    async def _acknowledge(self, frame_id: str, accepted: Accepted) -> Ack:
        if accepted.dispatch is not None:
            # It is accepted: if this fails, the run's dispatch deadline makes a sweep do it.
            with suppress(Unavailable):
                await self._queue.dispatch(accepted.dispatch, accepted.agent)
        return Ack(frame_id, accepted.status, accepted.run_id or None)


def _object(recalled: Recalled) -> Any:
    return msgspec.json.decode(recalled.metadata)


def digest(frame: Message | Answer | ToolResult) -> str:
    """What the frame asks for, as a digest: equal for equal content, however it was spelled."""
    body = _canonical(msgspec.structs.replace(frame, id="", traceparent=None))
    return hashlib.sha256(body).hexdigest()[:32]


def run_fields(frame: Message) -> bytes:
    """Further members of the run's `RunAgentInput`, as JSON without the braces."""
    fields: dict[str, Any] = {}
    if frame.tools is not None:
        fields["tools"] = frame.tools
    if frame.context is not None:
        fields["context"] = frame.context
    if frame.state is not msgspec.UNSET:
        fields["state"] = frame.state
    if frame.metadata is not None:
        fields["forwardedProps"] = frame.metadata
    return _encode(fields)[1:-1]
