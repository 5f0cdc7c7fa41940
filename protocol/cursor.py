"""The sans-I/O client core: order, duplicates, resume, resend and backoff.

A client is a thin shell around it: the shell opens sockets and sleeps, the core says what to send
and what a frame means. It holds the cursor, so "no gap, no duplicate" is decided here and nowhere
else, for every client.

    core = ClientCore(agent="demo")
    socket.send(core.connected(open_id))         # `open`: new, or resuming
    for outcome in core.receive(frame): ...      # events in order, each once
    core.send(message)                           # remembered until it is answered
    core.disconnected(code, random=..., attached_s=...)  # -> Retry(after_s) or GiveUp
"""

from dataclasses import dataclass
from typing import assert_never

import msgspec

from protocol.codec import ProtocolError
from protocol.codes import ErrorCode, Reconnect, reconnect_policy
from protocol.frames import (
    Ack,
    Answer,
    Cancel,
    Close,
    Cursor,
    Error,
    Event,
    Expiring,
    GoAway,
    JsonObject,
    Message,
    OnDetach,
    Open,
    Opened,
    Pong,
    Refresh,
    Reset,
    ServerFrame,
    Snapshot,
    ToolResult,
)

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 30.0
STABLE_AFTER_S = 5.0
"""A connection that was attached for this long ends a series of failures; so a server that attaches
every client and then fails it is not stormed."""

Command = Message | Answer | ToolResult | Cancel | Close | Refresh


@dataclass(frozen=True, slots=True)
class Deliver:
    """One event, in order, for the first time. `seq` is the cursor after it."""

    run_id: str
    seq: int
    ts: int
    event: JsonObject


@dataclass(frozen=True, slots=True)
class Replace:
    """Local state is void and becomes these events."""

    events: list[JsonObject]


@dataclass(frozen=True, slots=True)
class Attached:
    """The session is open (again)."""

    opened: Opened


@dataclass(frozen=True, slots=True)
class Answered:
    """The command `re` was taken (`Ack`) or refused (`Error`); it will not be sent again."""

    re: str
    answer: Ack | Error


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to know: a reset, an error without `re`, a token about to expire, a goaway."""

    frame: Reset | Error | Expiring | GoAway | Pong


@dataclass(frozen=True, slots=True)
class Resend:
    """A command that was not answered before the connection ended; the same id makes it safe."""

    command: Command


@dataclass(frozen=True, slots=True)
class Broken:
    """The server skipped an event: drop the connection and resume from the cursor."""

    expected_seq: int
    got_seq: int


Outcome = Deliver | Replace | Attached | Answered | Notice | Resend | Broken


@dataclass(frozen=True, slots=True)
class Retry:
    """Connect again after this many seconds."""

    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not connect again; `policy` says what would have to change first."""

    code: int
    policy: Reconnect


_decode_event = msgspec.json.Decoder(JsonObject).decode


def _event_object(raw: msgspec.Raw) -> JsonObject:
    try:
        return _decode_event(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise ProtocolError(
            ErrorCode.BAD_FRAME, "an event that is no JSON object", param="event", fatal=True
        ) from None


class ClientCore:
    """What a client knows about one session, whatever connections come and go."""

    def __init__(
        self,
        *,
        agent: str | None = None,
        session_id: str | None = None,
        cursor: Cursor | None = None,
        token: str | None = None,
        metadata: JsonObject | None = None,
        on_detach: OnDetach = "continue",
    ) -> None:
        """Either `agent` (a new session) or `session_id` (an existing one) must be given."""
        if agent is None and session_id is None:
            raise ValueError("give an agent or a session_id")
        self.agent = agent
        self.session_id = session_id
        self.cursor = cursor
        self.token = token
        self.metadata = metadata
        self.on_detach: OnDetach = on_detach
        self._ts = 0  # of the event at the cursor; 0: not known
        self._unanswered: dict[str, Command] = {}
        self._open_id: str | None = None
        self._attached = False
        self._failures = 0
        self._goaway_s: float | None = None
        self._refused_s: float | None = None
        self._limited_s: float | None = None

    @property
    def unanswered(self) -> list[Command]:
        """Commands without an answer yet, oldest first."""
        return list(self._unanswered.values())

    def connected(self, open_id: str, *, traceparent: str | None = None) -> Open:
        """The first frame of a new connection.

        A lost answer to the very first `open` leaves an empty session behind; the next one is new.
        """
        self._open_id = open_id
        self._attached = False
        new = self.session_id is None
        after = None if new else self.cursor
        if after is not None:
            after = Cursor(after.epoch, after.seq, self._ts)
        return Open(
            id=open_id,
            token=self.token,
            agent=self.agent if new else None,
            session_id=self.session_id,
            after=after,
            traceparent=traceparent,
            metadata=self.metadata if new else None,
            on_detach=self.on_detach if new else "continue",
        )

    def send(self, command: Command) -> bool:
        """Remembers a command until it is answered. True when it may be sent now."""
        self._unanswered[command.id] = command
        return self._attached

    def receive(self, frame: ServerFrame) -> list[Outcome]:
        """What a frame means. After `Broken` the connection must be dropped.

        Raises:
            ProtocolError: an event in the frame is no JSON object; nothing has changed.
        """
        match frame:
            case Event():
                return self._event(frame)
            case Opened():
                return self._opened(frame)
            case Snapshot():
                events = [_event_object(raw) for raw in frame.events]
                self.cursor, self._ts = frame.cursor, 0
                return [Replace(events)]
            case Ack():
                self._unanswered.pop(frame.re, None)
                return [Answered(frame.re, frame)]
            case Error():
                return self._error(frame)
            case Reset():
                # The cursor is void at once: a connection lost before the snapshot must not
                # resume in a log that the server has just disowned.
                self.cursor = None
                return [Notice(frame)]
            case GoAway():
                self._goaway_s = frame.reconnect_in_ms / 1000
                return [Notice(frame)]
            case Expiring() | Pong():
                return [Notice(frame)]
            case _:
                assert_never(frame)

    def disconnected(
        self,
        code: int,
        *,
        random: float,
        attached_s: float,
        retry_after_s: float | None = None,
    ) -> Retry | GiveUp:
        """What to do after the connection ended or could not be made.

        `goaway` says when to come back, and has spread that over time already. What a refusal says
        is the earliest time, the same for every client, and is spread here.

        Args:
            code: the close code; 1006 when there was none.
            random: uniform in [0, 1), for full jitter
                (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
            attached_s: for how long the session was attached over this connection; 0 if never.
            retry_after_s: from a `Retry-After` header, when the handshake was refused.
        """
        self._attached = False
        policy = reconnect_policy(code)
        if policy not in (Reconnect.YES, Reconnect.AFTER_DELAY):
            return GiveUp(code, policy)
        if attached_s >= STABLE_AFTER_S:
            self._failures = 0
        goaway_s, refused_s, limited_s = self._goaway_s, self._refused_s, self._limited_s
        # It was said of the connection that ended: further attempts, which may fail, back off.
        self._goaway_s = self._refused_s = self._limited_s = None
        if goaway_s is not None:
            return Retry(max(0.0, goaway_s))
        if retry_after_s is None:
            retry_after_s = refused_s
        if retry_after_s is None and policy is Reconnect.AFTER_DELAY:
            retry_after_s = limited_s
        ceiling_s = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** min(self._failures, 16))
        self._failures += 1
        return Retry(max(0.0, retry_after_s or 0.0) + random * ceiling_s)

    def _opened(self, frame: Opened) -> list[Outcome]:
        self.session_id = frame.session_id
        self.agent = frame.agent
        self._attached = True
        if not frame.resumed:
            self.cursor = None
        return [Attached(frame), *(Resend(command) for command in self.unanswered)]

    def _event(self, frame: Event) -> list[Outcome]:
        if self.cursor is None:
            return [Broken(0, frame.seq)]  # before any snapshot there is nothing to add to
        expected = self.cursor.seq + 1
        if frame.seq < expected:
            return []  # a duplicate
        first = frame.seq if frame.first_seq is None else frame.first_seq
        if first != expected:
            return [Broken(expected, first)]
        event = _event_object(frame.event)
        self.cursor = Cursor(self.cursor.epoch, frame.seq)
        self._ts = frame.ts if first == frame.seq else 0
        return [Deliver(frame.run_id, frame.seq, frame.ts, event)]

    def _error(self, frame: Error) -> list[Outcome]:
        delay_s = None if frame.retry_after_ms is None else frame.retry_after_ms / 1000
        if frame.re is None or frame.re == self._open_id:
            self._refused_s = delay_s
            return [Notice(frame)]
        # That this command may come again later says nothing about the connection, unless the
        # connection is then closed for too many of them (4429).
        self._limited_s = delay_s
        self._unanswered.pop(frame.re, None)
        return [Answered(frame.re, frame)]
