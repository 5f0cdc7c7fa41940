"""The system's Chromium, driven by Playwright, for tests of what runs in a browser."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Chromium's sandbox does not work as root, as in containers; nothing but the tests' own pages is
# opened. The rest keeps it from doing anything by itself.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
)
PATIENCE_MS = 20_000


def chromium_or_skip() -> Path:
    """Where Chromium is: `CHROMIUM`, or on the PATH.

    Without one the test skips, or fails where `REQUIRE_BROWSER=1` (CI).
    """
    if named := os.environ.get("CHROMIUM"):
        return Path(named)
    for name in NAMES:
        if found := shutil.which(name):
            return Path(found)
    reason = "needs Chromium (Debian: apt-get install chromium), or its path in CHROMIUM"
    if os.environ.get("REQUIRE_BROWSER", "0") not in ("", "0"):
        pytest.fail(f"REQUIRE_BROWSER is set, and this test {reason}")
    pytest.skip(reason)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless Chromium."""
    executable = chromium_or_skip()
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=[*ARGUMENTS])
        try:
            yield browser
        finally:
            browser.close()


class ChatPage:
    """The chat page, as a person sees and uses it.

    Attributes:
        faults: uncaught errors and blocked resources; a lost connection is none.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        page.set_default_timeout(PATIENCE_MS)
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._note)
        self.status = page.locator("#status")
        self.stop = page.get_by_role("button", name="Stop")
        self.input = page.get_by_role("textbox", name="Message", exact=True)
        self.alert = page.locator("#alert-text")
        self.answers = page.locator("#log article[data-role=assistant]")
        self.questions = page.locator("#log article[data-role=user]")
        self.waiting = page.locator("#waiting article")
        self.notes = page.locator("#log article.note")

    @property
    def answer(self) -> Locator:
        """The text of the newest answer."""
        return self.answers.last.locator(".text")

    @property
    def session_id(self) -> str:
        """The session that the page is in, from its "Copy link"."""
        href = self.page.locator("#link").get_attribute("href") or ""
        return href.partition("#session=")[2]

    def open(self, url: str) -> None:
        """Opens the page and waits until it is connected."""
        self.page.goto(url)
        self.connected()

    def hasten(self) -> None:
        """Makes the page back off by a tenth of what it may: by three seconds at most."""
        self.page.add_init_script("Math.random = () => 0.1")

    def connected(self) -> None:
        """Waits for the connection."""
        expect(self.status).to_have_attribute("data-status", "open")

    def say(self, text: str) -> None:
        """Sends a message with Enter."""
        self.input.fill(text)
        self.input.press("Enter")

    def wait_for_text(self, at_least: int) -> str:
        """Waits until the newest answer has that many characters; returns what it then has."""
        handle = self.answer.element_handle()
        self.page.wait_for_function(
            "([element, length]) => element.textContent.length >= length", arg=[handle, at_least]
        )
        return self.answer.text_content() or ""

    def finished(self) -> str:
        """Waits until nothing runs any more; returns the newest answer."""
        expect(self.stop).to_be_hidden()
        expect(self.answers.last).to_have_attribute("aria-busy", "false")
        return self.answer.text_content() or ""

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error" and "WebSocket connection to" not in message.text:
            self.faults.append(message.text)


@contextmanager
def chat_page(browser: Browser) -> Iterator[ChatPage]:
    """A page in a fresh profile; it must have no faults in the end."""
    context = browser.new_context()
    try:
        chat = ChatPage(context.new_page())
        yield chat
        assert not chat.faults
    finally:
        context.close()
