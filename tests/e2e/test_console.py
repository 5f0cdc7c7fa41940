"""The console, in a real Chromium and in a terminal: it shows what really happened, over the fleet.

One stack for all: a node with an admin port, one worker, and a Redis that can be stopped.
"""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect
from support.browser import PATIENCE_MS, open_browser
from support.server import RedisServer
from support.stack import Process, Stack
from websockets.sync.client import ClientConnection, connect

from gateway.top import NoAnswer, run_top
from protocol import SUBPROTOCOL

P = "nooble_orchestrator_"
LEASE_S = "4"
SLOW_MS = 45_000
"""For what takes a lease, and a busy machine."""


class Fleet:
    """The stack, and where its nodes show how they do."""

    def __init__(self, folder: Path) -> None:
        self.redis = RedisServer(folder / "redis")
        self.redis.start()
        self.stack = Stack(
            f"unix://{self.redis.socket}",
            folder,
            {"GATEWAY_ADMIN_PORT": "0", "GATEWAY_LIMIT_NODE_LEASE_S": LEASE_S},
        )
        self.stack.add_worker()
        self.stack.add_node()
        self.stack.wait_until_ready()
        self.admin = self.admin_of(self.stack.nodes[0])

    @staticmethod
    def admin_of(node: Process) -> str:
        node.wait_for_line('"gateway is ready"')
        found = re.search(r'"console":"(http://[^"]+)/console"', node.output())
        assert found is not None, node.output()
        return found[1]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.admin + path, timeout=30)

    def targets(self) -> set[str]:
        return {
            target for group in self.get("/metrics/targets").json() for target in group["targets"]
        }

    def metric(self, name: str, label: str = "") -> int:
        lines = self.get("/metrics").text.splitlines()
        return round(
            sum(
                float(line.rsplit(" ", 1)[1])
                for line in lines
                if line.startswith((f"{P}{name}{{", f"{P}{name} ")) and label in line
            )
        )

    def stop(self) -> None:
        try:
            self.stack.stop()
        finally:
            self.redis.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def fleet(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    # After the browser, which may skip the test.
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        yield fleet
    finally:
        fleet.stop()


@pytest.fixture
def page(browser: Browser, fleet: Fleet) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda it: faults.append(it.text) if it.type == "error" else None)
    page.goto(f"{fleet.admin}/console")
    expect(page.locator("main")).not_to_have_attribute("aria-busy", "true")
    yield page
    context.close()
    assert not faults


def talk(fleet: Fleet, sockets: ExitStack, tenant: str, *texts: str) -> None:
    """A conversation; its socket stays open as long as `sockets`."""
    client: ClientConnection = sockets.enter_context(
        connect(
            fleet.stack.ws_of(),
            subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
            additional_headers={"X-Tenant-ID": tenant},
            proxy=None,
        )
    )
    client.send(json.dumps({"type": "open", "id": "o", "agent": "demo"}))
    for number, text in enumerate(texts):
        client.send(json.dumps({"type": "message", "id": f"m{number}", "content": text}))
        while True:
            frame: dict[str, Any] = json.loads(client.recv(45))
            if frame["type"] == "event" and frame["event"]["type"] == "RUN_FINISHED":
                break


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SLOW_MS / 1000
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def cells(page: Page, table: str, row: str) -> Any:
    """The cells of a row, by its head."""
    rows = page.locator(f"#{table} tbody tr")
    return rows.filter(has=page.locator("th", has_text=row)).locator("td")


def test_the_page_shows_what_a_conversation_made(fleet: Fleet, page: Page) -> None:
    """Guarantee 9, as a person reads it."""
    with ExitStack() as sockets:
        talk(fleet, sockets, "acme", "hello", "/burst 50")
        talk(fleet, sockets, "acme", "hello")
        talk(fleet, sockets, "globex", "hello")
        expect(page.locator("#connections .value")).to_have_text("3")
        expect(page.locator("#sessions .value")).to_have_text("3")
        expect(cells(page, "tenants", "acme")).to_have_text(["2 / 3"])
        expect(cells(page, "tenants", "globex")).to_have_text(["1 / 3"])
        # Four messages and four answers.
        expect(page.locator("#messages .note")).to_have_text("8 in 5 min")
        tokens = fleet.metric("tokens_total", 'type="output"')
        assert tokens > 50
        expect(page.locator("#tokens .note")).to_have_text(f"{tokens} in 5 min")
        for name in ("Accepted", "First event", "Delivered"):
            expect(cells(page, "latencies", name).last).to_have_text("4")
            expect(cells(page, "latencies", name).first).to_contain_text("ms")
        expect(cells(page, "agents", "demo")).to_have_text(["1", "0 / 8", "0", "well"])
        expect(cells(page, "services", "redis").first).to_have_text("well")
        expect(page.locator("#nodes tbody tr")).to_have_count(1)
        assert page.locator("#connections .line").get_attribute("d")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
    expect(page.locator("#connections .value")).to_have_text("0")


def test_top_says_the_same(fleet: Fleet) -> None:
    with ExitStack() as sockets:
        talk(fleet, sockets, "initech")
        wait_for(lambda: fleet.get("/console/state").json()["connections"] == 1)
        shown = top(fleet.admin).stdout
    found = dict(line.split(None, 1) for line in shown.splitlines())
    assert found["connections"] == "1"
    assert found["sessions.initech"] == "1"
    assert found["service.redis"] == "well"
    assert [name for name in found if name.startswith("node.")]


def test_top_in_a_terminal(fleet: Fleet) -> None:
    """It draws the fleet, and Ctrl-C ends it in order."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "gateway.cli", "top", "--url", fleet.admin]
    process = subprocess.Popen(
        command, stdin=end, stdout=end, stderr=end, env={**os.environ, "TERM": "xterm"}
    )
    os.close(end)
    shown = b""
    try:
        while b"Sessions by tenant" not in shown:
            shown += os.read(terminal, 65536)
        process.send_signal(signal.SIGINT)
        try:
            while chunk := os.read(terminal, 65536):
                shown += chunk
        except OSError:
            pass  # the other end is closed
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert b"Traceback" not in shown
    assert b"demo" in shown


def top(url: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", "top", "--once", "--url", url],
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
    )


def test_top_without_a_gateway(fleet: Fleet) -> None:
    """One line; also where the console is not: on the public port of a node with an admin port."""
    done = top("http://127.0.0.1:9")
    [line] = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert line.startswith("gateway: http://127.0.0.1:9/console/state: no answer")
    with pytest.raises(NoAnswer, match="answers 404; with GATEWAY_ADMIN_PORT"):
        run_top(fleet.stack.url, once=True)


def test_a_second_node_appears_and_a_dead_one_vanishes(fleet: Fleet, page: Page) -> None:
    [first] = fleet.targets()
    node = fleet.stack.add_node()
    second = Fleet.admin_of(node).removeprefix("http://")
    expect(page.locator("#nodes tbody tr")).to_have_count(2, timeout=SLOW_MS)
    expect(page.locator("#status")).to_have_text("2 nodes", timeout=SLOW_MS)
    wait_for(lambda: fleet.targets() == {first, second})
    node.kill()
    expect(page.locator("#nodes tbody tr")).to_have_count(1, timeout=SLOW_MS)
    wait_for(lambda: fleet.targets() == {first})


def test_health_is_as_in_the_users_document_and_redis_away_shows(fleet: Fleet, page: Page) -> None:
    """The bodies are literal; the page goes on, and says that it knows no better."""
    well = '{"status":"ok","checks":{"redis":"ok","database":"ok"}}'
    ill = '{"status":"error","checks":{"redis":"error","database":"ok"}}'
    targets = fleet.targets()
    for url in (fleet.admin, fleet.stack.url):
        response = httpx.get(f"{url}/health/readiness", timeout=30)
        assert (response.status_code, response.text) == (200, well)
    fleet.redis.stop()
    try:
        expect(page.locator("#banner")).to_contain_text("Redis does not answer", timeout=SLOW_MS)
        expect(cells(page, "nodes", "(this)").first).to_have_text("no redis", timeout=SLOW_MS)
        for url in (fleet.admin, fleet.stack.url):
            response = httpx.get(f"{url}/health/readiness", timeout=30)
            assert (response.status_code, response.text) == (503, ill)
            response = httpx.get(f"{url}/health/liveness", timeout=30)
            assert (response.status_code, response.text) == (200, '{"status":"ok"}')
        assert fleet.targets() == targets
    finally:
        fleet.redis.start()
    expect(page.locator("#banner")).to_be_hidden(timeout=SLOW_MS)
    expect(page.locator("#status")).to_have_text("1 node")


def test_a_gateway_that_is_gone_shows(fleet: Fleet, browser: Browser) -> None:
    """What was heard last stays, and is told to be old; before, a database that is only read."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{fleet.admin}/console")
    expect(page.locator("#status")).to_have_text("1 node")
    expect(cells(page, "services", "database").first).to_have_text("well")

    def unwritten(route: Route) -> None:
        response = route.fetch()
        state = response.json()
        state["services"]["database"] = {"failures": 4}
        route.fulfill(response=response, json=state)

    page.route("**/console/state", unwritten)
    expect(cells(page, "services", "database").first).to_have_text("ill")
    page.unroute("**/console/state")
    page.route("**/console/state", lambda route: route.abort())
    expect(page.locator("#banner")).to_contain_text("The gateway does not answer")
    expect(page.locator("#nodes tbody tr")).to_have_count(1)
    page.unroute("**/console/state")
    expect(page.locator("#banner")).to_be_hidden()
    context.close()
