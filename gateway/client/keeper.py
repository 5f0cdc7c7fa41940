"""Keeps a session attached over connections that come and go: the shell around `ClientCore`.

One task runs `Keeper.run`. Everything else happens on the same loop between its awaits, so state
changes need no lock; what is told to readers is told in the order of the log.
"""

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import assert_never
from uuid import uuid4

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from gateway.client.errors import Disconnected, Refusal
from gateway.client.link import (
    LINK_ERRORS,
    NO_CLOSE_FRAME,
    OPEN_TIMEOUT_S,
    PROTOCOL_ERROR,
    Dial,
    Ended,
    decode,
    ended_by,
    speaks_our_protocol,
)
from gateway.client.streams import TERMINAL_TYPES, Buffer, Reader, RunFeed
from protocol import SUBPROTOCOL
from protocol.codec import MAX_CLIENT_FRAME_BYTES, ProtocolError, encode
from protocol.codes import CloseCode, ErrorCode, Reconnect
from protocol.cursor import (
    Answered,
    Attached,
    Broken,
    ClientCore,
    Command,
    Deliver,
    GiveUp,
    Notice,
    Outcome,
    Replace,
    Resend,
)
from protocol.frames import Ack, Error, Opened, Reset, ServerFrame
from protocol.transcript import Transcript

REFUSAL_GRACE_S = 1.0
"""How long a server that refused `open` has to close the connection with a code of its own."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection is gone; the next attempt follows after `retry_in_s`."""

    code: int
    reason: str
    retry_in_s: float


SessionEvent = Deliver | Replace | Attached | Notice | Lost
"""What `Session.events` tells, in order."""


class _Drop(Exception):
    """This connection must be given up."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(ended.reason)
        self.ended = ended


Answer = tuple[Ack, RunFeed | None]
"""What became of a command, with the run that it made or named."""


class _Pending:
    """A command that somebody awaits the answer of."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Answer | Refusal | Disconnected] = loop.create_future()
        self.reset = ""  # why the history was replaced meanwhile, if it was


class Keeper:
    """One session's connection, what came over it, and who waits for what.

    Attributes:
        core: order, duplicates, resume.
        transcript: the messages so far.
        open_run: the run that is being answered, as far as it is known.
        opened: what the server said when the session was last attached.
        closing: we asked for the end of the session, so it is no failure.
    """

    def __init__(
        self,
        core: ClientCore,
        dial: Dial,
        *,
        buffer: int,
        random: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.core = core
        self.transcript = Transcript()
        self.open_run: str | None = None
        self.opened: Opened | None = None
        self.closing = False
        self._dial = dial
        self._limit = buffer
        self._random = random
        self._sleep = sleep
        self._connection: ClientConnection | None = None
        self._attached_at: float | None = None
        self._sending = asyncio.Lock()
        self._pending: dict[str, _Pending] = {}
        self._feeds: weakref.WeakValueDictionary[str, RunFeed] = weakref.WeakValueDictionary()
        self._early: list[RunFeed] = []  # of runs whose `ack` may yet come
        self._readers: set[weakref.ref[Reader[SessionEvent]]] = set()
        self._room = asyncio.Event()
        self._ready = asyncio.Event()
        self._was_ready = False
        self._handed_out = asyncio.Event()
        self._said: Error | None = None  # by the server, about this connection
        self._reset_reason = ""
        self._over: Callable[[], Disconnected] | None = None
        self._readers_end: Callable[[], Exception] = StopAsyncIteration

    # --- commands and readers ---------------------------------------------------------------------

    async def ask(self, command: Command) -> Answer:
        """Sends a command, over as many connections as it takes.

        Raises:
            Refusal: the server refused it.
            Disconnected: it may or may not have happened.
        """
        if self._over is not None:
            raise self._over()
        # Found out here: the server would end the connection, and again after every reconnect.
        limits = {} if self.opened is None else self.opened.limits
        limit = limits.get("max_frame_bytes", MAX_CLIENT_FRAME_BYTES)
        if (size := len(encode(command))) > limit:
            message = f"{size} bytes; a frame may have {limit}"
            raise Refusal(Error(ErrorCode.TOO_LARGE, message, retryable=False))
        pending = self._pending[command.id] = _Pending()
        self._room.set()
        try:
            if self.core.send(command):
                await self._transmit(command)
            answer = await pending.answer
        finally:
            del self._pending[command.id]
            if not self._pending:
                self._early.clear()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _transmit(self, command: Command) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            async with self._sending:  # what is sent again stays ahead of what is new
                await connection.send(encode(command), text=True)
        except ConnectionClosed:
            pass  # it is unanswered, so the next connection sends it

    def subscribe(self) -> Reader[SessionEvent]:
        """A reader of everything that is published from now on."""
        reader = Reader(Buffer[SessionEvent](self._limit, self._room.set))
        if self._over is not None:
            reader.buffer.end(self._readers_end)
        self._readers.add(weakref.ref(reader, self._forget))
        return reader

    # --- the connection ---------------------------------------------------------------------------

    async def ready(self) -> None:
        """Waits until the session is attached and its history known.

        Nothing more is read until then, so that who subscribes at once misses nothing.
        """
        await self._ready.wait()
        self._handed_out.set()
        if self._over is not None:
            raise self._over()

    async def run(self) -> None:
        """Keeps the session attached until it is out of reach; cancelled, it leaves it."""
        try:
            while True:
                ended = await self._attach_once()
                decision = self.core.disconnected(
                    ended.code,
                    random=self._random(),
                    attached_s=ended.attached_s,
                    retry_after_s=ended.retry_after_s,
                )
                if isinstance(decision, GiveUp):
                    self._finish(ended, decision.policy)
                    return
                if not (ended.reached or self._was_ready):
                    self._finish(ended, Reconnect.YES)  # most likely a wrong address
                    return
                await self._publish(Lost(ended.code, ended.reason, decision.after_s))
                await self._sleep(decision.after_s)
        finally:
            self.closing, self._said = True, None
            self._finish(Ended(CloseCode.DONE, "the session was left"), Reconnect.NO)

    async def _attach_once(self) -> Ended:
        """One connection, from the first attempt to its end."""
        self._said = None
        self._attached_at = None
        try:
            async with self._dial() as connection:
                if not speaks_our_protocol(connection):
                    reason = f"the server does not speak {SUBPROTOCOL}"
                    return Ended(CloseCode.UNSUPPORTED_VERSION, reason)
                ended = await self._converse(connection)
        except _Drop as drop:
            ended = drop.ended
        except LINK_ERRORS as error:
            ended = ended_by(error)
        finally:
            self._connection = None
        if self._attached_at is not None:
            ended = replace(ended, attached_s=self._now() - self._attached_at)
        return ended

    async def _converse(self, connection: ClientConnection) -> Ended:
        """Opens the session and reads; returns only when the server lets it hang."""
        self._connection = connection
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S) as deadline:
                await connection.send(encode(self.core.connected(new_id())), text=True)
                while True:
                    frame = decode(await connection.recv(decode=False))
                    if isinstance(frame, Opened):
                        self._attached_at = self._now()
                        deadline.reschedule(None)
                    elif isinstance(frame, Error) and self._attached_at is None:
                        deadline.reschedule(self._now() + REFUSAL_GRACE_S)
                    if frame is not None:
                        for outcome in self.core.receive(frame):
                            await self._on(outcome)
                    if self._was_ready:
                        await self._handed_out.wait()
        except TimeoutError:
            final = self._said is not None and not self._said.retryable
            code = CloseCode.BAD_FRAME if final else CloseCode.NO_OPEN_OR_PONG
            return Ended(code, "the server did not open the session")
        except ProtocolError as error:
            return Ended(PROTOCOL_ERROR, f"the server sent what is no frame: {error}")
        except asyncio.CancelledError:
            await connection.close()  # with 1000: to leave is no fault
            raise

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _on(self, outcome: Outcome) -> None:
        match outcome:
            case Deliver():
                self._deliver(outcome)
            case Replace():
                self._replace(outcome)
            case Attached(opened=opened):
                self.opened = opened
                if opened.resumed:
                    self._set_ready()
            case Notice(frame=frame):
                self._note(frame)
            case Answered():
                self._answer(outcome)
                return
            case Resend(command=command):
                await self._transmit(command)
                return
            case Broken(expected_seq=expected, got_seq=got):
                reason = f"event {expected} is missing before {got}"
                raise _Drop(Ended(NO_CLOSE_FRAME, reason))
            case _:
                assert_never(outcome)
        await self._publish(outcome)

    def _note(self, frame: ServerFrame) -> None:
        if isinstance(frame, Error):
            self._said = frame
        elif isinstance(frame, Reset):
            self._reset_reason = frame.reason

    def _deliver(self, outcome: Deliver) -> None:
        kind, run_id = outcome.event.get("type"), outcome.run_id
        self.transcript.apply(outcome.event)
        if kind == "RUN_STARTED":
            self.open_run = run_id
        elif kind in TERMINAL_TYPES and run_id == self.open_run:
            self.open_run = None
        feed = self._feeds.get(run_id)
        if feed is None and self._pending:
            feed = self._feed(run_id)
            self._early.append(feed)
        if feed is not None:
            feed.put(outcome.event)

    def _replace(self, outcome: Replace) -> None:
        reason, self._reset_reason = self._reset_reason or "snapshot", ""
        self.transcript = Transcript()
        self.open_run = None
        for event in outcome.events:
            self.transcript.apply(event)
            if event.get("type") == "RUN_STARTED":
                self.open_run = event.get("runId")
        for feed in list(self._feeds.values()):
            feed.fail(reason)
        self._feeds.clear()
        self._early.clear()
        for pending in self._pending.values():
            pending.reset = reason
        self._set_ready()

    def _answer(self, outcome: Answered) -> None:
        pending = self._pending.get(outcome.re)
        if pending is None or pending.answer.done():
            return  # whoever asked has gone
        answer = outcome.answer
        if isinstance(answer, Error):
            pending.answer.set_result(Refusal(answer))
            return
        feed = None
        if answer.run_id is not None:
            feed = self._feeds.get(answer.run_id) or self._feed(answer.run_id)
            if answer.status == "duplicate" and pending.reset:
                feed.fail(pending.reset)  # it began before the history was replaced
        pending.answer.set_result((answer, feed))

    def _feed(self, run_id: str) -> RunFeed:
        feed = self._feeds[run_id] = RunFeed(run_id, self._limit, self._room.set)
        return feed

    def _set_ready(self) -> None:
        self._was_ready = True
        self._ready.set()

    # --- who reads --------------------------------------------------------------------------------

    async def _publish(self, event: SessionEvent) -> None:
        for reader in self._live_readers():
            reader.buffer.put(event)
        # Whoever awaits an answer must get it, though it stands behind the events that they are
        # not reading meanwhile.
        while not self._pending and self._stalled():
            self._room.clear()
            await self._room.wait()

    def _stalled(self) -> bool:
        return any(reader.buffer.full for reader in self._live_readers()) or any(
            feed.stalled for feed in self._feeds.values()
        )

    def _live_readers(self) -> Iterator[Reader[SessionEvent]]:
        return (reader for ref in tuple(self._readers) if (reader := ref()) is not None)

    def _forget(self, reader: weakref.ref[Reader[SessionEvent]]) -> None:
        self._readers.discard(reader)
        self._room.set()

    def _finish(self, ended: Ended, policy: Reconnect) -> None:
        if self._over is not None:
            return
        code, reason, said = ended.code, ended.reason, self._said

        def over() -> Disconnected:
            return Disconnected(code, reason, policy, said)

        self._over = over
        self._readers_end = StopAsyncIteration if self.closing else over
        for pending in self._pending.values():
            if not pending.answer.done():
                pending.answer.set_result(over())
        for feed in list(self._feeds.values()):
            feed.end(over)
        for reader in self._live_readers():
            reader.buffer.end(self._readers_end)
        self._ready.set()


def new_id() -> str:
    """A fresh id for a client frame."""
    return uuid4().hex
