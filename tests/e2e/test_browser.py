"""A person at the chat page: a real Chromium, a real gateway, a real worker.

What the page shows is compared with the session's transcript, which a second client reads from the
gateway after the fact.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect
from support.browser import ChatPage, chat_page, open_browser
from support.stack import Stack
from websockets.sync.client import ClientConnection, connect

from protocol import SUBPROTOCOL


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def stack(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    # After the browser, which may skip the test.
    with Stack.running(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture
def chat(browser: Browser, stack: Stack) -> Iterator[ChatPage]:
    with chat_page(browser) as chat:
        chat.open(stack.url)
        yield chat


def socket(stack: Stack) -> ClientConnection:
    return connect(stack.ws_of(), subprotocols=[SUBPROTOCOL], proxy=None)  # type: ignore[list-item]


def transcript(stack: Stack, session_id: str) -> list[dict[str, Any]]:
    """The session's messages, as the gateway tells a newcomer."""
    with socket(stack) as client:
        client.send(json.dumps({"type": "open", "id": "o", "session_id": session_id}))
        while (frame := json.loads(client.recv(10)))["type"] != "snapshot":
            pass
    (messages,) = [e["messages"] for e in frame["events"] if e["type"] == "MESSAGES_SNAPSHOT"]
    return messages


def answers(stack: Stack, session_id: str) -> list[str]:
    messages = transcript(stack, session_id)
    return [m["content"] for m in messages if m["role"] == "assistant" and m.get("content")]


def shown(chat: ChatPage) -> list[str]:
    return [text for text in chat.answers.locator(".text").all_text_contents() if text]


def test_an_answer_is_streamed(chat: ChatPage, stack: Stack) -> None:
    """The words show while they come, not all at the end; the end is the whole answer."""
    chat.say("/slow 6")
    expect(chat.questions.locator(".text")).to_have_text("/slow 6")
    expect(chat.answers.last).to_have_attribute("aria-busy", "true")
    first = chat.wait_for_text(5)
    second = chat.wait_for_text(len(first) + 1)
    expect(chat.stop).to_be_visible()
    whole = chat.finished()
    assert whole.startswith(second) and second.startswith(first)
    assert len(first) < len(second) < len(whole)
    assert [whole] == answers(stack, chat.session_id)
    expect(chat.waiting).to_have_count(0)
    expect(chat.questions).to_have_count(1)
    expect(chat.notes.filter(has_text="Tokens")).to_have_count(1)
    expect(chat.input).to_be_focused()


def test_stop_in_the_middle(chat: ChatPage, stack: Stack) -> None:
    """Stop ends the run and keeps what was said; the chat goes on."""
    chat.say("/slow 40")
    chat.wait_for_text(10)
    chat.stop.click()
    expect(chat.notes.filter(has_text="Stopped")).to_have_count(1)
    said = chat.finished()
    assert 10 <= len(said) < 400
    assert [said] == answers(stack, chat.session_id)
    chat.say("and on we go")
    expect(chat.answers).to_have_count(2)
    chat.finished()


def test_reload_in_mid_answer(chat: ChatPage, stack: Stack) -> None:
    """After a reload the answer so far is there and goes on, nothing lost or doubled."""
    chat.say("/slow 60")
    before = chat.wait_for_text(20)
    session_id = chat.session_id
    chat.page.reload()
    expect(chat.answers.last).to_have_attribute("aria-busy", "true")
    after = chat.wait_for_text(len(before) + 1)
    assert after.startswith(before)
    chat.stop.click()
    whole = chat.finished()
    assert chat.session_id == session_id
    assert whole.startswith(after)
    assert [whole] == answers(stack, session_id)
    expect(chat.questions.locator(".text")).to_have_text(["/slow 60"])


def test_how_answers_ended_survives_a_reload(chat: ChatPage) -> None:
    """Stopped, failed, and a question that was answered: the page has it from the history."""
    chat.say("/slow 60")
    chat.wait_for_text(5)
    chat.stop.click()
    expect(chat.notes.filter(has_text="Stopped")).to_have_count(1)
    chat.say("/fail")
    expect(chat.notes.filter(has_text="The answer failed")).to_have_count(1)
    chat.say("/ask")
    chat.page.get_by_role("group").get_by_role("button", name="Yes").click()
    expect(chat.answer).to_contain_text("Then listen")
    chat.finished()
    chat.page.reload()
    for text in (
        "Stopped",
        "The answer failed: the agent failed",
        "You answered or dismissed the question",
    ):
        expect(chat.notes.filter(has_text=text)).to_have_count(1)


def test_two_tabs_of_one_session(chat: ChatPage, browser: Browser, stack: Stack) -> None:
    """The link makes a second tab follow: the same questions and answers, in order, in both."""
    chat.say("/slow 3")
    chat.wait_for_text(5)
    with chat_page(browser) as other:
        other.open(f"{stack.url}/#session={chat.session_id}")
        other.wait_for_text(6)
        assert other.finished() == chat.finished()
        other.say("hello from the other tab")
        for tab in (chat, other):
            expect(tab.answers).to_have_count(2)
            expect(tab.questions.locator(".text")).to_have_text(
                ["/slow 3", "hello from the other tab"]
            )
            tab.finished()
        assert shown(chat) == shown(other) == answers(stack, chat.session_id)


def test_a_question_is_answered_by_a_click(chat: ChatPage, stack: Stack) -> None:
    """An interrupt with a boolean schema asks with Yes and No, and the answer reaches the agent."""
    chat.say("/ask")
    question = chat.page.get_by_role("group")
    question.get_by_role("button", name="Yes").click()
    expect(question).to_have_count(0)
    expect(chat.answers).to_have_count(2)
    expect(chat.answer).to_contain_text("Then listen")
    chat.finished()
    assert shown(chat) == answers(stack, chat.session_id)
    expect(chat.alert).to_be_hidden()


def test_a_question_survives_a_reload_and_is_dismissed(chat: ChatPage) -> None:
    """An open question is asked again after a reload; Dismiss tells the agent so."""
    chat.say("/ask")
    question = chat.page.get_by_role("group")
    expect(question).to_have_count(1)
    chat.page.reload()
    question.get_by_role("button", name="Dismiss").click()
    expect(question).to_have_count(0)
    expect(chat.answers).to_have_count(2)
    chat.finished()
    expect(chat.alert).to_be_hidden()


def test_a_new_message_drops_an_open_question(chat: ChatPage) -> None:
    """Who does not want to answer just goes on."""
    chat.say("/ask")
    question = chat.page.get_by_role("group")
    expect(question).to_have_count(1)
    chat.say("something else")
    expect(question).to_have_count(0)
    expect(chat.answer).to_contain_text("something else")
    chat.finished()
    expect(chat.alert).to_be_hidden()


def test_the_page_runs_the_tool_that_the_agent_asks_for(chat: ChatPage) -> None:
    """`get_local_time` is answered without a click, once, and the next run tells the result."""
    chat.say("/tool")
    expect(chat.page.locator(".call summary")).to_contain_text("get_local_time")
    expect(chat.page.locator(".call .outcome")).to_have_text("done")
    expect(chat.answer).to_contain_text("timeZone")
    chat.finished()
    expect(chat.alert).to_be_hidden()


def test_an_unknown_tool_is_answered_with_an_error(chat: ChatPage) -> None:
    """An agent that asks for a tool that the page does not have is told so, and can go on."""
    chat.say("/tool launch_rockets")
    expect(chat.answer).to_contain_text("launch_rockets")
    chat.finished()
    expect(chat.alert).to_be_hidden()


def test_what_an_agent_says_is_never_html(chat: ChatPage) -> None:
    """Markup from an agent or a person is shown as it is; no element is made, no script runs."""
    hostile = "<img src=x onerror=\"window.pwned=1\"><b id='made'>bold</b>"
    chat.say(hostile)
    expect(chat.questions.locator(".text")).to_have_text(hostile)
    expect(chat.answer).to_contain_text("<img src=x onerror=")
    chat.finished()
    assert chat.page.locator("#log img, #log b, #made").count() == 0
    assert chat.page.evaluate("window.pwned") is None


def test_a_failing_agent_is_shown_as_such(chat: ChatPage) -> None:
    """RUN_ERROR is one clear line, and the chat goes on."""
    chat.say("/fail")
    expect(chat.page.locator(".note.error")).to_contain_text("The answer failed")
    expect(chat.stop).to_be_hidden()
    chat.say("still there?")
    expect(chat.questions).to_have_count(2)
    expect(chat.answer).to_contain_text("still there?")


def test_messages_wait_their_turn(chat: ChatPage, stack: Stack) -> None:
    """What is sent while a run is open waits visibly and is answered next, in order."""
    chat.say("/slow 60")
    chat.wait_for_text(5)
    chat.say("second")
    chat.say("third")
    expect(chat.waiting.locator(".text")).to_have_text(["second", "third"])
    chat.stop.click()
    expect(chat.answers).to_have_count(3)
    expect(chat.questions.locator(".text")).to_have_text(["/slow 60", "second", "third"])
    expect(chat.waiting).to_have_count(0)
    chat.finished()
    assert shown(chat) == answers(stack, chat.session_id)


def test_the_node_dies_in_mid_answer(chat: ChatPage, stack: Stack) -> None:
    """The page says that it reconnects, resumes without a reload, and misses and doubles nothing;
    a message written meanwhile is sent once."""
    chat.say("/slow 6")
    before = chat.wait_for_text(20)
    stack.kill_node(0)
    try:
        expect(chat.status).not_to_have_attribute("data-status", "open")
        chat.say("written while away")
        expect(chat.waiting).to_have_count(1)
    finally:
        stack.start_node(0)
    chat.connected()
    expect(chat.answers).to_have_count(2, timeout=30_000)
    chat.finished()
    texts = shown(chat)
    assert texts[0].startswith(before) and len(texts[0]) > len(before)
    assert texts == answers(stack, chat.session_id)
    expect(chat.questions.locator(".text")).to_have_text(["/slow 6", "written while away"])
    expect(chat.waiting).to_have_count(0)


def test_the_node_is_replaced_in_mid_answer(chat: ChatPage, stack: Stack) -> None:
    """Guarantee 7: the answer ends on the old node, the page goes on with the new one, no error."""
    chat.say("/slow 3")
    chat.wait_for_text(20)
    stack.nodes[0].terminate()
    try:
        chat.finished()
        expect(chat.status).not_to_have_attribute("data-status", "open")
        assert stack.nodes[0].popen.wait(30) == 0
        expect(chat.alert).to_have_text("")
    finally:
        stack.nodes[0].kill()
        stack.start_node(0)
    chat.connected()
    chat.say("hello")
    expect(chat.answers).to_have_count(2, timeout=30_000)
    chat.finished()
    expect(chat.alert).to_have_text("")
    assert shown(chat) == answers(stack, chat.session_id)


def test_a_burst_does_not_lose_a_token(chat: ChatPage) -> None:
    """Thousands of tokens at once all arrive, in order, and the page stays usable."""
    chat.say("/burst 5000")
    chat.wait_for_text(100)
    chat.input.fill("typed meanwhile")
    text = chat.finished()
    assert text.split() == [f"t{i}" for i in range(5000)]
    expect(chat.input).to_have_value("typed meanwhile")


def test_an_ended_session(chat: ChatPage, stack: Stack) -> None:
    """The page says that the chat is over; the next message starts a new one."""
    chat.say("hello")
    chat.finished()
    old = chat.session_id
    with socket(stack) as client:
        client.send(json.dumps({"type": "open", "id": "o", "session_id": old}))
        client.recv(10)
        client.send(json.dumps({"type": "close", "id": "c"}))
        expect(chat.status).to_contain_text("has ended")
    chat.say("anybody there?")
    chat.connected()
    expect(chat.answer).to_contain_text("anybody there?")
    chat.finished()
    assert chat.session_id != old


def test_new_chat(chat: ChatPage) -> None:
    """New chat leaves the session alone and begins an empty one."""
    chat.say("hello")
    chat.finished()
    old = chat.session_id
    chat.page.get_by_role("button", name="New chat").click()
    expect(chat.answers).to_have_count(0)
    chat.connected()
    expect(chat.page.locator("#link")).not_to_have_attribute("href", f"/#session={old}")
    chat.say("hello again")
    expect(chat.answer).to_contain_text("hello again")


def test_the_agent_comes_after_the_page(browser: Browser, stack: Stack) -> None:
    """The page says in plain words that there is none, and works when its first worker comes."""
    with chat_page(browser) as chat:
        chat.hasten()
        chat.page.goto(f"{stack.url}/?agent=counting")
        expect(chat.status).to_contain_text("There is no agent “counting” yet")
        chat.say("count 3 0")
        stack.add_worker("support.agents:counting").wait_for_line('"worker serves"')
        expect(chat.answers).to_have_count(1)
        chat.finished()
        assert shown(chat) == answers(stack, chat.session_id)
