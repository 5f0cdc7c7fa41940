"""One attempt at one run, from its claim to its ending."""

import asyncio
import math
from collections.abc import Iterable, Sequence
from contextvars import copy_context
from dataclasses import replace
from enum import Enum
from typing import Literal

import msgspec
from loguru import logger

from gateway.agents.backoff import persist
from gateway.agents.leash import Leash
from gateway.agents.sdk import Agent, AgentError, JsonObject, Run
from gateway.agents.stream import EventStream
from gateway.session.errors import Fenced, TooLarge, Unavailable
from gateway.session.model import Claim, Ending, RunRef
from gateway.session.ports import RunQueue
from gateway.session.tracing import UNTRACED, AgentTracer, Span
from protocol.codes import ErrorCode
from protocol.events import (
    CancelledOutcome,
    InterruptOutcome,
    Outcome,
    RunError,
    RunFinished,
    SuccessOutcome,
    TokenUsage,
    ToolCallResult,
    encode_event,
)

Following = tuple[RunRef, str] | None
"""The session's next run and its agent, to be dispatched."""


class _Stop(Enum):
    """Why a run stops before its agent is done."""

    CANCELLED = "cancelled"
    LOST = "lost"
    """Another claim holds the run, it is over, or may be: nothing more is sent."""
    HANDED_BACK = "handed back"
    WORKER_STOPS = "worker stops"
    TOO_LARGE = "too large"


class Execution:
    """Runs the agent on a claim and ends the run, whatever the agent does.

    While Redis does not answer, the run is held on to until its own deadline: leases are judged by
    Redis's clock, and not before Redis has been there for one. Whoever lost it meanwhile is told by
    the first answer.

    Attributes:
        failure: the code of the error that the run ended with, or why this worker left it.
    """

    def __init__(
        self,
        agent: Agent,
        claim: Claim,
        queue: RunQueue,
        *,
        window_s: float = 0.04,
        patience_s: float = 5.0,
        tracer: AgentTracer = UNTRACED,
    ) -> None:
        """`patience_s`: how long the agent may clean up when nothing waits for it any more."""
        self.ref = claim.ref
        self.claim_id = claim.claim_id
        self.failure = ""
        self._claim = claim
        self._tracer = tracer
        self._agent = agent
        self._queue = queue
        self._stream = EventStream(
            queue,
            claim.ref,
            claim.claim_id,
            until=self._until,
            on_broken=self._broke,
            window_s=window_s,
        )
        self._run = Run(claim, self._stream)
        self._leash: Leash | None = None
        self._patience_s = patience_s
        self._release: asyncio.TimerHandle | None = None
        self._context = copy_context()
        self._task: asyncio.Task[None] | None = None
        self._stop: _Stop | None = None
        self._abandoned = False
        self._error: tuple[str, str] | None = None
        if claim.cancelled:
            self.cancel()

    # --- from outside ---------------------------------------------------------------------------

    def cancel(self) -> None:
        """The client wants it to stop. Only the first call counts: cleaning up takes its time."""
        self._run.cancelled.set()
        if self._stop is None:
            self._halt(_Stop.CANCELLED)

    def fence(self) -> None:
        """The run is not ours any more: the agent is stopped, and nothing more is sent."""
        self._stream.mute()
        self._halt(_Stop.LOST)

    def hand_back(self) -> None:
        """Gives the run to another worker, if the agent has not said anything yet."""
        if not self._stream.begun and self._stop is None and not self._over:
            self._stream.mute()
            self._halt(_Stop.HANDED_BACK)

    def abandon(self) -> None:
        """The worker stops: hand the run back, or end it with what was said, if Redis answers."""
        self._abandoned = True
        self.hand_back()
        if self._stop is not _Stop.HANDED_BACK:
            self._halt(_Stop.WORKER_STOPS)

    @property
    def _over(self) -> bool:
        return self._task is not None and self._task.done()

    def _halt(self, why: _Stop) -> None:
        if why in (_Stop.LOST, _Stop.TOO_LARGE) or (self._stop is None and not self._over):
            self._stop = why
        if self._task is not None:
            self._task.cancel()
            # A cancelled agent has its grace: who ends that calls `fence`.
            if why is not _Stop.CANCELLED and self._release is None:
                loop = asyncio.get_running_loop()
                self._release = loop.call_later(
                    self._patience_s, self._let_go, context=self._context
                )

    def _let_go(self) -> None:
        """The agent does not stop: it would keep its slot, and the worker from stopping."""
        if self._task is not None and self._leash is not None and not self._over:
            logger.bind(agent_id=self._agent.name).error(
                "the agent ignores its cancellation; it was let go"
            )
            self._leash.release()
            self._task.cancel()

    def _broke(self, error: Exception) -> None:
        if isinstance(error, Unavailable):
            logger.warning("agent stopped: Redis did not answer")
        self._halt(_Stop.TOO_LARGE if isinstance(error, TooLarge) else _Stop.LOST)

    def _until(self) -> float:
        return -math.inf if self._stop is _Stop.LOST or self._abandoned else self._run.deadline

    # --- the run --------------------------------------------------------------------------------

    async def run(self) -> Following:
        """The agent's answer and the run's end. Returns the session's next run."""
        if self._stop is None:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._stream.run())
                self._task = group.create_task(self._answer())
                await asyncio.wait((self._task,))
                if self._release is not None:
                    self._release.cancel()
                self._stream.close()
            if self._stop is None and self._task.cancelled():
                # The agent raised CancelledError by itself, e.g. from a task of its own.
                self._error = ("the agent failed", ErrorCode.INTERNAL)
        try:
            return await self._end()
        except Fenced:
            self.failure = "fenced"
            logger.info("run left: another claim holds it, or it is over")
        except Unavailable:
            self.failure = ErrorCode.UNAVAILABLE
            logger.warning("run left: Redis did not answer")
        return None

    async def _answer(self) -> None:
        with self._tracer.invoking(self._agent.info, self._claim) as span:
            self._run.traceparent = span.traceparent
            try:
                await self._call_agent(span)
            finally:
                span.tell(**usage_facts(self._run.reported_usage))

    async def _call_agent(self, span: Span) -> None:
        self._leash = Leash(self._agent.answer(self._run))
        try:
            await self._leash
        except AgentError as error:
            logger.bind(code=error.code).warning("the agent ended the run with an error")
            self._error = (error.message, error.code)
            span.fail(error.code)
        except Exception as error:  # noqa: BLE001 (whatever an agent raises ends its run, nothing else)
            logger.bind(agent_id=self._agent.name).exception("the agent failed")
            self._error = ("the agent failed", ErrorCode.INTERNAL)
            span.fail(type(error).__qualname__)

    async def _end(self) -> Following:
        if self._stop is _Stop.HANDED_BACK:
            if await persist(lambda: self._queue.hand_back(self.ref, self.claim_id), self._until):
                return None
            # Not to be had by another: it was cancelled (or it is not ours, then `finish` says so).
            self._stop = _Stop.CANCELLED
        stream = self._stream
        cut_off = self._stop is not None or self._error is not None
        if cut_off:
            stream.transcript.mark_incomplete()
        try:
            for event in self._loose_ends(incomplete=cut_off):
                stream.add(event)
            await stream.flush()
        except TooLarge:
            stream.mute()
            stream.transcript.mark_incomplete()
            self._stop = _Stop.TOO_LARGE
        if self._stop is _Stop.LOST:
            raise Fenced
        ending = self._ending()
        self.failure = ending.code
        return await persist(
            lambda: self._queue.finish(self.ref, self.claim_id, stream.ordinal, ending), self._until
        )

    def _loose_ends(self, *, incomplete: bool) -> list[JsonObject]:
        """What closes all that the agent left open."""
        unfinished = self._stream.unfinished
        # A call that a question is about gets its result after the answer.
        asked = {interrupt.tool_call_id for interrupt in self._run.interrupts}
        missing = [
            call for call in unfinished.calls if call in self._run.own_calls and call not in asked
        ]
        results = [ToolCallResult(f"msg_{call}", call, "") for call in missing]
        return unfinished.closers(incomplete=incomplete) + [
            msgspec.to_builtins(result) for result in results
        ]

    def _ending(self) -> Ending:
        match self._stop:
            case None:
                return self._failure(*self._error) if self._error else self._success()
            case _Stop.CANCELLED:
                return self._finished("C", CancelledOutcome())
            case _Stop.TOO_LARGE:
                return self._failure("the run grew too large", ErrorCode.TOO_LARGE)
            case _:
                return self._failure("the agent's worker was stopped", ErrorCode.WORKER_LOST)

    def _success(self) -> Ending:
        if interrupts := self._run.interrupts:
            return self._finished("I", InterruptOutcome(interrupts))
        pending = list(self._stream.unfinished.calls)
        return self._finished("I" if pending else "F", SuccessOutcome(pending or None), pending)

    def _finished(
        self, kind: Literal["F", "I", "C"], outcome: Outcome, pending: Sequence[str] = ()
    ) -> Ending:
        event = RunFinished(
            self.ref.session_id,
            self.ref.run_id,
            outcome=outcome,
            usage=self._run.reported_usage or None,
        )
        asked = outcome.interrupts if isinstance(outcome, InterruptOutcome) else None
        return replace(
            self._base(kind, encode_event(event)),
            interrupts=msgspec.json.encode(asked) if asked else b"",
            pending_tools=list(pending),
        )

    def _failure(self, message: str, code: str) -> Ending:
        event = RunError(message, code=code, usage=self._run.reported_usage or None)
        return replace(self._base("X", encode_event(event)), code=code)

    def _base(self, kind: Literal["F", "I", "C", "X"], event: bytes) -> Ending:
        known = {message.get("id") for message in self._run.messages}
        said = self._stream.transcript.messages
        usage = self._run.reported_usage
        return Ending(
            kind=kind,
            event=event,
            messages=[msgspec.json.encode(each) for each in said if each["id"] not in known],
            output_tokens=_total(each.output_tokens for each in usage),
            input_tokens=_total(each.input_tokens for each in usage),
            state=self._run.new_state(),
        )


def usage_facts(usage: Sequence[TokenUsage]) -> dict[str, int | str | None]:
    """What was reported, by the names of OpenTelemetry; of several models, the sum alone."""
    one = usage[0] if len(usage) == 1 else TokenUsage()
    return {
        "gen_ai.provider.name": one.provider,
        "gen_ai.request.model": one.model,
        "gen_ai.usage.input_tokens": _total(each.input_tokens for each in usage),
        "gen_ai.usage.output_tokens": _total(each.output_tokens for each in usage),
    }


def _total(counts: Iterable[int | None]) -> int | None:
    """The sum of what was reported; None when nothing was."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
