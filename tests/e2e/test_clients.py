"""The clients that people use, against real processes: the Python client and `gateway chat`."""

import subprocess
import sys
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


def test_chat_holds_a_conversation(stack: Stack) -> None:
    chat = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "chat", "--url", stack.url],
        input="hello there\n/tool\n/fail\n/help\n",
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert chat.returncode == 0, chat.stderr
    assert "“hello there”" in chat.stdout
    assert "/burst 1000" in chat.stdout
    assert "Traceback" not in chat.stderr
    assert f"chat --url {stack.url} --session " in chat.stderr
