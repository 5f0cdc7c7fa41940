"""The clients that people use, against real processes: the Python client and `gateway chat`."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.agents import expected
from support.stack import COUNTING, Stack

from gateway.client import connect


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Stack]:
    """A stack of its own, since its node is killed."""
    with Stack.running(tmp_path, agent=COUNTING) as running:
        yield running


async def test_the_python_client_loses_nothing_when_its_node_is_killed(counting: Stack) -> None:
    async with connect(counting.ws_of(), agent="counting") as session:
        run = await session.send("count 150 10")
        text, killed = "", False
        async for event in run:
            if event["type"] != "TEXT_MESSAGE_CONTENT":
                continue
            text += event["delta"]
            if not killed and len(text) > 60:
                killed = True
                counting.kill_node()
                counting.start_node()
        assert killed
        assert text == expected(150)
        answers = [m["content"] for m in session.messages if m["role"] == "assistant"]
        assert answers == [expected(150)]


def chat_of(
    stack: Stack, *options: str, typed: str = "", code: int = 0
) -> "subprocess.CompletedProcess[str]":
    chat = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "chat", "--url", stack.url, *options],
        input=typed,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert chat.returncode == code, chat.stderr
    return chat


def test_chat_holds_a_conversation(stack: Stack) -> None:
    chat = chat_of(stack, typed="hello there\n/tool\n/fail\n/help\n", code=1)
    assert "“hello there”" in chat.stdout
    assert "/burst 1000" in chat.stdout
    assert "Traceback" not in chat.stderr
    assert f"chat --url {stack.url} --session " in chat.stderr


def test_chat_lists_earlier_conversations_and_opens_them(stack: Stack) -> None:
    options = ("--tenant", "lister")
    session = chat_of(stack, *options, typed="what a day\n").stderr.split()[-1]
    deadline = time.monotonic() + 40
    while "what a day" not in (listed := chat_of(stack, *options, "--list").stdout):
        assert time.monotonic() < deadline, "it is never archived"
    [line] = listed.splitlines()
    assert line.split()[0] == session
    assert line.endswith("  demo  what a day")
    chat = chat_of(stack, *options, typed=f"hello\n/open {session}\n/sessions\n")
    assert "“hello”" in chat.stdout
    assert "> what a day" in chat.stdout, "the other one's history"
    assert "1* " in chat.stderr or "2* " in chat.stderr
    assert chat.stderr.split()[-1] == session
