"""Traces to an OpenTelemetry collector, over OTLP/gRPC, where there is one.

OpenTelemetry's own variables hold: `OTEL_TRACES_SAMPLER` and its argument, `OTEL_BSP_*`,
`OTEL_RESOURCE_ATTRIBUTES`, `OTEL_EXPORTER_OTLP_HEADERS` and so on. Spans wait in a bounded queue
and are sent by a thread: a collector that is away, slow or hangs costs spans, nothing else.
"""

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager

from gateway.session.errors import CannotStart
from gateway.session.tracing import UNTRACED, ProcessTracer
from gateway.telemetry.logs import SERVICE

_LAST_S = 1.5
"""So long the end of the process waits for the collector."""


@contextmanager
def open_tracer(endpoint: str | None, *, version: str) -> Generator[ProcessTracer]:
    """What traces this process; without an `endpoint` (`host:port` or a URL) nothing does.

    Raises:
        CannotStart: with one line for a person.
    """
    if endpoint is None:
        yield UNTRACED
        return
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it writes to standard error past our logs
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError:
        raise CannotStart(
            "OTLP_ENDPOINT: traces need their exporter: pip install 'nooble-gateway[otlp]'"
        ) from None
    from opentelemetry import trace
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from gateway.telemetry.spans import KnownIds, Spans, Told

    resource = Resource.create({"service.name": SERVICE, "service.version": version})
    provider = TracerProvider(
        resource=resource.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
    )
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
    provider.add_span_processor(KnownIds())
    provider.add_span_processor(BatchSpanProcessor(Told(exporter, endpoint)))
    trace.set_tracer_provider(provider)  # for instrumented libraries of agents
    spans = Spans(provider.get_tracer("gateway", version))
    try:
        yield spans
    finally:
        spans.close()
        # Its own bounds are half a minute. The thread is a daemon: it does not keep the process.
        last = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(_LAST_S)
