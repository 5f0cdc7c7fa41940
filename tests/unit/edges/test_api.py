"""The HTTP API, as ASGI."""

from collections.abc import AsyncIterator

import httpx
import msgspec
import pytest
from starlette.routing import BaseRoute
from support.edges import Node, assert_problem
from support.little_bus import Session

from gateway.edges.api.openapi import document as openapi
from gateway.edges.api.operation import Operation
from gateway.edges.api.routes import table
from gateway.session.archive import UsageRecord
from gateway.session.model import SessionKey

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def node() -> Node:
    return Node()


@pytest.fixture
async def client(node: Node) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=node.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as made:
        yield made


# --- POST /api/v1/sessions ------------------------------------------------------------------------


async def test_a_session_is_created(client, node):
    response = await client.post(
        "/api/v1/sessions",
        json={"agent_id": "demo", "user_id": "anonymous", "metadata": {"a": 1}},
        headers={"X-Tenant-ID": "acme-corp"},
    )
    assert response.status_code == 201
    body = response.json()
    session_id = body.pop("session_id")
    assert body == {
        "agent_id": "demo",
        "tenant_id": "acme-corp",
        "user_id": "anonymous",
        "status": "active",
        "state": "idle",
        "metadata": {"a": 1},
        "on_detach": "continue",
        "created_at": "2023-11-14T22:13:20.000Z",
        "cursor": {"epoch": "e1", "seq": 0},
    }
    assert response.headers["location"] == f"/api/v1/sessions/{session_id}"
    assert node.probe.facts == {"created": 1, "active": 1, "opened created": 1}


async def test_what_becomes_of_runs_without_clients_is_said_at_the_creation(client, node):
    body = {"agent_id": "demo", "on_detach": "cancel"}
    response = await client.post("/api/v1/sessions", json=body)
    assert response.status_code == 201
    [session] = node.bus.sessions.values()
    assert session.on_detach == "cancel"
    response = await client.post("/api/v1/sessions", json={**body, "on_detach": "perhaps"})
    assert_problem(response, 400, "bad_frame", "on_detach")


async def test_without_user_and_tenant_it_is_the_anonymous_one(client):
    body = (await client.post("/api/v1/sessions", json={"agent_id": "demo"})).json()
    assert (body["tenant_id"], body["user_id"]) == ("default", "anonymous")


async def test_a_session_cannot_be_created_for_somebody_else(client, node):
    response = await client.post(
        "/api/v1/sessions", json={"agent_id": "demo", "user_id": "user-123"}
    )
    assert_problem(response, 403, "forbidden", "user_id")
    assert node.probe.facts == {}


async def test_an_idempotency_key_makes_one_session_per_tenant(client, node):
    async def create(tenant: str = "a", key: str = "k1") -> str:
        response = await client.post(
            "/api/v1/sessions",
            json={"agent_id": "demo"},
            headers={"Idempotency-Key": key, "X-Tenant-ID": tenant},
        )
        assert response.status_code == 201
        return response.json()["session_id"]

    first = await create()
    assert await create() == first
    assert len({first, await create(tenant="b"), await create(key="k2")}) == 3
    assert node.probe.facts["created"] == 3


async def test_an_idempotency_key_with_another_body_is_a_conflict(client, node):
    node.bus.agent_names.add("other")
    headers = {"Idempotency-Key": "k"}
    body = {"agent_id": "demo", "metadata": {"a": 1, "b": 2}}
    first = await client.post("/api/v1/sessions", json=body, headers=headers)
    for other in ({**body, "agent_id": "other"}, {**body, "metadata": {"a": 1}}):
        again = await client.post("/api/v1/sessions", json=other, headers=headers)
        assert_problem(again, 409, "id_conflict", "Idempotency-Key")
    same = {"metadata": {"b": 2, "a": 1}, "user_id": "anonymous", "agent_id": "demo"}
    again = await client.post("/api/v1/sessions", json=same, headers=headers)
    assert (again.status_code, again.json()) == (201, first.json())


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b"not JSON", None),
        (b"\xff\xfe", None),
        (b"[" * 10_000, None),
        (b"[]", None),
        (b"{}", "agent_id"),
        (b'{"agent_id":7}', "agent_id"),
        (b'{"agent_id":"No Such Name"}', "agent_id"),
        (b'{"agent_id":"demo","user_id":""}', "user_id"),
        (b'{"agent_id":"demo","metadata":[1]}', "metadata"),
        (b'{"agent_id":"demo","metadata":' + b'{"a":' * 200 + b"1" + b"}" * 201, None),
    ],
)
async def test_a_bad_body_names_the_field(client, node, content, param):
    response = await client.post("/api/v1/sessions", content=content)
    assert_problem(response, 400, "bad_frame", param)
    assert node.bus.sessions == {}


async def test_a_body_as_deep_as_a_frame_may_be(client):
    metadata = b'{"a":' * 120 + b"1" + b"}" * 120
    body = b'{"agent_id":"demo","metadata":' + metadata + b"}"
    assert (await client.post("/api/v1/sessions", content=body)).status_code == 201


async def test_a_body_too_large(client):
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b" " * 1024

    assert_problem(await client.post("/api/v1/sessions", content=endless()), 413, "too_large")


async def test_other_refusals(client, node):
    unknown = await client.post("/api/v1/sessions", json={"agent_id": "nobody"})
    assert_problem(unknown, 404, "agent_not_found", "agent_id")
    tenant = {"X-Tenant-ID": 'a"} 1'}
    bad_tenant = await client.post("/api/v1/sessions", json={"agent_id": "demo"}, headers=tenant)
    assert_problem(bad_tenant, 403, "forbidden", "X-Tenant-ID")
    tenants = [("X-Tenant-ID", "a"), ("X-Tenant-ID", "b")]
    two_tenants = await client.get("/api/v1/agents", headers=tenants)
    assert_problem(two_tenants, 403, "forbidden", "X-Tenant-ID")
    key = {"Idempotency-Key": "k" * 256}
    bad_key = await client.post("/api/v1/sessions", json={"agent_id": "demo"}, headers=key)
    assert_problem(bad_key, 400, "bad_frame", "Idempotency-Key")
    twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    two_keys = await client.post("/api/v1/sessions", json={"agent_id": "demo"}, headers=twice)
    assert_problem(two_keys, 400, "bad_frame", "Idempotency-Key")
    packed = {"Content-Encoding": "gzip"}
    encoded = await client.post("/api/v1/sessions", json={"agent_id": "demo"}, headers=packed)
    assert_problem(encoded, 415, "unsupported")
    node.bus.down = True
    down = await client.post("/api/v1/sessions", json={"agent_id": "demo"})
    assert_problem(down, 503, "unavailable")
    assert down.headers["retry-after"] == "1"


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_unknown_query_parameter_is_refused_everywhere(client, node, method):
    paths = {"GET": "/api/v1/agents", "POST": "/api/v1/sessions", "DELETE": "/api/v1/sessions/s1"}
    response = await client.request(method, f"{paths[method]}?dry_run=1")
    assert_problem(response, 400, "bad_frame", "dry_run")


async def test_errors_are_told_in_words(client):
    for value in ("-1", "0", "x", "201"):
        response = await client.get(f"/api/v1/sessions?limit={value}")
        assert response.json()["detail"] == "limit is 1 to 200"
    response = await client.get("/api/v1/sessions?agent_id=No")
    assert "regex" not in response.text


async def test_an_unexpected_failure_says_nothing_of_its_cause(client, node):
    async def broken(*_args, **_kwargs):
        raise ValueError("secret: hunter2")

    node.bus.open = broken
    response = await client.post("/api/v1/sessions", json={"agent_id": "demo"})
    assert_problem(response, 500, "internal")
    assert "hunter2" not in response.text


async def test_unknown_paths_and_methods_are_problems_too(client):
    for method, path, status in (("GET", "/nope", 404), ("DELETE", "/api/v1/agents", 405)):
        response = await client.request(method, path)
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"


async def test_agents(client):
    assert (await client.get("/api/v1/agents")).json() == {
        "agents": [
            {
                "agent_id": "demo",
                "description": "",
                "workers": 1,
                "slots": 8,
                "busy": 3,
                "queue_depth": 2,
                "breaker": "closed",
            }
        ]
    }


# --- sessions -------------------------------------------------------------------------------------

KEY = SessionKey("default", "s1")
ONE = "/api/v1/sessions/s1"
MESSAGES = f"{ONE}/messages"


async def test_a_session_is_read_from_the_archive_and_as_it_lives(client, node):
    node.archive.begin(KEY, at_ms=1_700_000_000_000)
    node.archive.end_run("r1", "q", "a", key=KEY, at_ms=1_700_000_060_000)
    node.archive.change(KEY, status="expired")
    archived = {
        "session_id": "s1",
        "agent_id": "demo",
        "tenant_id": "default",
        "user_id": "anonymous",
        "status": "expired",
        "metadata": {"a": 1},
        "on_detach": "continue",
        "created_at": "2023-11-14T22:13:20.000Z",
        "active_at": "2023-11-14T22:14:20.000Z",
        "run_count": 1,
        "message_count": 2,
    }
    assert (await client.get(ONE)).json() == archived
    session = node.bus.make(KEY)
    node.bus.append("S", key=KEY, run="r2")
    assert (await client.get(ONE)).json() == archived | {
        "status": "active",
        "state": "running",
        "cursor": {"epoch": "e1", "seq": 1},
        "runs": [{"run_id": "r2", "status": "running"}],
        "interrupts": [],
        "pending_tool_calls": [],
    }
    assert session.home == "", "who only looks is no home"
    node.bus.end(KEY)
    node.archive.change(KEY, status="completed", ended_ms=1_700_000_120_000)
    ended = archived | {"status": "completed", "ended_at": "2023-11-14T22:15:20.000Z"}
    assert (await client.get(ONE)).json() == ended


async def listed(client, **query: object) -> tuple[list[str], str | None]:
    response = await client.get("/api/v1/sessions", params=query)
    assert response.status_code == 200, response.text
    body = response.json()
    return [session["session_id"] for session in body["sessions"]], body["next_cursor"]


async def test_sessions_are_listed_page_by_page(client, node):
    for nth in range(5):
        key = SessionKey("default", f"s{nth}")
        node.archive.begin(key, at_ms=1000 + nth)
        node.archive.change(key, active_ms=9000 - nth)
    node.archive.begin(SessionKey("default", "foreign"), user="ann")
    for order, expected in (("created", "43210"), ("active", "01234")):
        found, cursor = await listed(client, limit=2, order=order)
        while cursor is not None:
            page, cursor = await listed(client, limit=2, order=order, cursor=cursor)
            found += page
        assert found == [f"s{nth}" for nth in expected]


async def test_sessions_are_listed_by_filters(client, node):
    for nth, (agent, status) in enumerate(
        [("demo", "active"), ("demo", "expired"), ("other", "active"), ("demo", "completed")]
    ):
        key = SessionKey("default", f"s{nth}")
        node.archive.begin(key, at_ms=1_700_000_000_000 + nth * 1000, agent=agent)
        node.archive.change(key, status=status)
    assert await listed(client, agent_id="demo") == (["s3", "s1", "s0"], None)
    assert await listed(client, status="active") == (["s2", "s0"], None)
    assert await listed(client, agent_id="demo", status="expired") == (["s1"], None)
    between = {"created_from": "2023-11-14T22:13:21Z", "created_to": "2023-11-14T23:13:23+01:00"}
    assert await listed(client, **between) == (["s2", "s1"], None)


@pytest.mark.parametrize(
    ("path", "query", "param"),
    [
        ("/api/v1/sessions", "limit=0", "limit"),
        ("/api/v1/sessions", "limit=201", "limit"),
        ("/api/v1/sessions", "limit=x", "limit"),
        ("/api/v1/sessions", "limit=9" + "9" * 5000, "limit"),
        ("/api/v1/sessions", "limit=1&limit=2", "limit"),
        ("/api/v1/sessions", "agent=demo", "agent"),
        ("/api/v1/sessions", "agent_id=No Such", "agent_id"),
        ("/api/v1/sessions", "status=lost", "status"),
        ("/api/v1/sessions", "order=random", "order"),
        ("/api/v1/sessions", "created_from=2023-11-14T22:13:21", "created_from"),
        ("/api/v1/sessions", "created_from=12", "created_from"),
        ("/api/v1/sessions", "cursor=nonsense", "cursor"),
        ("/api/v1/sessions", "cursor=a", "cursor"),
        ("/api/v1/sessions", "cursor=%3D%3D", "cursor"),
        (MESSAGES, "cursor=nonsense", "cursor"),
        (MESSAGES, "before=x", "before"),
        (MESSAGES, "limit=-1", "limit"),
        ("/api/v1/usage", "from=2023-13-01", "from"),
        ("/api/v1/usage", "to=yesterday", "to"),
        ("/api/v1/usage", "from=2023-01-02&to=2023-01-01", "from"),
        ("/api/v1/usage", "from=2022-01-01&to=2023-01-02", "from"),
        ("/api/v1/usage", "to=0001-01-01", None),
        ("/api/v1/usage", "model=%00", "model"),
    ],
)
async def test_a_query_parameter_that_is_wrong_is_named(client, node, path, query, param):
    node.bus.make(KEY)
    response = await client.get(f"{path}?{query}")
    if param is None:
        assert response.status_code == 200
    else:
        assert_problem(response, 400, "bad_frame", param)


async def test_a_cursor_belongs_to_its_list(client, node):
    node.bus.make(KEY)
    for nth in range(2):
        node.archive.begin(SessionKey("default", f"s{nth}"))
    node.archive.end_run("r1", "q", "a", key=KEY)
    _, by_creation = await listed(client, limit=1)
    of_messages = (await client.get(MESSAGES, params={"limit": 1})).json()["next_cursor"]
    for path, query in (
        ("/api/v1/sessions", {"cursor": by_creation, "order": "active"}),
        ("/api/v1/sessions", {"cursor": of_messages}),
        (MESSAGES, {"cursor": by_creation}),
    ):
        assert_problem(await client.get(path, params=query), 400, "bad_frame", "cursor")


async def test_a_session_is_ended_once_and_for_all(client, node):
    created = await client.post("/api/v1/sessions", json={"agent_id": "demo"})
    path = created.headers["location"]
    for _ in range(2):
        response = await client.delete(path)
        assert (response.status_code, response.content) == (204, b"")
    assert node.probe.facts["completed completed"] == 1
    assert_problem(await client.delete("/api/v1/sessions/nobody"), 404, "session_not_found")


async def test_a_session_is_erased_live_and_archived(client, node):
    node.bus.make(KEY)
    node.archive.begin(KEY)
    node.archive.end_run("r1", "q", "a", key=KEY)
    response = await client.delete(f"{ONE}/data")
    assert (response.status_code, response.content) == (204, b"")
    assert node.bus.sessions == node.archive.records == {}
    for method, path in (("GET", ONE), ("GET", MESSAGES), ("DELETE", f"{ONE}/data")):
        assert_problem(await client.request(method, path), 404, "session_not_found")


async def test_a_user_is_erased_by_nobody_else(client, node):
    node.archive.begin(SessionKey("default", "old"))
    for user in ("anonymous", "ann"):
        node.bus.make(SessionKey("default", user), user=user)
        node.archive.begin(SessionKey("default", user), user=user)
    response = await client.delete("/api/v1/users/ann/data")
    assert_problem(response, 403, "forbidden", "user_id")
    assert len(node.bus.sessions) == 2
    response = await client.delete("/api/v1/users/anonymous/data")
    assert (response.status_code, response.json()) == (200, {"sessions": 2})
    left = SessionKey("default", "ann")
    assert list(node.bus.sessions) == list(node.archive.records) == [left]


@pytest.mark.parametrize("session_id", ["none", "a" * 65, "a.b", "%C3%A4"])
async def test_what_can_be_no_session_is_not_found(client, session_id):
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("DELETE", "/data"),
        ("GET", "/messages"),
        ("POST", "/runs/r1/cancel"),
    ):
        response = await client.request(method, f"/api/v1/sessions/{session_id}{path}")
        param = None if session_id == "none" else "session_id"
        assert_problem(response, 404, "session_not_found", param)


# --- messages -------------------------------------------------------------------------------------


async def test_messages_come_with_their_runs_and_how_these_ended(client, node):
    live = node.bus.make(KEY)
    node.archive.begin(KEY)
    node.archive.end_run("r1", "q1", "a1", key=KEY, at_ms=1_700_000_000_000)
    node.archive.end_run("r2", "q2", key=KEY, at_ms=1_700_000_001_000, kind="X", code="timeout")
    live.messages, live.message_runs = [b'{"id":"q3","role":"user","content":"q3"}'], ["r3"]
    page = (await client.get(MESSAGES, params={"limit": 2})).json()

    def message(text: str) -> dict[str, str]:
        return {"id": text, "role": "user", "content": text}

    assert page["messages"] == [
        {
            "message": message("a1"),
            "run_id": "r1",
            "outcome": "success",
            "at": "2023-11-14T22:13:20.000Z",
        },
        {
            "message": message("q2"),
            "run_id": "r2",
            "outcome": "error",
            "code": "timeout",
            "at": "2023-11-14T22:13:21.000Z",
        },
        {"message": message("q3"), "run_id": "r3"},
    ]
    older = {"limit": 2, "cursor": page["next_cursor"]}
    page = (await client.get(MESSAGES, params=older)).json()
    assert [one["message"]["id"] for one in page["messages"]] == ["q1"]
    assert page["next_cursor"] is None


async def test_a_message_makes_one_run_and_counts_once(client, node):
    session = node.bus.make(KEY)
    body = {
        "content": [{"type": "text", "text": "hi"}],
        "when_busy": "interrupt",
        "tools": [{"name": "t"}],
        "context": [{"value": "v"}],
        "state": None,
        "metadata": {"m": 1},
    }
    headers = {"Idempotency-Key": "k1", "traceparent": TRACEPARENT}
    first = await client.post(MESSAGES, json=body, headers=headers)
    assert (first.status_code, first.json()["status"]) == (202, "accepted")
    again = await client.post(MESSAGES, json=body, headers=headers)
    assert again.json() == {"run_id": first.json()["run_id"], "status": "duplicate"}
    [new] = node.bus.accepted
    assert (new.frame_id, new.when_busy, new.traceparent) == ("k1", "interrupt", TRACEPARENT)
    assert msgspec.json.decode(new.message) == {
        "id": "k1",
        "role": "user",
        "content": body["content"],
    }
    assert msgspec.json.decode(b"{" + new.run_fields + b"}") == {
        "tools": body["tools"],
        "context": body["context"],
        "state": None,
        "forwardedProps": {"m": 1},
    }
    assert node.probe.facts["messages user"] == 1
    assert session.home == "n1"


async def test_messages_without_a_key_are_each_their_own(client, node):
    node.bus.make(KEY)
    answers = [await client.post(MESSAGES, json={"content": "hi"}) for _ in range(2)]
    assert len({answer.json()["run_id"] for answer in answers}) == 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{}", "content"),
        (b'{"content":7}', "content"),
        (b'{"content":[]}', "content"),
        (b'{"content":["x"]}', "content[0]"),
        (b'{"content":"x","when_busy":"now"}', "when_busy"),
        (b'{"content":"x","tools":{}}', "tools"),
        (b'{"content":"\\ud800"}', None),
        (b'{"content":"x","state":' + b"[" * 200 + b"]" * 200 + b"}", None),
    ],
)
async def test_a_message_that_is_none(client, node, body, param):
    node.bus.make(KEY)
    assert_problem(await client.post(MESSAGES, content=body), 400, "bad_frame", param)
    assert node.bus.accepted == []


async def test_a_message_is_taken_while_the_archive_is_away(client, node):
    node.bus.make(KEY)
    node.archive.down = True
    assert (await client.post(MESSAGES, json={"content": "hi"})).status_code == 202
    response = await client.get(MESSAGES)
    assert_problem(response, 503, "unavailable")
    assert response.headers["retry-after"] == "1"
    assert response.json()["detail"] == "the history does not answer"


async def test_a_run_is_cancelled_once_per_key(client, node):
    node.bus.make(KEY)
    node.bus.append("S", key=KEY, run="r1")
    path = f"{ONE}/runs/r1/cancel"
    for status in ("accepted", "duplicate"):
        response = await client.post(path, headers={"Idempotency-Key": "c"})
        assert response.status_code == 202
        assert response.json() == {"run_id": "r1", "status": status}


# --- usage ----------------------------------------------------------------------------------------


async def test_usage_that_nobody_reported_is_absent_and_never_zero(client, node):
    node.archive.used = [
        ("default", UsageRecord("2023-11-14", "demo", "m", 3, 10, 0)),
        ("default", UsageRecord("2023-10-16", "demo", "", 1, None, None)),
        ("default", UsageRecord("2023-10-15", "demo", "", 1, None, None)),
        ("other", UsageRecord("2023-11-14", "demo", "m", 9, 9, 9)),
    ]
    assert (await client.get("/api/v1/usage")).json() == {
        "tenant_id": "default",
        "from": "2023-10-16",
        "to": "2023-11-14",
        "usage": [
            {
                "day": "2023-11-14",
                "agent_id": "demo",
                "runs": 3,
                "model": "m",
                "input_tokens": 10,
                "output_tokens": 0,
            },
            {"day": "2023-10-16", "agent_id": "demo", "runs": 1},
        ],
    }
    for query, runs in (
        ("model=", [1]),
        ("model=m", [3]),
        ("agent_id=none", []),
        ("from=2023-10-15&to=2023-10-15", [1]),
    ):
        usage = (await client.get(f"/api/v1/usage?{query}")).json()["usage"]
        assert [one["runs"] for one in usage] == runs


# --- what is documented is what happens -----------------------------------------------------------

PATHS = {"session_id": "s1", "run_id": "r1", "user_id": "anonymous"}


class Caller:
    """Calls an operation, well formed unless told otherwise."""

    def __init__(self, client: httpx.AsyncClient, node: Node, operation: Operation) -> None:
        self.client = client
        self.node = node
        self.operation = operation
        self.session: Session = node.bus.make(KEY)
        node.bus.append("S", key=KEY, run="r1")
        node.archive.begin(KEY)

    async def __call__(
        self,
        *,
        body: object = None,
        query: str = "",
        key: str = "",
        tenant: str = "",
        encoding: str = "",
        **path: str,
    ) -> httpx.Response:
        if body is None:
            body = {"agent_id": "demo", "content": "hi"}
        return await self.client.request(
            self.operation.method,
            self.operation.path.format(**PATHS | path) + query,
            content=body if isinstance(body, bytes) else msgspec.json.encode(body),
            headers={
                **({"Idempotency-Key": key} if key else {}),
                **({"X-Tenant-ID": tenant} if tenant else {}),
                **({"Content-Encoding": encoding} if encoding else {}),
            },
        )

    async def bad_request(self) -> httpx.Response:
        return await self(query="?nonsense=1")

    async def forbidden(self) -> httpx.Response:
        return await self(tenant="No Tenant")

    async def not_found(self) -> httpx.Response:
        if self.operation.name == "createSession":
            return await self(body={"agent_id": "nobody"})
        return await self(session_id="nobody")

    async def conflict(self) -> httpx.Response:
        self.node.bus.append("F", key=KEY, run="r0")
        await self(key="k", run_id="r0")
        other = {"agent_id": "demo", "metadata": {"b": 1}, "content": "ho"}
        return await self(key="k", body=other)

    async def gone(self) -> httpx.Response:
        created = await self(key="k")
        for key in list(self.node.bus.sessions):
            self.node.bus.end(key)
        self.node.archive.records.clear()
        assert created.is_success
        return await self(key="k")

    async def too_large(self) -> httpx.Response:
        return await self(body=b" " * (64 * 1024 + 1))

    async def unsupported(self) -> httpx.Response:
        return await self(encoding="gzip")

    async def internal(self) -> httpx.Response:
        async def broken(*_args: object, **_options: object) -> None:
            raise ValueError("secret: hunter2")

        for name in ("open", "cancel", "agents"):
            setattr(self.node.bus, name, broken)
        for name in ("sessions", "usage", "erase"):
            setattr(self.node.archive, name, broken)
        response = await self()
        assert "hunter2" not in response.text
        return response

    async def unavailable(self) -> httpx.Response:
        self.node.bus.down = self.node.archive.down = True
        response = await self()
        assert response.headers["retry-after"] == "1"
        return response


WAYS = {
    400: Caller.bad_request,
    403: Caller.forbidden,
    404: Caller.not_found,
    409: Caller.conflict,
    410: Caller.gone,
    413: Caller.too_large,
    415: Caller.unsupported,
    500: Caller.internal,
    503: Caller.unavailable,
}


@pytest.mark.parametrize("name", [operation.name for operation in table(Node().parts)])
async def test_every_documented_status_is_reached(name):
    """Of each operation: its success, and each error, as the document says that it looks."""
    document = openapi(table(Node().parts), "1")
    operation = next(one for one in table(Node().parts) if one.name == name)
    described = document["paths"][operation.path][operation.method.lower()]["responses"]
    for status in map(int, described):
        node = Node()
        transport = httpx.ASGITransport(app=node.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            caller = Caller(client, node, operation)
            if status < 400:
                response = await caller()
                assert response.status_code == status, response.text
                continue
            response = await WAYS[status](caller)
        assert response.status_code == status, response.text
        code = response.json()["code"]
        assert_problem(response, status, code, response.json().get("param"))
        assert f"`{code}`" in described[str(status)]["description"]


async def test_the_document_is_served_and_names_every_path(client, node):
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    assert document["info"]["version"] == "1.2.3"
    served = {
        (getattr(route, "path", ""), method)
        for route in node.app.routes
        for method in methods_of(route) - {"HEAD"}
    }
    described = {
        (path, method.upper()) for path, item in document["paths"].items() for method in item
    }
    assert {one for one in served if one[0].startswith("/api/")} == described


def methods_of(route: BaseRoute) -> set[str]:
    return getattr(route, "methods", None) or set()


async def test_a_method_that_a_path_has_not_is_told_those_that_it_has(client):
    response = await client.patch("/api/v1/sessions")
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}
    head = await client.head("/api/v1/agents")
    assert (head.status_code, head.headers["content-type"]) == (200, "application/json")
