"""What a program holds: a session with an agent, its commands and what it tells."""

import asyncio
import random as random_module
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from msgspec import UNSET, UnsetType
from websockets.exceptions import InvalidURI

from gateway.client.errors import Disconnected, Refusal
from gateway.client.keeper import Keeper, SessionEvent, new_id
from gateway.client.link import dialer
from gateway.client.streams import Reader, Run
from protocol.codes import CloseCode, ErrorCode, Reconnect
from protocol.cursor import ClientCore, Command
from protocol.frames import (
    Answer,
    AnswerEntry,
    Cancel,
    Close,
    Content,
    Cursor,
    Error,
    JsonObject,
    Message,
    OnDetach,
    Opened,
    ToolResult,
    WhenBusy,
)

BUFFER_EVENTS = 256
"""Events that wait for a reader before the socket is read no further."""


class Session:
    """A session with an agent. Made by `connect` and `follow`."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    # --- what is known ----------------------------------------------------------------------------

    @property
    def session_id(self) -> str:
        """Its id; with it, `follow` comes back to it."""
        return self._keeper.core.session_id or ""

    @property
    def agent(self) -> str:
        """The name of its agent."""
        return self._keeper.core.agent or ""

    @property
    def opened(self) -> Opened:
        """What the server said when it was last attached: open runs, interrupts, limits."""
        if self._keeper.opened is None:
            raise RuntimeError("a session is handed out once it is attached")
        return self._keeper.opened

    @property
    def cursor(self) -> Cursor | None:
        """How far it has been received, what waits in buffers included."""
        return self._keeper.core.cursor

    @property
    def messages(self) -> list[JsonObject]:
        """The AG-UI messages so far, the open one included. Not to be changed.

        After `follow` with a cursor: what came since then.
        """
        return self._keeper.transcript.messages

    def events(self) -> Reader[SessionEvent]:
        """Everything that happens from now on: events of all runs, resets, connections.

        Called before the first `await` in the context, it begins where `messages` ends.

        It is bounded: who holds it must read it, or the socket is read no further. It ends when the
        session was left or closed, and raises `Disconnected` when it is out of reach.
        """
        return self._keeper.subscribe()

    # --- commands ---------------------------------------------------------------------------------
    # Each waits for its answer, over as many connections as it takes. A call that is cancelled may
    # or may not have happened. All raise `Refusal` and `Disconnected`.

    async def send(
        self,
        content: Content,
        *,
        when_busy: WhenBusy = "enqueue",
        tools: Sequence[JsonObject] | None = None,
        context: Sequence[JsonObject] | None = None,
        state: Any | UnsetType = UNSET,
        metadata: JsonObject | None = None,
        id: str | None = None,
    ) -> Run:
        """Sends a user message; returns the run that answers it.

        Args:
            content: text, or AG-UI content parts.
            when_busy: what to do while a run is open: `enqueue`, `reject`, or `interrupt` it.
            tools: AG-UI tools that this client runs; see `tool_result`.
            context: AG-UI context for the agent.
            state: the shared state, when this client sets it.
            metadata: anything for the agent.
            id: names the message. The same id again, as after `unavailable`, makes no second run.
        """
        return await self._start(
            Message(
                id=id or new_id(),
                content=content,
                when_busy=when_busy,
                tools=None if tools is None else list(tools),
                context=None if context is None else list(context),
                state=state,
                metadata=metadata,
            )
        )

    async def answer(self, payloads: Mapping[str, Any], *, cancelled: Collection[str] = ()) -> Run:
        """Answers the interrupts on which the last run ended; returns the run that goes on.

        Args:
            payloads: the answer by interrupt id.
            cancelled: ids of interrupts that are declined instead. All open ones must be named.
        """
        entries = [AnswerEntry(key, "resolved", payload) for key, payload in payloads.items()]
        entries += [AnswerEntry(key, "cancelled") for key in cancelled]
        return await self._start(Answer(id=new_id(), entries=entries))

    async def tool_result(
        self, tool_call_id: str, content: Content, error: str | None = None
    ) -> Run | None:
        """Gives the result of a tool that this client ran.

        Returns:
            The run that goes on with it, or None while other calls are pending.
        """
        ack, feed = await self._keeper.ask(
            ToolResult(id=new_id(), tool_call_id=tool_call_id, content=content, error=error)
        )
        return None if feed is None else Run(feed, ack.status)

    async def cancel(self, run_id: str | None = None) -> None:
        """Cancels a run, by default the open one. Safe when nothing runs."""
        # Named, where it is known: a bare one that is sent again after a lost answer could hit
        # the run after it.
        try:
            await self._keeper.ask(Cancel(id=new_id(), run_id=run_id or self._keeper.open_run))
        except Refusal as refusal:
            if run_id is not None or refusal.code != ErrorCode.RUN_NOT_FOUND:
                raise

    async def close(self) -> None:
        """Ends the *session*, for everyone. To leave it, leave the `async with`."""
        self._keeper.closing = True
        try:
            await self._keeper.ask(Close(id=new_id()))
        except Refusal:
            self._keeper.closing = False
            raise
        except Disconnected as gone:
            # The answer was lost, and on coming back there is no such session any more.
            if gone.code != CloseCode.DONE and gone.policy is not Reconnect.NEW_SESSION:
                raise

    async def _start(self, command: Command) -> Run:
        ack, feed = await self._keeper.ask(command)
        if feed is None:
            raise Refusal(Error(ErrorCode.INTERNAL, "the server named no run", retryable=False))
        return Run(feed, ack.status)


@asynccontextmanager
async def connect(
    url: str,
    *,
    agent: str,
    tenant: str | None = None,
    token: str | None = None,
    metadata: JsonObject | None = None,
    on_detach: OnDetach = "continue",
    headers: Mapping[str, str] | None = None,
    buffer: int = BUFFER_EVENTS,
    random: Callable[[], float] = random_module.random,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncGenerator[Session]:
    """A new session with an agent, attached while the context lasts.

    Leaving the context leaves the session as it is: `follow` comes back to it.

    Args:
        url: where the gateway listens, such as `ws://127.0.0.1:8000/ws`.
        agent: the agent's name.
        tenant: sent as `X-Tenant-ID`.
        token: who the user is, where the gateway wants to know.
        metadata: anything about the session, for the agent.
        on_detach: what becomes of its runs when its last client has been away for the server's
            resume grace: they `continue`, or are cancelled (`cancel`).
        headers: further headers of the handshake.
        buffer: how many events may wait for a reader.
        random: uniform in [0, 1), for the jitter of reconnects.
        sleep: waits before a reconnect.

    Raises:
        Disconnected: it cannot be opened: nothing answers at the address (this first time it is
            not tried again), or the gateway refuses for good.
        ValueError: the address or a header is none.
    """
    core = ClientCore(agent=agent, token=token, metadata=metadata, on_detach=on_detach)
    keeper = _keeper(core, url, tenant, headers, buffer, random, sleep)
    async with _attached(keeper) as session:
        yield session


@asynccontextmanager
async def follow(
    url: str,
    session_id: str,
    cursor: Cursor | None = None,
    *,
    tenant: str | None = None,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    buffer: int = BUFFER_EVENTS,
    random: Callable[[], float] = random_module.random,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncGenerator[Session]:
    """An existing session, from a stored cursor on or, without one, with its whole history.

    See `connect` for the rest.
    """
    core = ClientCore(session_id=session_id, cursor=cursor, token=token)
    keeper = _keeper(core, url, tenant, headers, buffer, random, sleep)
    async with _attached(keeper) as session:
        yield session


def _keeper(
    core: ClientCore,
    url: str,
    tenant: str | None,
    headers: Mapping[str, str] | None,
    buffer: int,
    random: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
) -> Keeper:
    sent = dict(headers or {})
    if tenant is not None:
        sent["X-Tenant-ID"] = tenant
    for name, value in sent.items():
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"the header {name} must be printable ASCII")
    dial = dialer(url, sent)
    try:
        dial()  # opens nothing yet, but looks at the address
    except (InvalidURI, ValueError) as error:
        raise ValueError(f"no WebSocket address: {error}") from None
    return Keeper(core, dial, buffer=buffer, random=random, sleep=sleep)


@asynccontextmanager
async def _attached(keeper: Keeper) -> AsyncGenerator[Session]:
    failure: Exception | None = None
    async with asyncio.TaskGroup() as group:
        running = group.create_task(keeper.run())
        try:
            await keeper.ready()
            yield Session(keeper)
        except Exception as error:  # noqa: BLE001 - raised below, not wrapped in a group
            failure = error
        finally:
            running.cancel()
    if failure is not None:
        raise failure
