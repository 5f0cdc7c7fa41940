"""Users that chat over WebSocket, and hold the gateway to its word: no event lost, doubled or late.

    make loadtest ARGS="--users 200 --run-time 2m"
    locust -f loadtests/locustfile.py --headless -u 50 -t 1m -H http://127.0.0.1:8000

They talk with the demo agent, whose answers to `/burst` are known to the last character. `--host`
may name several nodes, separated by commas: each connection goes to the next one, and a user who
comes back resumes on another node. What is measured: `open` and `resume` (until `opened`), `ack`,
`first event`, `answer` (until the end of the run). Each event that is lost, doubled or out of order
is a failure, so locust ends with exit code 1.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import count
from typing import Any
from uuid import uuid4

import gevent
import msgspec
from locust import User, between, task
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from loadtests.account import Account

AGENT = "demo"
TENANTS = ("acme", "umbrella", "initech")
PATIENCE_S = 30.0
_turns = count()


class Refused(Exception):
    """The server answered `error`, or a run did not end as it should."""


class ChatUser(User):
    """One person with one conversation, until another one is begun."""

    wait_time = between(0.1, 1)

    def on_start(self) -> None:
        """A conversation begins."""
        self.tenant = TENANTS[next(_turns) % len(TENANTS)]
        self.socket: ClientConnection | None = None
        self.connection = ExitStack()
        self.begin()

    def on_stop(self) -> None:
        """And ends."""
        with suppress(Refused, OSError, WebSocketException):
            self.end()

    # --- what people do ---------------------------------------------------------------------------

    @task(8)
    def burst(self) -> None:
        """A question with a known answer."""
        size = 1 + next(_turns) % 60
        self.expect(self.finish(self.say(f"/burst {size}")), size)

    @task(2)
    def chat(self) -> None:
        """An answer that comes word by word, as from a model."""
        self.finish(self.say("how are you?"))

    @task(2)
    def come_back(self) -> None:
        """The connection is lost in mid-answer, and what was missed follows."""
        run = self.say("/burst 500")
        self.until(lambda: run in self.account.texts)
        self.drop()
        gevent.sleep(0.05)
        self.attach()
        self.expect(self.finish(run), 500)

    @task(1)
    def queue(self) -> None:
        """Two messages at once are answered one after the other."""
        runs = [self.say("/burst 20"), self.say("/burst 30")]
        for run, size in zip(runs, (20, 30), strict=True):
            self.expect(self.finish(run), size)

    @task(1)
    def cancel(self) -> None:
        """Enough of it."""
        run = self.say("/slow 20")
        self.until(lambda: run in self.account.texts)
        self.ask({"type": "cancel"})
        self.finish(run)

    @task(1)
    def question(self) -> None:
        """The agent asks, the user answers."""
        end = self.finish(self.say("/ask"))
        [interrupt] = end["outcome"]["interrupts"]
        entry = {"interrupt_id": interrupt["id"], "status": "resolved", "payload": True}
        self.finish(self.ask({"type": "answer", "entries": [entry]})["run_id"])

    @task(1)
    def begin_again(self) -> None:
        """This conversation is over, there is another one."""
        self.end()
        self.begin()

    # --- the conversation -------------------------------------------------------------------------

    def begin(self) -> None:
        """A new session, which the first message opens."""
        self.account = Account()
        self.sent: dict[str, float] = {}
        self.session_id: str | None = None

    def end(self) -> None:
        """Closes the session."""
        if self.session_id is None:
            return
        try:
            self.ask({"type": "close"})
        finally:
            self.drop()
            self.account.settle()
            self.tell_faults()

    def say(self, text: str) -> str:
        """Sends a message; answers the id of its run."""
        began = time.perf_counter()
        try:
            run = self.ask({"type": "message", "content": text})["run_id"]
        except Exception as error:
            self.tell("ack", began, error)
            raise
        self.tell("ack", began)
        self.sent[run] = began
        return run

    def finish(self, run: str) -> dict[str, Any]:
        """Waits for the end of a run; answers its last event."""
        began = self.sent.pop(run, None) or time.perf_counter()
        try:
            self.until(lambda: run in self.account.begun)
            self.tell("first event", began)
            self.until(lambda: run in self.account.ends)
            end = self.account.ends[run]
            if end["type"] == "RUN_ERROR":
                raise Refused(f"{end.get('code')}: {end.get('message')}")
        except Exception as error:
            self.tell("answer", began, error)
            raise
        self.tell("answer", began)
        self.tell_faults()
        return end

    def expect(self, end: dict[str, Any], size: int) -> None:
        """That run should have said all the words of a burst."""
        self.account.expect(end["runId"], "".join(f"t{number} " for number in range(size)))
        self.tell_faults()

    # --- the wire ---------------------------------------------------------------------------------

    def attach(self) -> None:
        """Connects, opens the session or resumes it."""
        nodes = (self.host or "http://127.0.0.1:8000").split(",")
        node = nodes[next(_turns) % len(nodes)]
        began = time.perf_counter()
        name = "resume" if self.session_id else "open"
        try:
            self.socket = self.connection.enter_context(
                connect(
                    f"ws{node.removeprefix('http')}/ws",
                    subprotocols=[Subprotocol("nooble.v1")],
                    additional_headers={"X-Tenant-ID": self.tenant},
                    compression=None,
                    max_size=None,
                    proxy=None,
                )
            )
            which = {"session_id": self.session_id} if self.session_id else {"agent": AGENT}
            after = {"after": self.account.cursor} if self.account.cursor else {}
            opened = self.ask({"type": "open", **which, **after})
            if self.session_id and not opened["resumed"]:
                raise Refused("the session was not resumed from its cursor")
            self.session_id = opened["session_id"]
            self.until(lambda: self.account.cursor)
        except Exception as error:
            self.drop()
            self.tell(name, began, error)
            raise
        self.tell(name, began)

    def connected(self) -> ClientConnection:
        """The connection, made anew when it was lost."""
        if self.socket is None:
            self.attach()
        assert self.socket is not None
        return self.socket

    def drop(self) -> None:
        """Goes without a word, as a lost connection does."""
        if self.socket is not None:
            self.socket.socket.close()
        self.socket = None
        self.connection.close()

    def ask(self, frame: dict[str, Any]) -> dict[str, Any]:
        """Sends a frame and waits for what answers it."""
        answers: list[dict[str, Any]] = []
        frame = {**frame, "id": uuid4().hex}
        self.connected().send(msgspec.json.encode(frame).decode())
        self.until(lambda: answers, answers.append, frame["id"])
        [answer] = answers
        if answer["type"] == "error":
            raise Refused(f"{answer['code']}: {answer['message']}")
        return answer

    def until(
        self,
        condition: Callable[[], object],
        on_answer: Callable[[dict[str, Any]], None] = lambda _: None,
        asked: str = "",
    ) -> None:
        """Reads until that is so. What answers the frame `asked` is for `on_answer`."""
        deadline = time.perf_counter() + PATIENCE_S
        while not condition():
            try:
                data = self.connected().recv(timeout=max(0, deadline - time.perf_counter()))
            except (OSError, WebSocketException):
                self.drop()  # whoever needs it next connects anew
                raise
            frame = msgspec.json.decode(data)
            if frame["type"] == "event":
                self.account.event(frame)
            elif frame["type"] == "snapshot":
                self.account.snapshot(frame)
            elif frame["type"] == "reset":
                raise Refused(f"reset: {frame['reason']}")
            elif frame.get("re") == asked:
                on_answer(frame)

    # --- what locust is told ----------------------------------------------------------------------

    def tell_faults(self) -> None:
        """What was lost, doubled or out of order since the last time."""
        faults, self.account.faults = self.account.faults, []
        for fault in faults:
            self.tell(f"event {fault}", time.perf_counter(), Refused(f"session {self.session_id}"))

    def tell(self, name: str, began: float, error: Exception | None = None) -> None:
        """One request of the statistics."""
        self.environment.events.request.fire(
            request_type="WS",
            name=name,
            response_time=(time.perf_counter() - began) * 1000,
            response_length=0,
            exception=error,
            context={},
        )
