"""An OpenTelemetry collector, as far as traces go: OTLP over gRPC, decoded and kept."""

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent
from opentelemetry.proto.trace.v1.trace_pb2 import Status

FAILED = Status.STATUS_CODE_ERROR


@dataclass(frozen=True)
class Received:
    """A span as it came."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    failed: bool
    status_message: str
    links: list[tuple[str, str]]
    begin_ns: int
    end_ns: int
    resource: dict[str, Any]


@dataclass
class Collector:
    """What was received; `refusing` answers UNAVAILABLE, `hanging` does not answer."""

    port: int = 0
    spans: list[Received] = field(default_factory=list)
    refusing: bool = False
    hanging: bool = False
    calls: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def of_trace(self, trace_id: str) -> list[Received]:
        return [span for span in self.spans if span.trace_id == trace_id]

    def one(self, trace_id: str, name: str) -> Received:
        """The only span of that name in the trace."""
        [found] = [span for span in self.of_trace(trace_id) if span.name == name]
        return found

    def names(self, trace_id: str) -> list[str]:
        return sorted(span.name for span in self.of_trace(trace_id))

    def Export(  # as gRPC calls it
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.calls += 1
        if self.hanging:
            self.released.wait(60)
        if self.refusing:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        for of_resource in request.resource_spans:
            resource = _values(of_resource.resource.attributes)
            for scope in of_resource.scope_spans:
                self.spans += [_received(span, resource) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free loopback port."""
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector
    finally:
        collector.released.set()
        server.stop(grace=None).wait()


def _received(span: Sent, resource: dict[str, Any]) -> Received:
    return Received(
        name=span.name,
        kind=Sent.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_values(span.attributes),
        failed=span.status.code == FAILED,
        status_message=span.status.message,
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        begin_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        resource=resource,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
