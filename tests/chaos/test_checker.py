"""The checker passes right histories, and sees each thing that can be wrong with one."""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from support.witness import expected

from chaos.archived import Archived
from chaos.checker import Checker, Rules, Verdict
from chaos.tape import Call, Fault, Line

EPOCH = "e1"


class Script:
    """Writes one client's tape, a line every tenth of a second."""

    def __init__(self, at: float = 0.0) -> None:
        self.at = at
        self.lines: list[Line] = []

    def line(self, mark: str, text: str) -> "Script":
        self.at += 0.1
        self.lines.append(Line(self.at, mark.encode(), text.encode()))
        return self

    def sent(self, kind: str, **fields: Any) -> "Script":
        return self.line(">", json.dumps({"type": kind, **fields}))

    def saw(self, kind: str, **fields: Any) -> "Script":
        return self.line("<", json.dumps({"type": kind, **fields}))

    def open(
        self,
        *,
        after: int | None = None,
        resumed: bool = True,
        epoch: str = EPOCH,
        head: int = 0,
        runs: Any = (),
        state: str = "idle",
    ) -> "Script":
        """Connects, and resumes at `after`; without it, or not `resumed`, it is new."""
        resumed = resumed and after is not None
        cursor = {} if after is None else {"after": {"epoch": EPOCH, "seq": after}}
        self.line("+", "node-0").sent("open", id="o", **cursor)
        opened = {"session_id": "s1", "cursor": {"epoch": epoch, "seq": head}, "resumed": resumed}
        return self.saw("opened", re="o", state=state, runs=list(runs), **opened)

    def snapshot(
        self, seq: int = 0, *messages: Any, epoch: str = EPOCH, events: Any = ()
    ) -> "Script":
        cursor = {"epoch": epoch, "seq": seq}
        first = {"type": "MESSAGES_SNAPSHOT", "messages": list(messages)}
        return self.saw("snapshot", cursor=cursor, events=[first, *events])

    def event(self, seq: int, run: str, kind: str, **fields: Any) -> "Script":
        return self.saw("event", seq=seq, ts=seq, run_id=run, event={"type": kind, **fields})

    def ask(self, frame_id: str = "m1", run: str = "r1", verb: str = "burst") -> "Script":
        self.sent("message", id=frame_id, content=f"{verb} 2 {frame_id}")
        return self.saw("ack", re=frame_id, status="accepted", run_id=run)

    def begin(self, seq: int, run: str = "r1", frame_id: str = "m1") -> "Script":
        return self.event(seq, run, "RUN_STARTED", **started(run, frame_id))

    def run(self, seq: int = 1, run: str = "r1", frame_id: str = "m1") -> "Script":
        """A whole run: seven events."""
        self.begin(seq, run, frame_id)
        self.event(seq + 1, run, "TEXT_MESSAGE_START", messageId="a")
        for number, word in enumerate([f"{frame_id}/2 ", "0 ", "1 "]):
            self.event(seq + 2 + number, run, "TEXT_MESSAGE_CONTENT", messageId="a", delta=word)
        self.event(seq + 5, run, "TEXT_MESSAGE_END", messageId="a")
        return self.end(seq + 6, run)

    def end(self, seq: int, run: str = "r1", outcome: str = "success") -> "Script":
        return self.event(seq, run, "RUN_FINISHED", runId=run, outcome={"type": outcome})

    def fails(self, seq: int, code: str, run: str = "r1") -> "Script":
        return self.event(seq, run, "RUN_ERROR", message="", code=code)

    def down(self, code: int = 1000) -> "Script":
        return self.line("-", str(code))

    def seen(self, seq: int) -> int:
        """Where the event of that number stands."""
        [index] = [i for i, line in enumerate(self.lines) if f'"seq": {seq}, "ts"' in str(line)]
        return index


def started(run: str, frame_id: str) -> Any:
    message = {"id": frame_id, "role": "user", "content": f"burst 2 {frame_id}"}
    return {"runId": run, "input": {"messages": [message]}}


def fresh() -> Script:
    return Script().open().snapshot()


def whole() -> Script:
    """One message and its answer: events 1 to 7."""
    return fresh().ask().run()


def looks(seq: int = 7, **options: Any) -> Script:
    return Script(90).open(head=seq, **options).snapshot(seq).down()


CALLED = [Call(0.5, "start", "r1", 1, "worker-0")]
EMPTIED = Fault("redis_empty", 1.5, 2.0, loses=True)


def check(
    *scripts: Script,
    faults: Any = (),
    calls: Any = CALLED,
    rules: Rules | None = None,
    archive: Archived | None = None,
    **more: Any,
) -> Verdict:
    checker = Checker(list(calls), list(faults), rules, archive)
    tapes: dict[str, Iterator[Line]] = {f"c{i}": iter(s.lines) for i, s in enumerate(scripts)}
    checker.session("session", {**tapes, **{name: iter(s.lines) for name, s in more.items()}})
    return checker.verdict


def rules_broken(*scripts: Script, **options: Any) -> set[str]:
    return {wrong.rule for wrong in check(*scripts, **options).wrong}


def resent() -> Script:
    """The answer to a message was lost; it is sent again, and answered as a duplicate."""
    script = fresh().sent("message", id="m1", content="burst 2 m1").down(1006)
    script.open(after=0).sent("message", id="m1", content="burst 2 m1")
    return script.saw("ack", re="m1", status="duplicate", run_id="r1").run()


def interrupted_by_reconnects() -> Script:
    whole_run = whole()
    cut = whole_run.seen(4)
    script = Script()
    script.lines, script.at = whole_run.lines[:cut], whole_run.lines[cut - 1].at
    script.down(1012).open(after=3)
    script.lines += whole_run.lines[cut:]
    return script


def joined_late() -> Script:
    """In the middle of the answer: the snapshot has what was said so far."""
    said = [
        {"type": "TEXT_MESSAGE_START", "messageId": "a"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "a", "delta": "m1/2 0 "},
    ]
    events = [{"type": "RUN_STARTED", **started("r1", "m1")}, *said]
    script = Script().open(head=4).snapshot(4, events=events)
    script.event(5, "r1", "TEXT_MESSAGE_CONTENT", messageId="a", delta="1 ")
    return script.event(6, "r1", "TEXT_MESSAGE_END", messageId="a").end(7)


def told_of_loss() -> Script:
    """Redis starts empty after the acknowledgement; the session is made again, and that is told."""
    script = fresh().ask().begin(1)
    script.at = 3.0
    script.saw("reset", reason="writes_lost", runs=[]).snapshot(epoch="e2")
    return script.ask("m2", "r2").run(1, "r2", "m2")


RIGHT = {
    "an answer": [whole()],
    "two clients": [whole(), fresh().run()],
    "resent": [resent()],
    "reconnects": [interrupted_by_reconnects()],
    "a late joiner": [whole(), joined_late()],
    "two runs": [whole().ask("m2", "r2").run(8, "r2", "m2")],
}


@pytest.mark.parametrize("scripts", RIGHT.values(), ids=RIGHT)
def test_right_histories_pass(scripts: list[Script]) -> None:
    assert check(*scripts).wrong == []


def test_totals() -> None:
    verdict = check(whole(), interrupted_by_reconnects())
    expected_totals = {"events": 14, "resumes": 1, "runs": 1, "run success": 1, "messages": 1}
    assert {name: verdict.totals[name] for name in expected_totals} == expected_totals
    assert verdict.known == {"s1"}


# --- guarantee 2: order, no gap, no duplicate -----------------------------------------------------


@pytest.mark.parametrize("seq", range(1, 8))
def test_a_lost_event(seq: int) -> None:
    script = whole()
    del script.lines[script.seen(seq)]
    broken = rules_broken(script, look=looks())
    assert broken & ({"gap"} if seq < 7 else {"never delivered", "a run never ends"})


@pytest.mark.parametrize("seq", range(1, 8))
def test_a_duplicate(seq: int) -> None:
    script = whole()
    script.lines.insert(script.seen(seq), script.lines[script.seen(seq)])
    assert "duplicate" in rules_broken(script)


@pytest.mark.parametrize("seq", range(1, 7))
def test_a_swap(seq: int) -> None:
    script = whole()
    index = script.seen(seq)
    script.lines[index : index + 2] = reversed(script.lines[index : index + 2])
    assert "gap" in rules_broken(script)


def test_an_event_twice_over_a_resume() -> None:
    script = fresh().ask().begin(1).down(1006).open(after=1).begin(1)
    assert "duplicate" in rules_broken(script)


def test_an_event_lost_over_a_resume() -> None:
    script = whole().down(1006).open(after=7).end(9)
    assert "gap" in rules_broken(script)


def test_two_contents_for_one_number() -> None:
    other = fresh().begin(1, frame_id="m9")
    assert "two contents" in rules_broken(whole(), other)


@pytest.mark.parametrize("words", ["0 0 1 ", "1 ", "1 0 ", "0 1 2 ", "0 ", "0 1", ""])
def test_words_lost_doubled_or_swapped_within_the_events(words: str) -> None:
    script = fresh().ask().begin(1).event(2, "r1", "TEXT_MESSAGE_START", messageId="a")
    script.event(3, "r1", "TEXT_MESSAGE_CONTENT", messageId="a", delta=f"m1/2 {words}").end(4)
    assert rules_broken(script) == {"words"}


@pytest.mark.parametrize("words", [0, 1, 2])
def test_an_answer_that_was_cut_off_may_end_anywhere(words: int) -> None:
    script = fresh().ask().sent("cancel", id="c").begin(1)
    script.event(2, "r1", "TEXT_MESSAGE_START", messageId="a")
    said = expected("m1", 2, words)
    script.event(3, "r1", "TEXT_MESSAGE_CONTENT", messageId="a", delta=said)
    assert check(script.end(4, outcome="cancelled")).wrong == []


def test_a_transcript_with_a_word_missing() -> None:
    said = {"id": "a", "role": "assistant", "content": "m1/2 1 "}
    script = whole().down().open().snapshot(7, {"id": "m1", "role": "user"}, said)
    assert rules_broken(script) == {"words"}


def test_an_answer_to_somebody_else() -> None:
    script = fresh().ask("m2", "r1").run()
    script.lines = [
        Line(line.at, line.mark, line.text.replace(b'"id": "m1"', b'"id": "m2"'))
        for line in script.lines
    ]
    assert rules_broken(script) == {"words"}


def test_runs_that_interleave() -> None:
    assert "runs interleave" in rules_broken(fresh().ask().begin(1).ask("m2", "r2").begin(2, "r2"))


def test_an_event_of_a_run_that_is_over() -> None:
    script = whole().event(8, "r1", "TEXT_MESSAGE_END", messageId="a")
    assert "runs interleave" in rules_broken(script)


def test_what_is_never_delivered() -> None:
    assert rules_broken(whole(), look=looks(8)) == set()  # it left before the end
    late = whole()
    late.at = 95
    assert rules_broken(late.down(), look=looks(8)) == {"never delivered"}


def test_events_before_a_snapshot() -> None:
    assert "frame out of turn" in rules_broken(Script().open().run())


# --- guarantee 1: acknowledged messages -----------------------------------------------------------


def test_an_acknowledged_message_that_is_lost() -> None:
    assert rules_broken(fresh().ask(), calls=[]) == {"an acknowledged message is lost"}


def test_a_message_run_twice() -> None:
    script = whole().run(8, "r2", "m1")
    assert "message run twice" in rules_broken(script)


def test_one_id_with_two_answers() -> None:
    script = whole().saw("ack", re="m1", status="accepted", run_id="r2")
    assert "message run twice" in rules_broken(script)


def test_a_message_twice_in_the_transcript() -> None:
    asked = {"id": "m1", "role": "user", "content": "burst 2 m1"}
    assert rules_broken(whole().down().open().snapshot(7, asked, asked)) == {"message run twice"}


def test_an_answer_twice_in_the_transcript() -> None:
    said = [{"id": name, "role": "assistant", "content": "m1/2 0 1 "} for name in "ab"]
    assert rules_broken(whole().down().open().snapshot(7, *said)) == {"message run twice"}


# --- losses, told or silent -----------------------------------------------------------------------


def test_a_loss_that_is_told_is_permitted_after_redis_lost_something() -> None:
    assert check(told_of_loss(), faults=[EMPTIED], calls=[]).wrong == []


def test_a_loss_for_no_cause() -> None:
    broken = rules_broken(told_of_loss(), calls=[])
    assert broken == {"loss without a cause"}


def test_a_silent_loss_after_an_empty_restart() -> None:
    """The session is there again, and empty, and the client that had a cursor is not told."""
    script = fresh().ask().begin(1).down(1006)
    script.at = 3.0
    script.open(after=1, resumed=False, epoch="e2").snapshot(epoch="e2")
    broken = rules_broken(script, faults=[EMPTIED], calls=[])
    assert broken == {"silent loss", "a run never ends"}


def test_a_run_that_an_empty_restart_swallowed_in_silence() -> None:
    broken = rules_broken(fresh().ask().begin(1), look=looks(1), faults=[EMPTIED], calls=[])
    assert broken == {"a run never ends"}


def test_one_of_two_clients_is_not_told() -> None:
    other = fresh().begin(1)
    broken = {w.client for w in check(told_of_loss(), other, faults=[EMPTIED], calls=[]).wrong}
    assert broken == {"c1"}


def test_new_events_under_old_numbers() -> None:
    """Redis lost event 2 and wrote another one in its place."""
    one = fresh().ask().begin(1).event(2, "r1", "TEXT_MESSAGE_START", messageId="a")
    other = fresh().begin(1).fails(2, "worker_lost")
    assert "two contents" in rules_broken(one, other, faults=[EMPTIED])


@pytest.mark.parametrize("faults", [[], [EMPTIED]])
def test_an_unknown_session(faults: list[Fault]) -> None:
    script = fresh()
    script.at = 3.0
    script.down(1006).line("+", "node-0").sent("open", id="o", session_id="s1")
    script.saw("error", re="o", code="session_not_found", message="").down(4404)
    assert rules_broken(script, faults=faults) == (
        set() if faults else {"error", "loss without a cause"}
    )


def test_a_cursor_that_is_too_old_though_the_log_is_small() -> None:
    script = whole().down(1006).open(after=3, resumed=False, head=7)
    script.saw("reset", reason="cursor_too_old", runs=[]).snapshot(7)
    assert rules_broken(script) == {"silent loss"}
    assert rules_broken(script, rules=Rules(log_bytes=100)) == set()


# --- guarantees 3 and 4: runs ---------------------------------------------------------------------


def test_a_run_that_never_ends() -> None:
    assert rules_broken(fresh().ask().begin(1)) == {"a run never ends"}


def test_a_session_that_is_still_busy_when_all_is_quiet() -> None:
    look = looks(runs=[{"run_id": "r1", "status": "running"}], state="running")
    assert rules_broken(whole(), look=look) == {"a run never ends"}


def test_a_run_that_ends_twice() -> None:
    assert "a run ends twice" in rules_broken(whole().end(8))


def test_a_run_that_is_answered_twice() -> None:
    script = fresh().ask().begin(1).event(2, "r1", "TEXT_MESSAGE_START", messageId="a")
    script.event(3, "r1", "TEXT_MESSAGE_CONTENT", messageId="a", delta="m1/2 ")
    script.event(4, "r1", "TEXT_MESSAGE_START", messageId="b")
    assert "answered twice" in rules_broken(script)


AGAIN = [*CALLED, Call(2.0, "start", "r1", 2, "worker-1")]


@pytest.mark.parametrize(
    ("stops", "broken"), [((), True), (("worker-1",), True), (("worker-0",), False)]
)
def test_the_agent_starts_again_only_if_its_worker_was_stopped(
    stops: tuple[str, ...], broken: bool
) -> None:
    faults = [Fault("kill", 1.0, 1.5, stops)]
    assert rules_broken(whole(), calls=AGAIN, faults=faults) == (
        {"started too often"} if broken else set()
    )


def test_the_agent_starts_more_often_than_a_run_has_attempts() -> None:
    calls = [Call(0.5 + n, "start", "r1", n, "worker-0") for n in range(4)]
    faults = [Fault("kill", 0.0, 9.0, ("worker-0",))]
    assert rules_broken(whole(), calls=calls, faults=faults) == {"started too often"}


def test_two_workers_with_one_attempt() -> None:
    calls = [*CALLED, Call(0.6, "start", "r1", 1, "worker-1")]
    faults = [Fault("kill", 0.0, 9.0, ("worker-0",))]
    assert rules_broken(whole(), calls=calls, faults=faults) == {"held twice"}


@pytest.mark.parametrize(
    ("code", "stops", "broken"),
    [
        ("worker_lost", (), True),
        ("worker_lost", ("worker-1",), True),
        ("worker_lost", ("worker-0",), False),
        ("timeout", ("worker-0",), True),
        ("no_worker", ("worker-0",), True),
        ("internal", ("worker-0",), True),
        ("cancelled", ("worker-0",), True),
    ],
)
def test_a_run_that_a_fault_does_not_excuse(
    code: str, stops: tuple[str, ...], broken: bool
) -> None:
    faults = [Fault("kill", 0.6, 0.8, stops)]
    script = fresh().ask().begin(1).fails(2, code)
    assert rules_broken(script, faults=faults) == ({"ended for nothing"} if broken else set())


def test_a_run_that_was_cancelled_by_nobody() -> None:
    script = fresh().ask().begin(1).end(2, outcome="cancelled")
    assert rules_broken(script) == {"ended for nothing"}


def test_an_agent_that_fails_when_it_is_told_to() -> None:
    script = fresh().ask(verb="fail").begin(1).fails(2, "internal")
    assert check(script).wrong == []


# --- the wire -------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1002, 1011, 4400])
def test_a_close_code_that_nothing_explains(code: int) -> None:
    assert rules_broken(whole().down(code)) == {"close code"}


@pytest.mark.parametrize("code", ["internal", "bad_frame", "id_conflict"])
def test_an_error_that_nothing_explains(code: str) -> None:
    assert rules_broken(whole().saw("error", code=code, message="")) == {"error"}


@pytest.mark.parametrize("closed", [True, False])
def test_a_session_that_is_over_was_closed_by_somebody(closed: bool) -> None:
    script = whole().saw("error", code="session_ended", message="").down(4410)
    other = fresh().run()
    if closed:
        other.sent("close", id="c")
    assert rules_broken(script, other) == (set() if closed else {"ended for nothing"})


# --- the archive ----------------------------------------------------------------------------------


def kept(**changes: Any) -> Archived:
    """The archive of `whole`."""
    fields: dict[str, Any] = {
        "ended": {"r1": "success"},
        "asked": {"m1": ["r1"]},
        "said": {"r1": ["m1/2 0 1 "]},
        **changes,
    }
    return Archived(fields["ended"], defaultdict(list, fields["asked"]), fields["said"])


def test_a_run_that_is_archived() -> None:
    verdict = check(whole(), archive=kept())
    assert verdict.wrong == []
    assert verdict.totals["archived"] == 1


@pytest.mark.parametrize(
    ("archive", "rule"),
    [
        (kept(ended={}), "not archived"),
        (kept(said={"r1": []}), "not archived"),
        (kept(ended={"r1": "cancelled"}), "archived otherwise"),
        (kept(asked={"m1": ["r1", "r9"]}), "archived twice"),
    ],
)
def test_what_is_wrong_with_an_archive(archive: Archived, rule: str) -> None:
    """Guarantee 8."""
    assert rules_broken(whole(), archive=archive) == {rule}


def test_what_redis_lost_before_it_was_archived() -> None:
    lost = Fault("empty restart redis", 3, 4, loses=True)
    later = Fault("empty restart redis", 300, 301, loses=True)
    assert rules_broken(whole(), archive=kept(ended={}), faults=[lost]) == set()
    assert rules_broken(whole(), archive=kept(ended={}), faults=[later]) == {"not archived"}
