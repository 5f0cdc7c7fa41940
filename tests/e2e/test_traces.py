"""One trace: from a browser or an HTTP call over Redis to the worker, to what it asks, and back."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from support.collector import Collector, Received, collecting
from support.following import until
from support.socket import TERMINAL, socket
from support.stack import Process, Stack

PUBLISH, PROCESS = "publish agent:{agent}", "process agent:{agent}"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("traced")
    with Stack.running(
        folder,
        agent="support.agents:asking",
        OTLP_ENDPOINT=collector.endpoint,
        OTEL_BSP_SCHEDULE_DELAY="100",
    ) as running:
        yield running


def new_traceparent(*, sampled: bool = True) -> tuple[str, str, str]:
    """One, its trace id, and the id of the span that it names."""
    trace_id, span_id = uuid4().hex, uuid4().hex[:16]
    return f"00-{trace_id}-{span_id}-0{int(sampled)}", trace_id, span_id


async def complete(collector: Collector, trace_id: str, *names: str) -> list[Received]:
    """The trace, once spans of all those names have come. They come from two processes."""
    await until(lambda: set(names) <= {span.name for span in collector.of_trace(trace_id)})
    return collector.of_trace(trace_id)


def lines_of(process: Process, trace_id: str) -> list[dict[str, Any]]:
    """What it has logged in a trace; a thread writes it, some time later."""
    lines = process.output().split("\n")[:-1]
    return [json.loads(line) for line in lines if trace_id in line]


def ids(span: Received) -> tuple[str | None, ...]:
    return tuple(span.attributes.get(name) for name in ("tenant_id", "session_id", "task_id"))


async def test_from_the_browsers_traceparent_to_what_the_agent_asks_and_back(
    traced: Stack, collector: Collector
) -> None:
    connecting, trace_of_connection, opener = new_traceparent()
    traceparent, trace_id, browser = new_traceparent()
    async with socket(traced.ws_of(), additional_headers={"X-Tenant-ID": "acme"}) as client:
        await client.open(agent="asking", traceparent=connecting)
        url = f"{traced.url}/api/v1/sessions?limit=7"
        ack = await client.ask("message", content=f"get {url}", traceparent=traceparent)
        end = await client.until_event(*TERMINAL)
        assert end["event"]["type"] == "RUN_FINISHED"
        assert client.text() == "200"
    request = "GET /api/v1/sessions"
    spans = await complete(collector, trace_id, "run asking", PUBLISH, PROCESS, request)
    run = collector.one(trace_id, "run asking")
    publish = collector.one(trace_id, PUBLISH)
    process = collector.one(trace_id, PROCESS)
    invoked = collector.one(trace_id, "invoke_agent asking")
    asked = collector.one(trace_id, request)
    chain = [run, publish, process, invoked, asked]
    assert [span.parent_id for span in chain] == [browser, *(s.span_id for s in chain[:-1])]
    assert [span.kind for span in chain] == [
        *("INTERNAL", "PRODUCER", "CONSUMER", "INTERNAL", "SERVER")
    ]
    assert not any(span.failed for span in spans)
    of_run = ("acme", client.session_id, ack["run_id"])
    own = [span for span in spans if asked.span_id not in (span.span_id, span.parent_id)]
    assert {ids(span) for span in own} == {of_run}, "on every span"
    read = collector.one(trace_id, "database read")
    assert (read.parent_id, ids(read)) == (asked.span_id, ("default", None, None))

    # What Redis was asked is below what asked it; never a span for an event.
    below = {span.name: span.parent_id for span in spans if span.name.startswith("redis ")}
    assert below == {
        "redis accept": publish.span_id,
        "redis dispatch": publish.span_id,
        "redis finish": process.span_id,
    }
    assert len(spans) == len(chain) + 4
    accept = collector.one(trace_id, "redis accept")
    assert accept.kind == "CLIENT"
    assert accept.attributes["db.system.name"] == "redis"
    assert accept.attributes["db.operation.name"] == "accept"

    # The root lasts until the terminal event is back.
    assert run.attributes["nooble.run.status"] == "success"
    assert run.attributes["agent_id"] == "asking"
    assert run.end_ns > invoked.end_ns
    assert publish.attributes["messaging.system"] == "redis"
    assert publish.attributes["messaging.operation.type"] == "send"
    assert publish.attributes["messaging.destination.name"] == "agent:asking"
    assert process.attributes["messaging.operation.type"] == "process"
    assert process.attributes["messaging.message.id"] == ack["run_id"]
    assert {name: value for name, value in invoked.attributes.items() if name[:4] == "gen_"} == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "asking",
        "gen_ai.agent.description": "Asks a URL, continuing the trace: `get URL`; or fails",
        "gen_ai.conversation.id": client.session_id,
        "gen_ai.provider.name": "test",
        "gen_ai.request.model": "asking-1",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 7,
    }
    assert {span.resource["service.name"] for span in spans} == {"agent-orchestrator"}

    # An agent's request, by the document's names and by today's.
    assert asked.attributes["http.method"] == asked.attributes["http.request.method"] == "GET"
    assert asked.attributes["http.url"] == f"{traced.url}/api/v1/sessions", "no query strings"
    assert asked.attributes["http.tenant_id"] == asked.attributes["tenant_id"] == "default"
    assert asked.attributes["http.status_code"] == 200
    assert asked.attributes["http.response.status_code"] == 200
    assert asked.attributes["http.route"] == "/api/v1/sessions"

    # The connection is another trace: the run only points to it.
    await complete(collector, trace_of_connection, "websocket.connect")
    connected = collector.one(trace_of_connection, "websocket.connect")
    assert (connected.kind, connected.parent_id) == ("SERVER", opener)
    assert ids(connected) == ("acme", client.session_id, None)
    assert run.links == [(trace_of_connection, connected.span_id)]
    assert {"redis open", "redis snapshot"} <= set(collector.names(trace_of_connection))


async def test_a_message_over_http_is_one_trace_as_well(
    traced: Stack, collector: Collector
) -> None:
    headers = {"X-Tenant-ID": "acme", "X-Request-ID": "the-request"}
    async with httpx.AsyncClient(base_url=traced.url, headers=headers) as http:
        made = (await http.post("/api/v1/sessions", json={"agent_id": "asking"})).json()
        where = f"/api/v1/sessions/{made['session_id']}/messages"
        traceparent, trace_id, caller = new_traceparent()
        answer = await http.post(
            where, json={"content": "hi"}, headers={"traceparent": traceparent}
        )
        assert answer.status_code == 202
    request, process = "POST /api/v1/sessions/{session_id}/messages", PROCESS
    spans = await complete(collector, trace_id, request, "run asking", PUBLISH, process)
    asked, run = collector.one(trace_id, request), collector.one(trace_id, "run asking")
    assert (asked.kind, asked.parent_id) == ("SERVER", caller)
    assert run.parent_id == asked.span_id
    assert run.links == []
    assert collector.one(trace_id, process).parent_id == collector.one(trace_id, PUBLISH).span_id
    assert ids(asked) == ("acme", made["session_id"], answer.json()["run_id"])
    assert asked.attributes["http.tenant_id"] == "acme"
    assert asked.attributes["http.status_code"] == 202
    assert not any(span.failed for span in spans)


async def test_a_failure_is_seen_on_every_level_and_tells_no_text(
    traced: Stack, collector: Collector
) -> None:
    traceparent, trace_id, _ = new_traceparent()
    async with socket(traced.ws_of()) as client:
        await client.open(agent="asking")
        await client.ask("message", content="fail hunter2", traceparent=traceparent)
        await client.until_event("RUN_ERROR")
    spans = await complete(collector, trace_id, "run asking", PUBLISH, PROCESS)
    errors = {s.name: s.attributes["error.type"] for s in spans if s.failed}
    assert errors == {
        "run asking": "internal",
        PROCESS: "internal",
        "invoke_agent asking": "RuntimeError",
    }
    assert collector.one(trace_id, "run asking").attributes["nooble.run.status"] == "error"
    assert "hunter2" not in repr(spans)

    # The worker's log line stands in that very span.
    invoked = collector.one(trace_id, "invoke_agent asking")
    await until(lambda: lines_of(traced.workers[0], trace_id))
    [line] = lines_of(traced.workers[0], trace_id)
    assert (line["message"], line["span_id"]) == ("the agent failed", invoked.span_id)


async def test_what_is_refused_or_repeated_is_over_at_once(
    traced: Stack, collector: Collector
) -> None:
    traceparent, trace_id, _ = new_traceparent()
    async with socket(traced.ws_of()) as client:
        await client.open(agent="asking")
        await client.ask("message", id="m", content="hi")
        await client.until_event(*TERMINAL)
        answer = await client.ask("message", id="m", content="another", traceparent=traceparent)
        assert answer["code"] == "id_conflict"
    await complete(collector, trace_id, "run asking", PUBLISH, "redis accept")
    refused = collector.one(trace_id, "run asking")
    assert refused.attributes["error.type"] == "id_conflict"
    assert refused.attributes["nooble.run.status"] == "refused"
    assert not refused.attributes["task_id"], "there is no such run"
    assert not collector.one(trace_id, "redis accept").failed, "Redis did answer"

    traceparent, trace_id, _ = new_traceparent()
    async with socket(traced.ws_of()) as client:
        await client.open(agent="asking")
        first = await client.ask("message", id="m", content="hi")
        await client.ask("message", id="m", content="hi", traceparent=traceparent)
    await complete(collector, trace_id, "run asking", PUBLISH)
    repeated = collector.one(trace_id, "run asking")
    assert repeated.attributes["nooble.run.status"] == "duplicate"
    assert ids(repeated)[2] == ids(collector.one(trace_id, PUBLISH))[2] == first["run_id"]

    traceparent, trace_id, _ = new_traceparent()
    async with socket(traced.ws_of()) as client:
        await client.send("open", session_id=str(uuid4()), traceparent=traceparent)
        assert await client.closed() == 4404
    await complete(collector, trace_id, "websocket.connect", "database read")
    connected = collector.one(trace_id, "websocket.connect")
    assert connected.attributes["error.type"] == "session_not_found"
    read = collector.one(trace_id, "database read")
    assert (read.kind, read.parent_id) == ("CLIENT", connected.span_id)

    traceparent, trace_id, _ = new_traceparent()
    async with httpx.AsyncClient(base_url=traced.url) as http:
        await http.request("PROPFIND", "/nowhere", headers={"traceparent": traceparent})
        await http.get("/", headers={"traceparent": traceparent, "Host": "elsewhere"})
    await complete(collector, trace_id, "HTTP", "GET")
    assert collector.one(trace_id, "HTTP").attributes["http.status_code"] in (404, 405)
    assert collector.one(trace_id, "GET").attributes["http.status_code"] == 403


async def test_what_the_caller_does_not_sample_leaves_no_span(
    traced: Stack, collector: Collector
) -> None:
    traceparent, unsampled, _ = new_traceparent(sampled=False)
    later, sampled, _ = new_traceparent()
    async with socket(traced.ws_of()) as client:
        await client.open(agent="asking", traceparent=traceparent)
        url = f"get {traced.url}/health/liveness"
        await client.ask("message", content=url, traceparent=traceparent)
        await client.until_event(*TERMINAL)
        await client.ask("message", content=url, traceparent=later)
        await client.until_event(*TERMINAL)
    # Each process sends in order, so what was before has come.
    await complete(collector, sampled, "run asking", PROCESS, "GET /health/liveness")
    assert collector.of_trace(unsampled) == []
