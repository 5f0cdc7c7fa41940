"""A conversation in a terminal: `gateway chat`.

Answers go to standard output, everything about them to standard error, so that a pipe carries the
answers alone. What comes from the network never reaches the terminal as a control character.

On a terminal one may type ahead; Ctrl-C stops the running answer, once more or Ctrl-D leaves.
Without one, each line is sent when the answer to the line before is complete.

============  ==================================================================================
conversation  what is shown, what is typed, which tools are run
terminal      standard input, output and error
============  ==================================================================================
"""

import asyncio
import sys
from contextlib import AsyncExitStack, suppress
from typing import Any, cast

from gateway.chat.conversation import Conversation
from gateway.chat.terminal import Lines, Screen
from gateway.client import Disconnected, connect, follow

CONNECT_TIMEOUT_S = 15.0
_UNREACHABLE = 1006


def run_chat(
    url: str,
    *,
    agent: str,
    session_id: str | None = None,
    tenant: str | None = None,
    token: str | None = None,
    command: str = "gateway chat",
) -> int:
    """Runs `chat` to its end; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            cast(Any, stream).reconfigure(errors="replace")
    try:
        return asyncio.run(
            chat(
                url,
                agent=agent,
                session_id=session_id,
                tenant=tenant,
                token=token,
                command=command,
            )
        )
    except KeyboardInterrupt:
        return 1


async def chat(
    url: str,
    *,
    agent: str,
    session_id: str | None = None,
    tenant: str | None = None,
    token: str | None = None,
    command: str = "gateway chat",
) -> int:
    """Talks with an agent over standard input and output.

    Args:
        url: the gateway, such as `http://127.0.0.1:8000` or `ws://127.0.0.1:8000/ws`.
        agent: whom to talk with in a new session.
        session_id: an existing session instead.
        tenant: see `gateway.client.connect`.
        token: see `gateway.client.connect`.
        command: how the user started this, for the hint how to come back.

    Returns:
        0 when the user left, 1 when the session cannot be reached (any more).
    """
    screen = Screen()
    url = websocket_url(url)
    opening = (
        connect(url, agent=agent, tenant=tenant, token=token)
        if session_id is None
        else follow(url, session_id, tenant=tenant, token=token)
    )
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                session = await stack.enter_async_context(opening)
        except TimeoutError:
            screen.note(f"cannot open a session at {url}: no answer in {CONNECT_TIMEOUT_S:.0f} s")
            return 1
        except Disconnected as error:
            if error.code == _UNREACHABLE:
                screen.note(f"no gateway answers at {url}; is `make run` running?")
            else:
                screen.note(f"cannot open a session at {url}: {error}")
            return 1
        except ValueError as error:
            screen.note(f"cannot open a session at {url}: {error}")
            return 1
        code = await Conversation(session, screen, Lines(sys.stdin.fileno())).run()
        known = session.session_id
    screen.note(f"Come back with: {command} --session {known}")
    return code


def websocket_url(url: str) -> str:
    """The gateway's WebSocket address; its web address will do as well."""
    scheme, separator, rest = url.partition("://")
    if scheme not in ("http", "https"):
        return url
    place = rest.rstrip("/")
    if "/" not in place:
        place += "/ws"
    return f"{'ws' if scheme == 'http' else 'wss'}{separator}{place}"
