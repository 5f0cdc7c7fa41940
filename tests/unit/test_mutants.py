"""The mutants' runner: what counts as killed, and that nothing else does."""

import os
import subprocess
from pathlib import Path

import pytest
from mutants import run

PRODUCT = "def add(a, b):\n    return a + b\n"
TESTS = """\
from product import add


def test_add():
    assert add(2, 3) == 5


def test_zero():
    assert add(0, 0) == 0
"""


def patch(
    old: str = "    return a + b",
    new: str = "    return a - b",
    tests: str = "tests/test_product.py::test_add",
) -> str:
    return (
        f"Guarantee: 1, 3\nBreaks: adding is wrong.\nTests: {tests}\n\n"
        "diff --git a/product.py b/product.py\n--- a/product.py\n+++ b/product.py\n"
        f"@@ -1,2 +1,2 @@\n def add(a, b):\n-{old}\n+{new}\n"
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A tiny checkout: a product, its tests, a folder for patches, and one ignored file."""
    (tmp_path / "tests" / "mutants").mkdir(parents=True)
    (tmp_path / "product.py").write_text(PRODUCT)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\npythonpath = .\naddopts = --disable-plugin-autoload\n"
    )
    (tmp_path / "tests" / "test_product.py").write_text(TESTS)
    (tmp_path / ".gitignore").write_text("ignored\n")
    (tmp_path / "ignored").write_text("")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def outcome_of(project: Path, text: str) -> run.Outcome:
    path = project / "tests" / "mutants" / "one.patch"
    path.write_text(text)
    [verdict] = run.run_all([run.read_mutant(path)], project)
    return verdict.outcome


def test_a_mutant_that_turns_its_tests_red_is_killed_and_the_checkout_is_untouched(project: Path):
    assert outcome_of(project, patch()) is run.Outcome.KILLED
    assert (project / "product.py").read_text() == PRODUCT


def test_a_mutant_that_its_tests_do_not_notice_survives(project: Path):
    text = patch(tests="tests/test_product.py::test_zero")
    assert outcome_of(project, text) is run.Outcome.SURVIVED


def test_a_patch_for_other_code_does_not_apply(project: Path):
    assert outcome_of(project, patch(old="    return b + a")) is run.Outcome.DOES_NOT_APPLY


def test_a_mutant_that_does_not_import_proves_nothing(project: Path):
    assert outcome_of(project, patch(new="    return (")) is run.Outcome.NO_VERDICT


def test_red_tests_prove_nothing_when_they_were_red_before(project: Path):
    (project / "product.py").write_text(PRODUCT.replace("+", "*"))
    text = patch(old="    return a * b", new="    return a - b")
    assert outcome_of(project, text) is run.Outcome.NOT_GREEN_BEFORE


def test_a_name_that_selects_no_test_is_told(project: Path):
    text = patch(tests="tests/test_product.py::test_missing")
    assert outcome_of(project, text) is run.Outcome.NOT_GREEN_BEFORE


def test_a_mutant_that_hangs_is_killed(project: Path, monkeypatch: pytest.MonkeyPatch):
    judge = run.judge

    def hurried(mutant: run.Mutant, root: Path) -> run.Verdict:
        monkeypatch.setattr(run, "TIMEOUT_S", 5.0)  # what is green before may take its time
        return judge(mutant, root)

    monkeypatch.setattr(run, "judge", hurried)
    text = patch(new="    return __import__('time').sleep(60)")
    assert outcome_of(project, text) is run.Outcome.KILLED


def test_exit_code_and_table_tell_the_worst(project: Path, capsys: pytest.CaptureFixture[str]):
    patches = project / "tests" / "mutants"
    (patches / "good.patch").write_text(patch())
    assert run.main([], root=project) == 0
    (patches / "stale.patch").write_text(patch(old="    return b + a"))
    assert run.main([], root=project) == 1
    assert run.main(["--only", "good"], root=project) == 0
    out = capsys.readouterr().out
    assert "[1/2] good ... killed" in out
    assert "[2/2] stale ... does not apply" in out
    assert "1 of 2 mutants killed; guarantees with a killed mutant: 1, 3" in out


def test_wrong_patches_and_names_are_usage_errors(
    project: Path, capsys: pytest.CaptureFixture[str]
):
    assert run.main([], root=project) == 2
    (project / "tests" / "mutants" / "bare.patch").write_text("--- a/product.py\n")
    assert run.main([], root=project) == 2
    assert run.main(["--only", "other"], root=project) == 2
    err = capsys.readouterr().err
    assert "bare.patch: no Guarantee: Breaks: Tests: before the diff" in err
    assert "no such mutant: other; there are: bare" in err


def test_the_copy_holds_what_git_would_track_and_its_packages_come_first(project: Path):
    (project / "new.txt").write_text("untracked")
    with run.copied(project) as tree:
        names = {path.name for path in tree.iterdir()}
        environment = run.child_environment(tree)
    assert names == {".gitignore", "new.txt", "product.py", "pytest.ini", "tests"}
    assert not tree.exists()
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(tree)
    assert not [key for key in environment if key.startswith(("PYTEST_", "COVERAGE_"))]
