"""Break the product on purpose, patch by patch, and expect the tests to go red.

Each `*.patch` beside this file is one mutant: a header (`Guarantee:`, `Breaks:`, `Tests:`), then a
unified diff. The runner copies the checkout, sees that the named tests are green there, then gives
each mutant a fresh copy, applies it, and expects the same tests to fail. README.md beside this file
says how to write one.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 900.0
"""For one selection of tests; a mutant that hangs this long is red."""

PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider")
PYTEST_GREEN, PYTEST_RED = 0, 1
TAIL_LINES = 25


class BadPatchError(Exception):
    """A patch file whose header is not as README.md says."""


class Outcome(Enum):
    """What became of a mutant; only `KILLED` is good."""

    KILLED = "killed"
    SURVIVED = "SURVIVED"
    DOES_NOT_APPLY = "does not apply"
    NOT_GREEN_BEFORE = "tests are not green without it"
    NO_VERDICT = "tests did not run"


@dataclass(frozen=True)
class Mutant:
    """One way to break the product, and the tests that must notice."""

    name: str
    patch: Path
    guarantees: tuple[int, ...]
    breaks: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class TestRun:
    """How pytest ended: its exit code (`None`: stopped after `TIMEOUT_S`), and what it printed."""

    exit_code: int | None
    seconds: float
    output: str

    @property
    def tail(self) -> str:
        """The last lines, indented."""
        return "\n".join(f"    {line}" for line in self.output.splitlines()[-TAIL_LINES:])


@dataclass(frozen=True)
class Verdict:
    """A mutant and what became of it; `detail` explains any outcome but `KILLED`."""

    mutant: Mutant
    outcome: Outcome
    seconds: float = 0.0
    detail: str = ""


def read_mutant(path: Path) -> Mutant:
    """Read a patch file's header.

    Raises:
        BadPatchError: A header line is missing or empty, or there is no diff.
    """
    header: dict[str, list[str]] = {"Guarantee": [], "Breaks": [], "Tests": []}
    lines = iter(path.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith(("diff --git ", "--- ")):
            break
        key, colon, value = line.partition(":")
        if colon and key in header:
            header[key].append(value.strip())
    else:
        raise BadPatchError(f"{path.name}: no diff in it")
    if missing := [f"{key}:" for key, values in header.items() if not any(values)]:
        raise BadPatchError(f"{path.name}: no {' '.join(missing)} before the diff")
    try:
        guarantees = tuple(int(n) for n in " ".join(header["Guarantee"]).replace(",", " ").split())
    except ValueError:
        raise BadPatchError(f"{path.name}: Guarantee: takes numbers") from None
    return Mutant(
        name=path.stem,
        patch=path,
        guarantees=guarantees,
        breaks=" ".join(header["Breaks"]),
        tests=tuple(shlex.split(" ".join(header["Tests"]))),
    )


def child_environment(tree: Path) -> dict[str, str]:
    """The environment for tests of the copy `tree`: its packages first, no outer pytest's state.

    Bytecode is not written: a patch may keep a file's size and, within a second, its time.
    """
    dropped = ("COVERAGE_", "COV_CORE_", "PYTEST_", "GIT_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    return kept | {
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "GIT_CEILING_DIRECTORIES": str(tree.parent),
    }


@contextmanager
def copied(root: Path) -> Iterator[Path]:
    """A temporary copy of the checkout: what git tracks, and what it would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        env={key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    # The path is short: unix sockets may be made under it.
    with tempfile.TemporaryDirectory(prefix="mut-", ignore_cleanup_errors=True) as directory:
        tree = Path(directory).resolve() / "tree"
        tree.mkdir()
        for name in filter(None, listed.split("\0")):
            source, target = root / name, tree / name
            if source.is_symlink() or source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
        yield tree


def apply_patch(patch: Path, tree: Path) -> str:
    """Apply the patch to the copy, exactly; the answer is empty, or why it does not apply."""
    done = subprocess.run(
        ["git", "apply", "--whitespace=nowarn", str(patch)],
        cwd=tree,
        env=child_environment(tree),
        check=False,
        capture_output=True,
        text=True,
    )
    return "" if done.returncode == 0 else (done.stderr.strip() or "git apply failed")


def run_tests(tests: Sequence[str], tree: Path) -> TestRun:
    """Run the named tests in the copy, in a process group of their own that ends with them."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            [*PYTEST, *tests],
            cwd=tree,
            env=child_environment(tree),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        exit_code: int | None = None
        try:
            exit_code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            end_group(process)
        output.seek(0)
        return TestRun(exit_code, time.monotonic() - started, output.read())


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End what the tests left running: a broken product may leave servers behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def judge(mutant: Mutant, root: Path) -> Verdict:
    """Give the mutant a fresh copy and see whether the tests notice it."""
    with copied(root) as tree:
        if why_not := apply_patch(mutant.patch, tree):
            return Verdict(mutant, Outcome.DOES_NOT_APPLY, detail=f"    {why_not}")
        run = run_tests(mutant.tests, tree)
    if run.exit_code in (PYTEST_RED, None):
        return Verdict(mutant, Outcome.KILLED, run.seconds)
    if run.exit_code == PYTEST_GREEN:
        return Verdict(mutant, Outcome.SURVIVED, run.seconds, f"    breaks: {mutant.breaks}")
    # An import that fails or a name that selects nothing says nothing about the guarantee.
    detail = f"    pytest ended with {run.exit_code}\n{run.tail}"
    return Verdict(mutant, Outcome.NO_VERDICT, run.seconds, detail)


def run_all(mutants: Sequence[Mutant], root: Path) -> list[Verdict]:
    """Judge every mutant, printing a line for each."""
    baselines: dict[tuple[str, ...], TestRun] = {}
    verdicts: list[Verdict] = []
    for number, mutant in enumerate(mutants, 1):
        if mutant.tests not in baselines:
            print(f"unpatched: {shlex.join(mutant.tests)} ... ", end="", flush=True)
            with copied(root) as tree:
                baseline = baselines[mutant.tests] = run_tests(mutant.tests, tree)
            colour = "green" if baseline.exit_code == PYTEST_GREEN else "NOT GREEN"
            print(f"{colour} ({baseline.seconds:.1f} s)")
            if baseline.exit_code != PYTEST_GREEN:
                print(baseline.tail)
        print(f"[{number}/{len(mutants)}] {mutant.name} ... ", end="", flush=True)
        if baselines[mutant.tests].exit_code == PYTEST_GREEN:
            verdict = judge(mutant, root)
        else:
            verdict = Verdict(mutant, Outcome.NOT_GREEN_BEFORE)
        print(f"{verdict.outcome.value} ({verdict.seconds:.1f} s)")
        if verdict.detail:
            print(verdict.detail)
        verdicts.append(verdict)
    return verdicts


def table(verdicts: Sequence[Verdict]) -> str:
    """The summary: a row for each mutant, then the totals."""
    rows = [("mutant", "guarantee", "outcome", "breaks")]
    for verdict in verdicts:
        mutant = verdict.mutant
        guarantees = ", ".join(map(str, mutant.guarantees))
        rows.append((mutant.name, guarantees, verdict.outcome.value, mutant.breaks))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*map(str.ljust, row, widths), row[3]]) for row in rows]
    killed = [verdict for verdict in verdicts if verdict.outcome is Outcome.KILLED]
    proven = sorted({n for verdict in killed for n in verdict.mutant.guarantees})
    lines.append("")
    lines.append(
        f"{len(killed)} of {len(verdicts)} mutants killed;"
        f" guarantees with a killed mutant: {', '.join(map(str, proven)) or 'none'}"
    )
    return "\n".join(lines)


def choose(patches: Path, only: Sequence[str]) -> list[Mutant]:
    """The mutants of a folder by name, or those of them that `only` names.

    Raises:
        BadPatchError: A header is wrong, a name is unknown, or there is no patch at all.
    """
    found = {path.stem: path for path in sorted(patches.glob("*.patch"))}
    wanted = [name.removesuffix(".patch") for name in only] or list(found)
    if unknown := [name for name in wanted if name not in found]:
        raise BadPatchError(f"no such mutant: {', '.join(unknown)}; there are: {', '.join(found)}")
    if not wanted:
        raise BadPatchError(f"no *.patch in {patches}")
    return [read_mutant(found[name]) for name in wanted]


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    """Run it; the answer is the exit code: 0 all killed, 1 not, 2 wrong usage or a bad patch."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="this mutant; may be repeated"
    )
    options = parser.parse_args(arguments)
    try:
        mutants = choose(root / "tests" / "mutants", options.only)
    except BadPatchError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    verdicts = run_all(mutants, root)
    print(f"\n{table(verdicts)}")
    return 0 if all(verdict.outcome is Outcome.KILLED for verdict in verdicts) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
