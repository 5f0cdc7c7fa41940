"""The HTTP API, the probes, metrics and pages, as ASGI."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.datastructures import Headers
from support.edges import Node

from gateway.edges.health import Readiness
from gateway.edges.principal import anonymous
from gateway.session.errors import Refused


@pytest.fixture
async def node() -> Node:
    return Node()


@pytest.fixture
async def client(node: Node) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=node.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as made:
        yield made


def assert_problem(response: httpx.Response, status: int, code: str, param: str | None = None):
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["type"] == "about:blank"
    assert body["title"]
    assert body["detail"]
    assert body["code"] == code
    assert body.get("param") == param


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
        "state": "idle",
        "created_at": "2023-11-14T22:13:20.000Z",
        "cursor": {"epoch": "e1", "seq": 0},
    }
    assert response.headers["location"] == f"/api/v1/sessions/{session_id}"
    assert node.probe.facts == {"created": 1, "active": 1}


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
    node.bus.down = True
    down = await client.post("/api/v1/sessions", json={"agent_id": "demo"})
    assert_problem(down, 503, "unavailable")
    assert down.headers["retry-after"] == "1"


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


# --- who may ask ----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1]x", "::1"])
async def test_another_host_name_is_refused(client, host):
    assert (await client.get("/", headers={"Host": host})).status_code == 403


async def test_several_host_names_are_refused(client):
    """A proxy may have checked the one, and we would take the other."""
    hosts = [("Host", "127.0.0.1:8000"), ("Host", "127.0.0.1:8000")]
    assert_problem(await client.get("/", headers=hosts), 403, "forbidden")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "[::1]:8000", "LOCALHOST"])
async def test_loopback_by_any_name(client, host):
    assert (await client.get("/health/liveness", headers={"Host": host})).status_code == 200


async def test_a_page_of_another_site_changes_nothing(client, node):
    for origin, status in (
        ("https://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1:8000", 201),
    ):
        response = await client.post(
            "/api/v1/sessions", json={"agent_id": "demo"}, headers={"Origin": origin}
        )
        assert response.status_code == status
    assert len(node.bus.sessions) == 1


@pytest.mark.parametrize("tenant", ["a", "acme-corp", "0_", "a" * 63])
def test_tenants(tenant):
    assert anonymous(Headers({"x-tenant-id": tenant})).tenant == tenant


@pytest.mark.parametrize("tenant", ["", "A", "-a", "_a", "a" * 64, "a\n", "a b", "ä"])
def test_no_tenants(tenant):
    with pytest.raises(Refused):
        anonymous(Headers({"x-tenant-id": tenant}))


# --- health, metrics, pages -----------------------------------------------------------------------


async def test_liveness(client):
    response = await client.get("/health/liveness")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_readiness_is_ill_until_the_first_check(client):
    response = await client.get("/health/readiness")
    assert response.status_code == 503
    assert response.json() == {"status": "error", "checks": {"redis": "error"}}


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is awaited is a background loop's state
            await asyncio.sleep(0.001)


async def test_readiness_follows_its_checks_in_the_background(client, node):
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(node.readiness.run())
        await until(lambda: node.readiness.ready)
        response = await client.get("/health/readiness")
        assert (response.status_code, response.json()) == (
            200,
            {"status": "ok", "checks": {"redis": "ok"}},
        )
        node.bus.down = True
        await until(lambda: not node.readiness.ready)
        assert (await client.get("/health/readiness")).status_code == 503
        assert (await client.get("/health/liveness")).status_code == 200
        node.bus.down = False
        await until(lambda: node.readiness.ready)
        node.readiness.draining = True
        response = await client.get("/health/readiness")
        assert response.status_code == 503
        assert response.json()["checks"] == {"redis": "ok"}
        running.cancel()


async def test_one_failure_or_a_hanging_check_alone_is_no_illness():
    outcomes = iter([None, OSError(), None, "hang", None])
    states: list[bool] = []
    done = asyncio.Event()

    async def check() -> None:
        states.append(readiness.ready)
        outcome = next(outcomes, done)
        if outcome is done:
            done.set()
        elif outcome == "hang":
            await asyncio.Event().wait()
        elif outcome is not None:
            raise outcome

    readiness = Readiness({"redis": check}, interval_s=0, timeout_s=0.01)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(readiness.run())
        await done.wait()
        running.cancel()
    assert states[:6] == [False, True, True, True, True, True]


async def test_metrics(client):
    response = await client.get("/metrics")
    assert response.text == "up 1\n"
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_the_page_and_its_files(client):
    page = await client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    script = await client.get("/web/nooble.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    for response in (page, script):
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert "connect-src 'self' ws: wss:" in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-cache"
    etag = {"If-None-Match": script.headers["etag"]}
    assert (await client.get("/web/nooble.js", headers=etag)).status_code == 304


@pytest.mark.parametrize(
    "path", ["/web/", "/web/nothing.js", "/web/../app.py", "/web/%2e%2e/app.py", "/web/%00"]
)
async def test_nothing_but_the_files(client, path):
    assert (await client.get(path)).status_code == 404
