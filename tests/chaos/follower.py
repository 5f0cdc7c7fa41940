"""One client of one session: the client core on a bare WebSocket, with everything on tape."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import assert_never

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from chaos.reader import TERMINAL
from chaos.tape import DOWN, SEEN, SENT, UP, Tape
from gateway.client.link import LINK_ERRORS, NO_CLOSE_FRAME, Ended, decode, ended_by
from protocol import SUBPROTOCOL
from protocol.codec import encode
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
from protocol.frames import Ack, Answer, Error, Message, Opened, Reset, RunInfo

HANDSHAKE_S = 5.0
PING_INTERVAL_S, PING_TIMEOUT_S = 3.0, 6.0
LONGEST_WAIT_S = 2.0
"""A client that waits for half a minute, as it should, would see little of a chaos of minutes."""


class Follower:
    """Follows a session, over as many connections as it takes.

    Attributes:
        attached: the session is open over a living connection.
        open_runs: runs that it knows of and has not seen the end of.
        questions: ids of the interrupts that wait for an answer.
        gone: why it cannot come back, or None.
        dawdle_s: it does not read for so long, once.
        looked: it came only to look, and has seen the session.
        unanswered_opens: how often it asked for a new session, and lost the connection.
    """

    def __init__(
        self,
        core: ClientCore,
        tape: Tape,
        urls: Sequence[str],
        *,
        tenant: str,
        random: Random,
        on_event: Callable[[], None],
    ) -> None:
        self.core = core
        self.attached = False
        self.open_runs: set[str] = set()
        self.questions: list[str] = []
        self.gone: int | None = None
        self.dawdle_s = 0.0
        self.looked = False
        self.unanswered_opens = 0
        self._tape = tape
        self._urls = urls
        self._headers = {"X-Tenant-ID": tenant}
        self._random = random
        self._on_event = on_event
        self._connection: ClientConnection | None = None
        self._dropped = False
        self._was_attached = False
        self._opens = 0
        self._ended: set[str] = set()
        self._running: set[str] = set()
        self._waiting: dict[str, tuple[Command, asyncio.Future[Ack | Error | None]]] = {}
        self._changed = asyncio.Event()

    # --- what its user does -----------------------------------------------------------------------

    async def ask(self, command: Command) -> Ack | Error | None:
        """Sends a command until it is answered; None when the session is out of reach."""
        if self.gone is not None:
            return None
        future: asyncio.Future[Ack | Error | None] = asyncio.get_running_loop().create_future()
        self._waiting[command.id] = (command, future)
        if self.core.send(command):
            await self._transmit(command)
        return await future

    async def until(self, condition: Callable[[], bool], patience_s: float) -> bool:
        """Waits until something holds, or the session is out of reach. False: it does not."""
        try:
            async with asyncio.timeout(patience_s):
                while not condition() and self.gone is None:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        return condition()

    @property
    def quiet(self) -> bool:
        """Nothing is on its way."""
        return self.attached and not self.open_runs and not self.core.unanswered

    @property
    def state(self) -> str:
        """For a complaint."""
        return (
            f"attached={self.attached} gone={self.gone} runs={sorted(self.open_runs)}"
            f" unanswered={[command.id for command in self.core.unanswered]}"
        )

    def drop(self) -> None:
        """Loses the connection, without a word."""
        if self._connection is not None:
            self._dropped = True
            self._connection.transport.abort()

    async def leave(self) -> None:
        """Closes the connection in order; it comes back."""
        if self._connection is not None:
            self._dropped = True
            await self._connection.close()

    # --- the connection ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Stays attached until it is cancelled, or cannot come back."""
        try:
            while True:
                began = _now()
                ended = await self._attach()
                self._tape.write(DOWN, f"{ended.code} {ended.reason}".encode())
                decision = self.core.disconnected(
                    NO_CLOSE_FRAME if self._dropped else ended.code,
                    random=self._random.random(),
                    attached_s=_now() - began,
                    retry_after_s=ended.retry_after_s,
                )
                self._dropped = False
                if isinstance(decision, GiveUp):
                    self._give_up(ended.code)
                    return
                await asyncio.sleep(min(decision.after_s, LONGEST_WAIT_S))
        finally:
            self._tape.close()

    def _give_up(self, code: int) -> None:
        self.gone = code
        self.open_runs.clear()
        for _, future in self._waiting.values():
            if not future.done():
                future.set_result(None)
        self._changed.set()

    async def _attach(self) -> Ended:
        url = self._random.choice(self._urls)
        try:
            async with connect(
                url,
                subprotocols=[SUBPROTOCOL],  # pyright: ignore[reportArgumentType]
                additional_headers=self._headers,
                proxy=None,
                compression=None,
                open_timeout=HANDSHAKE_S,
                close_timeout=1.0,
                ping_interval=PING_INTERVAL_S,
                ping_timeout=PING_TIMEOUT_S,
                max_size=None,
                max_queue=(256, 64),
            ) as connection:
                self._tape.write(UP, url.encode())
                self._connection = connection
                return await self._converse(connection)
        except LINK_ERRORS as error:
            return ended_by(error)
        except asyncio.CancelledError:
            self._tape.write(DOWN, b"1000 left")
            raise
        finally:
            self._connection = None
            self.attached = False

    async def _converse(self, connection: ClientConnection) -> Ended:
        try:
            async with asyncio.timeout(HANDSHAKE_S) as deadline:
                self._opens += 1
                self.unanswered_opens += self.core.session_id is None
                await self._write(connection, encode(self.core.connected(f"open-{self._opens}")))
                while True:
                    data = await connection.recv(decode=False)
                    self._tape.write(SEEN, data)
                    frame = decode(data)
                    if isinstance(frame, Opened):
                        deadline.reschedule(None)
                    if frame is not None:
                        for outcome in self.core.receive(frame):
                            if isinstance(outcome, Broken):
                                return Ended(NO_CLOSE_FRAME, "an event is missing")
                            await self._on(outcome)
                    if self.dawdle_s:
                        dawdle_s, self.dawdle_s = self.dawdle_s, 0.0
                        await asyncio.sleep(dawdle_s)
        except TimeoutError:
            return Ended(NO_CLOSE_FRAME, "the session was not opened in time")

    async def _write(self, connection: ClientConnection, data: bytes) -> None:
        self._tape.write(SENT, data)
        await connection.send(data, text=True)

    async def _transmit(self, command: Command) -> None:
        if self._connection is not None:
            with suppress(ConnectionClosed):  # the next connection sends it again
                await self._write(self._connection, encode(command))

    # --- what it is told --------------------------------------------------------------------------

    async def _on(self, outcome: Outcome) -> None:
        match outcome:
            case Deliver():
                self._on_event()
                self._deliver(outcome)
            case Attached(opened=opened):
                if not self._was_attached:
                    self._was_attached = True
                    self.unanswered_opens = max(0, self.unanswered_opens - 1)
                self.attached = True
                self.questions = [each["id"] for each in opened.interrupts]
                if not opened.resumed or opened.cursor == self.core.cursor:
                    self._set_runs(opened.runs)
                self._changed.set()
            case Answered():
                self._answered(outcome)
            case Notice(frame=Reset(runs=runs)):
                self._set_runs(runs)
                self._changed.set()
            case Resend(command=command):
                await self._transmit(command)
            case Replace(events=events):
                # What ran when the session was opened may have ended by the snapshot.
                running = {e["runId"] for e in events if e["type"] == "RUN_STARTED"}
                self.open_runs = (self.open_runs - self._running) | running
                self._changed.set()
            case Notice() | Broken():
                pass
            case _:
                assert_never(outcome)

    def _set_runs(self, runs: Sequence[RunInfo]) -> None:
        self.open_runs = {run.run_id for run in runs}
        self._running = {run.run_id for run in runs if run.status in ("running", "cancelling")}

    def _deliver(self, outcome: Deliver) -> None:
        kind = outcome.event["type"]
        if kind == "RUN_STARTED":
            self.questions = []
            self.open_runs.add(outcome.run_id)
        elif kind in TERMINAL:
            asked = outcome.event.get("outcome", {}).get("interrupts") or []
            self.questions = [each["id"] for each in asked]
            self._ended.add(outcome.run_id)
            self.open_runs.discard(outcome.run_id)
            self._changed.set()
        elif outcome.event.get("name") == "nooble.input_closed":
            self.questions = []

    def _answered(self, outcome: Answered) -> None:
        command, future = self._waiting.pop(outcome.re, (None, None))
        run_id = outcome.answer.run_id if isinstance(outcome.answer, Ack) else None
        if isinstance(command, Message | Answer) and run_id and run_id not in self._ended:
            self.open_runs.add(run_id)
        if future is not None and not future.done():
            future.set_result(outcome.answer)
        self._changed.set()


def _now() -> float:
    return asyncio.get_running_loop().time()
