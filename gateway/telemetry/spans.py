"""Spans by OpenTelemetry: implements the tracers of `gateway.session.tracing`.

The current span is OpenTelemetry's own, so an agent's libraries that are instrumented join in.
Every span carries `tenant_id`, `session_id` and `task_id` (the run) as far as they are known: its
own, its parent's, or those of the running code. Attributes follow OpenTelemetry's semantic
conventions (HTTP, database, messaging, generative AI); `http.method` and its like are their former
names, which the platform uses. Neither a message nor an exception's text is ever one.
"""

import logging
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from types import TracebackType
from typing import Any, Self

from loguru import logger
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.session.context import current_ids, put_ids
from gateway.session.errors import Fenced, Refused, Rejected, Unavailable
from gateway.session.model import AgentInfo, Claim, RunRef, SessionKey
from gateway.session.tracing import NO_SPAN, Accepting, Fact, Span

IDS = ("tenant_id", "session_id", "task_id")

MOST_RUNS = 10_000
"""So many runs may be open here; of more, the oldest is let go of."""

_DESTINATION = "agent:{agent}"
_METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
)
_LONGEST = 256
_STATUS = "nooble.run.status"
_STATUSES = {"F": "success", "I": "interrupt", "C": "cancelled", "X": "error"}
_FREQUENT = frozenset({"append", "renew"})
"""Scripts that are called over and over while an agent speaks: never a span for a token."""

_propagator = TraceContextTextMapPropagator()


class KnownIds(SpanProcessor):
    """Gives each span the ids that its parent has, or the running code."""

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        """As the SDK calls it."""
        own: Mapping[str, Any] = span.attributes or {}
        parent = trace.get_current_span(parent_context)
        inherited = (parent.attributes if isinstance(parent, ReadableSpan) else None) or {}
        running = current_ids()
        for name in IDS:
            value = inherited.get(name) or getattr(running, name, None)
            if value and name not in own:
                span.set_attribute(name, value)


class Told(SpanExporter):
    """An exporter, with one log line when its collector goes, and one when it is back."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        """Takes the place of the exporter's own lines: one a try, for as long as it is away."""
        self._exporter = exporter
        self._log = logger.bind(OTLP_ENDPOINT=endpoint)
        self._well = True
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """As the SDK calls it, in a thread of its own."""
        result = self._exporter.export(spans)
        well = result is SpanExportResult.SUCCESS
        if self._well and not well:
            self._log.warning("the collector takes no traces; they are lost until it does")
        elif well and not self._well:
            self._log.info("the collector takes traces again")
        self._well = well
        return result

    def shutdown(self) -> None:
        """As the SDK calls it."""
        self._exporter.shutdown()


class Spans:
    """Implements `Tracer` and `AgentTracer` on a tracer of OpenTelemetry's."""

    def __init__(self, tracer: trace.Tracer) -> None:
        """`tracer` is of a provider that has `KnownIds`."""
        self._tracer = tracer
        self._runs: dict[str, trace.Span] = {}

    def calling(self, service: str, operation: str) -> Span:
        """A call of a dependency."""
        if operation in _FREQUENT or not trace.get_current_span().is_recording():
            return NO_SPAN
        attributes = {"db.system.name": service, "db.operation.name": operation}
        return _Current(
            self._tracer.start_span(
                f"{service} {operation}", kind=SpanKind.CLIENT, attributes=attributes
            )
        )

    def request(self, scope: MutableMapping[str, Any]) -> Span:
        """An HTTP request."""
        return _Request(self._tracer, scope)

    def connecting(self, traceparent: str) -> Span:
        """A client opens or joins a session."""
        return _Current(
            self._tracer.start_span("websocket.connect", _within(traceparent), kind=SpanKind.SERVER)
        )

    def accepting(
        self, key: SessionKey, agent: str, run_id: str, *, traceparent: str, connection: str
    ) -> Accepting:
        """The orchestration of one run begins."""
        current = trace.get_current_span()
        within = None if current.get_span_context().is_valid else _within(traceparent)
        came_over = trace.get_current_span(_within(connection)).get_span_context()
        ids = _ids(RunRef(*key, run_id))
        current.set_attributes(ids)
        run = self._tracer.start_span(
            f"run {agent}",
            within,
            attributes={**ids, "agent_id": agent},
            links=[Link(came_over)] if came_over.is_valid else None,
        )
        publish = self._tracer.start_span(
            f"publish {_DESTINATION}",
            trace.set_span_in_context(run),
            kind=SpanKind.PRODUCER,
            attributes=_messaging("publish", "send", agent, run_id),
        )
        if run.is_recording():
            self._runs[run_id] = run  # its end may pass before the acceptance is answered
            if len(self._runs) > MOST_RUNS:
                self._end(next(iter(self._runs)), "unknown")
        return _Accepting(current, run, publish, lambda: self._runs.pop(run_id, None))

    def run_ended(self, run_id: str, kind: str, code: str) -> None:
        """A run's terminal event passed."""
        if run_id in self._runs:
            self._end(run_id, _STATUSES[kind], code if kind == "X" else "")

    def runs_lost(self, run_ids: Iterable[str]) -> None:
        """Their terminal events will not pass here."""
        for run_id in run_ids:
            if run_id in self._runs:
                self._end(run_id, "lost")

    def tell(self, **facts: Fact | None) -> None:
        """Of the current span."""
        _tell(trace.get_current_span(), facts)

    def processing(self, claim: Claim) -> Span:
        """A run in the hands of this worker."""
        attributes = {
            **_ids(claim.ref),
            **_messaging("process", "process", claim.agent, claim.ref.run_id),
            "nooble.run.attempt": claim.attempt,
            "nooble.run.task_type": claim.task_type,
        }
        return _Current(
            self._tracer.start_span(
                f"process {_DESTINATION}",
                _within(claim.traceparent),
                kind=SpanKind.CONSUMER,
                attributes=attributes,
            )
        )

    def invoking(self, agent: AgentInfo, claim: Claim) -> Span:
        """The call of the agent's function."""
        attributes = {
            **_ids(claim.ref),
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": agent.name,
            "gen_ai.agent.description": agent.description,
            "gen_ai.conversation.id": claim.ref.session_id,
        }
        return _Current(
            self._tracer.start_span(f"invoke_agent {agent.name}", attributes=attributes)
        )

    def close(self) -> None:
        """This node leaves; runs that are open go on elsewhere."""
        for run_id in list(self._runs):
            self._end(run_id, "left")

    def _end(self, run_id: str, status: str, code: str = "") -> None:
        run = self._runs.pop(run_id)
        run.set_attribute(_STATUS, status)
        if code:
            _fail(run, code)
        run.end()


class _Current:
    """A span that is current, for logs as well, while its context is entered."""

    __slots__ = ("_before", "_span", "_token")

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, trace.set_span_in_context(self._span))
        return carrier.get("traceparent", "")

    def tell(self, **facts: Fact | None) -> None:
        _tell(self._span, facts)

    def fail(self, error_type: str) -> None:
        _fail(self._span, error_type)

    def __enter__(self) -> Self:
        self._token = attach(trace.set_span_in_context(self._span))
        known, context = current_ids(), self._span.get_span_context()
        self._before = known.trace_id, known.span_id
        put_ids(
            trace_id=trace.format_trace_id(context.trace_id),
            span_id=trace.format_span_id(context.span_id),
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        stack: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            self.fail(_type_of(error))
        trace_id, span_id = self._before
        put_ids(trace_id=trace_id, span_id=span_id)  # the other ids may be known only since
        detach(self._token)
        self._span.end()


class _Request(_Current):
    """An HTTP request; its route is known only when it has been found."""

    __slots__ = ("_method", "_scope")

    def __init__(self, tracer: trace.Tracer, scope: MutableMapping[str, Any]) -> None:
        self._scope = scope
        method: str = scope["method"]
        self._method = method if method in _METHODS else "HTTP"
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, path = headers.get(b"host", "")[:_LONGEST], scope["path"][:_LONGEST]
        super().__init__(
            tracer.start_span(
                self._method,
                _within(headers.get(b"traceparent", "")),
                kind=SpanKind.SERVER,
                attributes={
                    "http.method": method[:_LONGEST],
                    "http.request.method": method if method in _METHODS else "_OTHER",
                    "http.url": f"{scope['scheme']}://{host}{path}",  # a query may hold secrets
                    "http.tenant_id": "unknown",
                    "url.scheme": scope["scheme"],
                    "url.path": path,
                    "server.address": host,
                },
            )
        )

    def tell(self, **facts: Fact | None) -> None:
        status = facts.pop("status", None)
        super().tell(**facts)
        if status is not None:
            super().tell(**{"http.status_code": status, "http.response.status_code": status})
            if int(status) >= 500:
                self.fail(str(status))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        stack: TracebackType | None,
    ) -> None:
        route = getattr(self._scope.get("route"), "path", None)
        if route is not None:
            self._span.update_name(f"{self._method} {route}")
            self._span.set_attribute("http.route", route)
        parameters: dict[str, str] = self._scope.get("path_params") or {}
        for name, known in (("session_id", "session_id"), ("task_id", "run_id")):
            super().tell(**{name: parameters.get(known, "")[:_LONGEST] or None})
        who = self._scope.get("user")
        if who is not None:
            super().tell(**{"tenant_id": who.tenant, "http.tenant_id": who.tenant})
        super().__exit__(kind, error, stack)


class _Accepting(_Current):
    """The `publish` of a message, within the span of the run that it makes."""

    __slots__ = ("_accepted", "_caller", "_forget", "_run")

    def __init__(
        self, caller: trace.Span, run: trace.Span, publish: trace.Span, forget: Any
    ) -> None:
        super().__init__(publish)
        self._caller = caller
        self._run = run
        self._forget = forget
        self._accepted = False

    def accepted(self) -> None:
        self._accepted = True

    def made_none(self, status: str, run_id: str) -> None:
        self._run.set_attribute(_STATUS, status)
        self._span.set_attribute("messaging.message.id", run_id)
        for span in (self._caller, self._run, self._span):
            span.set_attribute("task_id", run_id)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        stack: TracebackType | None,
    ) -> None:
        goes_on = self._accepted or not self._run.is_recording()  # or its end has passed
        if not goes_on and _is_refusal(error):
            self.made_none("refused", "")
        elif not goes_on and error is not None:
            self._run.set_attribute(_STATUS, "unknown")
        super().__exit__(kind, error, stack)
        if goes_on:
            return
        self._forget()
        if isinstance(error, Exception):
            _fail(self._run, _type_of(error))
        self._run.end()


def _is_refusal(error: BaseException | None) -> bool:
    """True when it made no run for certain: what Redis did not answer may have happened."""
    if isinstance(error, Unavailable):
        return isinstance(error, Rejected)
    return isinstance(error, Refused)


def _within(traceparent: str) -> Context:
    """A context in which the span of that name is current; none is when there is no such name."""
    return _propagator.extract({"traceparent": traceparent}, Context())


def _ids(ref: RunRef) -> dict[str, str]:
    return {"tenant_id": ref.tenant, "session_id": ref.session_id, "task_id": ref.run_id}


def _messaging(operation: str, kind: str, agent: str, run_id: str) -> dict[str, str]:
    return {
        "messaging.system": "redis",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.name": f"agent:{agent}",
        "messaging.destination.template": _DESTINATION,
        "messaging.message.id": run_id,
        "agent_id": agent,
    }


def _tell(span: trace.Span, facts: Mapping[str, Fact | None]) -> None:
    for name, value in facts.items():
        if value is not None:
            # Half a character, which JSON can bring, would cost all spans that are sent with it.
            clean = value.encode(errors="replace").decode() if isinstance(value, str) else value
            span.set_attribute(name, clean)


def _fail(span: trace.Span, error_type: str) -> None:
    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR))


def _type_of(error: Exception) -> str:
    if isinstance(error, Refused):
        return error.code.value
    return "fenced" if isinstance(error, Fenced) else type(error).__qualname__
