"""What an agent author sees: `Agent`, and the `Run` that each call of the agent is given.

A run ends when the agent's function returns. It ends with *questions* when `Run.interrupt` was
called, waiting for *client tools* when `Run.call_client_tool` was, else simply well. In both of the
former cases the agent is invoked anew, in a new run, once the answers are there (`Run.resume`,
`Run.tool_results`): nothing waits in a worker for a person.

Cancellation is asyncio's: a cancelled run's function gets `CancelledError` at its next `await`, and
may clean up in `finally` within the grace (5 s by default). What it said so far is kept.
"""

import asyncio
import inspect
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec

from gateway.agents.emitted import checked_event
from gateway.agents.patch import apply_patch
from gateway.agents.stream import EventStream
from gateway.session.model import AgentInfo, Claim
from protocol.codes import ErrorCode
from protocol.events import (
    Custom,
    Interrupt,
    ResumeEntry,
    RunAgentInput,
    StateDelta,
    StateSnapshot,
    TextMessageEnd,
    TextMessageStart,
    TokenUsage,
    ToolCallEnd,
    ToolCallResult,
    ToolCallStart,
)
from protocol.frames import AgentName

JsonObject = dict[str, Any]
AgentFunction = Callable[["Run"], Awaitable[None]]


class AgentError(Exception):
    """Raise it to end the run with a message and a code that the client may see.

    Any other exception is logged on the worker and reaches the client as `internal`, without text.
    """

    def __init__(self, message: str, code: str = ErrorCode.INTERNAL) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class Agent:
    """A named service that answers messages.

    Args:
        name: lower-case letters, digits, `-` and `_`; what clients ask for.
        description: for people, in the list of agents.
        restartable: whether a run that loses its worker in the middle is made anew. The lost run
            ends with `worker_lost` all the same; a new one answers the same message from the start,
            so whatever the agent did before is done again.
    """

    def __init__(self, name: str, *, description: str = "", restartable: bool = False) -> None:
        try:
            msgspec.convert(name, AgentName)
        except msgspec.ValidationError:
            raise ValueError(
                f"{name!r} is no agent name: 1 to 63 of a-z, 0-9, `-`, `_`, a letter or digit first"
            ) from None
        self.info = AgentInfo(name, description)
        self.restartable = restartable
        self._function: AgentFunction | None = None

    @property
    def name(self) -> str:
        """What clients ask for."""
        return self.info.name

    @property
    def ready(self) -> bool:
        """True once it has a function."""
        return self._function is not None

    def run(self, function: AgentFunction) -> AgentFunction:
        """Decorates the `async def` that answers one run."""
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"agent {self.name!r}: the function must be an `async def`")
        if self._function is not None:
            raise TypeError(f"agent {self.name!r} has a function already")
        self._function = function
        return function

    async def answer(self, run: "Run") -> None:
        """Calls the agent's function."""
        if self._function is None:
            raise TypeError(f"agent {self.name!r} has no function: decorate one with `@agent.run`")
        await self._function(run)


class Message:
    """A text message that is being streamed."""

    def __init__(self, stream: EventStream, message_id: str) -> None:
        self.id = message_id
        self._stream = stream
        self._open = True

    async def write(self, delta: str, tokens: int = 0) -> None:
        """Adds text. `tokens`: how many output tokens it is, when known.

        Waits while too much of the run waits for Redis.
        """
        if not self._open:
            raise RuntimeError("this message has ended")
        if delta or tokens:
            await self._stream.delta("TEXT_MESSAGE_CONTENT", self.id, delta, tokens)

    async def end(self) -> None:
        """Closes it; `async with run.message()` does this by itself."""
        if self._open:
            self._open = False
            await self._stream.put(TextMessageEnd(self.id))


class ToolCall:
    """A call of a tool that the agent runs itself."""

    def __init__(self, stream: EventStream, call_id: str) -> None:
        self.id = call_id
        self._stream = stream

    async def result(self, content: Any) -> None:
        """Tells what the tool returned: text as it is, anything else as JSON text."""
        text = content if isinstance(content, str) else msgspec.json.encode(content).decode()
        await self._stream.put(ToolCallResult(_new_id("msg"), self.id, text))


class Run:
    """One run, as its agent sees it.

    Attributes:
        session_id, run_id, tenant, user: whose run it is.
        attempt: 1, or more when earlier workers were lost: of this run, or of one that it restarts.
        metadata: of the session.
        messages: the conversation, this run's new messages last; AG-UI messages as dicts.
        tools: what the client offers to run; AG-UI tools.
        context: what the client tells about its surroundings; AG-UI context items.
        forwarded_props: what else the client sent along, or None.
        state: the shared state. Change it with `set_state` and `patch_state`, not in place.
        resume: the answers to the questions on which the last run ended; else empty.
        tool_results: the results of client tools for which the last run waited; else empty.
        cancelled: set when the run is to stop.
        deadline: when the run is ended by force, as a time of the event loop, so that
            `asyncio.timeout_at(run.deadline)` works.
        traceparent: names this call of the agent in traces (W3C Trace Context); empty when nothing
            is traced.
    """

    def __init__(self, claim: Claim, stream: EventStream) -> None:
        given = msgspec.json.decode(claim.run_input, type=RunAgentInput)
        self.tenant, self.session_id, self.run_id = claim.ref
        self.user = claim.user
        self.attempt = claim.attempt
        self.metadata: Mapping[str, Any] = claim.metadata
        self.messages: list[JsonObject] = [msgspec.json.decode(each) for each in claim.messages]
        self.tools: list[JsonObject] = given.tools or []
        self.context: list[JsonObject] = given.context or []
        props: Any = given.forwarded_props
        self.forwarded_props: Any = None if props is msgspec.UNSET else props
        self.resume: list[ResumeEntry] = given.resume or []
        self.tool_results = [each for each in given.messages if each.get("role") == "tool"]
        self.cancelled = asyncio.Event()
        self.traceparent = claim.traceparent
        loop = asyncio.get_running_loop()
        self.deadline = loop.time() + (claim.deadline_ms - claim.now_ms) / 1000
        stored = None if claim.state is None else msgspec.json.decode(claim.state)
        # A state that came with the message replaces the stored one.
        self._state_changed = given.state is not msgspec.UNSET
        self._state: Any = given.state if self._state_changed else stored
        self._stream = stream
        self._interrupts: list[Interrupt] = []
        self._usage: dict[tuple[str | None, str | None], TokenUsage] = {}
        self._own_calls: set[str] = set()
        self._client_calls = False

    @property
    def text(self) -> str:
        """The text of the newest user message; its text parts joined."""
        for message in reversed(self.messages):
            if message.get("role") == "user":
                return _text_of(message.get("content"))
        return ""

    @property
    def trace_headers(self) -> dict[str, str]:
        """Headers for requests that the agent makes, so that whom it asks continues the trace."""
        return {"traceparent": self.traceparent} if self.traceparent else {}

    @property
    def state(self) -> Any:
        """The shared state, a JSON value; None when there is none."""
        return self._state

    # --- saying something ------------------------------------------------------------------------

    @asynccontextmanager
    async def message(self) -> AsyncGenerator[Message]:
        """A text message, streamed: `async with run.message() as message`.

        Left by an exception, it stays open until the run ends and is then kept as incomplete.
        """
        message = Message(self._stream, _new_id("msg"))
        await self._stream.put(TextMessageStart(message.id))
        yield message
        await message.end()

    async def say(self, text: str, tokens: int = 0) -> None:
        """A whole text message at once."""
        async with self.message() as message:
            await message.write(text, tokens)

    async def tool_call(
        self, name: str, args: Mapping[str, Any] | str, *, parent_message_id: str | None = None
    ) -> ToolCall:
        """Shows a call of a tool that the agent runs itself; tell its `result` afterwards.

        `args` are an object, or its JSON text. Without a result, an empty one is told at the end.
        """
        call_id = await self._start_call(name, args, parent_message_id)
        self._own_calls.add(call_id)
        return ToolCall(self._stream, call_id)

    async def call_client_tool(
        self, name: str, args: Mapping[str, Any] | str, *, parent_message_id: str | None = None
    ) -> str:
        """Asks the client to run a tool; returns the call's id.

        Return from the agent's function afterwards: when every result is there the agent is invoked
        anew, with `tool_results`.
        """
        if self._interrupts:
            raise RuntimeError("a run ends with questions or with client tool calls, not with both")
        self._client_calls = True
        return await self._start_call(name, args, parent_message_id)

    async def _start_call(
        self, name: str, args: Mapping[str, Any] | str, parent_message_id: str | None
    ) -> str:
        call_id = _new_id("call")
        text = args if isinstance(args, str) else msgspec.json.encode(args).decode()
        await self._stream.put(ToolCallStart(call_id, name, parent_message_id))
        await self._stream.delta("TOOL_CALL_ARGS", call_id, text)
        await self._stream.put(ToolCallEnd(call_id))
        return call_id

    def interrupt(
        self,
        reason: str,
        *,
        message: str | None = None,
        response_schema: JsonObject | None = None,
        tool_call_id: str | None = None,
        metadata: JsonObject | None = None,
    ) -> str:
        """Asks a person; returns the interrupt's id. May be called for several questions.

        It only notes the question: the run ends with it when the agent's function returns, and the
        agent is invoked anew, with `resume`, when every question is answered.
        """
        if self._client_calls:
            raise RuntimeError("a run ends with questions or with client tool calls, not with both")
        asked = Interrupt(
            id=_new_id("int"),
            reason=reason,
            message=message,
            tool_call_id=tool_call_id,
            response_schema=response_schema,
            metadata=metadata,
        )
        self._interrupts.append(asked)
        return asked.id

    # --- state and the rest ----------------------------------------------------------------------

    async def set_state(self, value: Any) -> None:
        """Replaces the shared state by a JSON value."""
        await self._stream.put(StateSnapshot(value))
        self._set(value)

    async def patch_state(self, operations: Sequence[JsonObject]) -> None:
        """Changes the shared state by a JSON Patch (RFC 6902).

        Raises:
            PatchError: when it does not apply; nothing is changed or sent then.
        """
        changed = apply_patch(self._state, operations)
        await self._stream.put(StateDelta(list(operations)))
        self._set(changed)

    def _set(self, value: Any) -> None:
        self._state = value
        self._state_changed = True

    async def custom(self, name: str, value: Any) -> None:
        """An application's own event."""
        await self._stream.put(Custom(name, value))

    async def emit(self, event: Mapping[str, Any], tokens: int = 0) -> None:
        """Any AG-UI event, verbatim: reasoning, steps, activities, what a framework produces.

        Raises:
            ValueError: for what is no event, or one that only the gateway may send.
        """
        checked = checked_event(event)
        match checked["type"]:
            case "STATE_SNAPSHOT":
                self._set(checked["snapshot"])
            case "STATE_DELTA":
                self._set(apply_patch(self._state, checked["delta"]))
            case _:
                pass
        await self._stream.put(checked, tokens)

    def usage(
        self,
        *,
        provider: str | None = None,
        model: str | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        total_tokens: int | None = None,
        reasoning_tokens: int | None = None,
        cached_input_tokens: int | None = None,
        cache_write_input_tokens: int | None = None,
    ) -> None:
        """Reports what a model call cost; calls of one provider and model are added up.

        It goes out with the run's end. What is not reported stays absent: it is never zero.
        """
        counts = {
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "total_tokens": total_tokens,
            "reasoning_tokens": reasoning_tokens,
            "cached_input_tokens": cached_input_tokens,
            "cache_write_input_tokens": cache_write_input_tokens,
        }
        for name, count in counts.items():
            if count is not None and count < 0:
                raise ValueError(f"{name} cannot be below zero")
        before = self._usage.get((provider, model), TokenUsage())
        sums = {name: _sum(getattr(before, name), count) for name, count in counts.items()}
        self._usage[provider, model] = TokenUsage(provider=provider, model=model, **sums)

    # --- for the machinery -----------------------------------------------------------------------

    @property
    def interrupts(self) -> list[Interrupt]:
        """The questions asked so far."""
        return list(self._interrupts)

    @property
    def reported_usage(self) -> list[TokenUsage]:
        """What was reported so far."""
        return list(self._usage.values())

    @property
    def own_calls(self) -> frozenset[str]:
        """Ids of the tool calls that the agent runs itself."""
        return frozenset(self._own_calls)

    def new_state(self) -> bytes | None:
        """The state as JSON when it is another than at the run's start."""
        return msgspec.json.encode(self._state) if self._state_changed else None


def _new_id(kind: str) -> str:
    # 64 random bits: unique within a session; short, since it is repeated in every delta.
    return f"{kind}_{secrets.token_hex(8)}"


def _sum(before: int | None, count: int | None) -> int | None:
    return before if count is None else (before or 0) + count


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [cast("JsonObject", p) for p in cast("list[Any]", content) if isinstance(p, dict)]
    return "".join(str(part.get("text", "")) for part in parts if part.get("type") == "text")
