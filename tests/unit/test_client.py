"""The client against a real socket whose other end the test writes."""

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.net import free_port
from support.scripted import WAIT_S, Json, Peer, ScriptedServer, scripted_server

from gateway.client import (
    Attached,
    Deliver,
    Disconnected,
    HistoryReset,
    Lost,
    Notice,
    Refusal,
    Replace,
    Run,
    Session,
    connect,
    follow,
)
from gateway.client import keeper as keeper_module
from protocol.codes import Reconnect
from protocol.frames import Cursor, GoAway, Reset

RANDOM = 0.5


class Naps(list[float]):
    """Stands in for `asyncio.sleep`: notes the delay and waits no longer than a turn."""

    async def __call__(self, delay_s: float) -> None:
        self.append(delay_s)
        await asyncio.sleep(0)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with scripted_server() as server:
        yield server


@pytest.fixture
def naps() -> Naps:
    return Naps()


@asynccontextmanager
async def attached(
    server: ScriptedServer, naps: Naps | None = None, **options: Any
) -> AsyncGenerator[tuple[Session, Peer]]:
    async with connect(
        server.url,
        **{
            "agent": "demo",
            "random": lambda: RANDOM,
            "sleep": Naps() if naps is None else naps,
            **options,
        },
    ) as session:
        yield session, await server.accept()


def started(run: str = "r1", text: str = "hello") -> Json:
    messages = [{"id": f"q-{run}", "role": "user", "content": text}]
    run_input = {"threadId": "s1", "runId": run, "messages": messages}
    return {"type": "RUN_STARTED", "threadId": "s1", "runId": run, "input": run_input}


def delta(text: str) -> Json:
    return {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": text}


def finished(run: str = "r1") -> Json:
    return {"type": "RUN_FINISHED", "threadId": "s1", "runId": run}


async def collect(run: Run) -> list[str]:
    """The run's deltas, which must end with its terminal event."""
    events = [event async for event in run]
    assert events[-1]["type"] in ("RUN_FINISHED", "RUN_ERROR")
    return [event["delta"] for event in events if "delta" in event]


async def sent(session: Session, peer: Peer, run: str = "r1") -> Run:
    """A message that was accepted."""
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(session.send("hello"))
        await peer.take_message(run)
    return sending.result()


# --- a conversation -------------------------------------------------------------------------------


async def test_the_client_of_the_readme(server: ScriptedServer) -> None:
    async def gateway() -> None:
        peer = await server.accept()
        assert peer.hello["agent"] == "demo"
        frame = await peer.take_message()
        assert frame["content"] == "hello"
        for seq, event in enumerate([started(), delta("Good "), delta("day"), finished()], 1):
            await peer.event(seq, event)

    said = ""
    async with asyncio.TaskGroup() as group:
        group.create_task(gateway())
        async with connect(server.url, agent="demo") as session:
            run = await session.send("hello")
            async for event in run:
                if event["type"] == "TEXT_MESSAGE_CONTENT":
                    said += event["delta"]
    assert said == "Good day"
    assert run.run_id == "r1"
    assert run.status == "accepted"
    assert (session.session_id, session.agent) == ("s1", "demo")
    assert session.cursor == Cursor("e1", 4)
    assert [(m["role"], m["content"]) for m in session.messages] == [
        ("user", "hello"),
        ("assistant", "Good day"),
    ]


async def test_events_that_overtake_the_ack_are_in_the_run(server: ScriptedServer) -> None:
    """A worker may be faster than the node that acknowledges."""
    async with attached(server) as (session, peer), asyncio.TaskGroup() as group:
        sending = group.create_task(session.send("hello"))
        frame = await peer.recv("message")
        await peer.event(1, started())
        await peer.event(2, delta("a"))
        await peer.event(3, finished())
        await peer.ack(frame, "r1")
        assert await collect(await sending) == ["a"]


async def test_a_run_gets_its_own_events_only(server: ScriptedServer) -> None:
    async with attached(server) as (session, peer):
        one = await sent(session, peer, "r1")
        other = await sent(session, peer, "r2")
        for seq, (run, event) in enumerate(
            [
                ("r1", delta("a")),
                ("r1", finished("r1")),
                ("r2", delta("b")),
                ("r2", finished("r2")),
            ],
            1,
        ):
            await peer.event(seq, event, run)
        assert await collect(other) == ["b"]
        assert await collect(one) == ["a"]


async def test_an_iteration_outlives_the_handle(server: ScriptedServer) -> None:
    """As in `async for event in await session.send(...)`."""
    async with attached(server) as (session, peer):
        reading = aiter(await sent(session, peer))
        gc.collect()
        await peer.event(1, delta("a"))
        await peer.event(2, finished())
        assert [event.get("delta") async for event in reading] == ["a", None]


async def test_what_is_asked_for_stands_on_the_wire(server: ScriptedServer) -> None:
    async with (
        attached(
            server,
            tenant="acme",
            token="secret",
            metadata={"a": 1},
            on_detach="cancel",
            headers={"X-Other": "x"},
        ) as (session, peer),
        asyncio.TaskGroup() as group,
    ):
        assert (peer.hello["token"], peer.hello["metadata"]) == ("secret", {"a": 1})
        assert peer.hello["on_detach"] == "cancel"
        assert server.requests[0].headers["X-Tenant-ID"] == "acme"
        assert server.requests[0].headers["X-Other"] == "x"

        group.create_task(
            session.send(
                [{"type": "text", "text": "x"}],
                when_busy="interrupt",
                tools=[{"name": "t"}],
                context=[{"value": "c"}],
                state={"s": 1},
                metadata={"m": 1},
            )
        )
        message = await peer.take_message()
        assert message["content"] == [{"type": "text", "text": "x"}]
        assert message["when_busy"] == "interrupt"
        assert (message["tools"], message["context"]) == ([{"name": "t"}], [{"value": "c"}])
        assert (message["state"], message["metadata"]) == ({"s": 1}, {"m": 1})

        answering = group.create_task(session.answer({"i1": True}, cancelled=["i2"]))
        answer = await peer.recv("answer")
        assert answer["entries"] == [
            {"interrupt_id": "i1", "status": "resolved", "payload": True},
            {"interrupt_id": "i2", "status": "cancelled"},
        ]
        await peer.ack(answer, "r2")
        assert (await answering).run_id == "r2"

        giving = group.create_task(session.tool_result("c1", "12:00"))
        await peer.ack(await peer.recv("tool_result"))
        assert await giving is None
        giving = group.create_task(session.tool_result("c2", "", error="no"))
        result = await peer.recv("tool_result")
        assert (result["tool_call_id"], result["error"]) == ("c2", "no")
        await peer.ack(result, "r3")
        last = await giving
        assert last is not None
        assert last.run_id == "r3"


async def test_cancel_names_the_open_run(server: ScriptedServer) -> None:
    """A bare one that is sent again after a lost answer could hit the run after it."""
    async with attached(server) as (session, peer), asyncio.TaskGroup() as group:
        events = session.events()
        await peer.event(1, started("r7"), "r7")
        await anext(events)
        cancelling = group.create_task(session.cancel())
        frame = await peer.recv("cancel")
        assert frame["run_id"] == "r7"
        await peer.error(frame["id"], "run_not_found")  # it ended meanwhile: as good as cancelled
        await cancelling

        await peer.event(2, finished("r7"), "r7")
        await anext(events)
        cancelling = group.create_task(session.cancel())
        frame = await peer.recv("cancel")
        assert "run_id" not in frame
        await peer.ack(frame)
        await cancelling

        cancelling = group.create_task(refused(session.cancel("r9")))
        frame = await peer.recv("cancel")
        await peer.error(frame["id"], "run_not_found")
        assert (await cancelling).code == "run_not_found"


async def refused(call: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await call
    return caught.value


async def test_a_refusal_says_what_the_server_said(server: ScriptedServer) -> None:
    async with attached(server) as (session, peer), asyncio.TaskGroup() as group:
        refusing = group.create_task(refused(session.send("x", when_busy="reject")))
        frame = await peer.recv("message")
        await peer.error(
            frame["id"], "busy", message="a run is open", retryable=True, retry_after_ms=1500
        )
        refusal = await refusing
        assert (refusal.code, refusal.message, refusal.param) == ("busy", "a run is open", None)
        assert (refusal.retryable, refusal.retry_after_s) == (True, 1.5)


async def test_a_frame_that_is_too_large_is_refused_here(server: ScriptedServer) -> None:
    """The server would close with 1009, and what is unanswered would be sent again for ever."""

    async def greeting(peer: Peer) -> None:
        await peer.opened(limits={"max_frame_bytes": 1000})
        await peer.snapshot()

    server.greeting = greeting
    async with attached(server) as (session, peer):
        refusal = await refused(session.send("x" * 1000))
        assert (refusal.code, refusal.retryable) == ("too_large", False)
        await sent(session, peer)  # the next frame is this one, on the same connection


async def test_an_ack_without_a_run_is_an_error_not_a_hang(server: ScriptedServer) -> None:
    async with attached(server) as (session, peer), asyncio.TaskGroup() as group:
        refusing = group.create_task(refused(session.send("x")))
        await peer.ack(await peer.recv("message"))
        assert (await refusing).code == "internal"


async def test_events_begin_where_the_history_ends(server: ScriptedServer) -> None:
    """What comes with the same packet as the snapshot must not fall between the two."""

    async def greeting(peer: Peer) -> None:
        await peer.opened()
        await peer.snapshot(delta("a"))
        for seq in range(1, 20):
            await peer.event(seq, delta("b"))

    server.greeting = greeting
    async with attached(server) as (session, _):
        pass  # the greeting is complete, so it is all on its way
    async with connect(server.url, agent="demo") as session:
        said = [message["content"] for message in session.messages]
        events = session.events()
        said += [(await anext(events)).event["delta"] for _ in range(1, 20)]  # type: ignore[union-attr]
    assert "".join(said) == "a" + "b" * 19


# --- connections that are lost --------------------------------------------------------------------


async def test_a_lost_connection_is_resumed_in_mid_answer(
    server: ScriptedServer, naps: Naps
) -> None:
    async with attached(server, naps) as (session, peer):
        run = await sent(session, peer)
        await peer.event(1, started())
        await peer.event(2, delta("a"))
        got = [await anext(aiter(run)), await anext(aiter(run))]
        peer.abort()
        peer = await server.accept()
        assert peer.hello["session_id"] == "s1"
        assert "agent" not in peer.hello
        assert peer.hello["after"] == {"epoch": "e1", "seq": 2, "ts": 1}
        await peer.event(2, delta("a"))  # a duplicate
        await peer.event(4, delta("bc"), **{"from": 3})  # merged while we were away
        await peer.event(5, finished())
        got += [event async for event in run]
    assert [event.get("delta") for event in got] == [None, "a", "bc", None]
    assert session.messages[-1]["content"] == "abc"
    assert naps == [RANDOM * 0.5]


async def test_a_gap_is_repaired_by_a_new_connection(server: ScriptedServer) -> None:
    async with attached(server) as (session, peer):
        run = await sent(session, peer)
        await peer.event(1, started())
        await peer.event(3, delta("b"))
        peer = await server.accept()
        assert peer.hello["after"] == {"epoch": "e1", "seq": 1, "ts": 1}
        await peer.event(2, delta("a"))
        await peer.event(3, delta("b"))
        await peer.event(4, finished())
        assert await collect(run) == ["a", "b"]


async def test_what_is_unanswered_is_sent_again_in_order_with_its_ids(
    server: ScriptedServer,
) -> None:
    async with attached(server) as (session, peer), asyncio.TaskGroup() as group:
        first = group.create_task(session.send("one"))
        ids = [(await peer.recv("message"))["id"]]
        second = group.create_task(session.send("two"))
        ids.append((await peer.recv("message"))["id"])
        peer.abort()
        peer = await server.accept()
        third = group.create_task(session.send("three"))
        frames = [await peer.recv("message") for _ in range(3)]
        assert [frame["content"] for frame in frames] == ["one", "two", "three"]
        assert [frame["id"] for frame in frames[:2]] == ids
        # The first was taken before; its answer is told in full though the ack comes last.
        await peer.event(1, started())
        await peer.event(2, delta("a"))
        await peer.event(3, finished())
        for frame, run, status in zip(
            frames, ["r1", "r2", "r3"], ["duplicate", "accepted", "queued"], strict=True
        ):
            await peer.ack(frame, run, status)
        assert [(await t).status for t in (first, second, third)] == [
            "duplicate",
            "accepted",
            "queued",
        ]
        assert await collect(await first) == ["a"]


async def test_a_command_while_there_is_no_connection_waits_for_the_next(
    server: ScriptedServer,
) -> None:
    back = asyncio.Event()

    async def sleep(_: float) -> None:
        await back.wait()

    async with attached(server, sleep=sleep) as (session, peer), asyncio.TaskGroup() as group:
        events = session.events()
        peer.abort()
        assert isinstance(await anext(events), Lost)
        sending = group.create_task(session.send("late"))
        await asyncio.sleep(0)
        back.set()
        peer = await server.accept()
        await peer.take_message("r1")
        assert (await sending).run_id == "r1"


async def test_a_command_between_open_and_opened_waits(server: ScriptedServer) -> None:
    """Ahead of `opened` the server would take it for an illegal frame, and close for good."""
    async with attached(server) as (session, peer), asyncio.TaskGroup() as group:
        arrived, go_on = asyncio.Event(), asyncio.Event()

        async def greeting(peer: Peer) -> None:
            arrived.set()
            await go_on.wait()
            await peer.opened(resumed=True)

        server.greeting = greeting
        peer.abort()
        await arrived.wait()
        sending = group.create_task(session.send("x"))
        await asyncio.sleep(0)
        go_on.set()
        peer = await server.accept()
        await peer.take_message("r1")
        assert (await sending).run_id == "r1"
        closing = group.create_task(session.close())
        await peer.ack(await peer.recv("close"))  # and the message came once
        await closing


async def test_a_command_into_a_connection_that_has_just_died(server: ScriptedServer) -> None:
    async with attached(server) as (session, _), asyncio.TaskGroup() as group:
        connection = session._keeper._connection  # type: ignore[attr-defined]
        assert connection is not None
        connection.transport.abort()  # the reader has not seen it yet
        sending = group.create_task(session.send("x"))
        await (await server.accept()).take_message("r1")
        assert (await sending).run_id == "r1"


async def test_events_tell_of_the_connection_too(server: ScriptedServer, naps: Naps) -> None:
    """And a goaway's delay is kept exactly: the server has spread it."""
    async with attached(server, naps) as (session, peer):
        events = session.events()
        await peer.send("goaway", reason="drain", reconnect_in_ms=2500)
        await peer.close(1012, "restart")
        peer = await server.accept()
        await peer.event(1, started())
        assert await anext(events) == Notice(GoAway("drain", 2500))
        assert await anext(events) == Lost(1012, "restart", 2.5)
        back = await anext(events)
        assert isinstance(back, Attached)
        assert back.opened.resumed
        assert isinstance(await anext(events), Deliver)
    assert naps == [2.5]
    with pytest.raises(StopAsyncIteration):  # the session was left: no failure
        await anext(events)


async def test_backoff_grows_while_nothing_answers(naps: Naps) -> None:
    enough = asyncio.Event()

    async def sleep(delay_s: float) -> None:
        await naps(delay_s)
        if len(naps) == 8:
            enough.set()
            await asyncio.Event().wait()

    async with scripted_server() as server, attached(server, sleep=sleep) as (_, peer):
        # A port that nothing listens on: bound, and not listening.
        server.refusals += [(500, {})] * 20
        peer.abort()
        await enough.wait()
    assert naps == [RANDOM * ceiling for ceiling in (0.5, 1, 2, 4, 8, 16, 30, 30)]


@pytest.mark.parametrize(
    ("status", "headers", "delay_s"),
    [
        (503, {"Retry-After": "7"}, 7 + RANDOM * 0.5),
        (503, {"Retry-After": "99999999999"}, 3600 + RANDOM * 0.5),
        (503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, RANDOM * 0.5),
        (503, {}, RANDOM * 0.5),
        (429, {"Retry-After": "2"}, 2 + RANDOM * 0.5),
        (502, {}, RANDOM * 0.5),
    ],
)
async def test_a_refused_handshake_is_tried_again_when_the_server_says(
    server: ScriptedServer, naps: Naps, status: int, headers: dict[str, str], delay_s: float
) -> None:
    server.refusals.append((status, headers))
    async with attached(server, naps):
        pass
    assert naps == [delay_s]


@pytest.mark.parametrize(
    ("status", "code", "policy"),
    [
        (401, 4401, Reconnect.NEW_TOKEN),
        (403, 4403, Reconnect.NO),
        (404, 1002, Reconnect.NO),
        (426, 4426, Reconnect.NO),
    ],
)
async def test_a_handshake_that_is_refused_for_good(
    server: ScriptedServer, naps: Naps, status: int, code: int, policy: Reconnect
) -> None:
    server.refusals.append((status, {}))
    with pytest.raises(Disconnected, match=f"HTTP {status}") as caught:
        async with attached(server, naps):
            pass
    assert (caught.value.code, caught.value.policy) == (code, policy)
    assert naps == []


async def test_a_server_that_is_not_there_is_said_at_once(naps: Naps) -> None:
    """Only a session that was attached once is worth coming back to."""
    with pytest.raises(Disconnected) as caught:
        async with connect(f"ws://127.0.0.1:{free_port()}/ws", agent="demo", sleep=naps):
            pass
    assert caught.value.code == 1006
    assert caught.value.reason
    assert naps == []


async def test_a_server_that_comes_back_later(naps: Naps) -> None:
    async with scripted_server() as server, attached(server, naps) as (session, peer):
        server.refusals += [(503, {"Retry-After": "1"})]
        peer.abort()
        await sent(session, await server.accept())
    assert naps == [0.25, 1 + RANDOM * 1.0]


async def test_a_server_that_does_not_speak_our_protocol(naps: Naps) -> None:
    async with scripted_server(subprotocol=None) as server:
        with pytest.raises(Disconnected, match=r"does not speak nooble\.v1") as caught:
            async with connect(server.url, agent="demo", sleep=naps):
                pass
    assert caught.value.code == 4426


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "policy"),
    [
        (1000, Reconnect.NO),
        (1009, Reconnect.NO),
        (4400, Reconnect.NO),
        (4401, Reconnect.NEW_TOKEN),
        (4403, Reconnect.NO),
        (4404, Reconnect.NEW_SESSION),
        (4410, Reconnect.NEW_SESSION),
        (4426, Reconnect.NO),
    ],
)
async def test_a_final_close_reaches_everyone_who_waits(
    server: ScriptedServer, naps: Naps, code: int, policy: Reconnect
) -> None:
    async with attached(server, naps) as (session, peer), asyncio.TaskGroup() as group:
        run = await sent(session, peer)
        events = session.events()
        waiting = [
            group.create_task(disconnected(session.send("x"))),
            group.create_task(disconnected(anext(aiter(run)))),
            group.create_task(disconnected(anext(events))),
        ]
        await peer.recv("message")
        await peer.close(code, "because")
        for waiter in waiting:
            gone = await waiter
            assert (gone.code, gone.reason, gone.policy) == (code, "because", policy)
            assert "because" in str(gone)
        await disconnected(session.cancel())  # and who comes later
        await disconnected(anext(session.events()))
    assert naps == []


async def disconnected(call: Any) -> Disconnected:
    with pytest.raises(Disconnected) as caught:
        await call
    return caught.value


async def test_what_had_arrived_is_read_before_the_failure(server: ScriptedServer) -> None:
    async with attached(server) as (session, peer):
        run = await sent(session, peer)
        await peer.event(1, delta("a"))
        await peer.close(4410)
        reading = aiter(run)
        assert (await anext(reading))["delta"] == "a"
        assert (await disconnected(anext(reading))).code == 4410


async def test_a_run_that_ended_ended(server: ScriptedServer) -> None:
    async with attached(server) as (session, peer):
        run = await sent(session, peer)
        await peer.event(1, finished())
        await peer.close(4410)
        assert [event["type"] async for event in run] == ["RUN_FINISHED"]


async def test_a_refused_open_says_why(server: ScriptedServer) -> None:
    async def greeting(peer: Peer) -> None:
        await peer.error(peer.hello["id"], "agent_not_found", message="no such agent")
        await peer.close(4404)

    server.greeting = greeting
    with pytest.raises(Disconnected, match="agent_not_found: no such agent") as caught:
        async with attached(server):
            pass
    assert caught.value.error is not None
    assert caught.value.error.code == "agent_not_found"
    assert caught.value.policy is Reconnect.NEW_SESSION


@pytest.mark.parametrize(("retryable", "naps_taken"), [(False, 0), (True, 1)])
async def test_a_server_that_refuses_open_and_leaves_it_at_that(
    server: ScriptedServer,
    naps: Naps,
    monkeypatch: pytest.MonkeyPatch,
    retryable: bool,
    naps_taken: int,
) -> None:
    monkeypatch.setattr(keeper_module, "REFUSAL_GRACE_S", 0.01)
    codes = iter(["unavailable" if retryable else "forbidden", "forbidden"])

    async def greeting(peer: Peer) -> None:
        code = next(codes)
        await peer.error(peer.hello["id"], code, retryable=code == "unavailable")

    server.greeting = greeting
    with pytest.raises(Disconnected, match="forbidden"):
        async with attached(server, naps):
            pass
    assert len(naps) == naps_taken


async def test_a_server_that_never_answers_open(
    server: ScriptedServer, naps: Naps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "OPEN_TIMEOUT_S", 0.05)
    silent = True
    healthy = server.greeting

    async def greeting(peer: Peer) -> None:
        nonlocal silent
        if silent:
            silent = False
            monkeypatch.undo()  # who answers has time to
            await peer.gone()
        else:
            await healthy(peer)

    server.greeting = greeting
    async with connect(server.url, agent="demo", random=lambda: RANDOM, sleep=naps):
        pass
    assert naps[0] == 0.25


async def test_a_slow_reader_at_open_does_not_look_like_a_silent_server(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backpressure while `opened` is told must not run into the deadline for `opened`."""
    async with attached(server, buffer=1) as (session, peer):
        monkeypatch.setattr(keeper_module, "OPEN_TIMEOUT_S", 3.0)
        events = session.events()
        peer.abort()  # `Lost` fills the buffer
        assert isinstance(await anext(events), Lost)
        peer = await server.accept()  # `Attached` fills it
        await asyncio.sleep(3.2)
        await peer.event(1, started())
        assert isinstance(await anext(events), Attached)
        assert isinstance(await anext(events), Deliver)


async def test_what_is_no_frame_ends_it(server: ScriptedServer) -> None:
    async with attached(server) as (session, peer):
        events = session.events()
        await peer.send("from_a_later_version", x=1)  # is none of our business
        await peer.event(1, started())
        assert isinstance(await anext(events), Deliver)
        await peer.send_raw('{"type":"event","seq":2,"ts":1,"run_id":"r1","event":3}')
        assert (await disconnected(anext(events))).code == 1002
        assert session.cursor == Cursor("e1", 1)


async def test_what_is_no_json_ends_it(server: ScriptedServer) -> None:
    async with attached(server) as (session, peer):
        events = session.events()
        await peer.send_raw("hello")
        assert "not JSON" in str(await disconnected(anext(events)))


async def test_a_server_that_is_no_web_server(naps: Naps) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as tcp:
        port = tcp.sockets[0].getsockname()[1]
        with pytest.raises(Disconnected) as caught:
            async with connect(f"ws://127.0.0.1:{port}/ws", agent="demo", sleep=naps):
                pass
    assert caught.value.code == 1002
    assert naps == []


async def test_closing_the_session(server: ScriptedServer) -> None:
    async with attached(server) as (session, peer), asyncio.TaskGroup() as group:
        events = session.events()
        closing = group.create_task(session.close())
        await peer.ack(await peer.recv("close"))
        await closing
        await peer.close(1000)
        assert [event async for event in events] == []  # as asked: no failure
        await session.close()  # it is over already


async def test_closing_when_the_answer_is_lost(server: ScriptedServer) -> None:
    async with attached(server) as (session, peer), asyncio.TaskGroup() as group:

        async def greeting(peer: Peer) -> None:
            await peer.error(peer.hello["id"], "session_ended")
            await peer.close(4410)

        server.greeting = greeting
        closing = group.create_task(session.close())
        await peer.recv("close")
        peer.abort()
        await closing


@pytest.mark.parametrize("refusal", ["error", "close"])
async def test_closing_that_fails_says_so(server: ScriptedServer, refusal: str) -> None:
    async with attached(server) as (session, peer), asyncio.TaskGroup() as group:
        if refusal == "error":
            closing = group.create_task(refused(session.close()))
            await peer.error((await peer.recv("close"))["id"], "unavailable")
            await closing
            events = session.events()
            await peer.close(4401)
            await disconnected(anext(events))  # this end was not asked for
        else:
            failing = group.create_task(disconnected(session.close()))
            await peer.recv("close")
            await peer.close(4401)
            await failing


# --- following ------------------------------------------------------------------------------------


async def test_following_with_the_whole_history(server: ScriptedServer) -> None:
    async def greeting(peer: Peer) -> None:
        await peer.opened()
        history = [{"id": "m", "role": "assistant", "content": "so far"}]
        await peer.snapshot(
            started("r5"), {"type": "MESSAGES_SNAPSHOT", "messages": history}, seq=9
        )

    server.greeting = greeting
    async with follow(server.url, "s1") as session, asyncio.TaskGroup() as group:
        peer = await server.accept()
        assert peer.hello["session_id"] == "s1"
        assert "after" not in peer.hello
        assert session.messages[-1]["content"] == "so far"
        assert session.cursor == Cursor("e1", 9)
        group.create_task(session.cancel())
        frame = await peer.recv("cancel")
        assert frame["run_id"] == "r5"  # open, says the snapshot
        await peer.ack(frame)


async def test_following_from_a_stored_cursor(server: ScriptedServer) -> None:
    async with follow(server.url, "s1", Cursor("e1", 4), tenant="acme", token="t") as session:
        peer = await server.accept()
        assert peer.hello["after"] == {"epoch": "e1", "seq": 4}
        assert peer.hello["token"] == "t"
        events = session.events()
        await peer.event(5, delta("on"))
        event = await anext(events)
        assert isinstance(event, Deliver)
        assert event.seq == 5


# --- when history is replaced ---------------------------------------------------------------------


async def test_a_reset_ends_iterations_and_replaces_messages(server: ScriptedServer) -> None:
    async with attached(server) as (session, peer):
        events = session.events()
        run = await sent(session, peer)
        await peer.event(1, started())
        await peer.event(2, delta("lost"))
        await peer.send("reset", reason="epoch", runs=[{"run_id": "r1", "status": "running"}])
        await peer.snapshot({**started(), "input": None}, delta("kept"), epoch="e2", seq=1)
        reading = aiter(run)
        assert [(await anext(reading))["type"] for _ in range(2)] == [
            "RUN_STARTED",
            "TEXT_MESSAGE_CONTENT",
        ]
        with pytest.raises(HistoryReset, match="epoch") as caught:
            await anext(reading)
        assert caught.value.reason == "epoch"
        assert [m["content"] for m in session.messages] == ["kept"]
        assert session.cursor == Cursor("e2", 1)
        kinds = [type(await anext(events)) for _ in range(4)]
        assert kinds == [Deliver, Deliver, Notice, Replace]
        # What comes after it works as before.
        after = await sent(session, peer, "r2")
        await peer.event(2, delta("b"), "r2")
        await peer.event(3, finished("r2"), "r2")
        assert await collect(after) == ["b"]


async def test_a_run_that_began_before_the_reset_is_not_waited_for(
    server: ScriptedServer,
) -> None:
    """Its ack was lost, it ran and ended, and its events are in the snapshot alone."""
    async with attached(server) as (session, peer), asyncio.TaskGroup() as group:
        old = group.create_task(session.send("old"))
        await peer.recv("message")

        async def greeting(peer: Peer) -> None:
            await peer.opened()
            await peer.send("reset", reason="trimmed")
            await peer.snapshot(epoch="e1", seq=50)

        server.greeting = greeting
        peer.abort()
        peer = await server.accept()
        await peer.take_message("r1", "duplicate")
        with pytest.raises(HistoryReset, match="trimmed"):
            await collect(await old)


async def test_a_run_that_is_made_after_the_reset_is_told_in_full(server: ScriptedServer) -> None:
    """The message had not arrived before: the resent one made the run."""
    async with attached(server) as (session, peer), asyncio.TaskGroup() as group:
        sending = group.create_task(session.send("x"))
        await peer.recv("message")
        await peer.send("reset", reason="epoch")
        peer.abort()
        peer = await server.accept()
        assert "after" not in peer.hello  # that log was disowned
        await peer.take_message("r1", "accepted")
        await peer.event(1, delta("a"))
        await peer.event(2, finished())
        assert await collect(await sending) == ["a"]


# --- who does not read ----------------------------------------------------------------------------

LIMIT = 8
FLOOD = 400
PADDING = "x" * 30_000


async def flood(peer: Peer, run: str = "r1") -> None:
    for seq in range(1, FLOOD):
        await peer.event(seq, delta(PADDING), run)
    await peer.event(FLOOD, finished(run), run)


async def stuck(session: Session, flooding: "asyncio.Task[None]") -> bool:
    """The reader has read as much as the buffer takes, and the flood gets no further."""
    async with asyncio.timeout(WAIT_S):
        while session.cursor != Cursor("e1", LIMIT):  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)
    _, pending = await asyncio.wait([flooding], timeout=0.3)
    assert session.cursor == Cursor("e1", LIMIT)
    return bool(pending)


async def test_a_reader_that_does_not_read_stops_the_socket(server: ScriptedServer) -> None:
    """Memory is bounded by the buffer; the rest waits at the server."""
    async with attached(server, buffer=LIMIT) as (session, peer), asyncio.TaskGroup() as group:
        events = session.events()
        flooding = group.create_task(flood(peer))
        pending = await stuck(session, flooding)
        assert pending, "the server could send everything to a reader that reads nothing"
        seqs = [(await anext(events)).seq for _ in range(FLOOD)]  # type: ignore[union-attr]
        assert seqs == list(range(1, FLOOD + 1))
        await flooding


async def test_an_iteration_that_does_not_read_stops_the_socket(server: ScriptedServer) -> None:
    async with attached(server, buffer=LIMIT) as (session, peer), asyncio.TaskGroup() as group:
        reading = aiter(await sent(session, peer))
        flooding = group.create_task(flood(peer))
        pending = await stuck(session, flooding)
        assert pending
        assert len([event async for event in reading]) == FLOOD


async def test_a_run_that_nobody_iterates_stops_nothing(server: ScriptedServer) -> None:
    async with attached(server, buffer=LIMIT) as (session, peer):
        run = await sent(session, peer)
        await flood(peer)
        await sent(session, peer, "r2")  # the answer comes behind it all
        with pytest.raises(HistoryReset, match="lagged"):
            await collect(run)
        assert len(session.messages[-1]["content"]) == (FLOOD - 1) * len(PADDING)


async def test_a_loop_that_was_left_stops_nothing(server: ScriptedServer) -> None:
    async with attached(server, buffer=LIMIT) as (session, peer), asyncio.TaskGroup() as group:
        run = await sent(session, peer)
        flooding = group.create_task(flood(peer))
        async for _ in run:
            break
        gc.collect()
        await flooding
        assert run.run_id == "r1"


async def test_events_that_are_no_longer_held_stop_nothing(server: ScriptedServer) -> None:
    async with attached(server, buffer=LIMIT) as (session, peer), asyncio.TaskGroup() as group:
        events = session.events()
        flooding = group.create_task(flood(peer))
        await anext(events)
        del events
        gc.collect()
        await flooding


async def test_a_command_from_within_a_slow_loop_is_answered(server: ScriptedServer) -> None:
    """Its answer stands behind the events that the loop does not read while it waits for it."""
    async with attached(server, buffer=LIMIT) as (session, peer), asyncio.TaskGroup() as group:
        run = await sent(session, peer)
        count = 0

        async def gateway() -> None:
            for seq in range(1, 100):
                await peer.event(seq, delta("a"))
            frame = await peer.recv("cancel")
            for seq in range(100, 200):
                await peer.event(seq, delta("a"))
            await peer.ack(frame)
            await peer.event(200, finished())

        group.create_task(gateway())
        async for _ in run:
            count += 1
            if count == 1:
                await session.cancel()
        assert count == 200


# --- cancellation ---------------------------------------------------------------------------------


async def test_leaving_detaches_and_leaves_nothing_behind(server: ScriptedServer) -> None:
    before = asyncio.all_tasks()
    async with connect(server.url, agent="demo"):
        peer = await server.accept()
    assert await peer.gone() == 1000
    assert left_over(before) == set()


async def test_an_exception_in_the_body_comes_out_as_it_is(server: ScriptedServer) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with connect(server.url, agent="demo"):
            raise LookupError("mine")
    assert await (await server.accept()).gone() == 1000


async def test_cancelling_whoever_is_in_the_body(server: ScriptedServer) -> None:
    before = asyncio.all_tasks()
    inside = asyncio.Event()

    async def body() -> None:
        async with connect(server.url, agent="demo") as session:
            inside.set()
            await anext(session.events())

    async with asyncio.TaskGroup() as group:
        task = group.create_task(body())
        await inside.wait()
        task.cancel()
    assert task.cancelled()
    await (await server.accept()).gone()
    assert left_over(before) == set()


async def test_cancelling_whoever_still_connects(server: ScriptedServer) -> None:
    before = asyncio.all_tasks()
    waiting = asyncio.Event()
    peers: list[Peer] = []

    async def greeting(peer: Peer) -> None:
        peers.append(peer)
        waiting.set()
        await peer.gone()

    async def body() -> None:
        async with connect(server.url, agent="demo"):
            pass

    server.greeting = greeting
    async with asyncio.TaskGroup() as group:
        task = group.create_task(body())
        await waiting.wait()
        task.cancel()
    assert task.cancelled()
    await peers[0].gone()
    assert left_over(before) == set()


def left_over(before: set[Any]) -> set[Any]:
    """Tasks of the client that are still there; the server's have their own life."""
    return {
        task
        for task in asyncio.all_tasks() - before
        if "websockets/asyncio/server" not in repr(task) and "conn_handler" not in repr(task)
    }


async def test_a_cancelled_command_may_still_happen_and_disturbs_nobody(
    server: ScriptedServer,
) -> None:
    async with attached(server) as (session, peer), asyncio.TaskGroup() as group:
        sending = group.create_task(session.send("given up"))
        frame = await peer.recv("message")
        sending.cancel()
        await asyncio.wait([sending])
        peer.abort()
        peer = await server.accept()
        again = await peer.recv("message")  # the server may have taken it: ask, with the same id
        assert again["id"] == frame["id"]
        await peer.ack(again, "r1", "duplicate")
        await sent(session, peer, "r2")


async def test_a_cancelled_read_takes_no_event(server: ScriptedServer) -> None:
    async with attached(server) as (session, peer), asyncio.TaskGroup() as group:
        run = await sent(session, peer)
        reading = aiter(run)
        waiting = group.create_task(reading.__anext__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await peer.event(1, delta("a"))
        await peer.event(2, finished())
        assert await collect(run) == ["a"]


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/ws", "nonsense", "ws://127.0.0.1:port/", "ws://["]
)
async def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="no WebSocket address"):
        async with connect(url, agent="demo"):
            pass


@pytest.mark.parametrize("tenant", ["a\r\nX-Admin: 1", "a\x00", "ä"])
async def test_a_header_cannot_carry_another(tenant: str) -> None:
    with pytest.raises(ValueError, match="X-Tenant-ID"):
        async with connect("ws://127.0.0.1:1/ws", agent="demo", tenant=tenant):
            pass


async def test_no_proxy_stands_between_a_machine_and_itself(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with attached(server):
        pass
    async with connect(f"ws://localhost:{server.port}/ws", agent="demo"):
        pass


async def test_reset_notice_is_what_the_server_sent(server: ScriptedServer) -> None:
    async with attached(server) as (session, peer):
        events = session.events()
        await peer.send("reset", reason="trimmed", runs=[])
        assert await anext(events) == Notice(Reset("trimmed"))
