"""Traces as the flow sees them: one verb for each thing that takes time; how it is called and what
it says of itself, `gateway.telemetry` knows.

A span is current while its context is entered, and so the parent of what is begun within. Where it
leaves the process, in a record that crosses Redis or in a header, its `traceparent` (W3C Trace
Context) names it. Nothing is traced on the path of an event.
"""

import re
from collections.abc import Iterable, MutableMapping
from types import TracebackType
from typing import Any, Protocol, Self

from gateway.session.model import AgentInfo, Claim, SessionKey

Fact = str | int | float | bool

_TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?",
    re.DOTALL,
)


def valid_traceparent(text: str) -> str:
    """A `traceparent` that came from outside, in the form of W3C Trace Context's version 00.

    Empty when it has no such form. Whatever takes one from a client asks here, for it becomes a
    header of others' requests.
    """
    found = _TRACEPARENT.fullmatch(text)
    if found is None or (found[1] == "00" and found[3] is not None):
        return ""
    return f"00-{found[2]}"  # of a later version, as much as this one knows


class Span(Protocol):
    """Something that takes time. An exception that leaves it makes it a failure, and passes on."""

    @property
    def traceparent(self) -> str:
        """Its name for others; empty when there is none."""
        ...

    def tell(self, **facts: Fact | None) -> None:
        """What is known of it only now; None says nothing."""
        ...

    def fail(self, error_type: str) -> None:
        """It went wrong: an error code of the wire, or the name of an exception's class."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        stack: TracebackType | None,
    ) -> None: ...


class Accepting(Span, Protocol):
    """A message on its way into Redis. Its `traceparent` is what the run's record carries.

    With an exception it made no run, if it is a refusal; of what Redis did not answer nobody knows.
    """

    def accepted(self) -> None:
        """It has made its run, whose span goes on until `Tracer.run_ended`."""
        ...

    def made_none(self, status: str, run_id: str) -> None:
        """It has made no run; `run_id` is the one that is known by it, if any."""
        ...


class CallTracer(Protocol):
    """Traces what a dependency is asked."""

    def calling(self, service: str, operation: str) -> Span:
        """A call of `redis` or `database`; traced only within another span."""
        ...


class Tracer(CallTracer, Protocol):
    """Traces what a node does."""

    def request(self, scope: MutableMapping[str, Any]) -> Span:
        """An HTTP request, from its ASGI scope; what became of it is told."""
        ...

    def connecting(self, traceparent: str) -> Span:
        """A client opens or joins a session over its WebSocket; begun within `traceparent`."""
        ...

    def accepting(
        self, key: SessionKey, agent: str, run_id: str, *, traceparent: str, connection: str
    ) -> Accepting:
        """The orchestration of one run begins: within the current span, else within `traceparent`.

        `connection` is the `traceparent` of the connection that it came over, if any.
        """
        ...

    def run_ended(self, run_id: str, kind: str, code: str) -> None:
        """A run's terminal event passed; `kind` and `code` as in `entry`."""
        ...

    def runs_lost(self, run_ids: Iterable[str]) -> None:
        """Their terminal events will not pass here: Redis lost them, or what came before them."""
        ...

    def tell(self, **facts: Fact | None) -> None:
        """Of the current span."""
        ...


class AgentTracer(CallTracer, Protocol):
    """Traces what a worker does."""

    def processing(self, claim: Claim) -> Span:
        """A run in the hands of a worker, from its claim to its end, within the claim's trace."""
        ...

    def invoking(self, agent: AgentInfo, claim: Claim) -> Span:
        """The call of the agent's function."""
        ...


class ProcessTracer(Tracer, AgentTracer, Protocol):
    """Traces whatever the process does."""


class _NoSpan:
    """Nothing is traced: what came with a valid `traceparent` passes it on as it is."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str = "") -> None:
        self.traceparent = traceparent

    def tell(self, **facts: Fact | None) -> None: ...

    def fail(self, error_type: str) -> None: ...

    def accepted(self) -> None: ...

    def made_none(self, status: str, run_id: str) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        stack: TracebackType | None,
    ) -> None: ...


NO_SPAN = _NoSpan()


class _Untraced:
    """Implements `Tracer` and `AgentTracer` where no traces are wanted."""

    def calling(self, service: str, operation: str) -> Span:
        return NO_SPAN

    def request(self, scope: MutableMapping[str, Any]) -> Span:
        return NO_SPAN

    def connecting(self, traceparent: str) -> Span:
        return NO_SPAN

    def accepting(
        self, key: SessionKey, agent: str, run_id: str, *, traceparent: str, connection: str
    ) -> Accepting:
        return _NoSpan(traceparent)

    def run_ended(self, run_id: str, kind: str, code: str) -> None: ...

    def runs_lost(self, run_ids: Iterable[str]) -> None: ...

    def tell(self, **facts: Fact | None) -> None: ...

    def processing(self, claim: Claim) -> Span:
        return NO_SPAN

    def invoking(self, agent: AgentInfo, claim: Claim) -> Span:
        return _NoSpan(claim.traceparent)


UNTRACED = _Untraced()
"""For a process that traces nothing."""
