"""Hostile and broken peers under a real uvicorn: bounded time, bounded memory, and no noise."""

import asyncio
import contextlib
import logging
import socket
import statistics
import time

import pytest
from support import raw
from support.edges import Node, in_session, serving
from support.raw import CLOSE, CONT, OPEN, PING, PONG, TEXT, close_frame, frame
from websockets.exceptions import InvalidStatus

from gateway.edges import http_protocol
from gateway.edges import socket as edge_socket
from gateway.edges.websocket import WebSocketEdge


@pytest.fixture(autouse=True)
def no_complaints(caplog):
    """What a peer does is no error of ours, and no traceback either."""
    yield
    loud = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR or r.exc_info]
    assert [record.getMessage() for record in loud] == []


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a state of the server
            await asyncio.sleep(0.005)


# --- floods of small frames -----------------------------------------------------------------------

FLOODS = {
    "pings": (b"", frame(PING)),
    "pongs": (b"", frame(PONG)),
    "empty fragments": (frame(TEXT, b"{", fin=False), frame(CONT, fin=False)),
    "empty objects": (b"", frame(TEXT, b"{}")),
    "after the end": (frame(TEXT, b"{"), frame(TEXT, b"{}")),
}


def flood(port: int, first: bytes, small: bytes, seconds: float) -> bytes:
    """Sends as much as it can, then answers what the gateway said."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(raw.request(port))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        sock.sendall(frame(TEXT, OPEN) + first)
        sock.settimeout(0.2)
        end = time.monotonic() + seconds
        pieces = []
        try:
            while time.monotonic() < end:
                with contextlib.suppress(TimeoutError):
                    sock.send(small * 40_000)
            sock.settimeout(20)
            while piece := sock.recv(65536):
                pieces.append(piece)
        except ConnectionError:
            pass
        return b"".join(pieces)


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_of_small_frames_delays_nobody_and_ends(node, kind, monkeypatch):
    """Guarantee 5. Formerly one read of 256 KiB held the event loop for most of a second."""
    monkeypatch.setattr(edge_socket, "LINGER_S", 0.5)
    first, small = FLOODS[kind]
    async with in_session(node) as neighbour, asyncio.TaskGroup() as tasks:
        flooding = tasks.create_task(asyncio.to_thread(flood, node.port, first, small, 1.0))
        waits_s: list[float] = []
        while not flooding.done():
            started = time.monotonic()
            await neighbour.ask(type="ping", t=1)
            waits_s.append(time.monotonic() - started)
            await asyncio.sleep(0.06)
        assert statistics.median(waits_s) < 0.5
    await until(lambda: node.edge.open_sockets == 0)


@pytest.mark.parametrize("small", [frame(PING), frame(PONG), frame(CONT, fin=False)])
async def test_too_many_frames_that_the_application_never_sees_are_closed_4429(node, small):
    async with raw.websocket(node.port) as client:
        client.send(frame(TEXT, OPEN), frame(TEXT, b"{", fin=False), small * 5000)
        said = await client.rest()  # the end comes soon, though the client sends no close frame
    assert said.endswith(close_frame(4429))
    await until(lambda: node.protocols == [])


async def test_a_steady_client_is_never_cut(monkeypatch):
    """The bound is one of time, not of a life."""
    monkeypatch.setattr(edge_socket, "FRAME_BURST", 20)
    monkeypatch.setattr(edge_socket, "FRAMES_PER_S", 200)
    async with serving() as node, raw.websocket(node.port) as client:
        for round_ in range(4):
            client.send(frame(PING) * 19, frame(PING, b"last%d" % round_))
            await client.until(b"last%d" % round_)
            await asyncio.sleep(0.12)  # 20 / 200
        client.send(frame(PING) * 500)
        assert (await client.rest()).endswith(close_frame(4429))


async def test_a_peer_that_left_in_the_middle_of_its_flood(node):
    """Its close frame is parsed together with the rest: there is no second one to send."""
    async with raw.websocket(node.port) as client:
        client.send(frame(PING) * 500, frame(CLOSE, b"\x03\xe8"))
        said = await client.rest()
    assert close_frame(4429) not in said
    await until(lambda: node.protocols == [])


async def test_a_long_frame_and_many_frames_in_one_piece_arrive_whole_and_in_order(node):
    async with in_session(node) as talk:
        for number in range(4):
            await talk.send(type="message", id=f"m{number}", content=f"{number}" * 60_000)
        acks = [await talk.receive() for _ in range(4)]
        assert [ack["re"] for ack in acks] == ["m0", "m1", "m2", "m3"]
    for number, accepted in enumerate(node.bus.accepted):
        assert accepted.message.count(b"%d" % number * 60_000) == 1


async def test_frames_ahead_of_our_answer_to_the_handshake_wait_for_it(node, monkeypatch):
    """The protocol can neither pong nor close before."""
    gate = asyncio.Event()
    serve = WebSocketEdge.__call__

    async def later(self, *args) -> None:
        await gate.wait()
        await serve(self, *args)

    monkeypatch.setattr(WebSocketEdge, "__call__", later)
    async with raw.connection(node.port) as client:
        client.send(raw.request(node.port))
        await until(lambda: node.protocols)
        client.send(frame(PING, b"early"), frame(TEXT, b'{"type":"ping","t":7}'), b"\xff\xff")
        [protocol] = node.protocols
        await until(lambda: protocol._backlog)
        gate.set()
        said = await client.rest()
        assert said.startswith(b"HTTP/1.1 101 ")
        assert b"\x8a\x05early" in said
        assert b"\x03\xea" in said, "1002, for what is no frame"


# --- memory ---------------------------------------------------------------------------------------


async def test_no_pongs_are_kept_for_a_peer_that_does_not_read(node):
    async with raw.websocket(node.port) as client:
        client.send(frame(TEXT, OPEN))
        await until(lambda: node.bus.sessions and node.probe.facts["connections default"])
        [key], [protocol] = node.bus.sessions, node.protocols
        value = "x" * 10_000
        while protocol.writable.is_set():
            node.bus.append(event={"type": "CUSTOM", "name": "n", "value": value}, key=key)
            await asyncio.sleep(0)
        kept_bytes = protocol.transport.get_write_buffer_size()
        client.send(frame(PING, b"x" * 125) * 300, frame(CLOSE))
        await until(protocol.transport.is_closing)
        assert protocol.transport.get_write_buffer_size() <= kept_bytes + 100


async def test_empty_fragments_are_not_kept(node):
    async with raw.websocket(node.port) as client:
        client.send(frame(TEXT, b'{"type":"ping",', fin=False), frame(CONT, fin=False) * 300)
        client.send(frame(PING, b"so far"))
        await client.until(b"so far")
        [protocol] = node.protocols
        assert len(protocol.frames) == 1
        client.send(frame(CONT, b'"t":', fin=False), frame(CONT, b"42}"))
        assert (await client.until(b"}")).endswith(b'{"type":"pong","t":42}')


async def test_what_is_read_ahead_of_a_busy_application_is_bounded(node, monkeypatch):
    async with raw.websocket(node.port) as client:
        client.send(frame(TEXT, OPEN))
        await until(lambda: node.probe.facts["connections default"])
        gate = asyncio.Event()
        accept = node.bus.accept

        async def slow(*args, **kwargs):
            await gate.wait()
            return await accept(*args, **kwargs)

        monkeypatch.setattr(node.bus, "accept", slow)
        message = frame(TEXT, b'{"type":"message","id":"m","content":"' + b"x" * 900 + b'"}')
        client.send(message * 10_000)
        await until(lambda: node.protocols[0]._backlog)
        [protocol] = node.protocols
        for _ in range(100):
            await asyncio.sleep(0.002)
            assert len(protocol._backlog) <= 512 * 1024
            assert protocol.queue.qsize() <= 5
        client.writer.transport.abort()
        gate.set()
    await until(lambda: node.protocols == [])


# --- ends -----------------------------------------------------------------------------------------


def ping(protocol) -> None:
    """Asks now whether the peer lives: a timer of its own could do so amid what is prepared."""
    protocol.ping_timer.cancel()
    protocol.send_keepalive_ping()


async def test_a_missing_pong_is_closed_4408():
    impatient = serving(ws_ping_interval=0.1, ws_ping_timeout=0.1)
    async with impatient as node, raw.websocket(node.port) as client:
        client.send(frame(TEXT, OPEN))
        assert (await client.rest()).endswith(close_frame(4408))


async def test_a_slow_peer_that_still_drains_is_given_more_time():
    """Its pong stands behind what it has not read yet."""
    with socket.socket() as small:
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        small.setblocking(False)
        async with serving(ws_ping_interval=1000, ws_ping_timeout=1000) as node:
            await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", node.port))
            async with in_session(node, sock=small, max_queue=1) as talk:
                [key], [protocol] = node.bus.sessions, node.protocols
                event = {"type": "CUSTOM", "value": "x" * 10_000}
                for seq in range(1, 101):
                    node.bus.append(event=event, key=key)
                    await until(lambda seq=seq: node.hub.find(key).last_seq == seq)
                await until(lambda: not protocol.is_writable)
                ping(protocol)
                reprieves = 0
                for seq in range(1, 101):
                    assert (await talk.receive())["seq"] == seq
                    if seq % 10 == 0 and protocol.pending_ping_payload:
                        protocol.pong_timer.cancel()  # and its time is over
                        protocol.keepalive_timeout()
                        assert not protocol.pong_timer.cancelled(), "it has more"
                        reprieves += 1
                assert reprieves, "the rule was not needed"
                await until(lambda: not protocol.pending_ping_payload)


async def test_a_peer_that_drains_nothing_is_closed_4408():
    impatient = serving(ws_ping_interval=1000, ws_ping_timeout=0.3)
    async with impatient as node, raw.websocket(node.port) as client:
        client.send(frame(TEXT, OPEN))
        await until(lambda: node.probe.facts["connections default"])
        [key], [protocol] = node.bus.sessions, node.protocols
        while protocol.writable.is_set():
            node.bus.append(event={"type": "CUSTOM", "value": "x" * 10_000}, key=key)
            await asyncio.sleep(0)
        ping(protocol)
        await until(protocol.transport.is_closing)
        assert (await client.rest()).endswith(close_frame(4408))


async def test_a_silent_peer_is_closed_4408_though_a_little_is_sent_to_it_all_the_time():
    """Its kernel takes that; nobody reads it."""
    impatient = serving(ws_ping_interval=0.1, ws_ping_timeout=0.3)
    async with impatient as node, raw.websocket(node.port) as client:
        client.send(frame(TEXT, OPEN))
        await until(lambda: node.probe.facts["connections default"])
        [key], [protocol] = node.bus.sessions, node.protocols
        async with asyncio.timeout(20):
            while not protocol.transport.is_closing():
                node.bus.append(event={"type": "CUSTOM", "value": "x"}, key=key)
                await asyncio.sleep(0.1)  # looks like progress each time
        assert (await client.rest()).endswith(close_frame(4408))


async def test_a_peer_that_sends_no_more_is_let_go_whether_it_reads_or_not(node, monkeypatch):
    monkeypatch.setattr(edge_socket, "LINGER_S", 0.3)
    async with raw.websocket(node.port) as client:
        client.send(frame(TEXT, OPEN))
        await until(lambda: node.probe.facts["connections default"])
        [key], [protocol] = node.bus.sessions, node.protocols
        while protocol.writable.is_set():
            node.bus.append(event={"type": "CUSTOM", "value": "x" * 10_000}, key=key)
            await asyncio.sleep(0)
        client.writer.write_eof()
        await until(lambda: node.edge.open_sockets == 0)
        await until(lambda: node.protocols == [])


async def test_responses_that_nobody_reads_are_not_kept_for_ever(node, monkeypatch):
    monkeypatch.setattr(http_protocol, "UNREAD_TIMEOUT_S", 0.3)
    assert node.server is not None
    connections = node.server.server_state.connections
    with socket.socket() as small:
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        small.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(small, ("127.0.0.1", node.port))
        get = b"GET /web/nooble.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await until(lambda: connections)
        [protocol] = connections
        state = node.server.server_state
        for number in range(1, 101):
            await loop.sock_sendall(small, get)
            await until(
                lambda number=number: (
                    protocol.flow.write_paused
                    or not connections
                    or (state.total_requests == number and protocol.cycle.response_complete)
                )
            )
            if protocol.flow.write_paused or not connections:
                break
        else:
            pytest.fail("all of it was taken")
        await until(lambda: not connections)


async def test_the_kernel_keeps_little_of_what_a_peer_does_not_read(node):
    """Or a thousand such peers would cost gigabytes that no count of ours shows."""
    async with raw.websocket(node.port) as client:
        client.send(frame(TEXT, OPEN))
        await until(lambda: node.probe.facts["connections default"])
        [key], [protocol] = node.bus.sessions, node.protocols
        size_bytes = 0
        while protocol.writable.is_set():
            node.bus.append(event={"type": "CUSTOM", "value": "x" * 10_000}, key=key)
            await asyncio.sleep(0.001)
            size_bytes += 10_000
        assert size_bytes < 512 * 1024


async def test_endless_fragments_end(monkeypatch):
    """However slowly they come: nobody needs so long for a message."""
    monkeypatch.setattr(edge_socket, "MESSAGE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(edge_socket, "LINGER_S", 0.5)
    async with serving() as node, raw.websocket(node.port) as client:
        client.send(frame(TEXT, OPEN), frame(TEXT, b"{", fin=False))
        async with asyncio.TaskGroup() as tasks:
            said = tasks.create_task(client.rest())
            while not client.reader.at_eof():
                client.send(frame(CONT, fin=False))
                await asyncio.sleep(0.05)
        assert said.result().endswith(close_frame(4408))
        await until(lambda: node.protocols == [])


async def test_our_own_close_while_events_are_sent_is_no_fault_of_the_application(node):
    """The writer learns it as the end of the connection."""
    async with raw.websocket(node.port) as client:
        client.send(frame(TEXT, OPEN))
        await until(lambda: node.probe.facts["connections default"])
        [key], [protocol] = node.bus.sessions, node.protocols
        while protocol.writable.is_set():
            node.bus.append(event={"type": "CUSTOM", "value": "x" * 10_000}, key=key)
            await asyncio.sleep(0)
        protocol._fail(4408)
        assert (await client.rest()).endswith(close_frame(4408))


async def test_text_that_is_not_utf_8_is_closed_1007_without_a_traceback(node):
    async with raw.websocket(node.port) as client:
        client.send(frame(TEXT, b"\xff\xfe"))
        assert (await client.rest()).endswith(close_frame(1007))


async def test_a_denied_handshake_is_no_error(node):
    async with raw.connection(node.port) as client:
        client.send(raw.request(node.port, host="evil.example"))
        assert (await client.rest()).startswith(b"HTTP/1.1 403 ")
    node.edge.drain(0)
    with pytest.raises(InvalidStatus):
        async with in_session(node):
            pass


async def test_several_host_names_get_no_socket(node):
    async with raw.connection(node.port) as client:
        client.send(raw.request(node.port, f"Host: 127.0.0.1:{node.port}"))
        assert (await client.rest()).startswith(b"HTTP/1.1 403 ")


# --- handshakes and requests ----------------------------------------------------------------------

HANDSHAKES = [
    (["X-A: " + "a" * 9000], "/ws", 431),
    ([f"X-{number}: a" for number in range(140)], "/ws", 431),
    (["Content-Length: 5"], "/ws", 400),
    (["Transfer-Encoding: chunked"], "/ws", 400),
    ([], "/ws?" + "a" * 9000, 414),
    ([], "/ws\xff", 400),
    (["X-A: \x01"], "/ws", 400),
]


@pytest.mark.parametrize(("headers", "path", "status"), HANDSHAKES)
async def test_a_handshake_that_is_none_is_answered_and_closed(node, headers, path, status):
    async with raw.connection(node.port) as client:
        client.send(raw.request(node.port, *headers, path=path))
        assert (await client.rest()).startswith(b"HTTP/1.1 %d " % status)
    await until(lambda: not node.server.server_state.connections)


GET = b"GET /health/liveness HTTP/1.1\r\nHost: 127.0.0.1\r\n"
POST = b"POST /api/v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\n"

SLOW = {
    "nothing": b"",
    "line ends": b"\r\n",
    "half a head": GET,
    "between requests": GET + b"\r\n" + GET,
    "a body that never ends": POST + b"Content-Length: 10\r\n\r\n{",
}


@pytest.mark.parametrize("kind", SLOW)
async def test_a_request_that_does_not_come_is_not_waited_for(node, kind, monkeypatch):
    for name in ("HEAD_TIMEOUT_S", "BODY_TIMEOUT_S"):
        monkeypatch.setattr(http_protocol, name, 0.2)
    async with raw.connection(node.port) as client:
        client.send(SLOW[kind])
        started = time.monotonic()
        await client.rest()
        assert time.monotonic() - started < 4, "that was another timeout"
    await until(lambda: not node.server.server_state.connections)


async def test_a_line_end_does_not_hold_an_idle_connection(node, monkeypatch):
    async with raw.connection(node.port) as client:
        client.send(GET, b"\r\n")
        await client.until(b'{"status":"ok"}')
        monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
        client.send(b"\r\n")  # ends the keep-alive timeout, begins no request
        assert await client.rest() == b""


async def test_several_requests_on_one_connection_each_have_their_time(node, monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 4.0)
    async with raw.connection(node.port) as client:
        for _ in range(4):
            client.send(GET)
            await asyncio.sleep(1.1)
            client.send(b"\r\n")
            await client.until(b'{"status":"ok"}')


ENDLESS = {
    "path": (b"GET /", b"x"),
    "header": (GET + b"A: ", b"x"),
    "headers": (GET, b"A: b\r\n"),
    "line ends": (b"", b"\r\n"),
    "trailers": (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n", b"A: b\r\n"),
    "chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\n1;a=", b"b"),
}


@pytest.mark.parametrize("kind", ENDLESS)
async def test_what_is_not_body_is_bounded(node, kind):
    start, more = ENDLESS[kind]
    async with raw.connection(node.port) as client:
        client.send(start, more * (80 * 1024 // len(more)))
        assert (await client.rest())[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400")
    await until(lambda: not node.server.server_state.connections)


async def test_a_long_head_and_a_long_body_are_served(node):
    async with raw.connection(node.port) as client:
        client.send(GET, b"A: " + b"x" * 50_000 + b"\r\n\r\n")
        assert (await client.until(b'{"status":"ok"}')).startswith(b"HTTP/1.1 200 ")
        body = b'{"agent_id":"demo"' + b" " * 65_000 + b"}"
        client.send(POST, b"Content-Length: %d\r\n\r\n" % len(body), body)
        assert (await client.until(b"\r\n")).startswith(b"HTTP/1.1 201 ")


async def test_some_requests_may_wait_for_the_answer_before_but_not_thousands(node):
    async with raw.connection(node.port) as client:
        client.send((GET + b"\r\n") * 10)
        for _ in range(10):
            await client.until(b'{"status":"ok"}')
        client.send((GET + b"\r\n") * 1000)
        said = await client.rest()
        assert b"HTTP/1.1 400 " in said
    await until(lambda: not node.server.server_state.connections)


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(node: Node):
    async with raw.connection(node.port) as client:
        client.send(POST, b"Content-Length: 100\r\n\r\n{")
        await until(lambda: any(c.cycle for c in node.server.server_state.connections))
    await until(lambda: not node.server.server_state.tasks)
