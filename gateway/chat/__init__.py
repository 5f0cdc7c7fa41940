"""A conversation in a terminal: `gateway chat`.

Answers go to standard output, everything about them to standard error, so that a pipe carries the
answers alone. What comes from the network never reaches the terminal as a control character.

On a terminal one may type ahead; Ctrl-C stops the running answer, once more or Ctrl-D leaves.
Without one, each line is sent when the answer to the line before is complete.

============  ==================================================================================
conversation  what is shown, what is typed, which tools are run
earlier       the conversations before this one
terminal      standard input, output and error
============  ==================================================================================
"""

import asyncio
import sys
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import Any, cast

from gateway.chat.conversation import Conversation
from gateway.chat.earlier import Earlier, Unlisted
from gateway.chat.terminal import Lines, Screen
from gateway.client import Disconnected, Session, connect, follow
from protocol.codes import ErrorCode

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
    screen, lines = Screen(), None
    url = websocket_url(url)
    earlier = Earlier(url, tenant=tenant, token=token)
    wanted, before = session_id, None
    while True:
        opening = (
            connect(url, agent=agent, tenant=tenant, token=token)
            if wanted is None
            else follow(url, wanted, tenant=tenant, token=token)
        )
        async with AsyncExitStack() as stack:
            try:
                session = await _entered(stack, opening, url)
            except _NotOpened as problem:
                screen.note(str(problem))
                if before is None:
                    return 1
                wanted, before = before, None  # back to where the user came from
                continue
            lines = lines or Lines(sys.stdin.fileno())
            conversation = Conversation(session, screen, lines, earlier)
            code = await conversation.run()
            before, wanted = session.session_id, conversation.wanted
        if wanted is None:
            break
    screen.note(f"Come back with: {command} --session {before}")
    return code


class _NotOpened(Exception):
    """A session cannot be opened; the message is for a person."""


async def _entered(
    stack: AsyncExitStack, opening: AbstractAsyncContextManager[Session], url: str
) -> Session:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            return await stack.enter_async_context(opening)
    except TimeoutError:
        why = f"no answer in {CONNECT_TIMEOUT_S:.0f} s"
    except Disconnected as error:
        if error.code == _UNREACHABLE:
            raise _NotOpened(
                f"no gateway answers at {url}; is it running? --url names another"
            ) from None
        if error.error is not None and error.error.code == ErrorCode.AGENT_NOT_FOUND:
            raise _NotOpened(f"{error.error.message} at {url}; is its worker running?") from None
        why = str(error)
    except ValueError as error:
        why = str(error)
    raise _NotOpened(f"cannot open a session at {url}: {why}")


def list_conversations(url: str, *, tenant: str | None = None, token: str | None = None) -> int:
    """Prints the newest conversations, each with the id by which it is opened; the exit code."""
    screen = Screen()
    try:
        entries = asyncio.run(Earlier(websocket_url(url), tenant=tenant, token=token).entries())
    except Unlisted as problem:
        screen.note(f"gateway: {problem}")
        return 1
    for entry in entries:
        screen.say(f"{entry.session_id}  {entry}\n")
    if not entries:
        screen.note("no conversations yet")
    return 0


def websocket_url(url: str) -> str:
    """The gateway's WebSocket address; its web address will do as well."""
    scheme, separator, rest = url.partition("://")
    if scheme not in ("http", "https"):
        return url
    place = rest.rstrip("/")
    if "/" not in place:
        place += "/ws"
    return f"{'ws' if scheme == 'http' else 'wss'}{separator}{place}"
