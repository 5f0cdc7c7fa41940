"""`module:attribute`: what is loaded, and one clear line for everything that is not."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.agents import demo
from gateway.agents.loading import AgentNotLoadable, load_agent

GOOD = """
from gateway.agents import Agent, Run

agent = Agent("echo")

@agent.run
async def answer(run: Run) -> None:
    await run.say(run.text)

idle = Agent("idle")
number = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The author's folder is the current one, and is not on the path yet."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("author"):
            del sys.modules[name]


def problem(place: str) -> str:
    with pytest.raises(AgentNotLoadable) as caught:
        load_agent(place)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_an_agent_in_the_current_folder(folder: Path) -> None:
    (folder / "author_good.py").write_text(GOOD)
    assert load_agent("author_good:agent").name == "echo"


def test_an_agent_in_a_package_of_the_current_folder(folder: Path) -> None:
    (folder / "author_pack").mkdir()
    (folder / "author_pack" / "mine.py").write_text(GOOD)
    assert load_agent("author_pack.mine:agent").name == "echo"


def test_an_installed_agent() -> None:
    assert load_agent("gateway.agents.demo:agent") is demo.agent


@pytest.mark.parametrize("place", ["", "module", "module:", ":agent"])
def test_what_is_no_place(place: str) -> None:
    assert "module:attribute" in problem(place)


@pytest.mark.parametrize("place", ["author_absent:agent", "author_absent.sub:agent"])
def test_no_such_module(place: str, folder: Path) -> None:
    text = problem(place)
    assert "no module 'author_absent" in text
    assert str(folder) in text


def test_a_module_that_raises_says_where(folder: Path) -> None:
    (folder / "author_raises.py").write_text("def f():\n    raise ValueError('a\\nb')\n\nf()\n")
    text = problem("author_raises:agent")
    assert "ValueError" in text
    assert "author_raises.py:2: a b" in text


def test_a_module_that_misses_another_is_not_called_missing(folder: Path) -> None:
    (folder / "author_misses.py").write_text("\nimport author_other\n")
    text = problem("author_misses:agent")
    assert "author_misses.py:2" in text
    assert "author_other" in text


def test_a_module_with_a_syntax_error_says_where(folder: Path) -> None:
    (folder / "author_syntax.py").write_text("a = 1\nb = = 2\n")
    assert "author_syntax.py:2" in problem("author_syntax:agent")


def test_a_module_that_exits_does_not_end_the_process(folder: Path) -> None:
    (folder / "author_exits.py").write_text("raise SystemExit(3)\n")
    assert "SystemExit" in problem("author_exits:agent")


def test_no_such_attribute_names_those_that_are_there(folder: Path) -> None:
    (folder / "author_good.py").write_text(GOOD)
    text = problem("author_good:agnet")
    assert "no attribute 'agnet'" in text
    assert "it has 'agent', 'idle'" in text


def test_something_that_is_no_agent(folder: Path) -> None:
    (folder / "author_good.py").write_text(GOOD)
    assert "is a int, not a gateway.agents.Agent" in problem("author_good:number")


def test_an_agent_without_a_function(folder: Path) -> None:
    (folder / "author_good.py").write_text(GOOD)
    assert "@idle.run" in problem("author_good:idle")
