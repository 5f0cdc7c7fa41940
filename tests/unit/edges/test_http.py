"""The HTTP API, the probes, metrics and pages, as ASGI."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.datastructures import Headers
from support.edges import Node, assert_problem

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


# --- who may ask ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "[::1]x", "::1", "10.0.0.1"]
)
async def test_another_host_name_is_refused(client, host):
    assert (await client.get("/", headers={"Host": host})).status_code == 403


async def test_several_host_names_are_refused(client):
    """A proxy may have checked the one, and we would take the other."""
    hosts = [("Host", "127.0.0.1:8000"), ("Host", "127.0.0.1:8000")]
    assert_problem(await client.get("/", headers=hosts), 403, "forbidden")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost:8000", "[::1]:8000", "LOCALHOST", "127.0.0.2:1"]
)
async def test_loopback_by_any_name(client, host):
    """Also by an address of it that is served alone (`GATEWAY_HOST=127.0.0.2`)."""
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
        node.readiness.drain()
        response = await client.get("/health/readiness")
        assert response.status_code == 503
        assert response.json()["checks"] == {"redis": "ok"}
        running.cancel()


async def test_a_node_is_ready_without_what_it_does_not_require():
    """Guarantee 8: an operator may say that it serves without the archive; it is shown as ill."""

    async def well() -> None:
        pass

    async def away() -> None:
        raise ConnectionError("no database")

    checks = {"redis": well, "database": away}
    for requires, ready in (({"redis"}, True), ({"redis", "database"}, False), (None, False)):
        readiness = Readiness(checks, requires=requires, interval_s=0.001)
        assert not readiness.ready
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(readiness.run())
            await until(lambda it=readiness: it.checks["redis"] == "ok")
            assert readiness.checks == {"redis": "ok", "database": "error"}
            assert readiness.ready == ready
            running.cancel()


async def test_whoever_counts_is_told_when_readiness_changes():
    """At first, with each dependency that falls ill or gets well, and when the node stops."""
    told: list[tuple[bool, dict[str, str]]] = []
    ill = False

    async def check() -> None:
        if ill:
            raise OSError

    readiness = Readiness(
        {"redis": check},
        interval_s=0.001,
        on_change=lambda ready, checks: told.append((ready, dict(checks))),
    )
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(readiness.run())
        await until(lambda: len(told) == 2)
        ill = True
        await until(lambda: len(told) == 3)
        ill = False
        await until(lambda: len(told) == 4)
        readiness.drain()
        running.cancel()
    well, down = {"redis": "ok"}, {"redis": "error"}
    assert told == [(False, down), (True, well), (False, down), (True, well), (False, well)]


async def test_a_node_that_starts_asks_again_soon():
    """Its connections are being made: it need not wait for its next turn to be ready."""
    outcomes = iter([OSError(), OSError(), None])

    async def check() -> None:
        if error := next(outcomes):
            raise error

    readiness = Readiness({"redis": check}, interval_s=1000)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(readiness.run())
        await until(lambda: readiness.ready)
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


async def test_the_targets_of_prometheus(client):
    """As its HTTP service discovery wants them."""
    response = await client.get("/metrics/targets")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == [
        {"targets": ["127.0.0.1:8000"], "labels": {"__meta_nooble_node": "n1"}}
    ]


@pytest.mark.parametrize(
    ("peer", "status"),
    [
        (("127.0.0.1", 1), 200),
        (("127.9.9.9", 1), 200),
        (("::1", 1), 200),
        (("10.0.0.7", 1), 403),
        (("2001:db8::1", 1), 403),
        (("somebody", 1), 403),
        (None, 403),
    ],
)
async def test_what_concerns_all_tenants_is_for_administrators(node, peer, status):
    """Guarantee 6: it names tenants."""
    transport = httpx.ASGITransport(app=node.app, client=peer)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        for path in ("/metrics", "/metrics/targets", "/console", "/console/state"):
            response = await client.get(path)
            assert response.status_code == status, path
            if status == 403:
                assert_problem(response, 403, "forbidden")


async def test_with_an_admin_port_operators_have_it_to_themselves(node):
    public, admin = node.compose(admin_port=True)
    theirs = ("/metrics", "/metrics/targets", "/console", "/console/state")
    found: dict[str, tuple[int, int]] = {}
    for path in ("/", "/api/v1/agents", *theirs, "/health/liveness", "/web/style.css"):
        statuses: list[int] = []
        for app in (public, admin):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://[::1]") as client:
                statuses.append((await client.get(path)).status_code)
        found[path] = (statuses[0], statuses[1])
    assert found == {
        "/": (200, 404),
        "/api/v1/agents": (200, 404),
        **dict.fromkeys(theirs, (404, 200)),
        "/health/liveness": (200, 200),
        "/web/style.css": (200, 200),
    }


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
