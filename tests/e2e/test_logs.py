"""Every line of every process, whoever logs and whatever happens, has the document's ten keys."""

import json
import socket as sockets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import jsonschema
import pytest
from support.following import until
from support.server import RedisServer
from support.socket import TERMINAL, socket
from support.stack import Stack

EXAMPLE = {
    "timestamp": "2025-06-04T00:15:23.123Z",
    "level": "INFO",
    "service": "agent-orchestrator",
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "span_id": "b7ad6b7169203331",
    "tenant_id": "acme-corp",
    "session_id": "550e8400-e29b-41d4-a716-446655440000",
    "request_id": "cc7a93c1-074f-48b9-8ea7-56001d0bb453",
    "message": "Sesión inicializada correctamente",
    "context": {"agent_id": "customer-support-agent", "user_id": "user-123"},
}
"""Of the platform's document."""

FORMS: dict[str, dict[str, Any]] = {
    "timestamp": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"},
    "level": {"enum": ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]},
    "service": {"const": "agent-orchestrator"},
    "trace_id": {"type": ["string", "null"], "pattern": "^[0-9a-f]{32}$"},
    "span_id": {"type": ["string", "null"], "pattern": "^[0-9a-f]{16}$"},
    "tenant_id": {"type": ["string", "null"], "pattern": "^[a-z0-9][a-z0-9_-]{0,62}$"},
    "session_id": {"type": ["string", "null"]},
    "request_id": {"type": ["string", "null"], "maxLength": 128},
    "message": {"type": "string", "minLength": 1},
    "context": {"type": "object"},
}
SCHEMA = jsonschema.Draft202012Validator(
    {
        "type": "object",
        "required": list(EXAMPLE),
        "properties": {name: FORMS[name] for name in EXAMPLE},
        "additionalProperties": False,
    }
)

OF_NO_REQUEST = {
    "a run was ended by force",
    "an agent fails in a row and is left alone",
}
"""What a node says of a tenant by itself: on a busy machine, here too."""

BODY, SECRET = "what-a-person-said", "hunter2"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


async def conversation(stack: Stack) -> None:
    headers = {"X-Tenant-ID": "acme", "X-Request-ID": "{braces} <tag> %s"}
    async with socket(stack.ws_of(), additional_headers=headers) as client:
        await client.open(agent="asking", token=f"{SECRET}-token")
        await client.ask("message", content=f"talk {BODY}")
        await client.until_event(*TERMINAL)
    async with socket(stack.ws_of(), additional_headers=headers) as client:
        await client.open(agent="noisy", metadata={"note": BODY})
        await client.ask("message", content=BODY)
        await client.until_event("RUN_ERROR")


async def bad_input(stack: Stack) -> None:
    host = urlsplit(stack.url)
    with sockets.create_connection((host.hostname, host.port), timeout=30) as plain:
        plain.sendall(f"{{}} <{SECRET}>\r\n\r\n".encode())
        assert plain.recv(100).startswith(b"HTTP/1.1 400")
    for text in (f"{{{BODY}", "[]", f'{{"type": "open", "id": "{BODY}", "agent": "{{x}}"}}'):
        async with socket(stack.ws_of()) as client:
            await client.connection.send(text)
            assert await client.closed() in (4400, 4404)
    async with httpx.AsyncClient(base_url=stack.url, headers={"X-Tenant-ID": "a{b}"}) as http:
        assert (await http.get("/api/v1/sessions")).status_code == 403
        assert (await http.get(f"/{{x}}?key={SECRET}")).status_code == 404


async def by_http(stack: Stack) -> None:
    headers = {"X-Tenant-ID": "acme", "Authorization": f"Bearer {SECRET}"}
    async with httpx.AsyncClient(base_url=stack.url, headers=headers) as http:
        made = await http.post("/api/v1/sessions", json={"agent_id": "asking"})
        where = f"/api/v1/sessions/{made.json()['session_id']}"
        await http.post(f"{where}/messages", json={"content": f"talk {BODY}"})
        await http.delete(where, headers={"X-Request-ID": "mine"})


def lines_of(stack: Stack) -> dict[str, list[dict[str, Any]]]:
    """What each process logged, every line held against the schema."""
    found: dict[str, list[dict[str, Any]]] = {}
    for process in (*stack.nodes, *stack.workers):
        lines = [json.loads(line) for line in process.output().splitlines()]
        for line in lines:
            SCHEMA.validate(line)
        found[process.name] = lines
    return found


async def test_every_line_of_every_process(tmp_path: Path, redis: RedisServer) -> None:
    # Of the collector, which is away, nobody else hears; its ids are in the lines all the same.
    environment = {"GATEWAY_LOG_LEVEL": "DEBUG", "OTLP_ENDPOINT": "127.0.0.1:1"}
    stack = Stack(f"unix://{redis.socket}", tmp_path, environment)
    try:
        stack.add_worker("support.agents:asking")
        stack.add_worker("support.agents:noisy")
        stack.add_node()
        stack.wait_until_ready()
        await conversation(stack)
        await bad_input(stack)
        await by_http(stack)
        redis.stop()
        node, worker = stack.nodes[0], stack.workers[0]
        await until(lambda: "Redis does not answer" in node.output())
        await until(lambda: "subscriber connection lost" in worker.output())
        redis.start()
        await until(lambda: "Redis answers again" in node.output())
    finally:
        stack.stop()

    lines = lines_of(stack)
    text = "".join(process.output() for process in (*stack.nodes, *stack.workers))
    assert BODY not in text
    assert SECRET not in text

    at_node = lines["node-0"]
    assert {line["level"] for line in at_node} >= {"DEBUG", "INFO", "WARNING"}
    assert [line["message"] for line in at_node if line["context"].get("logger")], "uvicorn's"

    # What is said within a request names it, its tenant and its session.
    opened = [line for line in at_node if line["message"] == "session opened"]
    assert [line["request_id"] for line in opened] == ["{braces} <tag> %s"] * 2
    [created] = [line for line in at_node if line["message"] == "session created"]
    [ended] = [line for line in at_node if line["message"] == "session ended"]
    assert len(created["request_id"]) == 36, "one of our own"
    assert ended["request_id"] == "mine"
    for line in (*opened, created, ended):
        assert line["tenant_id"] == "acme"
        assert line["trace_id"]
        assert line["span_id"]
    assert all(line["session_id"] for line in (*opened, ended))
    without = {line["message"] for line in at_node if line["tenant_id"] and not line["request_id"]}
    assert without <= OF_NO_REQUEST

    # Whatever a library does is a line.
    noise = [line for line in lines["worker-1"] if line["level"] in ("WARNING", "ERROR")]
    said = [(line["message"], line["context"].get("logger")) for line in noise]
    assert [logger for message, logger in said if message.startswith("{} {0} {name!r} <red>")] == [
        *("some.library", "warnings")
    ]
    assert ("%d ('not a number',)", "some.library") in said
    assert {"a thread failed", "the agent failed"} <= {message for message, _ in said}
    broken = [line for line in noise if line["context"].get("exception")]
    assert {line["context"]["exception"]["type"] for line in broken} == {"RuntimeError"}
    assert {"asyncio", None} == {line["context"].get("logger") for line in broken}
    [failed] = [line for line in broken if line["message"] == "the agent failed"]
    assert (failed["tenant_id"], failed["context"]["agent_id"]) == ("acme", "noisy")
    assert failed["session_id"] == opened[1]["session_id"]
    assert failed["request_id"], "the run"


async def test_a_database_that_is_away_from_the_start_is_told_of_by_its_name(
    tmp_path: Path, redis: RedisServer
) -> None:
    """And once: not at each look, not never."""
    url = "postgresql://ann:hunter2@127.0.0.1:1/history"
    stack = Stack(
        f"unix://{redis.socket}", tmp_path, {"DATABASE_URL": url, "READINESS_REQUIRES": "redis"}
    )
    try:
        node = stack.add_node()
        stack.wait_until_ready()
        await until(lambda: "dependency is ill" in node.output())
        await until(lambda: node.output().count("the database does not answer"))
    finally:
        stack.stop()
    lines = lines_of(stack)["node-0"]
    ill = [line["context"] for line in lines if line["message"] == "dependency is ill"]
    # On a busy machine Redis may be late, too.
    assert [context["dependency"] for context in ill].count("database") == 1
    told = [line for line in lines if line["message"] == "the database does not answer"]
    assert {line["context"]["database"] for line in told} == {
        "DATABASE_URL=postgresql://ann:***@127.0.0.1:1/history"
    }
