"""`make chaos`: the run itself, and the table at its end.

python tests/chaos/run.py [--seed N] [--clients N] [--minutes N] [--only KIND]...
"""

import argparse
import asyncio
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import uvloop

_TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(_TESTS), str(_TESTS.parent)]

from chaos import audit  # noqa: E402
from chaos.archived import read_archive  # noqa: E402
from chaos.checker import LOOK, Checker, Rules, Verdict  # noqa: E402
from chaos.crowd import Crowd  # noqa: E402
from chaos.faults import FAULTS, Breaker, schedule  # noqa: E402
from chaos.fleet import Fleet  # noqa: E402
from chaos.tape import Fault, read_calls, read_tape  # noqa: E402


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done, and with how many."""

    seed: int
    clients: int = 100
    minutes: float = 6.5
    only: Sequence[str] = ()
    lease_s: float = 9.0
    recovery_s: float = 5.0
    patience_s: float = 60.0
    burst: int = 400

    @property
    def environment(self) -> dict[str, str]:
        """The fleet's settings: deadlines that a run of minutes can wait for."""
        return {
            "GATEWAY_LIMIT_LEASE_S": str(self.lease_s),
            "GATEWAY_LIMIT_RESUME_GRACE_S": "8",
            "GATEWAY_DRAIN_S": "10",
        }


@dataclass
class Outcome:
    """What came of a run."""

    verdict: Verdict
    troubles: list[str]
    faults: list[Fault]
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def proven(self) -> bool:
        """Nothing is wrong."""
        return not (self.verdict.wrong or self.troubles)


async def chaos(plan: Plan, folder: Path, say: Callable[[str], None]) -> Outcome:
    """Breaks a fleet while a crowd talks, and checks what was seen."""
    began = time.monotonic()
    with Fleet.running(folder, plan.environment) as fleet:
        async with asyncio.TaskGroup() as group:
            crowd = Crowd(
                folder / "tapes",
                fleet.urls,
                group,
                clients=plan.clients,
                seed=plan.seed,
                burst=plan.burst,
            )
            breaker = Breaker(
                fleet,
                Random(plan.seed),
                lease_s=plan.lease_s,
                recovery_s=plan.recovery_s,
                say=lambda text: say(f"{crowd.events:>9,} events  {text}"),
            )
            troubles = await _run(plan, fleet, crowd, breaker, say)
            await crowd.go()
        metrics = {
            name: audit.series(fleet, f"pubsub_{name}_total")
            for name in ("gaps", "repaired_events")
        }
    say("checking")
    verdict = await asyncio.to_thread(_check, plan, folder, breaker.faults)
    return Outcome(verdict, troubles, breaker.faults, time.monotonic() - began, metrics)


async def _run(
    plan: Plan, fleet: Fleet, crowd: Crowd, breaker: Breaker, say: Callable[[str], None]
) -> list[str]:
    troubles: list[str] = []
    crowd.start()
    await asyncio.sleep(3)
    try:
        await _break(plan, breaker)
        say(f"{crowd.events:>9,} events  no more faults; waiting until all is quiet")
        await fleet.healthy()
    except AssertionError as error:
        troubles.append(str(error))
    await crowd.finish(plan.patience_s)
    troubles += await audit.sockets(fleet, crowd, 40)
    await crowd.look(plan.patience_s)
    troubles += [f"{name} does not come to rest" for name in crowd.restless]
    lost = any(fault.loses for fault in breaker.faults)
    troubles += await audit.journals(fleet, 40)
    troubles += await audit.counts(fleet, crowd, 40, lost)
    troubles += await asyncio.to_thread(audit.leftovers, fleet)
    return troubles


async def _break(plan: Plan, breaker: Breaker) -> None:
    if plan.only:
        await breaker.run(list(plan.only))
        return
    deadline = time.monotonic() + plan.minutes * 60
    while time.monotonic() < deadline:
        for kind in schedule(breaker.random):
            await breaker.run([kind])
            if time.monotonic() >= deadline:
                return


def _check(plan: Plan, folder: Path, faults: Sequence[Fault]) -> Verdict:
    archive = read_archive(folder / "history.db")
    checker = Checker(read_calls(folder / "journal"), faults, Rules(), archive)
    for session in sorted((folder / "tapes").iterdir()):
        paths = sorted(session.glob("*.tape"), key=lambda path: (path.stem == LOOK, path.stem))
        files = {path.stem: path.open("rb") for path in paths}
        try:
            checker.session(session.name, {name: read_tape(f) for name, f in files.items()})
        finally:
            for file in files.values():
                file.close()
    return checker.verdict


# --- the table ------------------------------------------------------------------------------------


def table(plan: Plan, outcome: Outcome) -> str:
    """The totals, as Markdown."""
    totals, verdict = outcome.verdict.totals, outcome.verdict
    kinds = Counter(_kind(fault) for fault in outcome.faults)
    rows = [
        ("seed, clients, duration", f"{plan.seed}, {plan.clients}, {outcome.seconds:.0f} s"),
        ("events checked", f"{totals['events']:,}"),
        ("sessions; messages acknowledged", f"{totals['sessions']:,}; {totals['messages']:,}"),
        ("runs in the archive", f"{totals['archived']:,} of {totals['runs']:,}"),
        ("runs by outcome", _listed(totals, "run ")),
        ("faults", f"{len(outcome.faults)}: " + ", ".join(f"{k} {n}" for k, n in kinds.items())),
        ("connections; resumes", f"{totals['connections']:,}; {totals['resumes']:,}"),
        ("snapshots; resets", f"{totals['snapshots']:,}; {_listed(totals, 'reset ') or 'none'}"),
        ("messages sent again", f"{totals['ack duplicate']:,}"),
        ("closed by", _listed(totals, "close ")),
        ("errors told", _listed(totals, "error ") or "none"),
        ("slowest resume", f"{verdict.slowest_resume_s:.2f} s"),
        (
            "gaps in pub/sub; events repaired (nodes that still live)",
            "; ".join(f"{value:,.0f}" for value in outcome.metrics.values()),
        ),
        ("guarantees broken", str(len(verdict.wrong) + len(outcome.troubles))),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _kind(fault: Fault) -> str:
    """Without the number of the process."""
    return re.sub(r"(node|worker)-\d", r"\1", fault.kind)


def _listed(totals: "Counter[str]", prefix: str) -> str:
    found = {k.removeprefix(prefix): n for k, n in totals.items() if k.startswith(prefix)}
    return ", ".join(f"{k} {n:,}" for k, n in sorted(found.items(), key=lambda item: -item[1]))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Breaks a fleet while clients talk with it.")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(2), "big"))
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=6.5, help="of faults")
    parser.add_argument("--burst", type=int, default=400, help="events of an answer, at most")
    parser.add_argument("--only", action="append", default=[], choices=sorted(FAULTS))
    parser.add_argument("--keep", action="store_true", help="keep tapes and logs of a good run too")
    given = parser.parse_args()
    plan = Plan(given.seed, given.clients, given.minutes, given.only, burst=given.burst)
    folder = Path(tempfile.mkdtemp(prefix="nooble-chaos-"))
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    say(f"seed {plan.seed}; tapes and logs in {folder}")
    outcome = uvloop.run(chaos(plan, folder, say))
    print(table(plan, outcome))
    for line in [*outcome.troubles, *map(str, outcome.verdict.wrong[:50])]:
        print(f"BROKEN  {line}")
    if outcome.proven and not given.keep:
        shutil.rmtree(folder)
    else:
        print(f"tapes and logs: {folder}")
    return 0 if outcome.proven else 1


if __name__ == "__main__":
    sys.exit(main())
