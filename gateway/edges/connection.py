"""A connection: it speaks `nooble.v1` and follows one session.

One task, the application's own, takes one client frame after the other. What goes out needs none:
frames wait in the outbox for the end of the loop's turn, leave in one write, and the socket calls
when it takes more. Only while the client is behind, a second task reads the log for it, so that
answers do not wait for Redis.
"""

import asyncio
from contextlib import ExitStack
from contextvars import copy_context
from typing import assert_never

from loguru import logger
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from gateway.edges.edge import Edge
from gateway.edges.refusals import close_code_of, complaint, refusal, role_of
from gateway.edges.socket import EXTENSION, WebSocketProtocol
from gateway.edges.tracing import request_id
from gateway.session.context import log_context
from gateway.session.errors import Refused
from gateway.session.feed import Attachment
from gateway.session.limits import TokenBucket
from gateway.session.model import Role, SessionView
from gateway.session.outbox import Outbox
from gateway.session.probe import Outcome
from gateway.session.tracing import valid_traceparent
from gateway.session.wheel import Timer
from protocol.codec import ProtocolError, decode_client, encode
from protocol.codes import CloseCode, ErrorCode
from protocol.connection import ConnectionState, next_state
from protocol.frames import (
    Ack,
    Answer,
    Cancel,
    ClientFrame,
    Close,
    GoAway,
    Message,
    Open,
    Opened,
    Ping,
    Pong,
    Refresh,
    ToolResult,
)

WRITE_BYTES = 64 * 1024
"""So much is handed to the socket before it is asked whether it takes more."""

_INTERNAL_ERROR = 1011


class Connection:
    """One WebSocket, from the handshake to its end."""

    def __init__(self, edge: Edge, scope: Scope, receive: Receive) -> None:
        limits = edge.limits
        self._edge = edge
        self._headers = Headers(scope=scope)
        self._receive = receive
        self._socket: WebSocketProtocol = scope["extensions"][EXTENSION]["socket"]
        self._outbox = Outbox(self._flush_soon, limits.outbox_bytes)
        self._bucket = TokenBucket(limits.messages_per_s, limits.message_burst, edge.clock)
        self._refused_in_a_row = 0
        self._state = ConnectionState.NEW
        self._tenant = ""
        self._counted = False
        self._view: SessionView | None = None
        self._attachment: Attachment | None = None
        self._traceparent = ""
        self._exit = ExitStack()
        self._context = copy_context()
        self._loop = asyncio.get_running_loop()
        self._flushing: asyncio.Handle | None = None
        self._catching_up: asyncio.Task[None] | None = None
        self._progress_at = 0.0
        self._drained_bytes = 0
        self._stall_timer: Timer | None = None
        self._open_timer = edge.wheel.after(
            limits.open_timeout_s, lambda: self._outbox.finish(CloseCode.NO_OPEN_OR_PONG)
        )

    @property
    def is_slow(self) -> bool:
        """True while its client is behind by more than may wait, or its socket takes no more."""
        return self._outbox.lagging or not self._socket.is_writable

    @property
    def buffered_bytes(self) -> int:
        """What waits for the client, here and in the socket."""
        return self._outbox.size_bytes + self._socket.unread_bytes

    async def run(self) -> None:
        """Serves the connection until it is gone."""
        self._socket.on_writable = self._flush
        try:
            await self._read()
        finally:
            self._open_timer.cancel()
            for pending in (self._flushing, self._stall_timer, self._catching_up):
                if pending is not None:
                    pending.cancel()
            self._detach()
            if self._counted:
                self._edge.probe.connection_closed(self._tenant)
                logger.debug("connection closed")
            self._exit.close()

    def send_away(self, frame: GoAway) -> None:
        """The node stops."""
        self._outbox.put(encode(frame))
        self._outbox.finish(CloseCode.RESTART)

    def send_away_between_runs(self, frame: GoAway) -> None:
        """The node is going to stop: now, or when the open run of the session has ended."""
        attachment = self._attachment
        if attachment is not None and attachment.feed.runs:
            attachment.on_run_end = lambda: self.send_away(frame)
        else:
            self.send_away(frame)

    # --- out --------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        """Frames of one turn of the loop leave in one write of the socket."""
        if self._flushing is None:
            self._flushing = self._loop.call_soon(self._flush, context=self._context)

    def _flush(self) -> None:
        """Writes as much as the socket takes; then what is to follow when all is written."""
        outbox, socket = self._outbox, self._socket
        self._flushing = None
        if not socket.is_open:
            return
        while outbox.size_bytes and socket.is_writable:
            waiting_bytes = outbox.size_bytes
            frames = outbox.take(WRITE_BYTES)
            socket.write(frames)
            self._edge.sockets.frames_sent(len(frames), waiting_bytes - outbox.size_bytes)
        if not socket.is_writable:
            self._watch_progress()
        elif outbox.close_code is not None:
            socket.close(outbox.close_code)
        elif outbox.pulling and self._attachment is not None:
            self._catch_up(self._attachment)

    def _catch_up(self, attachment: Attachment) -> None:
        """Reads on for a client that is behind. One reader at a time; what it finds is flushed."""
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = self._loop.create_task(
                self._read_log(attachment), context=self._context
            )

    async def _read_log(self, attachment: Attachment) -> None:
        try:
            await self._edge.hub.catch_up(attachment)
        except Exception:  # noqa: BLE001 - logged; the client comes again
            logger.exception("the log could not be read")
            self._outbox.finish(_INTERNAL_ERROR)

    def _watch_progress(self) -> None:
        if self._stall_timer is None:
            self._progress_at = self._edge.wheel.now
            self._check_progress()

    def _check_progress(self) -> None:
        """Ends the connection of a client that reads nothing; looks again as long as it reads."""
        limit_s, now = self._edge.limits.stall_timeout_s, self._edge.wheel.now
        self._stall_timer = None
        if self._socket.is_writable:
            return
        before, self._drained_bytes = self._drained_bytes, self._socket.drained_bytes
        if self._drained_bytes > before:
            self._progress_at = now
        if now - self._progress_at < limit_s:
            self._stall_timer = self._edge.wheel.after(limit_s / 4, self._check_progress)
            return
        self._context.run(logger.info, "the client does not read; connection closed")
        self._socket.close(int(self._outbox.close_code or CloseCode.OVERLOADED), "stalled")

    # --- in ---------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return
            if self._outbox.close_code is None:
                text = message.get("text")
                data: bytes = message["bytes"] if text is None else text.encode()
                self._edge.sockets.frame_received(len(data))
                await self._take(data, is_text=text is not None)
            # Whoever asks faster than he reads the answers waits.
            while self._outbox.full and self._socket.is_open:
                self._flush()
                await self._socket.wait_writable()

    async def _take(self, data: bytes, *, is_text: bool) -> None:
        """One client frame."""
        started = self._edge.clock()
        wait_s = self._bucket.take()
        try:
            if not is_text:
                raise ProtocolError(ErrorCode.BAD_FRAME, "frames are text, not binary", fatal=True)
            frame = decode_client(data, max_bytes=self._edge.limits.frame_bytes)
            following = next_state(self._state, frame)
        except ProtocolError as error:
            self._complain(error)
            self._count_refusal(wait_s)
            return
        if self._count_refusal(wait_s):
            retry_ms = int(wait_s * 1000) + 1
            message = "too many frames: slow down"
            self._refuse(frame, Refused(ErrorCode.RATE_LIMITED, message, retry_after_ms=retry_ms))
            return
        try:
            await self._handle(frame, started)
            self._state = following
        except Refused as refused:
            self._refuse(frame, refused)
        except Exception:  # noqa: BLE001 - logged; its text is not the client's business
            logger.exception("a client frame failed")
            self._refuse(frame, Refused(ErrorCode.INTERNAL, "something went wrong here"))
            self._outbox.finish(_INTERNAL_ERROR)

    async def _handle(self, frame: ClientFrame, started: float) -> None:
        match frame:
            case Ping():
                self._outbox.put(encode(Pong(frame.t)))
            case Open():
                header = self._headers.get("traceparent", "")
                within = valid_traceparent(frame.traceparent or "") or valid_traceparent(header)
                with self._edge.tracer.connecting(within) as span:
                    self._traceparent = span.traceparent
                    await self._open(frame, started)
                self._context = copy_context()
            case Close():
                await self._close(frame)
            case Refresh():
                raise Refused(ErrorCode.UNSUPPORTED, "this gateway has no authentication")
            case Message() | Answer() | ToolResult() | Cancel():
                await self._command(frame, started)
            case _:
                assert_never(frame)

    async def _open(self, frame: Open, started: float) -> None:
        self._open_timer.cancel()
        edge, limits = self._edge, self._edge.limits
        self._exit.enter_context(log_context(request_id=request_id(self._headers)))
        who = edge.authenticate(self._headers, frame.token)
        self._tenant = who.tenant
        self._exit.enter_context(log_context(tenant_id=who.tenant))
        if (frame.agent is None) == (frame.session_id is None):
            raise Refused(
                ErrorCode.BAD_FRAME, "give one of `agent` and `session_id`", param="session_id"
            )
        if frame.session_id is not None:
            view = await edge.service.find(who, frame.session_id)
        elif frame.agent is not None and frame.after is None:
            view = await edge.service.create(
                who, frame.agent, frame.metadata, on_detach=frame.on_detach
            )
        else:
            raise Refused(ErrorCode.BAD_FRAME, "a new session has no cursor", param="after")
        self._exit.enter_context(log_context(session_id=view.key.session_id))
        self._attachment = attachment = await edge.hub.attach(view, frame.after, self._outbox)
        self._view = view = attachment.view
        self._outbox.put(
            encode(
                Opened(
                    re=frame.id,
                    session_id=view.key.session_id,
                    agent=view.agent,
                    state=view.state,
                    cursor=view.cursor,
                    resumed=attachment.resumed,
                    runs=view.runs,
                    interrupts=view.interrupts,
                    pending_tool_calls=view.pending_tools,
                    heartbeat_ms=int(limits.heartbeat_s * 1000),
                    resume_ttl_s=int(limits.resume_ttl_s),
                    limits={
                        "max_frame_bytes": limits.frame_bytes,
                        "messages_per_s": limits.messages_per_s,
                        "message_burst": limits.message_burst,
                    },
                )
            )
        )
        attachment.start()
        attachment.feed.probe.opened(_outcome(frame, attachment), edge.clock() - started)
        edge.probe.connection_opened(who.tenant)
        self._counted = True
        logger.bind(agent_id=view.agent, user_id=view.user, resumed=attachment.resumed).info(
            "session opened"
        )

    async def _command(self, frame: Message | Answer | ToolResult | Cancel, started: float) -> None:
        view, service = self._session(), self._edge.service
        role: Role | None = "user"
        match frame:
            case Message():
                ack = await service.message(view, frame, connection=self._traceparent)
            case Answer():
                ack = await service.answer(view, frame, connection=self._traceparent)
            case ToolResult():
                ack = await service.tool_result(view, frame, connection=self._traceparent)
                role = "tool"
            case Cancel():
                ack = await service.cancel(view.key, view.user, frame)
                role = None
        self._outbox.put(encode(ack))
        feed = self._edge.hub.find(view.key)
        if role is not None and ack.status != "duplicate" and feed is not None:
            feed.probe.message_accepted(role, self._edge.clock() - started)

    async def _close(self, frame: Close) -> None:
        view = self._session()
        self._detach()  # or the end of the session would reach us ahead of our answer
        ack: Ack = await self._edge.service.close(view, frame)
        self._outbox.put(encode(ack))
        self._outbox.finish(CloseCode.DONE)

    def _session(self) -> SessionView:
        if self._view is None:
            raise RuntimeError("the table of transitions lets no command through before `open`")
        return self._view

    def _detach(self) -> None:
        attachment, self._attachment = self._attachment, None
        if attachment is not None:
            self._edge.hub.detach(attachment)

    # --- refusals ---------------------------------------------------------------------------------

    def _complain(self, error: ProtocolError) -> None:
        """What came is no frame, or is not allowed here."""
        self._outbox.put(complaint(error))
        self._edge.probe.message_failed(self._tenant, "system", error.code)
        if error.fatal or self._state is ConnectionState.NEW:
            self._outbox.finish(close_code_of(error.code, CloseCode.BAD_FRAME))

    def _refuse(self, frame: ClientFrame, refused: Refused) -> None:
        """A frame is refused; without a session there is nothing to stay for."""
        self._outbox.put(refusal(frame, refused))
        asked = frame.agent if isinstance(frame, Open) else None
        agent = self._view.agent if self._view is not None else asked or ""
        self._edge.probe.message_failed(self._tenant, role_of(frame), refused.code, agent)
        if isinstance(frame, Open | Close) and refused.code != ErrorCode.INTERNAL:
            self._outbox.finish(close_code_of(refused.code))

    def _count_refusal(self, wait_s: float) -> bool:
        """True when this frame came too early; a flood of such ends the connection."""
        if not wait_s:
            self._refused_in_a_row = 0
            return False
        self._edge.sockets.rate_limited()
        self._refused_in_a_row += 1
        if self._refused_in_a_row > self._edge.limits.flood:
            self._outbox.finish(CloseCode.TOO_MANY)
        return True


def _outcome(frame: Open, attachment: Attachment) -> Outcome:
    if frame.session_id is None:
        return "created"
    if attachment.resumed:
        return "resumed"
    return "snapshot" if frame.after is None else "reset"
