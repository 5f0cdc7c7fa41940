"""`/ws` under a real uvicorn: the documented answer or close code for whatever a client sends."""

import asyncio

import pytest
from support import raw
from support.edges import in_session, serving, talking
from support.little_bus import KEY
from support.raw import OPEN, TEXT, frame
from websockets.exceptions import InvalidStatus

from gateway.edges.connection import WRITE_BYTES
from gateway.edges.edge import ConnectionLimits
from gateway.session.tracing import NO_SPAN, UNTRACED

HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PARENT = "00-11111111111111111111111111111111-2222222222222222-01"


async def well(node) -> None:
    """The node is unharmed: a new client gets what it asks for."""
    async with in_session(node) as talk:
        assert await talk.ask(type="ping", t=1) == {"type": "pong", "t": 1}


# --- a good conversation --------------------------------------------------------------------------


async def test_open_message_events_and_leaving(node):
    async with talking(node) as talk:
        assert talk.socket.subprotocol == "nooble.v1"
        opened = await talk.ask(type="open", id="o1", agent="demo")
        assert opened["re"] == "o1"
        assert opened["agent"] == "demo"
        assert opened["resumed"] is False
        assert opened["heartbeat_ms"] == 25000
        assert opened["resume_ttl_s"] == 24 * 3600
        assert opened["limits"]["max_frame_bytes"] == 65536
        assert (await talk.receive())["type"] == "snapshot"
        assert node.probe.facts["connections default"] == 1
        assert node.probe.facts["active"] == 1
        assert node.probe.facts["created"] == 1
        ack = await talk.ask(type="message", id="m1", content="hi")
        assert (ack["type"], ack["re"], ack["status"]) == ("ack", "m1", "accepted")
        assert [ref.run_id for ref in node.bus.dispatched] == [ack["run_id"]]
        [key] = node.bus.sessions
        node.bus.append("S", key=key)
        node.bus.append("E", key=key, out=3)
        node.bus.append("F", key=key, role="assistant")
        assert [(await talk.receive())["seq"] for _ in range(3)] == [1, 2, 3]
    assert node.probe.facts["messages user"] == 1
    assert node.probe.facts["output"] == 3
    assert node.probe.facts["runs ended"] == 1


async def test_a_repeated_message_is_acknowledged_as_duplicate_and_counted_once(node):
    async with in_session(node) as talk:
        first = await talk.ask(type="message", id="m1", content="hi", traceparent="x")
        again = await talk.ask(type="message", id="m1", content="hi", traceparent="y")
        assert (again["status"], again["run_id"]) == ("duplicate", first["run_id"])
        other = await talk.ask(type="message", id="m1", content="ho")
        assert (other["code"], other["re"]) == ("id_conflict", "m1")
    assert node.probe.facts["messages user"] == 1


@pytest.mark.parametrize(
    ("in_frame", "within"),
    [(None, HEADER), ("evil\r\nX-Admin: 1", HEADER), (PARENT, PARENT)],
)
async def test_a_connection_is_within_the_trace_of_open_else_of_its_handshake(
    node, monkeypatch, in_frame, within
):
    """A malformed one is as none."""
    heard = []

    def connecting(traceparent: str):
        heard.append(traceparent)
        return NO_SPAN

    monkeypatch.setattr(type(UNTRACED), "connecting", staticmethod(connecting))
    async with talking(node, additional_headers={"traceparent": HEADER}) as talk:
        await talk.ask(type="open", id="o", agent="demo", traceparent=in_frame)
    assert heard == [within]


async def test_resume_over_a_new_connection(node):
    node.bus.make()
    for _ in range(5):
        node.bus.append()
    async with talking(node, additional_headers={"X-Tenant-ID": "acme"}) as talk:
        cursor = {"epoch": "e1", "seq": 3}
        opened = await talk.ask(type="open", id="o", session_id=KEY.session_id, after=cursor)
        assert opened["resumed"] is True
        assert [(await talk.receive())["seq"] for _ in range(2)] == [4, 5]
    assert node.probe.facts["connections acme"] == 0


async def test_close_ends_the_session_for_everybody(node):
    node.bus.make(home="n1")
    headers = {"X-Tenant-ID": "acme"}
    async with (
        talking(node, additional_headers=headers) as one,
        talking(node, additional_headers=headers) as two,
    ):
        for talk in (one, two):
            await talk.ask(type="open", id="o", session_id="s1")
            await talk.receive()
        assert (await one.ask(type="close", id="c"))["re"] == "c"
        assert await one.closed() == 1000
        assert await two.closed() == 4410
    assert node.probe.facts["completed completed"] == 1
    assert node.probe.durations == [60.0]


async def test_an_answer_and_a_tool_result_carry_ag_ui_fields(node):
    async with in_session(node) as talk:
        entries = [{"interrupt_id": "i1", "status": "resolved", "payload": {"ok": True}}]
        assert (await talk.ask(type="answer", id="a", entries=entries))["type"] == "ack"
        result = {"type": "tool_result", "id": "t", "tool_call_id": "c1", "content": "42"}
        assert (await talk.ask(**result))["type"] == "ack"
        assert (await talk.ask(type="cancel", id="x"))["type"] == "ack"
    answer, tool = node.bus.accepted
    assert answer.entries == b'[{"interruptId":"i1","status":"resolved","payload":{"ok":true}}]'
    assert answer.interrupt_ids == ["i1"]
    assert tool.message == b'{"id":"t","role":"tool","toolCallId":"c1","content":"42"}'
    assert node.probe.facts["messages tool"] == 1


# --- bad input ------------------------------------------------------------------------------------

WRONG_BUT_USABLE = [
    ('{"type":"message","id":"m"}', "bad_frame", "m", "content"),
    ('{"type":"message","id":"m","content":7}', "bad_frame", "m", "content"),
    ('{"type":"message","content":"hi"}', "bad_frame", None, "id"),
    ('{"type":"answer","id":"a","entries":[]}', "bad_frame", "a", "entries"),
    ('{"type":"dance","id":"d"}', "unknown_type", "d", "type"),
    ('{"id":"d"}', "bad_frame", "d", "type"),
    ('{"type":"refresh","id":"r","token":"t"}', "unsupported", "r", None),
]


@pytest.mark.parametrize(("text", "code", "re", "param"), WRONG_BUT_USABLE)
async def test_a_frame_that_is_merely_wrong_leaves_the_connection_usable(
    node, text, code, re, param
):
    async with in_session(node) as talk:
        await talk.socket.send(text)
        error = await talk.receive()
        assert error["type"] == "error"
        assert (error["code"], error.get("re"), error.get("param")) == (code, re, param)
        assert error["retryable"] is False
        assert (await talk.ask(type="ping", t=1))["type"] == "pong"


FATAL = ["not JSON", "[1]", "7", "", '{"type":"open","id":"o2","agent":"demo"}', b"\x00binary"]


@pytest.mark.parametrize("data", FATAL)
async def test_a_frame_that_makes_no_sense_ends_the_connection(node, data):
    async with in_session(node) as bystander:
        async with in_session(node) as talk:
            await talk.socket.send(data)
            assert (await talk.receive())["code"] == "bad_frame"
            assert await talk.closed() == 4400
        assert (await bystander.ask(type="ping", t=1))["type"] == "pong"
    await well(node)


BEFORE_OPEN = [
    "not JSON",
    '{"type":"dance","id":"d"}',
    '{"type":"message","id":"m","content":"hi"}',
    '{"type":"open"}',
    '{"type":"open","id":"o"}',
    '{"type":"open","id":"o","agent":"demo","session_id":"s"}',
    '{"type":"open","id":"o","agent":"demo","after":{"epoch":"e","seq":1}}',
    '{"type":"open","id":"o","session_id":"../x"}',
    b"\x00binary",
]


@pytest.mark.parametrize("data", BEFORE_OPEN)
async def test_before_open_every_bad_frame_is_the_last(node, data):
    async with talking(node) as talk:
        await talk.socket.send(data)
        assert (await talk.receive())["type"] == "error"
        assert await talk.closed() == 4400
    await well(node)


async def test_a_frame_too_large(node):
    async with in_session(node) as talk:
        await talk.send(type="message", id="m", content="x" * 70_000)
        assert await talk.closed() == 1009
    await well(node)


async def test_no_open_in_time():
    now = 1000.0
    limits = ConnectionLimits(open_timeout_s=10)
    async with serving(limits, clock=lambda: now) as node, in_session(node) as opened:
        async with talking(node) as talk:
            now += 9
            assert (await talk.ask(type="ping", t=1))["type"] == "pong"
            now += 2
            assert await talk.closed() == 4408
        assert (await opened.ask(type="ping", t=1))["type"] == "pong"


REFUSED_OPENS = [
    ({"agent": "nobody"}, "agent_not_found", 4404),
    ({"session_id": "unknown"}, "session_not_found", 4404),
    ({"session_id": "over"}, "session_ended", 4410),
    ({"session_id": "anothers"}, "session_not_found", 4404),
]


@pytest.mark.parametrize(("fields", "code", "close_code"), REFUSED_OPENS)
async def test_a_refused_open_says_why_and_closes(node, fields, code, close_code):
    node.bus.make(KEY._replace(tenant="default", session_id="over")).ended = True
    node.bus.make(KEY._replace(tenant="default", session_id="anothers"), user="somebody")
    async with talking(node) as talk:
        error = await talk.ask(type="open", id="o", **fields)
        assert (error["type"], error["re"], error["code"]) == ("error", "o", code)
        assert await talk.closed() == close_code


async def test_without_redis_open_is_unavailable_and_commands_are_refused(node):
    async with in_session(node) as talk:
        node.bus.down = True
        error = await talk.ask(type="message", id="m", content="hi")
        assert (error["code"], error["re"], error["retryable"]) == ("unavailable", "m", True)
        async with talking(node) as other:
            error = await other.ask(type="open", id="o", agent="demo")
            assert (error["code"], error["retryable"]) == ("unavailable", True)
            assert await other.closed() == 4503
        node.bus.down = False
        assert (await talk.ask(type="message", id="m", content="hi"))["type"] == "ack"


async def test_an_ack_stands_when_only_the_dispatch_fails(node):
    async with in_session(node) as talk:
        node.bus.dispatch_down = True
        assert (await talk.ask(type="message", id="m", content="hi"))["status"] == "accepted"


async def test_an_unexpected_failure_says_nothing_of_its_cause(node):
    async def broken(*_args, **_kwargs):
        raise ValueError("secret: hunter2")

    async with in_session(node) as talk:
        node.bus.accept = broken
        error = await talk.ask(type="message", id="m", content="hi")
        assert (error["code"], error["re"]) == ("internal", "m")
        assert "hunter2" not in str(error)
        assert await talk.closed() == 1011


async def test_too_many_messages_are_refused_and_a_flood_is_cut():
    # So slow a refill that a busy machine makes no difference to what is refused.
    async with serving(ConnectionLimits(messages_per_s=1)) as node, in_session(node) as talk:
        for number in range(25):
            await talk.send(type="message", id=f"m{number}", content="hi")
        answers = [await talk.receive() for _ in range(25)]
        refused = [answer for answer in answers if answer["type"] == "error"]
        assert 1 <= len(refused) <= 6
        assert {answer["code"] for answer in refused} == {"rate_limited"}
        assert all(0 < answer["retry_after_ms"] <= 1001 for answer in refused)
        assert {answer["re"] for answer in refused} <= {f"m{number}" for number in range(19, 25)}
        for number in range(300):
            await talk.send(type="ping", t=number)
        assert await talk.closed() == 4429


# --- the handshake --------------------------------------------------------------------------------


async def test_a_client_that_offers_no_subprotocol_is_served(node):
    async with in_session(node, subprotocols=None) as talk:
        assert talk.socket.subprotocol is None


async def test_ours_is_chosen_among_others(node):
    async with talking(node, subprotocols=["other", "nooble.v1"]) as talk:
        assert talk.socket.subprotocol == "nooble.v1"


async def test_only_other_subprotocols(node):
    async with talking(node, subprotocols=["nooble.v9", "other"]) as talk:
        assert await talk.closed() == 4426


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://127.0.0.1:{port}", True),
        ("http://127.0.0.1", False),
        ("http://localhost:{port}", False),
        ("https://evil.example", False),
        ("http://127.0.0.1:{port}.evil.example", False),
        ("null", False),
        ("http://[", False),
    ],
)
async def test_a_page_of_another_site_gets_no_socket(node, origin, allowed):
    origin = origin.format(port=node.port)
    if allowed:
        async with in_session(node, origin=origin):
            return
    with pytest.raises(InvalidStatus) as refusal:
        async with talking(node, origin=origin):
            pass
    assert refusal.value.response.status_code == 403


async def test_another_host_name_gets_no_socket(node):
    """DNS rebinding: the page's own name resolves to us, so its `Origin` would be right."""
    name = f"rebound.example:{node.port}"
    with pytest.raises(InvalidStatus) as refusal:
        async with talking(node, additional_headers={"Host": name}, origin=f"http://{name}"):
            pass
    assert refusal.value.response.status_code in (400, 403)


@pytest.mark.parametrize("tenant", ["", "Acme", "a" * 64, "-x", 'a"} 1'])
async def test_a_malformed_tenant_is_forbidden(node, tenant):
    async with talking(node, additional_headers={"X-Tenant-ID": tenant}) as talk:
        assert (await talk.ask(type="open", id="o", agent="demo"))["code"] == "forbidden"
        assert await talk.closed() == 4403


async def test_several_tenants_are_forbidden(node):
    tenants = [("X-Tenant-ID", "a"), ("X-Tenant-ID", "b")]
    async with talking(node, additional_headers=tenants) as talk:
        assert (await talk.ask(type="open", id="o", agent="demo"))["code"] == "forbidden"
        assert await talk.closed() == 4403


# --- slow clients, and the end of the node --------------------------------------------------------


async def test_a_client_that_does_not_read_is_cut_off_and_reads_its_code_if_it_wakes():
    limits = ConnectionLimits(stall_timeout_s=0.3, outbox_bytes=64 * 1024)
    async with serving(limits) as node, in_session(node) as bystander:
        async with in_session(node, max_queue=1) as talk:
            [_, key] = node.bus.sessions
            talk.socket.transport.pause_reading()
            value = "x" * 10_000
            for _ in range(2000):
                node.bus.append(event={"type": "CUSTOM", "name": "n", "value": value}, key=key)
            feed = node.hub.find(key)
            [attachment] = feed.attachments
            assert attachment.outbox.size_bytes <= 64 * 1024 + 20_000
            slow, waiting_bytes = node.edge.outbound()
            assert slow == 1, "the bystander is not"
            assert attachment.outbox.size_bytes <= waiting_bytes < 512 * 1024
            async with asyncio.timeout(20):
                while node.edge.open_sockets > 1:  # noqa: ASYNC110 - a state of the node
                    await asyncio.sleep(0.02)
            assert feed.attachments == set()
            assert node.edge.outbound() == (0, 0)
            talk.socket.transport.resume_reading()
            assert await talk.closed() == 4503
            assert len(talk.unread) > 1
        assert (await bystander.ask(type="ping", t=1))["type"] == "pong"


async def test_a_client_that_is_behind_gets_answers_while_redis_is_slow():
    """Its log is read beside the writer: a `pong` that waited for Redis would look like a death."""
    async with serving(ConnectionLimits(outbox_bytes=4096)) as node, in_session(node) as talk:
        node.bus.gate = asyncio.Event()  # from now on reading the log takes as long as we like
        [key] = node.bus.sessions
        value = "x" * 1000
        for _ in range(20):
            node.bus.append(event={"type": "CUSTOM", "name": "n", "value": value}, key=key)
        await talk.send(type="ping", t=1)
        frames = []
        while not frames or frames[-1]["type"] != "pong":
            frames.append(await talk.receive())
        seqs = [frame["seq"] for frame in frames[:-1]]
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) < 20, "it is behind"
        await talk.ask(type="message", id="m", content="hi")
        node.bus.gate.set()
        while len(seqs) < 20:
            seqs.append((await talk.receive())["seq"])
        assert seqs == list(range(1, 21))
        node.bus.append(key=key)
        assert (await talk.receive())["seq"] == 21


async def test_a_client_that_leaves_while_its_log_is_read_leaves_nothing():
    async with serving(ConnectionLimits(outbox_bytes=4096)) as node:
        async with in_session(node) as talk:
            node.bus.gate = asyncio.Event()
            [key] = node.bus.sessions
            for _ in range(20):
                node.bus.append(event={"type": "CUSTOM", "value": "x" * 1000}, key=key)
            assert (await talk.receive())["seq"] == 1
        async with asyncio.timeout(20):
            while node.edge.open_sockets:  # noqa: ASYNC110 - a state of the node
                await asyncio.sleep(0.01)
        node.bus.gate.set()


async def test_draining_sends_clients_away_and_takes_no_new_ones(node):
    """Guarantee 7."""
    async with in_session(node) as talk, talking(node) as silent:
        node.edge.drain(0.2)
        for one in (talk, silent):
            away = await one.receive()
            assert (away["type"], away["reason"]) == ("goaway", "stopping")
            assert 0 <= away["reconnect_in_ms"] <= 500
            assert await one.closed() == 1012
    with pytest.raises(InvalidStatus) as refusal:
        async with talking(node):
            pass
    assert refusal.value.response.status_code == 503
    assert 1 <= int(refusal.value.response.headers["Retry-After"]) <= 5


async def test_a_draining_node_sends_a_client_away_between_runs(node):
    """Guarantee 7: an answer is not cut while there is time; what ends it comes before `goaway`."""
    async with in_session(node) as talk:
        [key] = node.bus.sessions
        node.bus.append("S", key=key)
        assert (await talk.receive())["seq"] == 1
        [attachment] = node.hub.find(key).attachments
        node.edge.drain(0)
        async with asyncio.timeout(20):
            while attachment.on_run_end is None:  # noqa: ASYNC110 - a state of the node
                await asyncio.sleep(0.01)
        node.bus.append("E", key=key)
        assert (await talk.receive())["seq"] == 2
        node.bus.append("F", key=key)
        assert (await talk.receive())["seq"] == 3
        assert (await talk.receive())["type"] == "goaway"
        assert await talk.closed() == 1012


async def test_a_node_that_waits_no_longer_sends_clients_away_in_mid_answer(node):
    """Guarantee 7: the drain is bounded; who must leave at one moment comes back spread."""
    async with in_session(node) as talk:
        [key] = node.bus.sessions
        node.bus.append("S", key=key)
        assert (await talk.receive())["seq"] == 1
        node.edge.drain(0)
        node.edge.evacuate(10)
        away = await talk.receive()
        assert away["type"] == "goaway"
        assert 0 <= away["reconnect_in_ms"] <= 10_000
        assert await talk.closed() == 1012


async def test_a_connection_is_one_task(node):
    async with in_session(node):
        before = asyncio.all_tasks()
        async with raw.websocket(node.port) as client:
            client.send(frame(TEXT, OPEN))
            await client.until(b'"snapshot"')
            async with asyncio.timeout(20):
                while len(asyncio.all_tasks()) != len(before) + 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)


async def test_frames_of_one_turn_leave_in_one_write_and_a_long_row_in_bounded_ones(node):
    async with in_session(node) as talk:
        [socket], [key] = node.protocols, node.bus.sessions
        sizes: list[int] = []
        write = socket.write

        def record(texts: list[bytes]) -> None:
            sizes.append(sum(map(len, texts)))
            write(texts)

        socket.write = record
        for _ in range(10):
            node.bus.append(key=key)
        assert [(await talk.receive())["seq"] for _ in range(10)] == list(range(1, 11))
        assert len(sizes) == 1
        for _ in range(10):
            node.bus.append(event={"type": "CUSTOM", "value": "x" * 20_000}, key=key)
        assert [(await talk.receive())["seq"] for _ in range(10)] == list(range(11, 21))
        assert max(sizes) <= WRITE_BYTES
        for length in (100, 126, 127, 65_535, 65_536, 100_000):  # each form of a frame's header
            node.bus.append(event={"type": "CUSTOM", "value": "x" * length}, key=key)
            assert len((await talk.receive())["event"]["value"]) == length
