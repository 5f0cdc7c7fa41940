"""Every WebSocket is counted with its handshake and its end, whoever ends it; and every request."""

import asyncio
from contextlib import suppress
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from support import raw
from support.edges import in_session, serving, talking
from support.following import until
from support.raw import CLOSE, TEXT, close_frame, frame
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.edges import http_protocol
from gateway.edges.edge import ConnectionLimits
from gateway.edges.http_metrics import HttpMetrics
from gateway.session.errors import Unavailable


async def ended(node: Any, fact: str) -> None:
    """Waits until exactly one connection has ended so, and none is left."""
    facts = node.probe.facts
    await until(lambda: facts["sockets"] == 0)
    ends = {key: count for key, count in facts.items() if key.startswith("disconnected")}
    assert ends == {f"disconnected {fact}": 1}
    assert facts["handshake accepted"] == 1


@pytest.mark.parametrize("code", [1000, 1001, 4321])
async def test_a_client_that_says_goodbye(node, code):
    async with talking(node) as talk:
        await talk.socket.close(code)
    await ended(node, f"{code} client")


async def test_a_client_that_gives_no_code(node):
    async with raw.websocket(node.port) as peer:
        peer.send(frame(CLOSE))
        await peer.rest()
    await ended(node, "1005 client")


async def test_a_client_that_is_gone(node):
    async with in_session(node) as talk:
        talk.socket.transport.abort()
    await ended(node, "1006 lost")


async def test_who_answers_our_close_did_not_ask_for_it(node):
    async with raw.websocket(node.port) as peer:
        peer.send(frame(TEXT, b"no JSON"))
        await peer.until(close_frame(4400))
        peer.send(frame(CLOSE, b"\x11\x30"))
        await peer.rest()
    await ended(node, "4400 bad_frame")


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        (frame(TEXT, b"\xff"), "1007 bad_frame"),
        (frame(TEXT, b"x" * 65535) + frame(TEXT, fin=False), "4400 bad_frame"),
        (frame(TEXT, b"x" * 65535, fin=False) + frame(0, b"xx"), "1009 too_big"),
        (frame(3), "1002 protocol_error"),
    ],
)
async def test_what_breaks_the_rules(node, data, fact):
    async with raw.websocket(node.port) as peer:
        peer.send(data)
        await peer.rest()
    await ended(node, fact)


async def test_who_does_not_open_in_time():
    async with serving(ConnectionLimits(open_timeout_s=0.1)) as node:
        async with talking(node) as talk:
            assert await talk.closed() == 4408
        await ended(node, "4408 no_open")


async def test_who_is_not_there_any_more():
    async with serving(ws_ping_interval=0.1, ws_ping_timeout=0.1) as node:
        async with raw.websocket(node.port) as peer:
            await peer.until(close_frame(4408))
        await ended(node, "4408 no_pong")


async def test_a_node_that_stops(node):
    async with in_session(node) as talk:
        node.edge.drain(0.0)
        with pytest.raises(InvalidStatus):
            async with connect(node.url):
                pass
        assert await talk.closed() == 1012
    assert node.probe.facts["handshake draining"] == 1
    await ended(node, "1012 draining")


async def test_a_fault_of_ours(node):
    async def broken(*_args, **_kwargs):
        raise ValueError

    async with in_session(node) as talk:
        node.bus.accept = broken
        await talk.ask(type="message", id="m", content="hi")
        assert await talk.closed() == 1011
    await ended(node, "1011 internal")
    assert node.probe.facts["failed default user internal"] == 1
    assert node.probe.refused_agents == ["demo"]


async def test_redis_is_away(node):
    node.bus.down = True
    async with talking(node) as talk:
        await talk.ask(type="open", id="o", agent="demo")
        assert await talk.closed() == 4503
    await ended(node, "4503 unavailable")
    assert node.probe.facts["failed default system unavailable"] == 1
    assert node.probe.refused_agents == ["demo"], "whom it asked for"


async def test_a_message_over_http_that_fails_by_our_fault(node):
    async def broken(*_args, **_kwargs):
        raise Unavailable

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{node.port}") as http:
        made = await http.post("/api/v1/sessions", json={"agent_id": "demo"})
        node.bus.accept = broken
        path = f"/api/v1/sessions/{made.json()['session_id']}/messages"
        assert (await http.post(path, json={"content": "hi"})).status_code == 503
    assert node.probe.facts["failed default user unavailable"] == 1
    assert node.probe.refused_agents == ["demo"]


# --- HTTP -----------------------------------------------------------------------------------------


async def ask(method: str, path: str) -> list[tuple[str, str, int]]:
    """What is counted for one request."""
    served: list[tuple[str, str, int]] = []

    async def answer(request: Request) -> Response:
        if request.path_params["what"] == "fails":
            raise ValueError
        return Response(status_code=202)

    async def nothing(_scope: Any, _receive: Any, _send: Any) -> None:
        """The client is gone, so there is nobody to answer."""

    app = HttpMetrics(
        Starlette(routes=[Route("/a/{what}", answer), Mount("/gone", nothing)]),
        served=lambda *request: served.append(request[:3]),
        clock=lambda: 0.0,
    )

    async def send(_message: Any) -> None:
        pass

    scope = {"type": "http", "method": method, "path": path, "headers": []}
    with suppress(ValueError):
        await app(scope, asyncio.Event().wait, send)
    return served


@pytest.mark.parametrize(
    ("method", "path", "fact"),
    [
        ("GET", "/a/b", ("GET", "/a/{what}", 202)),
        ("POST", "/a/b", ("POST", "/a/{what}", 405)),
        ("GET", "/b", ("GET", "unmatched", 404)),
        ("GET", "/a/fails", ("GET", "/a/{what}", 500)),
        ("GET", "/gone/x", ("GET", "/gone/{path}", 499)),
    ],
)
async def test_a_request_is_counted_once_however_it_ends(method, path, fact):
    assert await ask(method, path) == [fact]


@pytest.mark.parametrize(
    ("begun", "end", "status"),
    [
        (True, ValueError, 500),
        (False, ValueError, 500),
        (True, asyncio.CancelledError, 200),
        (False, asyncio.CancelledError, 499),
    ],
)
async def test_an_answer_that_breaks_is_a_failure_though_it_has_begun(begun, end, status):
    """And one that the client does not wait for is none."""
    served: list[int] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise end

    async def send(_message: Any) -> None:
        pass

    counted = HttpMetrics(app, served=lambda *each: served.append(each[2]), clock=lambda: 0.0)
    with pytest.raises(end):
        await counted({"type": "http", "method": "GET"}, asyncio.Event().wait, send)
    assert served == [status]


# --- what the application never hears of ----------------------------------------------------------

GET = b"GET /health/liveness HTTP/1.1\r\nHost: 127.0.0.1\r\n"
POST = b"POST /api/v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
SERVED, NO_REQUEST = ("GET", "/health/liveness", 200), ("", "unmatched", 400)

REFUSED = {
    "garbage": (b"garbage\r\n\r\n", [NO_REQUEST]),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00", [NO_REQUEST]),
    "no HTTP that we know": (b"PUT / HTTP/9.1\r\n\r\n", [("PUT", "unmatched", 400)]),
    "no path": (b"CONNECT a:1 HTTP/1.1\r\n\r\n", [("CONNECT", "unmatched", 400)]),
    "a header too long": (GET + b"A: " + b"x" * 80_000, [("GET", "unmatched", 431)]),
    "line ends": (b"\r\n" * 40_000, [("", "unmatched", 431)]),
    "behind another": (GET + b"\r\n" + b"garbage", [SERVED, NO_REQUEST]),
    "in the body": (POST + b"garbage", [("POST", "/api/v1/sessions", 400)]),
    "in the body behind another": (
        GET + b"\r\n" + POST + b"garbage",
        [SERVED, ("POST", "unmatched", 400)],
    ),
    "in the trailers": (
        POST + b"2\r\n{}\r\n0\r\n" + b"A: b\r\n" * 14_000,
        [("POST", "/api/v1/sessions", 431)],
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_a_request_that_the_parser_refuses_is_counted_once(node, kind):
    data, facts = REFUSED[kind]
    async with raw.connection(node.port) as client:
        client.send(data)
        assert b"HTTP/1.1 4" in await client.rest()
    await until(lambda: len(node.served) >= len(facts) and not node.server.server_state.tasks)
    assert sorted(node.served) == sorted(facts)


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_an_upgrade_that_there_is_not_is_a_request_like_all_others(node, protocol, caplog):
    """As a WebSocket on the admin port is. It is no fault of ours, and nothing is missing here."""
    assert node.server is not None
    node.server.config.ws_protocol_class = None
    async with raw.connection(node.port) as client:
        client.send(GET, b"Connection: Upgrade\r\nUpgrade: %s\r\n\r\n" % protocol.encode())
        await client.until(b'{"status":"ok"}')
    await until(lambda: node.served)
    assert node.served == [SERVED]
    assert [each.message for each in caplog.records if each.name == "uvicorn.error"] == []


LATE = {
    "nothing": (b"", []),
    "half a head": (GET, [("GET", "unmatched", 408)]),
    "half a body": (POST + b"2\r\n{", [("POST", "/api/v1/sessions", 408)]),
}


@pytest.mark.parametrize("kind", LATE)
async def test_a_request_that_does_not_come_is_counted_once(node, kind, monkeypatch):
    """A connection that nobody used is none: browsers make some ahead."""
    data, facts = LATE[kind]
    state = node.server.server_state

    def hurry() -> None:
        for name in ("HEAD_TIMEOUT_S", "BODY_TIMEOUT_S"):
            monkeypatch.setattr(http_protocol, name, 0.2)

    if not data:
        hurry()
    async with raw.connection(node.port) as client:
        if data:  # which has all the time to arrive
            await until(lambda: state.connections)
            hurry()
            client.send(data)
        assert await client.rest() == b""
    await until(lambda: not state.connections and not state.tasks)
    assert node.served == facts
