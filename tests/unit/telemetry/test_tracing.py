"""Traces cost nothing where nobody wants them, and where nobody takes them nothing but spans."""

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.collector import collecting
from support.following import until

import gateway
from gateway.session.context import current_ids, log_context
from gateway.session.errors import CannotStart, Refused, Rejected, Unavailable
from gateway.session.model import SessionKey
from gateway.session.tracing import UNTRACED, valid_traceparent
from gateway.telemetry import spans
from gateway.telemetry.logs import configure_logging
from gateway.telemetry.spans import KnownIds, Spans, Told
from gateway.telemetry.tracing import open_tracer
from protocol.codes import ErrorCode

FAILURE, SUCCESS = SpanExportResult.FAILURE, SpanExportResult.SUCCESS
KEY = SessionKey("acme", "s-1")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BUSY = """
import asyncio, json, os, sys, time
from contextlib import ExitStack
from gateway.session.model import SessionKey
from gateway.telemetry.logs import configure_logging
from gateway.telemetry.tracing import open_tracer

async def main():
    with ExitStack() as stack:
        tracers = [stack.enter_context(open_tracer(each, version="1")) for each in sys.argv[1:]]
        for number in range(15):
            began = time.monotonic()
            for tracer in tracers * 6:
                with tracer.accepting(
                    SessionKey("t", "s"), "a", f"r{number}", traceparent="", connection=""
                ):
                    pass
            await asyncio.sleep(0.001)
            if time.monotonic() - began > 5:
                os._exit(3)
        print("done", flush=True)
        sys.stdin.readline()
        leaving = time.monotonic()
    print(time.monotonic() - leaving, flush=True)

logs = configure_logging(level="INFO", style="json", stream=sys.stderr)
asyncio.run(main())
logs.close()
"""


def run_script(script: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    root = str(Path(gateway.__path__[0]).parent)
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": root, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exported: InMemorySpanExporter) -> Spans:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(KnownIds())
    provider.add_span_processor(SimpleSpanProcessor(exported))
    return Spans(provider.get_tracer("test"))


def accepting(tracer: Any, run_id: str = "r-1", traceparent: str = PARENT) -> Any:
    return tracer.accepting(KEY, "demo", run_id, traceparent=traceparent, connection="")


def test_without_an_endpoint_neither_sdk_nor_exporter_is_loaded() -> None:
    script = """
import sys
import gateway.app, gateway.server
from gateway.telemetry.tracing import open_tracer
with open_tracer(None, version="1") as tracer:
    wanted = "grpc", "opentelemetry.exporter", "opentelemetry.sdk.trace"
    print([name for name in sys.modules if name.startswith(wanted)])
"""
    process = run_script(script)
    assert process.communicate(timeout=60) == ("[]\n", "")


def test_what_is_not_traced_passes_a_traceparent_on() -> None:
    with accepting(UNTRACED) as span:
        span.tell(x=1)
        span.fail("internal")
        span.accepted()
    assert span.traceparent == PARENT
    assert UNTRACED.calling("redis", "open").traceparent == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "anything",
        "evil\r\nX-Admin: 1",
        PARENT + "\n",
        PARENT + "\r\nX-Admin: 1",
        PARENT + "-more",
        " " + PARENT,
        PARENT.upper(),
        PARENT[:-1],
        "ff" + PARENT[2:],
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        PARENT.replace("0", "\u0660"),
    ],
)
def test_a_malformed_traceparent_is_none(text: str) -> None:
    """It would be a header of what the agent asks: of other services, in the agent's name."""
    assert valid_traceparent(text) == ""


def test_of_a_later_versions_traceparent_only_what_is_known_passes() -> None:
    assert valid_traceparent(PARENT) == PARENT
    assert valid_traceparent("01" + PARENT[2:]) == PARENT
    assert valid_traceparent("cc" + PARENT[2:] + "-x\r\ny") == PARENT


def test_without_the_extra_the_start_fails_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with (
        pytest.raises(CannotStart, match=r"^OTLP_ENDPOINT: .*'nooble-gateway\[otlp\]'$"),
        open_tracer("127.0.0.1:4317", version="1"),
    ):
        pass


@contextmanager
def silent() -> Iterator[str]:
    """Takes connections, and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def test_an_ill_collector_delays_nothing() -> None:
    """One takes connections and is silent, one never answers, one refuses: more spans than may wait
    in the queue cost neither the loop nor the exit. On the path each would cost ten seconds.
    """
    with silent() as endpoint, collecting() as hangs, collecting() as refuses:
        hangs.hanging = refuses.refusing = True
        endpoints = endpoint, hangs.endpoint, refuses.endpoint
        process = run_script(
            BUSY,
            *endpoints,
            OTEL_BSP_SCHEDULE_DELAY="50",
            OTEL_BSP_MAX_QUEUE_SIZE="64",
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="16",
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        await until(lambda: hangs.calls and refuses.calls)
        out, err = process.communicate("go\n", timeout=60)
    assert process.returncode == 0
    assert float(out) < len(endpoints) * 2 + 5, "two seconds each, on a busy machine"
    messages = [json.loads(line)["message"] for line in err.splitlines()]
    told = "the collector takes no traces; they are lost until it does"
    assert messages.count(told) <= len(endpoints)  # once the exporter has given up, in ten seconds
    assert {message.partition(",")[0] for message in messages} <= {
        told,
        "Queue full",
        "Overriding of current TracerProvider is not allowed",  # there are three only here
    }


def test_that_a_collector_is_away_is_one_line_and_that_it_is_back_another() -> None:
    class Moody(InMemorySpanExporter):
        results: ClassVar = [FAILURE, FAILURE, SUCCESS, SUCCESS]

        def export(self, spans: Any) -> SpanExportResult:
            return self.results.pop(0)

    stream = io.StringIO()
    logs = configure_logging(level="INFO", style="json", stream=stream)
    told = Told(Moody(), "collector:4317")
    for _ in range(4):
        told.export([])
    logs.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["level"], line["message"]) for line in lines] == [
        ("WARNING", "the collector takes no traces; they are lost until it does"),
        ("INFO", "the collector takes traces again"),
    ]
    assert lines[0]["context"] == {"OTLP_ENDPOINT": "collector:4317"}


def test_the_standard_sampler_variables_hold_and_the_exit_sends_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    with collecting() as collector:
        with open_tracer(collector.endpoint, version="1.2.3") as tracer:
            with accepting(tracer, traceparent="") as unsampled:
                unsampled.accepted()
            with accepting(tracer) as sampled:
                sampled.accepted()
        assert not int(unsampled.traceparent[-2:], 16) & 1
        assert {span.trace_id for span in collector.spans} == {PARENT[3:35]}
        assert len(collector.spans) == 2
        resource = collector.spans[0].resource
    assert resource["service.name"] == "agent-orchestrator"
    assert resource["service.version"] == "1.2.3"
    assert resource["deployment.environment.name"] == "test"


# --- the root of a run ----------------------------------------------------------------------------


def names(exported: InMemorySpanExporter) -> list[str]:
    return [span.name for span in exported.get_finished_spans()]


def test_a_runs_span_lasts_until_its_terminal_event(
    tracer: Spans, exported: InMemorySpanExporter
) -> None:
    with accepting(tracer) as span:
        span.accepted()
    assert names(exported) == ["publish agent:{agent}"]
    tracer.run_ended("another", "F", "-")
    tracer.run_ended("r-1", "C", "-")
    tracer.run_ended("r-1", "C", "-")
    assert names(exported)[1:] == ["run demo"]
    run = exported.get_finished_spans()[1]
    assert run.attributes is not None
    assert run.attributes["nooble.run.status"] == "cancelled"
    assert run.status.is_unset


def test_an_end_that_passes_before_the_acceptance_is_answered_is_its_end(
    tracer: Spans, exported: InMemorySpanExporter
) -> None:
    with accepting(tracer) as span:
        tracer.run_ended("r-1", "X", "timeout")
        span.accepted()
    tracer.close()
    assert sorted(names(exported)) == ["publish agent:{agent}", "run demo"]
    [run] = [span for span in exported.get_finished_spans() if span.name == "run demo"]
    assert run.attributes is not None
    assert run.attributes["error.type"] == "timeout"


def test_a_lost_run_ends_and_says_so(tracer: Spans, exported: InMemorySpanExporter) -> None:
    with accepting(tracer) as span:
        span.accepted()
    tracer.runs_lost(["another", "r-1"])
    tracer.runs_lost(["r-1"])
    tracer.close()
    assert names(exported)[1:] == ["run demo"]
    assert (exported.get_finished_spans()[1].attributes or {})["nooble.run.status"] == "lost"


def test_a_duplicate_is_of_the_run_that_is_known_by_it(
    tracer: Spans, exported: InMemorySpanExporter
) -> None:
    """No span that is left of it names a run that there never was."""
    with tracer.connecting(PARENT), accepting(tracer, "r-2") as span:
        span.made_none("duplicate", "r-1")
    spans = exported.get_finished_spans()
    assert [(span.attributes or {})["task_id"] for span in spans] == ["r-1"] * 3
    publish, run, _ = (span.attributes or {} for span in spans)
    assert publish["messaging.message.id"] == "r-1"
    assert run["nooble.run.status"] == "duplicate"
    tracer.close()
    assert len(names(exported)) == 3


NOT_MADE = {
    "busy": (Refused(ErrorCode.BUSY, "a run is open"), "", "refused"),
    "full": (Rejected("the journal is full"), "", "refused"),
    "no answer": (Unavailable(), "r-1", "unknown"),  # it may have made its run all the same
    "fault": (ValueError(), "r-1", "unknown"),
}


@pytest.mark.parametrize("kind", NOT_MADE)
def test_what_is_refused_is_over_at_once_and_names_no_run(
    tracer: Spans, exported: InMemorySpanExporter, kind: str
) -> None:
    """Or a trace would show a task that nobody finds anywhere."""
    error, task_id, status = NOT_MADE[kind]
    with suppress(type(error)), tracer.connecting(PARENT), accepting(tracer):
        raise error
    publish, run, _caller = spans = exported.get_finished_spans()
    assert [span.name for span in spans] == [
        *("publish agent:{agent}", "run demo", "websocket.connect")
    ]
    assert {(span.attributes or {})["task_id"] for span in spans} == {task_id}
    assert (publish.attributes or {})["messaging.message.id"] == task_id
    assert (run.attributes or {})["nooble.run.status"] == status
    code = error.code if isinstance(error, Refused) else "ValueError"
    assert {(span.attributes or {})["error.type"] for span in spans} == {code}
    tracer.close()
    assert len(names(exported)) == 3


def test_an_end_that_passes_before_redis_fails_to_answer_is_its_end(
    tracer: Spans, exported: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    with suppress(Unavailable), accepting(tracer):
        tracer.run_ended("r-1", "F", "-")
        raise Unavailable
    run, publish = exported.get_finished_spans()
    assert ((run.attributes or {})["nooble.run.status"], run.status.is_unset) == ("success", True)
    assert (publish.attributes or {})["error.type"] == "unavailable"
    assert caplog.records == [], "nothing is said to a span that has ended"


def test_open_runs_are_bounded_and_those_of_a_node_that_leaves_say_so(
    tracer: Spans, exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "MOST_RUNS", 2)
    for number in range(3):
        with accepting(tracer, f"r-{number}") as span:
            span.accepted()
    tracer.close()
    ends = {
        (span.attributes or {})["task_id"]: (span.attributes or {})["nooble.run.status"]
        for span in exported.get_finished_spans()
        if span.name == "run demo"
    }
    assert ends == {"r-0": "unknown", "r-1": "left", "r-2": "left"}


@pytest.mark.parametrize("traceparent", ["", "00-xyz", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_malformed_traceparent_begins_a_trace(tracer: Spans, traceparent: str) -> None:
    with accepting(tracer, traceparent=traceparent) as span:
        assert int(span.traceparent[-2:], 16) & 1, "sampled"
        assert len(span.traceparent) == len(PARENT)


# --- below it -------------------------------------------------------------------------------------


def test_calls_are_spans_only_within_one_and_never_for_each_event(
    tracer: Spans, exported: InMemorySpanExporter
) -> None:
    with tracer.calling("redis", "open"):
        pass
    with (
        accepting(tracer),
        tracer.calling("redis", "append"),
        tracer.calling("redis", "renew"),
        pytest.raises(ZeroDivisionError),
        tracer.calling("database", "read"),
    ):
        _ = 1 / 0
    first, *rest = exported.get_finished_spans()
    assert (first.name, len(rest)) == ("database read", 2)
    assert first.attributes is not None
    assert first.attributes["error.type"] == "ZeroDivisionError"
    assert first.attributes["task_id"] == "r-1"
    assert not first.events, "an exception's text may be a user's"


def test_log_lines_stand_in_the_current_span_and_keep_what_became_known_in_it(
    tracer: Spans, exported: InMemorySpanExporter
) -> None:
    assert current_ids().trace_id is None
    inner = log_context(tenant_id="acme")
    with tracer.connecting(PARENT) as span:
        inner.__enter__()
        assert current_ids().trace_id == PARENT[3:35]
        assert current_ids().span_id == span.traceparent[36:52]
        span.tell(session_id="\ud800", task_id=None)
    assert current_ids().trace_id is current_ids().span_id is None
    assert current_ids().tenant_id == "acme"
    inner.__exit__(None, None, None)
    assert current_ids().tenant_id is None
    [connected] = exported.get_finished_spans()
    assert connected.attributes is not None
    assert connected.attributes["session_id"] == "?", "or it could not be sent"
