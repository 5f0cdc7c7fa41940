"""`gateway chat` as a process, with pipes and with a terminal, against a server that the test
writes."""

import asyncio
import os
import pty
import signal
import sys
import termios
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.net import free_port
from support.scripted import Json, Peer, ScriptedServer, scripted_server

from gateway.chat import list_conversations
from gateway.chat.terminal import plain

PROGRAM = "import sys; from gateway.chat import run_chat; sys.exit(run_chat({url!r}, **{options}))"
ROOT = Path(__file__).parents[2]
WAIT_S = 45.0


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with scripted_server() as server:
        yield server


def command(url: str, options: Json) -> list[str]:
    options = {"agent": "demo", **options}
    return [sys.executable, "-c", PROGRAM.format(url=url, options=options)]


class Chat:
    """A running chat whose output the test reads as it comes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())

    async def end(self) -> tuple[int, str, str]:
        """No more input: exit code, answers, notes."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        async with asyncio.timeout(WAIT_S):
            out, err = await self.process.communicate()
        return self.process.returncode or 0, out.decode(), err.decode()


@asynccontextmanager
async def piped(url: str, **options: Any) -> AsyncGenerator[Chat]:
    process = await asyncio.create_subprocess_exec(
        *command(url, options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield Chat(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Answers:
    """Writes the log of the session."""

    def __init__(self, peer: Peer, seq: int = 0) -> None:
        self.peer = peer
        self.seq = seq

    async def tell(self, run: str, *events: Json) -> None:
        for event in events:
            self.seq += 1
            await self.peer.event(self.seq, event, run)

    async def say(self, run: str, *deltas: str) -> None:
        await self.tell(run, {"type": "RUN_STARTED", "threadId": "s1", "runId": run})
        await self.tell(run, {"type": "TEXT_MESSAGE_START", "messageId": f"m-{run}"})
        for delta in deltas:
            await self.tell(
                run, {"type": "TEXT_MESSAGE_CONTENT", "messageId": f"m-{run}", "delta": delta}
            )
        await self.tell(run, {"type": "TEXT_MESSAGE_END", "messageId": f"m-{run}"})

    async def finish(self, run: str, **outcome: Any) -> None:
        await self.tell(
            run,
            {
                "type": "RUN_FINISHED",
                "threadId": "s1",
                "runId": run,
                **({"outcome": outcome} if outcome else {}),
            },
        )

    async def fail(self, run: str, code: str, message: str) -> None:
        await self.tell(run, {"type": "RUN_ERROR", "code": code, "message": message})


# --- pipes ----------------------------------------------------------------------------------------


async def test_lines_are_answered_one_after_the_other(server: ScriptedServer) -> None:
    async with piped(server.url, tenant="acme") as chat, asyncio.TaskGroup() as group:
        chat.type("one\n\ntwo")  # the last line needs no end
        peer = await server.accept()
        assert server.requests[0].headers["X-Tenant-ID"] == "acme"
        answers = Answers(peer)
        message = await peer.take_message("r1")
        assert message["content"] == "one"
        assert [tool["name"] for tool in message["tools"]] == ["get_local_time"]
        ending = group.create_task(chat.end())
        await answers.say("r1", "first ", "answer")
        with pytest.raises(TimeoutError):  # "two" waits for the end of the first answer
            async with asyncio.timeout(0.2):
                await peer.recv("message")
        await answers.finish("r1")
        assert (await peer.take_message("r2"))["content"] == "two"
        await answers.say("r2", "second\n")
        await answers.finish("r2")
        code, out, err = await ending
    assert (code, out) == (0, "first answer\nsecond\n")
    assert err == "Come back with: gateway chat --session s1\n"
    assert await peer.gone() == 1000


async def test_end_of_input_at_once(server: ScriptedServer) -> None:
    async with piped(server.url) as chat:
        assert (await chat.end())[:2] == (0, "")


async def test_text_cannot_rule_the_terminal(server: ScriptedServer) -> None:
    hostile = "a\x1b[2Jb\x07\x9b31mc\x7f\r\x00d\te\x85\n\u202fü"
    async with piped(server.url) as chat, asyncio.TaskGroup() as group:
        chat.type("x\n")
        ending = group.create_task(chat.end())
        peer = await server.accept()
        answers = Answers(peer)
        await peer.take_message("r1")
        await answers.say("r1", *hostile)
        await answers.fail("r1", "int\x1bernal", "bro\x1b]0;title\x07ken")
        code, out, err = await ending
    assert (code, out) == (1, "a[2Jb31mcd\te\n\u202fü\n")
    assert "(failed: internal: bro]0;titleken)" in err
    assert plain("".join(map(chr, range(0xA0)))) == "\t\n" + "".join(map(chr, range(0x20, 0x7F)))


@pytest.mark.parametrize(
    ("code", "words"),
    [(1011, "connection lost: why"), (1012, "the gateway restarts")],
)
async def test_a_lost_connection_is_one_line(server: ScriptedServer, code: int, words: str) -> None:
    async with piped(server.url) as chat, asyncio.TaskGroup() as group:
        chat.type("x\n")
        ending = group.create_task(chat.end())
        peer = await server.accept()
        answers = Answers(peer)
        await peer.take_message("r1")
        await answers.say("r1", "before")
        server.refusals = [(503, {})]
        await peer.close(code, "why")
        answers.peer = await server.accept()
        await answers.say("r1", "after")
        await answers.finish("r1")
        exit_code, out, err = await ending
    assert (exit_code, out) == (0, "before\nafter\n")
    assert err.splitlines()[0] == f"({words}; reconnecting., connected)"


async def test_what_is_lost_for_good_is_said(server: ScriptedServer) -> None:
    async with piped(server.url) as chat, asyncio.TaskGroup() as group:
        chat.type("x\n")
        peer = await server.accept()
        await peer.take_message("r1")
        await peer.close(4410, "gone")
        ending = group.create_task(chat.end())
        code, out, err = await ending
    assert (code, out) == (1, "")
    assert "(disconnected: gone (close code 4410))" in err


async def test_a_refused_message_and_the_next(server: ScriptedServer) -> None:
    async with piped(server.url) as chat, asyncio.TaskGroup() as group:
        chat.type("one\ntwo\n")
        ending = group.create_task(chat.end())
        peer = await server.accept()
        await peer.error((await peer.recv("message"))["id"], "no_worker", message="none there")
        answers = Answers(peer)
        await peer.take_message("r2")
        await answers.say("r2", "yes")
        await answers.finish("r2")
        code, out, err = await ending
    assert (code, out) == (0, "yes\n")
    assert "(refused: no_worker: none there)" in err


async def test_questions_are_asked_one_by_one_and_answered_together(
    server: ScriptedServer,
) -> None:
    async with piped(server.url) as chat, asyncio.TaskGroup() as group:
        chat.type("x\nmaybe\nyes\nnope\n[1]\nblue\nbye\n")
        ending = group.create_task(chat.end())
        peer = await server.accept()
        answers = Answers(peer)
        await peer.take_message("r1")
        await answers.say("r1", "asking")
        interrupts = [
            {"id": "i1", "reason": "c", "message": "Sure?", "responseSchema": {"type": "boolean"}},
            {"id": "i2", "reason": "list", "responseSchema": {"type": "array"}},
            {"id": "i3", "reason": "c", "message": "Which colour?"},
        ]
        await answers.finish("r1", type="interrupt", interrupts=interrupts)
        answer = await peer.recv("answer")
        assert [(e["interrupt_id"], e["payload"]) for e in answer["entries"]] == [
            ("i1", True),
            ("i2", [1]),
            ("i3", "blue"),
        ]
        # The run goes on, and asks again, before the acknowledgement arrives.
        await answers.say("r2", "one more")
        await answers.finish("r2", type="interrupt", interrupts=[{"id": "i4", "reason": "last"}])
        await peer.ack(answer, "r2")
        answer = await peer.recv("answer")
        assert [e["interrupt_id"] for e in answer["entries"]] == ["i4"]
        await peer.ack(answer, "r3")
        await answers.say("r3", "thanks")
        await answers.finish("r3")
        code, out, err = await ending
    assert (code, out) == (0, "asking\none more\nthanks\n")
    assert [line for line in err.splitlines() if line[0] in "?("] == [
        "? Sure?",
        "(please answer yes or no)",
        "? Sure?",
        "? list",
        "(please answer in JSON)",
        "? list",
        "? Which colour?",
        "? last",
    ]


async def test_a_question_can_be_declined(server: ScriptedServer) -> None:
    async with piped(server.url) as chat, asyncio.TaskGroup() as group:
        chat.type("x\n/cancel\n")
        ending = group.create_task(chat.end())
        peer = await server.accept()
        answers = Answers(peer)
        await peer.take_message("r1")
        await answers.finish("r1", type="interrupt", interrupts=[{"id": "i1", "reason": "c"}])
        answer = await peer.recv("answer")
        assert answer["entries"] == [{"interrupt_id": "i1", "status": "cancelled"}]
        await peer.ack(answer, "r2")
        await answers.finish("r2")
        assert (await ending)[0] == 0


async def test_client_tools(server: ScriptedServer) -> None:
    async with piped(server.url) as chat, asyncio.TaskGroup() as group:
        chat.type("what time is it?\n")
        ending = group.create_task(chat.end())
        peer = await server.accept()
        answers = Answers(peer)
        await peer.take_message("r1")
        for call, name in (("c1", "get_local_time"), ("c2", "rm_rf")):
            await answers.tell(
                "r1",
                {"type": "TOOL_CALL_START", "toolCallId": call, "toolCallName": name},
                {"type": "TOOL_CALL_END", "toolCallId": call},
            )
        await answers.finish("r1", type="success", pendingToolCallIds=["c1", "c2", "c9"])
        result = await peer.recv("tool_result")
        assert (result["tool_call_id"], result.get("error")) == ("c1", None)
        assert result["content"].startswith("20")
        await peer.ack(result)
        result = await peer.recv("tool_result")
        assert (result["tool_call_id"], result["content"]) == ("c2", "")
        assert result["error"] == "this client has no tool 'rm_rf'"
        await peer.ack(result)
        result = await peer.recv("tool_result")
        assert result["error"] == "this client has no tool '?'"
        await peer.ack(result, "r2")
        await answers.say("r2", "noon")
        await answers.finish("r2")
        code, out, err = await ending
    assert (code, out) == (0, "noon\n")
    assert "(tool: get_local_time)" in err


async def test_coming_back_shows_the_history_and_goes_on(server: ScriptedServer) -> None:
    async def greeting(peer: Peer) -> None:
        await peer.opened(
            runs=[{"run_id": "r1", "status": "running"}],
            state="running",
        )
        history = [
            {"id": "q", "role": "user", "content": [{"type": "text", "text": "hi"}, {"x": 1}]},
            {"id": "s", "role": "system", "content": "secret"},
            {"id": "a", "role": "assistant", "content": "so "},
        ]
        await peer.snapshot({"type": "MESSAGES_SNAPSHOT", "messages": history})

    server.greeting = greeting
    async with piped(server.url, session_id="s1") as chat, asyncio.TaskGroup() as group:
        ending = group.create_task(chat.end())
        peer = await server.accept()
        assert peer.hello["session_id"] == "s1"
        answers = Answers(peer)
        delta = {"type": "TEXT_MESSAGE_CONTENT", "messageId": "a", "delta": "far"}
        await answers.tell("r1", delta)
        await answers.finish("r1")
        code, out, _ = await ending
    assert code == 0
    assert out == "> hi\nso far\n"


async def test_an_interrupt_that_was_open_is_asked_on_coming_back(server: ScriptedServer) -> None:
    async def greeting(peer: Peer) -> None:
        await peer.opened(state="awaiting_input", interrupts=[{"id": "i1", "reason": "Well?"}])
        await peer.snapshot()

    server.greeting = greeting
    async with piped(server.url, session_id="s1") as chat, asyncio.TaskGroup() as group:
        chat.type("yes\n")
        ending = group.create_task(chat.end())
        peer = await server.accept()
        answer = await peer.recv("answer")
        await peer.ack(answer, "r1")
        await Answers(peer).finish("r1")
        code, _, err = await ending
    assert code == 0
    assert "? Well?" in err


async def test_a_reset_does_not_leave_it_waiting(server: ScriptedServer) -> None:
    """The run that it waits for has ended unseen, behind the reset; what was said is shown."""
    async with piped(server.url) as chat, asyncio.TaskGroup() as group:
        chat.type("x\n")
        ending = group.create_task(chat.end())
        peer = await server.accept()
        await peer.take_message("r1")
        await Answers(peer).say("r1", "lost")
        message = {"id": "m", "role": "assistant", "content": "kept"}
        await peer.send("reset", reason="epoch", runs=[])
        await asyncio.wait([ending], timeout=0.3)  # what follows may be late
        assert not ending.done()
        await peer.snapshot({"type": "MESSAGES_SNAPSHOT", "messages": [message]}, epoch="e2")
        code, out, err = await ending
    assert (code, out) == (0, "lost\nkept")
    assert "(the history was replaced)" in err


async def test_a_lost_ack_behind_a_reset_does_not_leave_it_waiting(
    server: ScriptedServer,
) -> None:
    async with piped(server.url) as chat, asyncio.TaskGroup() as group:
        chat.type("x\n")
        ending = group.create_task(chat.end())
        peer = await server.accept()
        await peer.recv("message")

        async def greeting(peer: Peer) -> None:
            await peer.opened()
            await peer.send("reset", reason="trimmed")
            await peer.snapshot(seq=50)

        server.greeting = greeting
        peer.abort()
        peer = await server.accept()
        await peer.take_message("r1", "duplicate")
        assert (await ending)[0] == 0


@pytest.mark.parametrize("url", ["ws://127.0.0.1:{port}/ws", "http://127.0.0.1:{port}"])
async def test_a_gateway_that_is_not_there_is_one_line(url: str) -> None:
    port = free_port()
    async with piped(url.format(port=port)) as chat:
        code, out, err = await chat.end()
    assert (code, out) == (1, "")
    [line] = err.splitlines()
    assert line.startswith(f"no gateway answers at ws://127.0.0.1:{port}/ws; ")


async def test_what_is_no_address_is_one_line() -> None:
    async with piped("ftp://127.0.0.1") as chat:
        code, out, err = await chat.end()
    assert (code, out) == (1, "")
    [line] = err.splitlines()
    assert line.startswith("cannot open a session at ftp://127.0.0.1: ")


async def test_an_unknown_agent_is_one_line(server: ScriptedServer) -> None:
    async def greeting(peer: Peer) -> None:
        await peer.error(peer.hello["id"], "agent_not_found", message="no such agent")
        await peer.close(4404)

    server.greeting = greeting
    async with piped(server.url) as chat:
        code, _, err = await chat.end()
    assert code == 1
    [line] = err.splitlines()
    assert line == f"no such agent at {server.url}; is its worker running?"


async def test_nobody_reads_the_output(server: ScriptedServer) -> None:
    """As in `gateway chat | head -1`."""
    async with piped(server.url) as chat, asyncio.TaskGroup() as group:
        chat.type("x\n")
        peer = await server.accept()
        assert chat.process.stdout is not None
        chat.process.stdout._transport.close()  # type: ignore[attr-defined]
        await peer.take_message("r1")
        await Answers(peer).say("r1", "a", "b")
        group.create_task(peer.gone())
        async with asyncio.timeout(WAIT_S):
            assert chat.process.stderr is not None
            err = (await chat.process.stderr.read()).decode()
            assert await chat.process.wait() == 1
    assert "Traceback" not in err
    assert "Exception ignored" not in err


async def test_ctrl_c_in_a_pipe_stops_and_then_leaves(server: ScriptedServer) -> None:
    async with piped(server.url) as chat, asyncio.TaskGroup() as group:
        chat.type("x\n")
        peer = await server.accept()
        answers = Answers(peer)
        await peer.take_message("r1")
        await answers.say("r1", "begun")
        assert chat.process.stdout is not None
        assert await chat.process.stdout.readline() == b"begun\n"
        chat.process.send_signal(signal.SIGINT)
        frame = await peer.recv("cancel")
        assert frame["run_id"] == "r1"
        await peer.ack(frame)
        chat.process.send_signal(signal.SIGINT)  # it does not stop: leave
        ending = group.create_task(chat.end())
        code, _, err = await ending
    assert code == 0
    assert "Come back with" in err
    assert "Traceback" not in err


# --- a terminal -----------------------------------------------------------------------------------


class Terminal:
    """The other end of a pseudo-terminal that a chat runs in."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.seen = ""
        self._more = asyncio.Event()
        asyncio.get_running_loop().add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            self.seen += os.read(self.fd, 65536).decode(errors="replace")
        except OSError:  # nobody has the other end open any more
            asyncio.get_running_loop().remove_reader(self.fd)
        self._more.set()

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    async def until(self, text: str) -> str:
        """What was printed up to and with this text, which is taken away."""
        async with asyncio.timeout(WAIT_S):
            while text not in self.seen:
                self._more.clear()
                await self._more.wait()
        before, _, self.seen = self.seen.partition(text)
        return before + text


@asynccontextmanager
async def in_terminal(
    url: str, **options: Any
) -> AsyncGenerator[tuple[Terminal, asyncio.subprocess.Process]]:
    ours, theirs = pty.openpty()
    settings = termios.tcgetattr(theirs)
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    process = await asyncio.create_subprocess_exec(
        *command(url, options), stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT
    )
    os.close(theirs)
    try:
        yield Terminal(ours), process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)


async def test_a_conversation_in_a_terminal(server: ScriptedServer) -> None:
    async with in_terminal(server.url) as (terminal, process):
        peer = await server.accept()
        answers = Answers(peer)
        assert "Session s1 with demo" in await terminal.until("> ")
        terminal.type("hello\n")
        await peer.take_message("r1")
        await answers.say("r1", "Good ", "day")
        await answers.finish("r1")
        assert await terminal.until("> ") == "Good day\r\n> "

        terminal.type("tell me more\n")
        await peer.take_message("r2")
        await answers.say("r2", "endless")
        await terminal.until("endless")
        terminal.type("typed ahead\n")  # not kept back: the server queues it
        assert (await peer.take_message("r3", "queued"))["content"] == "typed ahead"
        terminal.type("/cancel\n")
        frame = await peer.recv("cancel")
        assert frame["run_id"] == "r2"
        await peer.ack(frame)
        await answers.finish("r2", type="cancelled")
        await terminal.until("(stopped)")
        await answers.say("r3", "short")
        await answers.finish("r3")
        assert (await terminal.until("> ")).endswith("short\r\n> ")

        # A conversation in another tab is shown here, too.
        question = {"id": "q4", "role": "user", "content": "elsewhere"}
        await answers.tell("r4", {"type": "RUN_STARTED", "input": {"messages": [question]}})
        await answers.finish("r4")
        assert await terminal.until("elsewhere\r\n> ") == "\r\n> elsewhere\r\n> "

        terminal.type("\x04")  # Ctrl-D
        await terminal.until("Come back with: gateway chat --session s1")
        async with asyncio.timeout(WAIT_S):
            assert await process.wait() == 0
        assert await peer.gone() == 1000


async def test_quit_and_ctrl_c_at_the_prompt(server: ScriptedServer) -> None:
    for leave in ("/quit\n", None):
        async with in_terminal(server.url) as (terminal, process):
            await server.accept()
            await terminal.until("> ")
            if leave is None:
                process.send_signal(signal.SIGINT)
            else:
                terminal.type(leave)
            async with asyncio.timeout(WAIT_S):
                assert await process.wait() == 0


async def test_ctrl_c_in_a_terminal_stops_the_answer(server: ScriptedServer) -> None:
    async with in_terminal(server.url) as (terminal, process):
        peer = await server.accept()
        answers = Answers(peer)
        await terminal.until("> ")
        terminal.type("x\n")
        await peer.take_message("r1")
        await answers.say("r1", "begun")
        await terminal.until("begun")
        process.send_signal(signal.SIGINT)
        await peer.ack(await peer.recv("cancel"))
        await answers.finish("r1", type="cancelled")
        assert "(stopped)" in await terminal.until("> ")
        process.send_signal(signal.SIGINT)  # nothing runs any more
        async with asyncio.timeout(WAIT_S):
            assert await process.wait() == 0


# --- earlier conversations ------------------------------------------------------------------------

LIST = "/api/v1/sessions?order=active&limit=15"
MESSAGES = "/api/v1/sessions/{}/messages?limit=50"


def remember(server: ScriptedServer, *conversations: tuple[str, str, list[Any]]) -> None:
    """What the gateway lists: session, status, what its user said."""
    sessions = [
        {"session_id": name, "agent_id": "demo", "status": status, "created_at": f"{day}T10:00:00Z"}
        for day, (name, status, _) in zip(DAYS, conversations, strict=False)
    ]
    server.pages[LIST] = (200, {"sessions": sessions, "next_cursor": None})
    for name, _, texts in conversations:
        messages = [{"message": {"role": "user", "content": text}} for text in texts]
        server.pages[MESSAGES.format(name)] = (200, {"messages": messages, "next_cursor": None})


DAYS = ["2026-03-04", "2026-03-03", "2026-03-02"]


async def test_earlier_conversations_are_listed_and_opened(server: ScriptedServer) -> None:
    parts = [{"type": "text", "text": "with a\x1b[2J"}, {"type": "image"}]
    remember(
        server,
        ("s1", "active", ["hello\nthere", "and more"]),
        ("s2", "expired", [parts]),
        ("s3", "completed", []),
    )
    async with in_terminal(server.url, tenant="acme") as (terminal, process):
        await server.accept()
        await terminal.until("> ")
        terminal.type("/sessions\n")
        listed = (await terminal.until("> ")).splitlines()
        assert [line.partition("demo")[2] for line in listed if "demo" in line] == [
            "  hello there",
            "  with a[2J",
            "  (nothing said) (ended)",
        ]
        assert listed[-4].startswith("  1* 2026-03-0"), "the one that is open"
        assert {r.headers["X-Tenant-ID"] for r in server.requests} == {"acme"}
        terminal.type("/open\n")
        assert "/open N opens" in await terminal.until("> ")
        terminal.type("/open 4\n")
        assert "there is no 4" in await terminal.until("> ")

        async def recalled(peer: Peer) -> None:
            message = {"id": "m", "role": "user", "content": "with a"}
            await peer.opened(session_id="s2")
            await peer.snapshot({"type": "MESSAGES_SNAPSHOT", "messages": [message]})

        server.greeting = recalled
        terminal.type("/open 2\n")
        peer = await server.accept()
        assert peer.hello["session_id"] == "s2"
        assert "> with a" in await terminal.until("with a\r\n> ")

        async def refused(peer: Peer) -> None:
            await peer.error(peer.hello["id"], "session_ended", message="this session is over")
            await peer.close(4410)
            server.greeting = recalled

        server.greeting = refused
        terminal.type("/open 3\n")
        assert (await server.accept()).hello["session_id"] == "s3"
        assert (await server.accept()).hello["session_id"] == "s2", "back to where it was"
        assert "this session is over" in await terminal.until("with a\r\n> ")
        terminal.type("/quit\n")
        await terminal.until("Come back with: gateway chat --session s2")
        async with asyncio.timeout(WAIT_S):
            assert await process.wait() == 0


async def test_a_list_that_the_gateway_cannot_give_is_one_line(server: ScriptedServer) -> None:
    problem = {"title": "Service Unavailable", "detail": "the history does not answer"}
    server.pages[LIST] = (503, problem)
    async with in_terminal(server.url) as (terminal, _):
        await server.accept()
        await terminal.until("> ")
        terminal.type("/sessions\n")
        assert "(the history does not answer)" in await terminal.until("> ")
        terminal.type("hello\n")  # and the chat goes on
    [asked] = [request for request in server.requests if "api" in request.path]
    assert "X-Tenant-ID" not in asked.headers


async def test_conversations_are_listed_without_one(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """`gateway chat --list`: an id with each, for `--session`."""
    remember(server, ("s1", "active", ["x " * 100]), ("s2", "expired", ["y"]))
    server.pages[MESSAGES.format("s2")][1]["next_cursor"] = "older"
    assert await asyncio.to_thread(list_conversations, server.url) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("s1  2026-03-0")
    assert first.endswith("  demo  " + "x " * 29 + "x…")
    assert second.endswith("  demo  … y")
    assert await asyncio.to_thread(list_conversations, "ws://127.0.0.1:1/ws") == 1
    assert "no list from http://127.0.0.1:1/api/v1/sessions" in capsys.readouterr().err


# --- a file ---------------------------------------------------------------------------------------


async def test_a_file_as_input(server: ScriptedServer, tmp_path: Path) -> None:
    """No event loop can wait for a file; the reader must not care."""
    file = tmp_path / "lines"
    file.write_bytes("grüße\n".encode() + b"\xff\n")
    with file.open() as stdin:
        process = await asyncio.create_subprocess_exec(
            *command(server.url, {}),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
    peer = await server.accept()
    answers = Answers(peer)
    assert (await peer.take_message("r1"))["content"] == "grüße"
    await answers.finish("r1")
    assert (await peer.take_message("r2"))["content"] == "\ufffd"
    await answers.finish("r2")
    async with asyncio.timeout(WAIT_S):
        await process.communicate()
    assert process.returncode == 0
