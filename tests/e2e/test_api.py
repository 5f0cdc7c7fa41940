"""The HTTP API on a real gateway: what is said without a socket, and what is kept of it."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from support.net import HTTP, free_port
from support.socket import TERMINAL, socket
from support.stack import Stack

Json = dict[str, Any]
PATIENCE_S = 60.0


class Api:
    """A user of the HTTP API, in a tenant of their own."""

    def __init__(self, url: str, tenant: str = "") -> None:
        self.tenant = tenant or f"t{uuid4().hex[:12]}"
        self.base = f"{url}/api/v1"

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"X-Tenant-ID": self.tenant, **options.pop("headers", {})}
        return HTTP.request(method, self.base + path, headers=headers, **options)

    def ask(self, method: str, path: str, status: int = 200, **options: Any) -> Json:
        response = self.request(method, path, **options)
        assert response.status_code == status, response.text
        return response.json() if response.content else {}

    def create(self, **body: Any) -> str:
        return self.ask("POST", "/sessions", 201, json={"agent_id": "demo", **body})["session_id"]

    def say(self, session: str, content: str, status: int = 202, **options: Any) -> Json:
        path = f"/sessions/{session}/messages"
        return self.ask("POST", path, status, json={"content": content}, **options)

    def said(self, session: str) -> list[Json]:
        return self.ask("GET", f"/sessions/{session}/messages")["messages"]

    def outcomes(self, session: str) -> dict[str, str | None]:
        """By run."""
        return {one["run_id"]: one.get("outcome") for one in self.said(session)}

    def sessions(self, **query: Any) -> list[str]:
        return [one["session_id"] for one in self.ask("GET", "/sessions", params=query)["sessions"]]


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


@pytest.fixture
def api(stack: Stack) -> Api:
    return Api(stack.url)


async def test_a_message_without_a_socket_is_seen_by_those_with_one(stack: Stack) -> None:
    api = Api(stack.url, "default")
    session = api.create()
    async with socket(stack.ws_of()) as client:
        await client.open(session_id=session)
        run = api.say(session, "hello out there")
        assert run["status"] == "accepted"
        await client.until_event(*TERMINAL)
    assert {event["run_id"] for event in client.events} == {run["run_id"]}


def test_what_was_said_is_there_at_once_and_for_good(api: Api) -> None:
    """At no moment is a message missing from the transcript, or there twice."""
    session = api.create(metadata={"plan": "gold"})
    assert api.ask("GET", f"/sessions/{session}")["metadata"] == {"plan": "gold"}
    runs = [api.say(session, f"word {nth}")["run_id"] for nth in range(3)]
    known = 0

    def done() -> bool:
        nonlocal known
        ids = [one["message"]["id"] for one in api.said(session)]
        assert len(set(ids)) == len(ids), "a message is there twice"
        assert len(ids) >= known, "a message is gone"
        known = len(ids)
        return api.outcomes(session) == dict.fromkeys(runs, "success")

    until(done, "three runs in the archive")
    said = api.said(session)
    assert [one["run_id"] for one in said] == [run for run in runs for _ in range(2)]
    assert [one["message"]["role"] for one in said] == ["user", "assistant"] * 3
    read = api.ask("GET", f"/sessions/{session}")
    assert (read["status"], read["state"], read["run_count"], read["message_count"]) == (
        "active",
        "idle",
        3,
        6,
    )
    assert api.sessions() == [session]
    usage = api.ask("GET", "/usage")["usage"]
    assert [(one["agent_id"], one["model"], one["runs"]) for one in usage] == [("demo", "demo", 3)]
    assert usage[0]["input_tokens"] == 6
    assert usage[0]["output_tokens"] > 0
    assert usage[0]["day"] <= datetime.now(UTC).date().isoformat()


def test_pages_meet_whatever_their_size(api: Api) -> None:
    session = api.create()
    for nth in range(5):
        api.say(session, f"word {nth}")
    until(lambda: list(api.outcomes(session).values()) == ["success"] * 5, "five archived runs")
    path, whole = f"/sessions/{session}/messages", api.said(session)
    for limit in (1, 3, 10):
        read: list[Json] = []
        query: Json = {"limit": limit}
        while query.get("cursor", "") is not None:
            page = api.ask("GET", path, params=query)
            assert len(page["messages"]) <= limit
            read = page["messages"] + read
            query["cursor"] = page["next_cursor"]
        assert read == whole
    others = [api.create() for _ in range(3)]
    until(lambda: len(api.sessions()) == 4, "four archived sessions")
    api.say(session, "once more")
    until(lambda: api.sessions(order="active")[0] == session, "the last one talked in comes first")
    assert api.sessions(order="created", limit=2) == [others[2], others[1]]


def test_a_run_is_cancelled_and_a_session_ended(api: Api) -> None:
    session = api.create()
    run = api.say(session, "/slow")["run_id"]
    assert api.ask("GET", f"/sessions/{session}")["runs"][0]["run_id"] == run
    api.ask("POST", f"/sessions/{session}/runs/{run}/cancel", 202)
    until(lambda: api.outcomes(session) == {run: "cancelled"}, "a cancelled run in the archive")
    for _ in range(2):
        api.ask("DELETE", f"/sessions/{session}", 204)
    assert api.say(session, "hello?", 410)["code"] == "session_ended"
    until(lambda: "ended_at" in api.ask("GET", f"/sessions/{session}"), "its end in the archive")
    assert api.sessions(status="completed") == [session]
    assert api.outcomes(session) == {run: "cancelled"}


def test_others_see_nothing_of_it(stack: Stack, api: Api) -> None:
    session, other = api.create(), Api(stack.url)
    run = api.say(session, "secret")["run_id"]
    until(lambda: api.sessions() == [session], "an archived session")
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("DELETE", "/data"),
        ("GET", "/messages"),
        ("POST", f"/runs/{run}/cancel"),
    ):
        problem = other.ask(method, f"/sessions/{session}{path}", 404)
        assert problem["code"] == "session_not_found"
    assert other.say(session, "mine?", 404)["code"] == "session_not_found"
    assert other.sessions() == []
    assert other.ask("GET", "/usage")["usage"] == []


def test_what_is_erased_is_gone_for_good(stack: Stack, api: Api) -> None:
    """Also what its run says later, and what waited in the journal."""
    kept, erased, talking = (api.create() for _ in range(3))
    api.say(kept, "stay")
    api.say(erased, "go")
    until(lambda: len(api.sessions()) == 3, "three archived sessions")
    until(lambda: "success" in api.outcomes(kept).values(), "an archived run")
    api.say(talking, "/slow")
    for session in (erased, talking):
        api.ask("DELETE", f"/sessions/{session}/data", 204)
        for path in ("", "/messages"):
            assert api.ask("GET", f"/sessions/{session}{path}", 404)["code"] == "session_not_found"
        api.say(session, "back?", 404)
    assert api.sessions() == [kept]
    keyed = {"json": {"agent_id": "demo"}, "headers": {"Idempotency-Key": "once"}}
    by_key = api.ask("POST", "/sessions", 201, **keyed)["session_id"]
    api.ask("DELETE", f"/sessions/{by_key}/data", 204)
    assert api.ask("POST", "/sessions", 410, **keyed)["code"] == "session_ended"
    new = api.create()  # which is not archived yet, perhaps
    assert api.ask("DELETE", "/users/somebody/data", 403)["code"] == "forbidden"
    assert api.ask("DELETE", "/users/anonymous/data")["sessions"] >= 1
    for session in (kept, new):
        api.ask("GET", f"/sessions/{session}", 404)
    marker = api.create()
    until(lambda: marker in api.sessions(), "what came later in the archive")
    assert api.sessions() == [marker]
    assert [one["runs"] for one in api.ask("GET", "/usage")["usage"]], (
        "usage names nobody: it stays"
    )


def test_an_expired_session_goes_on_by_a_message(folder: Path) -> None:
    limits = {"GATEWAY_LIMIT_SESSION_TTL_S": "1", "GATEWAY_LIMIT_RESUME_GRACE_S": "0.2"}
    with Stack.running(folder, **limits) as stack:
        api = Api(stack.url)
        session = api.create(metadata={"plan": "gold"})
        first = api.say(session, "before")["run_id"]

        def expired() -> bool:
            now = api.ask("GET", f"/sessions/{session}")
            return now["status"] == "expired" and "state" not in now

        until(expired, "an expired session")
        assert api.outcomes(session) == {first: "success"}
        second = api.say(session, "after")["run_id"]
        both = {first: "success", second: "success"}
        until(lambda: api.outcomes(session) == both, "both runs")
        texts = [one["message"]["content"] for one in api.said(session)]
        assert (texts[0], texts[2]) == ("before", "after")
        read = api.ask("GET", f"/sessions/{session}")
        assert (read["metadata"], read["message_count"]) == ({"plan": "gold"}, 4)


def test_without_the_database_one_can_talk_and_is_told_what_one_cannot(folder: Path) -> None:
    away = f"postgresql://nobody@127.0.0.1:{free_port()}/history"
    environment = {"DATABASE_URL": away, "READINESS_REQUIRES": "redis"}
    with Stack.running(folder, **environment) as stack:
        api = Api(stack.url)
        session = api.create()
        run = api.say(session, "hello")["run_id"]
        api.ask("POST", f"/sessions/{session}/runs/{run}/cancel", 202)
        for path in (
            "/sessions",
            f"/sessions/{session}",
            f"/sessions/{session}/messages",
            "/usage",
        ):
            response = api.request("GET", path)
            assert (response.status_code, response.json()["code"]) == (503, "unavailable")
            assert int(response.headers["retry-after"]) >= 1
        api.ask("DELETE", f"/sessions/{session}", 204)


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
def test_who_came_through_a_proxy_is_no_administrator(stack: Stack, header: str) -> None:
    """Guarantee 6: behind a proxy on this machine everybody would be one. By a real server, which
    could take the header's word for the address.
    """
    for path in ("/metrics", "/metrics/targets", "/console", "/console/state"):
        assert httpx.get(stack.url + path, timeout=30).status_code == 200
        found = httpx.get(stack.url + path, headers={header: "127.0.0.1"}, timeout=30)
        assert (found.status_code, found.json()["code"]) == (403, "forbidden"), path
