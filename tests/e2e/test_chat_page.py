"""The chat page against a scripted peer, for what a healthy gateway hardly ever does.

The page is the real one in a real Chromium; the test is the server: it serves the files and speaks
the protocol frame by frame.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Route, WebSocketRoute, expect
from support.browser import ChatPage, chat_page, open_browser

import gateway

WEB = Path(gateway.__file__).parent / "web"
ORIGIN = "http://chat.test"
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

Frame = dict[str, Any]


class Peer:
    """A scripted server. Keeps the connections that the page makes, and what it sent over each."""

    def __init__(self, chat: ChatPage, *, refuse: Callable[[WebSocketRoute], None] | None = None):
        self.chat = chat
        self.sockets: list[WebSocketRoute] = []
        self.received: list[list[Frame]] = []
        self.refuse = refuse
        self.interrupts: list[Frame] = []
        self.snapshot: list[Frame] = []
        self.history: list[list[Frame]] = []
        """What the HTTP API answers of the messages, one request after the other."""
        self.cursors: list[str] = []
        """Where older ones are, said with each of those answers; missing: there are none."""
        self.asked: list[str] = []
        self.seq = 0
        chat.page.route(f"{ORIGIN}/**", self._serve)
        chat.page.route_web_socket("ws://chat.test/ws", self._accept)

    def start(self) -> None:
        self.chat.page.goto(f"{ORIGIN}/")

    def send(self, **frame: Any) -> None:
        self.sockets[-1].send(json.dumps(frame))

    def event(self, event: Frame, *, skip: int = 0, run_id: str = "r1") -> None:
        self.seq += 1 + skip
        self.send(type="event", seq=self.seq, ts=0, run_id=run_id, event=event)

    def say(self, message_id: str, text: str) -> None:
        self.event({"type": "TEXT_MESSAGE_CONTENT", "messageId": message_id, "delta": text})

    def wait_for(self, kind: str, *, connection: int = 0) -> Frame:
        """The first frame of that type that the page sends over that connection."""
        for _ in range(1000):
            if len(self.received) > connection:
                for frame in self.received[connection]:
                    if frame["type"] == kind:
                        return frame
            self.chat.page.wait_for_timeout(20)  # lets Playwright deliver what came
        raise AssertionError(f"no `{kind}` over connection {connection}: {self.received}")

    def _serve(self, route: Route) -> None:
        path, _, query = route.request.url.removeprefix(ORIGIN).partition("?")
        if path.startswith("/api/"):
            self.asked.append(query)
            messages = self.history.pop(0) if self.history else []
            cursor = self.cursors.pop(0) if self.cursors else None
            route.fulfill(json={"messages": messages, "next_cursor": cursor})
            return
        file = WEB / ("index.html" if path == "/" else path.removeprefix("/web/"))
        route.fulfill(body=file.read_bytes(), content_type=TYPES.get(file.suffix, "text/html"))

    def _accept(self, socket: WebSocketRoute) -> None:
        self.sockets.append(socket)
        frames: list[Frame] = []
        self.received.append(frames)

        def on_message(message: str | bytes) -> None:
            frame: Frame = json.loads(message)
            frames.append(frame)
            if frame["type"] != "open":
                return
            if self.refuse is not None:
                self.refuse(socket)
                return
            self.open(frame)

        socket.on_message(on_message)

    def open(self, frame: Frame) -> None:
        """Attaches the page, which sent this `open`."""
        cursor = {"epoch": "e", "seq": self.seq}
        self.send(
            type="opened",
            re=frame["id"],
            session_id=frame.get("session_id") or f"s{len(self.sockets)}",
            agent="demo",
            state="idle",
            cursor=cursor,
            resumed="after" in frame,
            runs=[],
            interrupts=self.interrupts,
            pending_tool_calls=[],
        )
        if "after" not in frame:
            self.send(type="snapshot", cursor=cursor, events=self.snapshot)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def chat(browser: Browser) -> Iterator[ChatPage]:
    with chat_page(browser) as chat:
        yield chat


def test_a_gap_makes_the_page_resume_from_its_cursor(chat: ChatPage) -> None:
    """A skipped event is never shown around: the page reconnects with the last good cursor."""
    peer = Peer(chat)
    peer.start()
    chat.connected()
    peer.say("m1", "one ")
    expect(chat.answer).to_have_text("one ")
    peer.event({"type": "TEXT_MESSAGE_CONTENT", "messageId": "m1", "delta": "three "}, skip=1)
    assert peer.wait_for("open", connection=1)["after"] == {"epoch": "e", "seq": 1}
    peer.seq = 1
    peer.say("m1", "two ")
    peer.say("m1", "three ")
    expect(chat.answer).to_have_text("one two three ")


def test_a_reload_comes_without_a_cursor(chat: ChatPage) -> None:
    """After a reload nothing is on the page, so it asks for the session's snapshot."""
    peer = Peer(chat)
    peer.start()
    chat.connected()
    peer.say("m1", "before")
    expect(chat.answer).to_have_text("before")
    chat.page.reload()
    opened = peer.wait_for("open", connection=1)
    assert opened["session_id"] == "s1" and "after" not in opened and "agent" not in opened


def test_an_old_chat_is_not_welcomed_as_a_new_one(chat: ChatPage) -> None:
    """What was said in it may take a while to come, as when the gateway is away."""
    peer = Peer(chat, refuse=lambda _: None)
    welcome = chat.page.locator("#welcome")
    chat.page.goto(f"{ORIGIN}/#session=s7")
    opened = peer.wait_for("open")
    chat.page.evaluate("new Promise(requestAnimationFrame)")
    expect(welcome).to_be_hidden()
    peer.open(opened)
    expect(welcome).to_be_visible()


def test_a_new_chat_has_no_link_before_it_is_opened(chat: ChatPage) -> None:
    """The old one's would lead elsewhere."""
    peer = Peer(chat)
    peer.start()
    chat.connected()
    link = chat.page.locator("#link")
    expect(link).to_have_attribute("href", "/#session=s1")
    peer.refuse = lambda _: None
    chat.page.get_by_role("button", name="New chat").click()
    expect(link).to_be_hidden()
    peer.open(peer.wait_for("open", connection=1))
    expect(link).to_have_attribute("href", "/#session=s2")
    expect(link).to_be_visible()


def test_an_unanswered_message_goes_out_again_under_its_id(chat: ChatPage) -> None:
    """Whether the server had it is unknown; the same id makes the repetition safe. A reload, too,
    keeps what is not acknowledged."""
    peer = Peer(chat)
    peer.start()
    chat.connected()
    chat.say("hello")
    first = peer.wait_for("message")
    expect(chat.waiting).to_have_class("message sending")
    peer.sockets[-1].close(code=1012)
    assert peer.wait_for("message", connection=1) == first
    chat.page.reload()
    assert peer.wait_for("message", connection=2) == first
    peer.send(type="ack", re=first["id"], status="accepted", run_id="r1")
    expect(chat.waiting).to_have_class("message taken")
    message = {"id": first["id"], "role": "user", "content": "hello"}
    peer.event({"type": "RUN_STARTED", "runId": "r1", "input": {"messages": [message]}})
    expect(chat.waiting).to_have_count(0)
    expect(chat.questions.locator(".text")).to_have_text(["hello"])


def test_a_refused_message_can_be_sent_again(chat: ChatPage) -> None:
    """A refusal is shown at the message, with its reason; a retryable one keeps its id."""
    peer = Peer(chat)
    peer.start()
    chat.connected()
    chat.say("hello")
    first = peer.wait_for("message")
    peer.send(type="error", re=first["id"], code="unavailable", message="try later", retryable=True)
    expect(chat.waiting.locator(".problem")).to_contain_text("Not sent: Try later.")
    peer.received[0].clear()
    chat.page.get_by_role("button", name="Send again").click()
    assert peer.wait_for("message") == first


def test_a_refused_message_can_be_given_up(chat: ChatPage) -> None:
    """Else it would stand below all that is said later."""
    peer = Peer(chat)
    peer.start()
    chat.connected()
    chat.say("hello")
    first = peer.wait_for("message")
    peer.send(type="error", re=first["id"], code="unavailable", message="try later", retryable=True)
    chat.page.get_by_role("button", name="Discard").click()
    expect(chat.waiting).to_have_count(0)
    expect(chat.input).to_be_focused()


def test_goaway_is_honoured(chat: ChatPage) -> None:
    """A draining node says when to come back, and the page comes back then, and says so."""
    peer = Peer(chat)
    chat.page.clock.install()
    peer.start()
    chat.connected()
    chat.page.clock.pause_at("2100-01-01")
    peer.send(type="goaway", reason="draining", reconnect_in_ms=15_000)
    peer.sockets[-1].close(code=1012)
    expect(chat.status).to_contain_text("Reconnecting in")
    chat.page.clock.run_for(14_000)
    assert len(peer.sockets) == 1
    chat.page.clock.run_for(2_000)
    peer.wait_for("open", connection=1)
    chat.connected()


@pytest.mark.parametrize(
    ("code", "words"),
    [(4404, "no longer exists"), (4410, "has ended")],
)
def test_a_session_that_is_gone(chat: ChatPage, code: int, words: str) -> None:
    """The page says so, does not knock again, and starts anew with the next message."""
    peer = Peer(chat)
    peer.start()
    chat.connected()
    peer.sockets[-1].close(code=code)
    expect(chat.status).to_contain_text(words)
    chat.say("anybody?")
    opened = peer.wait_for("open", connection=1)
    assert opened["agent"] == "demo" and "session_id" not in opened
    assert peer.wait_for("message", connection=1)["content"] == "anybody?"


def test_a_page_waits_for_an_agent_that_is_not_there_yet(chat: ChatPage) -> None:
    """It says so, tries again by itself, and then sends what was written meanwhile."""

    def no_agent(socket: WebSocketRoute) -> None:
        opened = peer.received[-1][-1]["id"]
        peer.send(type="error", re=opened, code="agent_not_found", message="none", retryable=False)
        socket.close(code=4404)

    chat.hasten()
    peer = Peer(chat, refuse=no_agent)
    peer.start()
    expect(chat.status).to_contain_text("There is no agent “demo” yet")
    chat.say("hello")
    peer.wait_for("open", connection=1)
    expect(chat.waiting).to_have_class("message sending")
    expect(chat.alert).to_be_hidden()
    peer.refuse = None
    chat.connected()
    expect(chat.page.locator("#status-text")).to_have_text("Connected")
    assert peer.wait_for("message", connection=len(peer.sockets) - 1)["content"] == "hello"


@pytest.mark.parametrize("code", [4400, 4403, 4426])
def test_a_final_close_is_final(chat: ChatPage, code: int) -> None:
    """The table of close codes: no reconnect, and a way for the person to try again."""
    peer = Peer(chat, refuse=lambda socket: socket.close(code=code))
    peer.start()
    expect(chat.status).to_contain_text("Closed")
    chat.page.wait_for_timeout(700)  # longer than the first back-off
    assert len(peer.sockets) == 1
    peer.refuse = None
    chat.page.get_by_role("button", name="Try again").click()
    chat.connected()


def test_reset_replaces_what_was_shown(chat: ChatPage) -> None:
    """When the server disowns its log, the page shows what the new snapshot says, and only that; a
    message whose run did not survive is told from one that still waits."""
    peer = Peer(chat)
    peer.start()
    chat.connected()
    peer.say("m1", "lost words")
    expect(chat.answer).to_have_text("lost words")
    for text, run_id in (("kept", "r8"), ("lost", "r9")):
        chat.say(text)
        sent = peer.wait_for("message")
        peer.received[0].clear()
        peer.send(type="ack", re=sent["id"], status="queued", run_id=run_id)
    expect(chat.waiting).to_have_class(["message taken", "message taken"])
    peer.send(type="reset", reason="epoch", runs=[{"run_id": "r8", "status": "queued"}])
    message = {"id": "m0", "role": "assistant", "content": "what survived"}
    peer.send(
        type="snapshot",
        cursor={"epoch": "f", "seq": 7},
        events=[{"type": "MESSAGES_SNAPSHOT", "messages": [message]}],
    )
    expect(chat.answer).to_have_text("what survived")
    expect(chat.waiting).to_have_class(["message taken", "message failed"])
    expect(chat.waiting.last).to_contain_text("got no answer")
    peer.seq = 7
    peer.say("m2", "and on")
    expect(chat.answers.locator(".text")).to_have_text(["what survived", "and on"])


def ask(peer: Peer, *interrupts: Frame) -> None:
    outcome = {"type": "interrupt", "interrupts": list(interrupts)}
    peer.event({"type": "RUN_FINISHED", "runId": "r1", "outcome": outcome})


def test_a_reload_keeps_how_answers_ended(chat: ChatPage) -> None:
    """That stands in events alone; the history tells it of those that the snapshot replaced, when
    it has caught up, and of each run once."""
    said: list[tuple[str, str, str, Frame]] = [
        ("r1", "user", "stop", {"outcome": "cancelled"}),
        ("r1", "assistant", "I was", {"outcome": "cancelled"}),
        ("r2", "user", "fail", {"outcome": "error", "code": "timeout"}),
        ("r3", "user", "ask", {"outcome": "interrupt"}),
        ("r3", "assistant", "One thing", {"outcome": "interrupt"}),
        ("r4", "assistant", "Thanks", {"outcome": "success"}),
        ("r5", "user", "ask", {"outcome": "interrupt"}),
        ("r6", "user", "never mind", {"outcome": "error", "code": "odd"}),
    ]
    messages = [
        {"id": f"m{number}", "role": role, "content": text}
        for number, (_, role, text, _) in enumerate(said)
    ]
    known = [
        {"message": message, "run_id": run_id, **end}
        for message, (run_id, _, _, end) in zip(messages, said, strict=True)
    ]
    behind = [*known[:-1], {"message": messages[-1], "run_id": "r6"}]
    peer = Peer(chat)
    peer.snapshot = [{"type": "MESSAGES_SNAPSHOT", "messages": messages}]
    peer.history = [behind, known]
    peer.start()
    chat.connected()
    expected = [
        "stop",
        "I was",
        "Stopped",
        "fail",
        "The answer failed: it took too long",
        "ask",
        "One thing",
        "You answered or dismissed the question",
        "Thanks",
        "ask",
        "The question was not answered",
        "never mind",
        "The answer failed: odd",
    ]
    expect(chat.page.locator("#log .text, #log .note p")).to_have_text(expected)
    peer.event({"type": "RUN_STARTED", "runId": "r7"}, run_id="r7")
    peer.event(
        {"type": "RUN_ERROR", "runId": "r7", "code": "internal", "message": "no"}, run_id="r7"
    )
    expected.append("The answer failed: no")
    expect(chat.page.locator("#log .text, #log .note p")).to_have_text(expected)


def test_a_stopped_answer_is_called_stopped_and_nothing_else(chat: ChatPage) -> None:
    """That an answer was cut off is said where the history does not say why, and only there."""
    lost, stopped = (
        {"id": name, "role": "assistant", "content": "I was", "metadata": {"incomplete": True}}
        for name in ("m1", "m2")
    )
    peer = Peer(chat)
    peer.snapshot = [{"type": "MESSAGES_SNAPSHOT", "messages": [lost, stopped]}]
    peer.history = [[{"message": stopped, "run_id": "r2", "outcome": "cancelled"}]]
    peer.start()
    ends = chat.page.locator("#log .problem, #log .note")
    expect(ends).to_have_text(["This answer was cut off.", "Stopped"])


def test_a_long_chat_says_that_it_is_not_all_there(chat: ChatPage) -> None:
    """A snapshot is bounded, by messages and by bytes; the history knows whether it has all."""
    old, new = ({"id": name, "role": "assistant", "content": name} for name in ("old", "new"))
    earlier = {"message": old, "run_id": "r1", "outcome": "success"}
    whole = {"message": new, "run_id": "r2", "outcome": "cancelled"}
    peer = Peer(chat)
    peer.snapshot = [{"type": "MESSAGES_SNAPSHOT", "messages": [new]}]
    peer.history, peer.cursors = [[whole]], ["older"]
    peer.start()
    said = chat.page.locator("#log .text, #log .note")
    expect(said).to_have_text(["Earlier messages are not shown", "new", "Stopped"])
    peer.history = [[earlier, whole]]
    chat.page.reload()
    expect(said).to_have_text(["Earlier messages are not shown", "new", "Stopped"])
    peer.history = [[whole]]
    chat.page.reload()
    expect(said).to_have_text(["new", "Stopped"])


def test_the_history_is_read_back_to_where_the_page_begins(chat: ChatPage) -> None:
    """A snapshot may hold more than one page of it: only what lies before both is not shown."""
    first, last = ({"id": name, "role": "assistant", "content": name} for name in ("first", "last"))
    stopped = {"message": first, "run_id": "r1", "outcome": "cancelled"}
    whole = {"message": last, "run_id": "r2", "outcome": "success"}
    peer = Peer(chat)
    peer.snapshot = [{"type": "MESSAGES_SNAPSHOT", "messages": [first, last]}]
    peer.history, peer.cursors = [[whole], [stopped]], ["a=b"]
    peer.start()
    said = chat.page.locator("#log .text, #log .note")
    expect(said).to_have_text(["first", "Stopped", "last"])
    assert peer.asked == ["limit=200", "limit=200&cursor=a%3Db"]
    peer.history, peer.cursors = [[whole], [stopped]], ["a=b", "c=d"]
    chat.page.reload()
    expect(said).to_have_text(["Earlier messages are not shown", "first", "Stopped", "last"])
    assert len(peer.asked) == 4


def test_every_question_is_answered_at_once(chat: ChatPage) -> None:
    """The controls follow the schema; the answer goes out when all questions have one."""
    peer = Peer(chat)
    peer.start()
    chat.connected()
    ask(
        peer,
        {"id": "a", "reason": "x", "message": "Sure?", "responseSchema": {"type": "boolean"}},
        {"id": "b", "reason": "x", "message": "Which?", "responseSchema": {"enum": ["red", 2]}},
        {"id": "c", "reason": "x", "message": "Name?", "responseSchema": {"type": "string"}},
        {"id": "d", "reason": "x", "message": "Shape?", "responseSchema": {"type": "object"}},
        {"id": "e", "reason": "x", "message": "Still?"},
    )
    group = chat.page.get_by_role("group")
    group.filter(has_text="Sure?").get_by_role("button", name="No").click()
    group.filter(has_text="Which?").get_by_role("button", name="2").click()
    group.filter(has_text="Name?").get_by_role("textbox").fill("Ada")
    group.filter(has_text="Name?").get_by_role("textbox").press("Enter")
    shape = group.filter(has_text="Shape?")
    shape.get_by_role("textbox").fill("{oops")
    shape.get_by_role("button", name="Answer").click()
    expect(shape.get_by_role("alert")).to_contain_text("not JSON")
    shape.get_by_role("textbox").fill('{"sides": 3}')
    shape.get_by_role("button", name="Answer").click()
    assert not any(frame["type"] == "answer" for frame in peer.received[0])
    group.filter(has_text="Still?").get_by_role("button", name="Dismiss").click()
    assert peer.wait_for("answer")["entries"] == [
        {"interrupt_id": "a", "status": "resolved", "payload": False},
        {"interrupt_id": "b", "status": "resolved", "payload": 2},
        {"interrupt_id": "c", "status": "resolved", "payload": "Ada"},
        {"interrupt_id": "d", "status": "resolved", "payload": {"sides": 3}},
        {"interrupt_id": "e", "status": "cancelled"},
    ]
    peer.send(type="ack", re=peer.wait_for("answer")["id"], status="accepted", run_id="r2")
    expect(chat.notes).to_contain_text("You answered: Sure? No, Which? 2, Name? Ada, ")


def test_a_refused_answer_can_be_given_again(chat: ChatPage) -> None:
    """The question comes back to life, with the reason; one that is over is taken away."""
    peer = Peer(chat)
    peer.start()
    chat.connected()
    ask(peer, {"id": "a", "reason": "x", "message": "Sure?", "responseSchema": {"type": "boolean"}})
    yes = chat.page.get_by_role("button", name="Yes")
    yes.click()
    answer = peer.wait_for("answer")
    expect(yes).to_be_disabled()
    peer.send(type="error", re=answer["id"], code="unavailable", message="later", retryable=True)
    expect(chat.alert).to_have_text("Later.")
    expect(yes).to_be_enabled()
    peer.event({"type": "CUSTOM", "name": "nooble.input_closed", "value": {"reason": "expired"}})
    expect(yes).to_have_count(0)


def test_who_has_but_a_keyboard_keeps_the_focus(chat: ChatPage) -> None:
    """A button that is gone once it was pressed gives the focus to what comes next."""
    page = chat.page

    def press(name: str) -> None:
        page.get_by_role("button", name=name, disabled=False).first.focus()
        page.keyboard.press("Enter")

    peer = Peer(chat)
    peer.start()
    chat.connected()
    press("Hello there")
    sent = peer.wait_for("message")
    expect(chat.input).to_be_focused()
    peer.send(type="error", re=sent["id"], code="unavailable", message="later", retryable=True)
    press("Send again")
    expect(chat.waiting).to_have_class("message sending")
    expect(chat.input).to_be_focused()
    peer.event({"type": "RUN_STARTED", "runId": "r1"})
    press("Stop")
    expect(page.get_by_role("button", name="Stopping")).to_be_disabled()
    expect(chat.input).to_be_focused()
    refused = peer.wait_for("cancel")
    peer.send(type="error", re=refused["id"], code="unavailable", message="later", retryable=True)
    press("Dismiss")
    expect(chat.alert).to_be_hidden()
    expect(chat.input).to_be_focused()
    ask(
        peer,
        {"id": "a", "reason": "x", "message": "Sure?", "responseSchema": {"type": "boolean"}},
        {"id": "b", "reason": "x", "message": "Name?"},
    )
    press("Yes")
    expect(page.get_by_role("textbox", name="Name?")).to_be_focused()
    page.keyboard.type("Ada")
    page.keyboard.press("Enter")
    peer.wait_for("answer")
    expect(chat.input).to_be_focused()
    peer.send(type="goaway", reason="draining", reconnect_in_ms=60_000)
    peer.sockets[-1].close(code=1012)
    press("Reconnect now")
    chat.connected()
    expect(chat.input).to_be_focused()
    peer.say("m1", "line\n" * 200)
    expect(chat.answer).to_contain_text("line")
    page.locator("#scroller").evaluate("e => { e.scrollTop = 100 }")
    press("Latest")
    expect(page.locator("#scroller")).to_be_focused()


def test_the_reader_is_not_pulled_down(chat: ChatPage) -> None:
    """New text scrolls only for who reads at the bottom; a button leads back there."""
    peer = Peer(chat)
    peer.start()
    chat.connected()
    scroller = chat.page.locator("#scroller")
    peer.say("m1", "line\n" * 200)
    expect(chat.answer).to_contain_text("line")
    at_bottom = "e => e.scrollHeight - e.scrollTop - e.clientHeight < 5"
    assert scroller.evaluate(at_bottom)
    scroller.evaluate("e => { e.scrollTop = 100 }")
    latest = chat.page.get_by_role("button", name="Latest")
    expect(latest).to_be_visible()
    peer.say("m1", "the end")
    expect(chat.answer).to_contain_text("the end")
    assert scroller.evaluate("e => e.scrollTop") == 100
    latest.click()
    expect(latest).to_be_hidden()
    assert scroller.evaluate(at_bottom)


def test_a_message_that_is_too_long_stays_in_the_box(chat: ChatPage) -> None:
    """A frame past the limit would cost the connection, so it is refused before it is sent."""
    peer = Peer(chat)
    peer.start()
    chat.connected()
    text = "ä" * 40_000
    chat.input.fill(text)
    chat.page.get_by_role("button", name="Send").click()
    expect(chat.alert).to_contain_text("too long")
    expect(chat.input).to_have_value(text)
    assert not any(frame["type"] == "message" for frame in peer.received[0])


def test_shift_enter_makes_a_new_line(chat: ChatPage) -> None:
    """Enter sends, Shift+Enter does not."""
    peer = Peer(chat)
    peer.start()
    chat.connected()
    chat.input.press_sequentially("one")
    chat.input.press("Shift+Enter")
    chat.input.press_sequentially("two")
    chat.input.press("Enter")
    assert peer.wait_for("message")["content"] == "one\ntwo"
    expect(chat.input).to_have_value("")
