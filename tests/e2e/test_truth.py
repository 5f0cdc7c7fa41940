"""Guarantee 9: one conversation of every kind, and every series that it moved says what happened.

The client keeps books (`support.books`) of what it did and was told; `/metrics` must say the same,
series by series, and nothing else.
"""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.books import Books, Series, read, series
from support.stack import Stack
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

TENANT = {"X-Tenant-ID": "acme"}
RUN_TIMEOUT_S = 10

MOVED = (
    "websocket_",
    "sessions_",
    "session_",
    "messages_",
    "message_",
    "time_to_first_event_",
    "queue_wait_",
    "run_duration_",
    "tokens_",
    "auth_failures_",
    "rate_limited_",
    "http_",
    "service_call_",
    "task_processing_",
    "draining",
    "slow_consumers",
    "outbound_buffer_bytes",
    "redis_writes_lost_",
    "metric_label_overflow_",
)
"""What the flow moves, by the beginning of its name."""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack of its own, since every count on it is checked."""
    limits = {
        "GATEWAY_LIMIT_RUN_TIMEOUT_S": str(RUN_TIMEOUT_S),
        "GATEWAY_LIMIT_SESSIONS_CAPACITY": "7",
    }
    with Stack.running(tmp_path, **limits) as running:
        yield running


def flow(text: str) -> dict[Series, float]:
    """The series that the flow moves, but those of other parts, and of the scrapes themselves."""
    found: dict[Series, float] = {}
    for key, value in read(text).items():
        name, labels = key[0], dict(key[1])
        of_others = labels.get("service") in ("redis", "database") or (
            labels.get("task_type") == "archive"
        )
        if name.startswith(MOVED) and not of_others and labels.get("endpoint") != "/metrics":
            found[key] = value
    return found


async def test_every_series_says_what_happened(stack: Stack) -> None:
    books = Books("acme", "demo")
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=stack.url, headers=TENANT, timeout=30) as http:
        before = flow((await http.get("/metrics")).text)
        assert before[series("sessions_capacity")] == 7
        async with asyncio.TaskGroup() as group:
            group.create_task(timed_out(stack, books))
            await conversation(stack, books)
            await by_http(stack, books, http)
            await refused(stack, books)
        patient_until = time.monotonic() + 60
        while True:  # what follows a closed socket takes its time
            found = flow((await http.get("/metrics")).text)
            wrong = differences(books, before, found)
            if not wrong or time.monotonic() > patient_until:
                break
            await asyncio.sleep(0.1)
    assert wrong == {}
    assert_times(found, time.monotonic() - began)


def differences(
    books: Books, before: dict[Series, float], found: dict[Series, float]
) -> dict[Series, tuple[float, float]]:
    """What is there and should not be so, and what it should be."""
    moved = {
        key: value - before.get(key, 0.0)
        for key, value in found.items()
        if not key[0].endswith("_sum")
    }
    return {
        key: (moved.get(key, 0.0), books.series[key])
        for key in moved.keys() | books.series.keys()
        if moved.get(key, 0.0) != books.series[key]
    }


def assert_times(found: dict[Series, float], all_s: float) -> None:
    """The times are those of the conversation, as far as anybody can say from outside."""

    def total(name: str, **labels: str) -> float:
        return sum(
            value
            for (found_name, found_labels), value in found.items()
            if found_name == f"{name}_sum" and labels.items() <= dict(found_labels).items()
        )

    assert RUN_TIMEOUT_S <= total("run_duration_seconds", status="error") < 2 * all_s
    for name in ("task_processing_seconds", "service_call_seconds"):
        assert total(name) == pytest.approx(total("run_duration_seconds"))
    assert total("session_init_seconds") > 0
    assert total("time_to_first_event_seconds") > 0
    assert total("queue_wait_seconds") <= total("time_to_first_event_seconds")
    assert 0 < total("session_duration_seconds") < all_s
    assert total("message_processing_seconds", role="user") > 0


async def timed_out(stack: Stack, books: Books) -> None:
    """A run that takes too long: its tokens came with its words, there is no usage."""
    async with books.socket(stack.ws_of(), additional_headers=TENANT) as client:
        await client.came("created", agent="demo")
        events = await client.run("message", content="/slow 60")
        assert events[-1]["event"]["code"] == "timeout"
        books.note_agent("tokens_total", client.text().count(" "), type="output")
        books.note_tenant("sessions_active")


async def conversation(stack: Stack, books: Books) -> None:
    """Answer, cancel, question, tool, failure; a client that comes back; the end."""
    async with books.socket(stack.ws_of(), additional_headers=TENANT) as client:
        await client.came("created", agent="demo")
        [*_, end] = await client.run("message", content="/burst 50")
        assert end["event"]["usage"][0]["outputTokens"] == 50

        ack = await client.ask("message", content="/slow 60")
        while not client.text(ack["run_id"]):
            await client.receive()
        await client.ask("cancel")
        [*_, end] = await client.ran(ack["run_id"], "message")
        assert end["event"]["outcome"] == {"type": "cancelled"}

        [*_, end] = await client.run("message", content="/ask")
        [question] = end["event"]["outcome"]["interrupts"]
        entry = {"interrupt_id": question["id"], "status": "resolved", "payload": True}
        await client.run("answer", entries=[entry])

        [*_, end] = await client.run("message", content="/tool")
        [call_id] = end["event"]["outcome"]["pendingToolCallIds"]
        await client.run("tool_result", tool_call_id=call_id, content="nine")

        [*_, end] = await client.run("message", content="/fail")
        assert end["event"]["code"] == "internal"

        await say_no(client, books, call_id, entry)
        cursor, session_id = client.cursor, client.session_id

    for outcome, after in (("resumed", cursor), ("reset", {"epoch": "nope", "seq": 1})):
        async with books.socket(stack.ws_of(), additional_headers=TENANT) as client:
            await client.came(outcome, session_id=session_id, after=after)
    async with books.socket(stack.ws_of(), additional_headers=TENANT) as client:
        await client.came("snapshot", session_id=session_id)
        await client.ask("close")
        assert await client.closed() == 1000
        books.note("websocket_disconnects_total", code="1000", reason="session_closed")
        books.note_agent("sessions_completed_total", status="completed")
        books.note_agent("session_duration_seconds_count")


async def say_no(client: Any, books: Books, call_id: str, entry: dict[str, Any]) -> None:
    """Frames that are refused, in a session that goes on."""
    first = await client.run("message", id="m1", content="/burst 2")
    again = await client.ask("message", id="m1", content="/burst 2")
    assert (again["status"], again["run_id"]) == ("duplicate", first[0]["run_id"])
    assert (await client.ask("message", id="m1", content="other"))["code"] == "id_conflict"
    books.note_failure("user", "client", "id_conflict")
    assert (await client.ask("answer", entries=[entry]))["code"] == "interrupt_expired"
    books.note_failure("user", "client", "interrupt_expired")
    late = await client.ask("tool_result", tool_call_id=call_id, content="ten")
    assert late["code"] == "interrupt_expired"
    books.note_failure("tool", "client", "interrupt_expired")


async def by_http(stack: Stack, books: Books, http: httpx.AsyncClient) -> None:
    """A session that is made and spoken to by HTTP, and followed by a socket."""
    many, one = "/api/v1/sessions", "/api/v1/sessions/{session_id}"
    said = f"{one}/messages"
    made = books.note_http("POST", many, await http.post(many, json={"agent_id": "demo"}))
    books.note_agent("sessions_created_total")
    books.note_agent("session_init_seconds_count")
    books.note_tenant("sessions_active")
    session_id = made.json()["session_id"]
    path = f"{many}/{session_id}"
    async with books.socket(stack.ws_of(), additional_headers=TENANT) as client:
        await client.came("snapshot", session_id=session_id)
        key = {"Idempotency-Key": "k1"}
        for status in ("accepted", "duplicate"):
            answer = await http.post(f"{path}/messages", json={"content": "/burst 3"}, headers=key)
            assert books.note_http("POST", said, answer).json()["status"] == status
        await client.ran(answer.json()["run_id"], "message")
    answer = await http.post(f"{many}/unknown/messages", json={"content": "hello"})
    assert books.note_http("POST", said, answer).status_code == 404
    books.note_failure("user", "client", "session_not_found")
    books.note_http("GET", one, await http.get(path))
    books.note_http("HEAD", "/", await http.head("/"))
    books.note_http("GET", "/web/{path}", await http.get("/web/nooble.js"))
    assert books.note_http("GET", "unmatched", await http.get("/no/such")).status_code == 404
    answer = await http.request("PROPFIND", "/api/v1/agents")
    assert books.note_http("other", "/api/v1/agents", answer).status_code == 405
    answer = await http.get("/api/v1/agents", headers={"X-Tenant-ID": "Not a tenant"})
    assert books.note_http("GET", "/api/v1/agents", answer).status_code == 403
    books.note("auth_failures_total", reason="bad_tenant")


async def refused(stack: Stack, books: Books) -> None:
    """Connections that come to nothing, each in its way."""
    url = stack.ws_of()
    async with books.socket(url, additional_headers=TENANT) as client:
        assert (await client.ask("open", agent="nobody"))["code"] == "agent_not_found"
        assert await client.closed() == 4404
        books.note("websocket_disconnects_total", code="4404", reason="unknown_session")
        books.note_failure("system", "client", "agent_not_found")
    async with books.socket(url, additional_headers={"X-Tenant-ID": "Not a tenant"}) as client:
        assert (await client.ask("open", agent="demo"))["code"] == "forbidden"
        assert await client.closed() == 4403
        books.note("websocket_disconnects_total", code="4403", reason="forbidden")
        books.note("auth_failures_total", reason="bad_tenant")
        books.note_failure("system", "client", "forbidden", tenant="_none")
    async with books.socket(url) as client:
        await client.connection.send("not JSON")
        assert await client.closed() == 4400
        books.note("websocket_disconnects_total", code="4400", reason="bad_frame")
        books.note_failure("system", "client", "bad_frame", tenant="_none")
    async with books.socket(url, additional_headers=TENANT) as client:
        await client.came("created", agent="demo")
        books.note_tenant("sessions_active")
        for number in range(30):
            await client.send("ping", t=number)
        while client.pongs + client.refused["rate_limited"] < 30:
            await client.receive()
        assert client.refused["rate_limited"]
        for _ in range(client.refused["rate_limited"]):
            books.note("rate_limited_total", scope="connection")
            books.note_failure("system", "client", "rate_limited")
        client.connection.transport.abort()
        books.note("websocket_disconnects_total", code="1006", reason="lost")
        await client.closed()
    await refused_handshakes(stack, books)


async def refused_handshakes(stack: Stack, books: Books) -> None:
    """What never becomes a connection."""
    url = stack.ws_of()
    async with connect(url, subprotocols=["other.v9"]) as other:  # type: ignore[list-item]
        await other.wait_closed()
        assert other.close_code == 4426
    books.note("websocket_handshakes_total", result="unsupported_version")
    books.note("websocket_disconnects_total", code="4426", reason="unsupported_version")
    for address, options, result in (
        (url, {"origin": "https://elsewhere.example"}, "forbidden"),
        (f"{url}/nowhere", {}, "not_found"),
    ):
        with pytest.raises(InvalidStatus):
            async with connect(address, **options):  # type: ignore[arg-type]
                pass
        books.note("websocket_handshakes_total", result=result)
    host, _, port = stack.url.removeprefix("http://").partition(":")
    lines = b"GET /ws HTTP/1.1", b"Host: x", b"Connection: Upgrade", b"Upgrade: websocket"
    for request in (b"\r\n".join((*lines, b"", b"")), b"no request\r\n\r\n"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        assert b" 400 " in await reader.readline()
        writer.close()
    books.note("websocket_handshakes_total", result="bad_request")
    labels = {"method": "other", "endpoint": "unmatched"}
    books.note("http_requests_total", status="400", **labels)
    books.note("http_request_duration_seconds_count", **labels)
