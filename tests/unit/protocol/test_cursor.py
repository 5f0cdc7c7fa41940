"""The client core: in order, each once, resumed, resent; and when it comes back."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol.codec import ProtocolError
from protocol.codes import CloseCode, Reconnect
from protocol.cursor import (
    BACKOFF_BASE_S,
    BACKOFF_CAP_S,
    STABLE_AFTER_S,
    Answered,
    Attached,
    Broken,
    ClientCore,
    Deliver,
    GiveUp,
    Notice,
    Outcome,
    Replace,
    Resend,
    Retry,
)
from protocol.frames import (
    Ack,
    Cancel,
    Close,
    Cursor,
    Error,
    Event,
    Expiring,
    GoAway,
    Message,
    Opened,
    Pong,
    Reset,
    RunInfo,
    ServerFrame,
    Snapshot,
)


def raw(values: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode({"type": "CUSTOM", "name": "n", "value": values}))


def opened(*, resumed: bool, cursor: Cursor | None = None) -> Opened:
    return Opened(
        re="o",
        session_id="s",
        agent="demo",
        state="idle",
        cursor=cursor or Cursor("e", 0),
        resumed=resumed,
    )


def event(seq: int, first: int | None = None) -> Event:
    return Event(seq=seq, ts=1, run_id="r", event=raw([seq]), first_seq=first)


def attached_core(seq: int = 0) -> ClientCore:
    core = ClientCore(agent="demo")
    core.connected("o")
    core.receive(opened(resumed=False))
    core.receive(Snapshot(Cursor("e", seq), []))
    return core


# --- against a model ------------------------------------------------------------------------------


class ClientAgainstServer(RuleBasedStateMachine):
    """A server with a numbered log, a network that loses the connection at any point, one client.

    The client's words must always be the log up to its cursor: nothing twice, nothing skipped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0
        self.log: list[int] = []  # log[n] is the value with seq n + 1
        self.trimmed = 0
        self.sent = 0  # how far this connection was served
        self.next_value = 0
        self.awaits_snapshot = False
        self.core = ClientCore(agent="demo")
        self.words: list[int] | None = None  # what the client knows; None: nothing yet
        self.unanswered: list[str] = []
        self.connected = False
        self.connect()

    # what the client does with what it gets

    def serve(self, frame: ServerFrame) -> list[Outcome]:
        outcomes = self.core.receive(frame)
        for outcome in outcomes:
            match outcome:
                case Deliver(event=event):
                    assert self.words is not None
                    self.words += event["value"]
                case Replace(events=events):
                    self.words = [value for event in events for value in event["value"]]
                case Notice(frame=Reset()):
                    self.words = None
                case Broken():
                    self.drop()
                case _:
                    pass
        return outcomes

    def drop(self) -> None:
        decision = self.core.disconnected(1006, random=0.5, attached_s=0)
        assert isinstance(decision, Retry)
        self.connected = False

    @property
    def cursor(self) -> Cursor:
        return Cursor(str(self.epoch), len(self.log))

    # what may happen

    @precondition(lambda self: not self.connected)
    @rule()
    def connect(self) -> None:
        hello = self.core.connected("o")
        self.connected = True
        self.awaits_snapshot = False
        after = hello.after
        known = self.words is not None
        assert (after is not None) == (hello.session_id is not None and known)
        resumed = (
            after is not None
            and after.epoch == str(self.epoch)
            and self.trimmed <= after.seq <= len(self.log)
        )
        outcomes = self.serve(opened(resumed=resumed, cursor=self.cursor))
        assert isinstance(outcomes[0], Attached)
        resent = [o.command.id for o in outcomes[1:] if isinstance(o, Resend)]
        assert resent == self.unanswered
        if resumed and after is not None:
            self.sent = after.seq
        else:
            if after is not None:
                self.serve(Reset("trimmed"))
            self.awaits_snapshot = True

    @precondition(lambda self: self.connected and self.awaits_snapshot)
    @rule()
    def snapshot(self) -> None:
        self.serve(Snapshot(self.cursor, [raw(self.log)]))
        self.sent = len(self.log)
        self.awaits_snapshot = False

    @rule(count=st.integers(1, 5))
    def append(self, count: int) -> None:
        self.log += range(self.next_value, self.next_value + count)
        self.next_value += count

    @precondition(lambda self: self.connected and not self.awaits_snapshot)
    @rule(count=st.integers(1, 4), merged=st.booleans())
    def push(self, count: int, merged: bool) -> None:
        values = self.log[self.sent : self.sent + count]
        if not values:
            return
        first = self.sent + 1
        self.sent += len(values)
        if merged:
            frame = Event(seq=self.sent, ts=1, run_id="r", event=raw(values), first_seq=first)
            assert len(self.serve(frame)) == 1
            return
        for seq, value in enumerate(values, first):
            [outcome] = self.serve(Event(seq=seq, ts=1, run_id="r", event=raw([value])))
            assert outcome == Deliver("r", seq, 1, outcome.event)  # type: ignore[union-attr]

    @precondition(lambda self: self.connected and not self.awaits_snapshot and self.sent > 0)
    @rule(data=st.data())
    def push_again(self, data: st.DataObject) -> None:
        seq = data.draw(st.integers(1, self.sent))
        first = data.draw(st.none() | st.integers(1, seq))
        values = self.log[(first or seq) - 1 : seq]
        assert self.serve(Event(seq, 1, "r", raw(values), first)) == []

    @precondition(lambda self: self.connected and not self.awaits_snapshot)
    @rule(skipped=st.integers(1, 3), length=st.integers(0, 2))
    def push_with_a_gap(self, skipped: int, length: int) -> None:
        first = self.sent + 1 + skipped
        frame = Event(first + length, 1, "r", raw([-1]), first if length else None)
        assert self.serve(frame) == [Broken(self.sent + 1, first)]

    @precondition(lambda self: self.connected and not self.awaits_snapshot and self.sent > 0)
    @rule(beyond=st.integers(1, 3), data=st.data())
    def push_an_overlap(self, beyond: int, data: st.DataObject) -> None:
        """A merged range that holds known events cannot be cut, so it must not be applied."""
        first = data.draw(st.integers(1, self.sent))
        frame = Event(self.sent + beyond, 1, "r", raw([-1]), first)
        assert self.serve(frame) == [Broken(self.sent + 1, first)]

    @precondition(lambda self: self.connected and self.awaits_snapshot)
    @rule(seq=st.integers(0, 5))
    def push_before_the_snapshot(self, seq: int) -> None:
        assert self.serve(Event(seq, 1, "r", raw([-1]))) == [Broken(0, seq)]

    @precondition(lambda self: self.connected)
    @rule()
    def lose_connection(self) -> None:
        self.drop()

    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        self.trimmed = data.draw(st.integers(self.trimmed, len(self.log)))

    @rule(survived=st.integers(0, 5))
    def redis_loses_writes(self, survived: int) -> None:
        self.epoch += 1
        self.log = self.log[:survived]
        self.trimmed = 0
        if self.connected:
            self.serve(Reset("epoch"))
            self.awaits_snapshot = True

    @rule()
    def command(self) -> None:
        command = Message(id=f"m{self.next_value}-{len(self.unanswered)}", content="x")
        assert self.core.send(command) is self.connected
        if command.id not in self.unanswered:
            self.unanswered.append(command.id)

    @precondition(lambda self: self.connected and self.unanswered)
    @rule(data=st.data(), refuse=st.booleans())
    def answer(self, data: st.DataObject, refuse: bool) -> None:
        re = data.draw(st.sampled_from(self.unanswered))
        self.unanswered.remove(re)
        frame = Error("busy", "x", True, re=re) if refuse else Ack(re, "accepted", "r")
        assert self.serve(frame) == [Answered(re, frame)]

    # what always holds

    @invariant()
    def words_are_the_log_up_to_the_cursor(self) -> None:
        cursor = self.core.cursor
        if self.words is None or cursor is None or cursor.epoch != str(self.epoch):
            return  # nothing known, or a log that is no more; the next connection says so
        assert self.words == self.log[: cursor.seq]

    @invariant()
    def unanswered_is_kept(self) -> None:
        assert [command.id for command in self.core.unanswered] == self.unanswered


ClientAgainstServer.TestCase.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None
)
test_client_against_server = ClientAgainstServer.TestCase


# --- opening --------------------------------------------------------------------------------------


def test_a_new_session_is_opened_by_agent_and_then_followed_by_id() -> None:
    core = ClientCore(agent="demo", token="t", metadata={"a": 1}, on_detach="cancel")
    first = core.connected("o1", traceparent="00-x")
    assert (first.agent, first.session_id, first.token) == ("demo", None, "t")
    assert (first.metadata, first.traceparent) == ({"a": 1}, "00-x")
    assert first.on_detach == "cancel"
    core.receive(opened(resumed=False))
    core.receive(Snapshot(Cursor("e", 3), []))
    again = core.connected("o2")
    assert (again.agent, again.session_id, again.metadata) == (None, "s", None)
    assert again.on_detach == "continue"
    assert again.after == Cursor("e", 3)


def test_a_lost_answer_to_the_very_first_open_asks_for_a_new_session_again() -> None:
    core = ClientCore(agent="demo")
    core.connected("o1")
    core.disconnected(1006, random=0, attached_s=0)
    assert core.connected("o2").agent == "demo"


def test_an_old_session_is_resumed_from_the_given_cursor() -> None:
    core = ClientCore(session_id="s", cursor=Cursor("e", 7))
    assert core.connected("o").after == Cursor("e", 7)
    assert [type(o) for o in core.receive(opened(resumed=True))] == [Attached]
    assert core.cursor == Cursor("e", 7)


def test_the_server_can_tell_whether_another_event_has_taken_the_number() -> None:
    """By the time of the event at the cursor, unless that came in a snapshot, or merged."""
    core = ClientCore(session_id="s", cursor=Cursor("e", 7))
    core.connected("o")
    core.receive(opened(resumed=True))
    core.receive(Event(8, 500, "r", raw({})))
    assert core.cursor == Cursor("e", 8)
    assert core.connected("o2").after == Cursor("e", 8, ts=500)
    core.receive(Event(10, 700, "r", raw({}), first_seq=9))
    assert core.connected("o3").after == Cursor("e", 10)
    core.receive(Event(11, 800, "r", raw({})))
    core.receive(Snapshot(Cursor("e2", 11), []))
    assert core.connected("o4").after == Cursor("e2", 11)


def test_the_cursor_of_opened_does_not_count_before_the_snapshot() -> None:
    """A connection lost between `opened` and `snapshot` must not skip what the snapshot held."""
    core = ClientCore(session_id="s", cursor=Cursor("old", 7))
    core.connected("o")
    core.receive(opened(resumed=False, cursor=Cursor("e", 9)))
    assert core.connected("o2").after is None


def test_who_to_open_must_be_said() -> None:
    with pytest.raises(ValueError, match="agent or a session_id"):
        ClientCore()


# --- frames ---------------------------------------------------------------------------------------


def test_commands_before_attaching_wait_for_it() -> None:
    core = ClientCore(agent="demo")
    assert not core.send(Message(id="1", content="x"))
    core.connected("o")
    assert not core.send(Close(id="2"))
    outcomes = core.receive(opened(resumed=False))
    assert [o.command.id for o in outcomes if isinstance(o, Resend)] == ["1", "2"]
    assert core.send(Cancel(id="3"))


def test_an_answer_to_an_unknown_command_is_harmless() -> None:
    core = attached_core()
    assert core.receive(Ack("x", "duplicate")) == [Answered("x", Ack("x", "duplicate"))]


@pytest.mark.parametrize(
    "frame",
    [
        Expiring(60),
        Pong(1),
        GoAway("drain", 100),
        Reset("epoch", [RunInfo("r", "running")]),
        Error("internal", "x", True),
        Error("agent_not_found", "x", False, re="o"),
    ],
    ids=["expiring", "pong", "goaway", "reset", "connection error", "refused open"],
)
def test_notices(frame: Any) -> None:
    core = ClientCore(agent="demo")
    core.connected("o")
    assert core.receive(frame) == [Notice(frame)]


@pytest.mark.parametrize(
    "hostile", [b"3", b"[]", b'"x"', b'{"a":"\xff"}', b"9" * 5000], ids=lambda b: str(b[:12])
)
def test_an_event_that_is_no_object_is_a_protocol_error_and_moves_nothing(hostile: bytes) -> None:
    core = attached_core(5)
    for frame in (
        Event(6, 1, "r", msgspec.Raw(hostile)),
        Snapshot(Cursor("e", 9), [raw([]), msgspec.Raw(hostile)]),
    ):
        with pytest.raises(ProtocolError):
            core.receive(frame)
        assert core.cursor == Cursor("e", 5)


def test_an_event_nested_without_end_is_a_protocol_error() -> None:
    nest = msgspec.Raw(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}")
    with pytest.raises(ProtocolError):
        attached_core(5).receive(Event(6, 1, "r", nest))


# --- coming back ----------------------------------------------------------------------------------


@given(st.integers(0, 40), st.floats(0, 1, exclude_max=True))
def test_backoff_is_full_jitter_between_zero_and_a_capped_ceiling(n: int, random: float) -> None:
    core = ClientCore(agent="demo")
    for _ in range(n):
        core.disconnected(1006, random=0, attached_s=0)
    ceiling = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2**n)
    assert core.disconnected(1006, random=random, attached_s=0) == Retry(random * ceiling)


def test_only_a_connection_that_held_ends_a_series_of_failures() -> None:
    """A server that attaches everyone and fails at once must not be stormed at the base rate."""
    core = ClientCore(agent="demo")
    for n in range(4):
        core.connected("o")
        core.receive(opened(resumed=False))
        assert core.disconnected(1011, random=1, attached_s=0.1) == Retry(BACKOFF_BASE_S * 2**n)
    assert core.disconnected(1011, random=1, attached_s=STABLE_AFTER_S) == Retry(BACKOFF_BASE_S)


def test_goaway_is_honoured_exactly_and_once() -> None:
    """The server has spread these delays; the client must not undo that."""
    core = attached_core()
    core.receive(GoAway("drain", 2500))
    assert core.disconnected(1012, random=0.9, attached_s=60) == Retry(2.5)
    core.connected("o2")
    assert core.disconnected(1006, random=0.5, attached_s=0) == Retry(0.25)


def test_what_was_said_holds_for_one_attempt() -> None:
    """A server that is away for longer than it said is sought with back-off."""
    core = attached_core()
    core.receive(GoAway("drain", 2500))
    tries = [core.disconnected(1012, random=1, attached_s=60)]
    tries += [core.disconnected(1006, random=1, attached_s=0) for _ in range(3)]
    assert tries == [Retry(2.5), Retry(0.5), Retry(1), Retry(2)]
    core.connected("o2")
    core.receive(Error("unavailable", "x", True, retry_after_ms=4000))
    assert core.disconnected(CloseCode.OVERLOADED, random=0, attached_s=0) == Retry(4)
    assert core.disconnected(1006, random=0, attached_s=0) == Retry(0)


def test_retry_after_is_the_earliest_time_and_spread_from_there() -> None:
    core = ClientCore(agent="demo")
    assert core.disconnected(1006, random=0, attached_s=0, retry_after_s=3) == Retry(3)
    assert core.disconnected(1006, random=0.5, attached_s=0, retry_after_s=3) == Retry(3.5)


@pytest.mark.parametrize("re", [None, "o"], ids=["connection", "open"])
def test_a_refused_connection_comes_back_when_the_error_says(re: str | None) -> None:
    core = ClientCore(agent="demo")
    core.connected("o")
    core.receive(Error("unavailable", "x", True, re=re, retry_after_ms=4000))
    assert core.disconnected(CloseCode.OVERLOADED, random=0, attached_s=0) == Retry(4)


def test_a_refused_command_delays_the_connection_only_when_there_were_too_many() -> None:
    error = Error("rate_limited", "x", True, re="1", retry_after_ms=4000)
    core = attached_core()
    core.receive(error)
    assert core.disconnected(CloseCode.TOO_MANY, random=0, attached_s=0) == Retry(4)
    core.connected("o")
    core.receive(error)
    assert core.disconnected(1006, random=0, attached_s=0) == Retry(0)


@pytest.mark.parametrize(
    ("code", "policy"),
    [
        (1000, Reconnect.NO),
        (1009, Reconnect.NO),
        (4400, Reconnect.NO),
        (4401, Reconnect.NEW_TOKEN),
        (4404, Reconnect.NEW_SESSION),
        (4410, Reconnect.NEW_SESSION),
        (1002, Reconnect.NO),
    ],
)
def test_giving_up(code: int, policy: Reconnect) -> None:
    """Even a goaway or a Retry-After does not bring back what the close code ends."""
    core = attached_core()
    core.receive(GoAway("drain", 10))
    decision = core.disconnected(code, random=0, attached_s=1, retry_after_s=1)
    assert decision == GiveUp(code, policy)


def test_after_a_disconnect_commands_wait_again() -> None:
    core = attached_core()
    core.disconnected(1006, random=0, attached_s=0)
    assert not core.send(Message(id="1", content="x"))
    assert [command.id for command in core.unanswered] == ["1"]
