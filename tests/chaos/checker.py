"""Proves the guarantees over what was written down, or names what broke them. A pure function.

| rule | guarantee |
|---|---|
| an acknowledged message is lost; message run twice | 1 |
| gap; duplicate; two contents; words; runs interleave; never delivered; silent loss | 2 |
| answered twice; started too often; held twice; ended for nothing | 3 |
| a run never ends; a run begins or ends twice | 4 |
| not archived; archived twice; archived otherwise | 8 |
| frame out of turn; error; close code | what a client may expect of the wire |

A loss is permitted only after Redis lost what it had confirmed, and only where the client that it
befell was told: by `reset`, or by `session_not_found` when the whole session is gone.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from chaos.archived import Archived
from chaos.reader import Reader, RunRecord, Shared
from chaos.tape import Call, Fault, Line

LOOK = "look"
"""The name of the client that comes to a session when all is quiet, and only looks."""


class Wrong(NamedTuple):
    """A guarantee that was broken."""

    rule: str
    session: str
    client: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail} ({self.session}, {self.client})"


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that the fleet ran with."""

    max_attempts: int = 3
    log_bytes: int = 4 * 1024 * 1024
    run_timeout_s: float = 600.0
    archived_within_s: float = 60.0
    """What Redis lost so soon after a run's end may not have come to the archive."""


@dataclass
class Verdict:
    """What came of it."""

    wrong: list[Wrong] = field(default_factory=list[Wrong])
    totals: "Counter[str]" = field(default_factory=Counter[str])
    slowest_resume_s: float = 0.0
    known: set[str] = field(default_factory=set[str])
    """Ids of all sessions that a client had."""
    closed: set[str] = field(default_factory=set[str])
    """Ids of those that a client closed, and knows so."""


class Checker:
    """Takes sessions one after the other, so that not all of them need be in memory."""

    def __init__(
        self,
        calls: Sequence[Call],
        faults: Sequence[Fault],
        rules: Rules | None = None,
        archive: Archived | None = None,
    ) -> None:
        self._archive = archive
        self.verdict = Verdict()
        self._rules = rules or Rules()
        self._faults = faults
        self._calls: dict[str, list[Call]] = defaultdict(list)
        for call in calls:
            if call.what == "start":
                self._calls[call.run_id].append(call)

    def session(self, name: str, tapes: Mapping[str, Iterable[Line]]) -> None:
        """Checks one session: the tapes of all its clients, `look` the last of them."""
        shared = Shared(self._lost_before, self._rules.log_bytes)
        readers: dict[str, Reader] = {}
        for client, lines in tapes.items():
            reader = readers[client] = Reader(client, shared, self.verdict.totals)
            for line in lines:
                reader.read(line)
            self.verdict.wrong += [
                Wrong(rule, name, client, detail) for rule, detail in reader.wrong
            ]
            self.verdict.slowest_resume_s = max(
                self.verdict.slowest_resume_s, reader.slowest_resume_s
            )
        whole = _Whole(name, shared, readers, self._calls, self._faults, self._rules)
        whole.check()
        if self._archive is not None:
            self.verdict.totals["archived"] += whole.check_archive(self._archive)
        self.verdict.wrong += whole.wrong
        totals = self.verdict.totals
        totals["sessions"] += 1
        totals["runs"] += len(shared.runs)
        for run in shared.runs.values():
            totals["messages"] += bool(run.acked)
            for outcome in list(run.ended.values())[-1:]:
                totals[f"run {outcome}"] += 1
        self.verdict.known |= shared.ids
        if shared.closes:
            self.verdict.closed |= shared.ids

    def _lost_before(self, at: float) -> bool:
        return any(fault.loses and fault.at <= at for fault in self._faults)


class _Whole:
    """What is true of a session as a whole."""

    def __init__(
        self,
        name: str,
        shared: Shared,
        readers: Mapping[str, Reader],
        calls: Mapping[str, list[Call]],
        faults: Sequence[Fault],
        rules: Rules,
    ) -> None:
        self.wrong: list[Wrong] = []
        self._name = name
        self._shared = shared
        self._readers = readers
        self._calls = calls
        self._faults = faults
        self._rules = rules

    def _bad(self, rule: str, detail: str, client: str = "all") -> None:
        self.wrong.append(Wrong(rule, self._name, client, detail))

    def check(self) -> None:
        self._check_end()
        for reader in self._readers.values():
            if reader.told_end and not self._shared.closes:
                self._bad("ended for nothing", "nobody closed the session", reader.name)
        for frame_id, runs in self._shared.runs_of.items():
            for (one, at), (other, until) in pairwise(sorted(runs.items(), key=lambda r: r[1])):
                if not self._lost_between(at, until):
                    self._bad("message run twice", f"{frame_id} made {one} and {other}")
        for run in self._shared.runs.values():
            self._check_ended(run)
            self._check_calls(run)
            self._check_tags(run)
            for outcome in run.ended.values():
                self._check_outcome(run, outcome)

    def check_archive(self, archive: Archived) -> int:
        """Each run that anybody saw end is there, once, as it ended. Answers how many were."""
        count = 0
        for run in self._shared.runs.values():
            outcome = archive.ended.get(run.run_id)
            count += outcome is not None
            since = min([*run.acked.values(), *run.seen_by.values()], default=run.ended_at)
            until = run.ended_at + self._rules.archived_within_s
            if not run.ended or self._lost_between(since, until):
                continue
            if outcome is None:
                self._bad("not archived", f"{run.run_id} of {sorted(run.frames)}")
            elif outcome not in run.ended.values():
                self._bad("archived otherwise", f"{run.run_id}: {outcome}, {run.ended}")
            for frame_id in run.frames:
                # A restarted run answers what the lost one was asked: it is archived with that.
                others = [other for other in archive.asked[frame_id] if other != run.run_id]
                if others and len(self._shared.runs_of[frame_id]) == 1:
                    self._bad("archived twice", f"{frame_id}: {run.run_id} and {others}")
            if outcome == "success" and not archive.said[run.run_id]:
                self._bad("not archived", f"what {run.run_id} said")
        return count

    # --- when all is quiet ------------------------------------------------------------------------

    def _check_end(self) -> None:
        look = self._readers.get(LOOK)
        if look is None or not look.opened:
            return
        if look.opened["runs"] or look.opened["state"] not in ("idle", "awaiting_input"):
            left = f"{look.opened['state']}, {look.opened['runs']}"
            self._bad("a run never ends", f"the session is {left}", LOOK)
        for reader in self._readers.values():
            if reader.up_until >= look.up_until and reader.cursor != look.snapshot_at:
                detail = f"it has {reader.cursor}, the log {look.snapshot_at}"
                self._bad("never delivered", detail, reader.name)

    # --- every run --------------------------------------------------------------------------------

    def _check_ended(self, run: RunRecord) -> None:
        if run.ended or not (run.acked or run.started):
            return
        known = {**run.seen_by, **run.acked}
        for client, since in known.items():
            reader = self._readers[client]
            told = [*reader.told_loss, *(reader.told_trim if self._looked() else [])]
            if not any(at >= since for at in told):
                rule = "a run never ends" if run.started else "an acknowledged message is lost"
                frames = ", ".join(sorted(run.frames))
                self._bad(rule, f"{run.run_id} of {frames}", client)

    def _looked(self) -> bool:
        return LOOK in self._readers and bool(self._readers[LOOK].opened)

    def _check_tags(self, run: RunRecord) -> None:
        if len(run.tags) > 1 or (run.frames and run.tags - run.frames):
            self._bad("words", f"{run.run_id} of {run.frames} answers {run.tags}")

    def _check_calls(self, run: RunRecord) -> None:
        calls = self._calls.get(run.run_id, [])
        if calls and self._lost_between(calls[0].at, calls[-1].at):
            return
        if len(calls) > self._rules.max_attempts:
            self._bad("started too often", f"{run.run_id}: {len(calls)} calls of the agent")
        if len({call.attempt for call in calls}) < len(calls):
            self._bad("held twice", f"{run.run_id}: two calls with one attempt number")
        for first, second in pairwise(calls):
            if not self._excused(first.process, first.at, second.at):
                detail = f"{run.run_id}: again at {second.at}, though {first.process} was well"
                self._bad("started too often", detail)

    def _lost_between(self, begin: float, end: float) -> bool:
        return any(f.loses and f.at <= end and f.until >= begin - 1 for f in self._faults)

    def _excused(self, process: str, begin: float, end: float) -> bool:
        """Something stopped that process, or made Redis forget, in that time."""
        return any(
            (process in fault.stops or fault.loses) and fault.at <= end and fault.until >= begin - 1
            for fault in self._faults
        )

    def _check_outcome(self, run: RunRecord, outcome: str) -> None:
        if outcome in ("success", "interrupt"):
            return
        verbs = {self._shared.verbs.get(frame, "?") for frame in run.frames}
        calls = self._calls.get(run.run_id, [])
        if outcome == "error internal":
            allowed = "fail" in verbs
        elif outcome in ("cancelled", "error cancelled"):
            allowed = self._shared.cancels > 0 or self._shared.closes > 0
        elif outcome == "error worker_lost":
            allowed = self._may_lose_worker(run, calls)
        elif outcome == "error timeout":
            begin = min([*run.seen_by.values(), *run.acked.values()])
            allowed = run.ended_at - begin >= self._rules.run_timeout_s - 1
        else:
            allowed = False
        if not allowed:
            self._bad("ended for nothing", f"{run.run_id}: {outcome}, of {sorted(verbs)}")

    def _may_lose_worker(self, run: RunRecord, calls: Sequence[Call]) -> bool:
        if not calls:  # the worker died between its claim and the call
            begin = min([*run.seen_by.values(), *run.acked.values()])
            workers = {name for f in self._faults for name in f.stops if "worker" in name}
            return any(self._excused(worker, begin, run.ended_at) for worker in workers)
        return any(self._excused(call.process, call.at, run.ended_at) for call in calls)
