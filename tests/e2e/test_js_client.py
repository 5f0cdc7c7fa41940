"""The JavaScript client's pure parts, in the browser they are for, against the Python ones.

Both cores are one design in two languages: given the same frames they must say the same.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route
from support.browser import open_browser

import gateway
from protocol import cursor
from protocol.codec import decode_server, encode
from protocol.codes import reconnect_policy
from protocol.frames import Cancel
from protocol.transcript import Transcript

WEB = Path(gateway.__file__).parent / "web"
ORIGIN = "http://client.test"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """An empty page on which the modules can be imported."""

    def serve(route: Route) -> None:
        name = route.request.url.removeprefix(f"{ORIGIN}/")
        if name:
            route.fulfill(body=(WEB / name).read_bytes(), content_type="text/javascript")
        else:
            route.fulfill(body="<!doctype html>", content_type="text/html")

    browser: Browser
    with open_browser() as browser:
        page = browser.new_page()
        page.route(f"{ORIGIN}/**", serve)
        page.goto(f"{ORIGIN}/")
        yield page


def run(page: Page, body: str, argument: Any = None) -> Any:
    """Runs the body of a function of `argument`, with the client's names imported."""
    names = "ClientCore, NoobleError, NoobleSession, Transcript, reconnectPolicy"
    return page.evaluate(
        f"""async (argument) => {{
            const {{ {names} }} = await import("/nooble.js");
            {body}
        }}""",
        argument,
    )


def event(seq: int, **fields: Any) -> dict[str, Any]:
    return {"type": "event", "seq": seq, "ts": 1, "run_id": "r", "event": {"type": "X"}, **fields}


def opened(**fields: Any) -> dict[str, Any]:
    frame = {"type": "opened", "re": "o", "session_id": "s", "agent": "demo", "state": "idle"}
    return {**frame, "cursor": {"epoch": "e", "seq": 5}, "resumed": True, **fields}


def test_a_gap_is_broken_and_a_duplicate_is_dropped(page: Page) -> None:
    """Order, each once: what is behind the cursor is dropped, what is ahead breaks."""
    outcomes = run(
        page,
        """const core = new ClientCore({ sessionId: "s", cursor: { epoch: "e", seq: 5 } });
           return argument.map((frame) => core.receive(frame).map((o) => [o.kind, o.seq ?? null]))
             .concat([core.cursor.seq]);""",
        [event(6), event(6), event(5), {**event(9), "from": 7}, event(11)],
    )
    assert outcomes == [
        [["deliver", 6]],
        [],
        [],
        [["deliver", 9]],
        [["broken", None]],
        9,
    ]


def test_the_resume_frame(page: Page) -> None:
    """A new session names the agent; a known one its id and, when there is one, the cursor."""
    frames = run(
        page,
        """const fresh = new ClientCore({ agent: "demo", metadata: { a: 1 }, onDetach: "cancel" });
           const frames = [fresh.connected("1")];
           fresh.receive(argument.opened);
           fresh.receive({ type: "snapshot", cursor: { epoch: "e", seq: 7 }, events: [] });
           frames.push(fresh.connected("2"));
           fresh.receive({ type: "reset", reason: "epoch", runs: [] });
           frames.push(fresh.connected("3"));
           return frames;""",
        {"opened": opened(resumed=False)},
    )
    assert frames == [
        {"type": "open", "id": "1", "agent": "demo", "metadata": {"a": 1}, "on_detach": "cancel"},
        {"type": "open", "id": "2", "session_id": "s", "after": {"epoch": "e", "seq": 7}},
        {"type": "open", "id": "3", "session_id": "s"},
    ]


def test_the_backoff_is_bounded_and_jittered(page: Page) -> None:
    """Full jitter: base 0.5 s, doubling, cap 30 s; a stable connection starts the series anew."""
    low, high, after_stable = run(
        page,
        """const series = (random) => {
             const core = new ClientCore({ agent: "demo" });
             const delays = [];
             for (let i = 0; i < 12; i += 1)
               delays.push(core.disconnected(1006, { random, attachedMs: 0 }).afterMs);
             delays.push(core.disconnected(1006, { random, attachedMs: 6000 }).afterMs);
             return delays;
           };
           const high = series(1);
           return [series(0), high.slice(0, -1), high.at(-1)];""",
    )
    assert set(low) == {0}
    assert high == [min(30_000, 500 * 2**i) for i in range(12)]
    assert after_stable == 500


def test_the_close_codes_are_pythons(page: Page) -> None:
    """One table of reconnect policies, in both languages."""
    codes = [*range(1000, 1016), *range(4000, 5000)]
    policies = run(page, "return argument.map(reconnectPolicy);", codes)
    assert policies == [reconnect_policy(code).value for code in codes]


def test_both_cores_agree(page: Page) -> None:
    """Whatever comes in whatever order, the two cores say the same."""
    dice = random.Random(20_251_122)
    scripts = [[step(dice) for _ in range(40)] for _ in range(150)]
    told = run(
        page,
        """const normal = (o) => o.kind === "deliver" ? ["deliver", o.runId, o.seq, o.event]
             : o.kind === "replace" ? ["replace", o.events]
             : o.kind === "attached" ? ["attached", o.opened.session_id]
             : o.kind === "answered" ? ["answered", o.re, o.answer.type]
             : o.kind === "notice" ? ["notice", o.frame.type]
             : o.kind === "resend" ? ["resend", o.command.id]
             : ["broken", o.expectedSeq, o.gotSeq];
           const perform = (core, [verb, value]) => {
             if (verb === "receive") return core.receive(value).map(normal);
             if (verb === "connect") return core.connected(value);
             if (verb === "send") return core.send({ type: "cancel", id: value });
             const next = core.disconnected(value.code, value);
             return next.kind === "retry" ? Math.round(next.afterMs) : next.policy;
           };
           return argument.map((script) => {
             const core = new ClientCore({ agent: "demo" });
             return script.map((step) => perform(core, step));
           });""",
        scripts,
    )
    for script, said in zip(scripts, told, strict=True):
        core = cursor.ClientCore(agent="demo")
        assert said == [perform(core, verb, value) for verb, value in script]


def step(dice: random.Random) -> tuple[str, Any]:
    seq = dice.randrange(1, 9)
    error = {"type": "error", "code": "busy", "message": "x", "retryable": True}
    steps: list[tuple[int, tuple[str, Any]]] = [
        (8, ("receive", event(seq))),
        (2, ("receive", {**event(seq + 2), "from": seq})),
        (2, ("receive", opened(resumed=dice.random() < 0.7, re="o1"))),
        (2, ("receive", {"type": "snapshot", "cursor": {"epoch": "e", "seq": seq}, "events": []})),
        (1, ("receive", {"type": "ack", "re": f"c{seq % 3}", "status": "accepted"})),
        (1, ("receive", {**error, "re": f"c{seq % 3}", "retry_after_ms": 700})),
        (1, ("receive", {**error, "re": "o1", "retry_after_ms": 900})),
        (1, ("receive", {**error})),
        (1, ("receive", {"type": "reset", "reason": "epoch"})),
        (1, ("receive", {"type": "goaway", "reason": "drain", "reconnect_in_ms": 1200})),
        (1, ("receive", {"type": "pong", "t": 1})),
        (2, ("connect", "o1")),
        (2, ("send", f"c{seq % 3}")),
        (
            3,
            (
                "disconnect",
                {
                    "code": dice.choice([1000, 1006, 1012, 4404, 4429, 4503]),
                    "random": dice.randrange(4) / 4,
                    "attachedMs": dice.choice([0, 4999, 5000]),
                },
            ),
        ),
    ]
    weights, choices = zip(*steps, strict=True)
    return dice.choices(choices, weights)[0]


def perform(core: cursor.ClientCore, verb: str, value: Any) -> Any:
    match verb:
        case "receive":
            return [normal(o) for o in core.receive(decode_server(json.dumps(value)))]
        case "connect":
            return json.loads(encode(core.connected(value)))
        case "send":
            return core.send(Cancel(value))
        case _:
            following = core.disconnected(
                value["code"], random=value["random"], attached_s=value["attachedMs"] / 1000
            )
            if isinstance(following, cursor.Retry):
                return int(following.after_s * 1000 + 0.5)
            return following.policy.value


def normal(outcome: cursor.Outcome) -> list[Any]:
    match outcome:
        case cursor.Deliver(run_id, seq, _, event):
            return ["deliver", run_id, seq, event]
        case cursor.Replace(events):
            return ["replace", events]
        case cursor.Attached(frame):
            return ["attached", frame.session_id]
        case cursor.Answered(re, answer):
            return ["answered", re, answer.__struct_config__.tag]
        case cursor.Notice(frame):
            return ["notice", frame.__struct_config__.tag]
        case cursor.Resend(command):
            return ["resend", command.id]
        case cursor.Broken(expected, got):
            return ["broken", expected, got]


def test_both_transcripts_agree(page: Page) -> None:
    """The same fold in both languages, over events in order, out of order and malformed."""
    dice = random.Random(7)
    scripts = [[random_event(dice) for _ in range(60)] for _ in range(150)]
    told = run(
        page,
        """return argument.map((script) => {
             const transcript = new Transcript();
             for (const event of script) transcript.apply(event);
             return [transcript.messages, [...transcript.openIds].sort()];
           });""",
        scripts,
    )
    for script, (messages, open_ids) in zip(scripts, told, strict=True):
        transcript = Transcript()
        for one in script:
            transcript.apply(one)
        assert messages == transcript.messages
        assert open_ids == sorted(transcript.open_ids)


def random_event(dice: random.Random) -> dict[str, Any]:
    message_id, call_id = dice.choice(["m1", "m2", "m3"]), dice.choice(["c1", "c2"])
    messages: list[Any] = [random_message(dice, message_id), dice.choice([None, "x", []])]
    whole: dict[str, Any] = dice.choice(
        [
            {"type": "RUN_STARTED", "input": {"messages": messages}},
            {"type": "TEXT_MESSAGE_START", "messageId": message_id, "role": "assistant"},
            {"type": "TEXT_MESSAGE_CONTENT", "messageId": message_id, "delta": "word "},
            {"type": "TEXT_MESSAGE_CONTENT", "messageId": message_id, "delta": "wörter ☂ "},
            {"type": "TEXT_MESSAGE_END", "messageId": message_id},
            {"type": "TOOL_CALL_START", "toolCallId": call_id, "toolCallName": "t"},
            {
                "type": "TOOL_CALL_START",
                "toolCallId": call_id,
                "toolCallName": "t",
                "parentMessageId": message_id,
            },
            {"type": "TOOL_CALL_ARGS", "toolCallId": call_id, "delta": "{}"},
            {"type": "TOOL_CALL_END", "toolCallId": call_id},
            {
                "type": "TOOL_CALL_RESULT",
                "messageId": f"r-{call_id}",
                "toolCallId": call_id,
                "content": "42",
            },
            {"type": "MESSAGES_SNAPSHOT", "messages": messages} if dice.random() < 0.2 else {},
            {"type": "RUN_FINISHED"} if dice.random() < 0.3 else {"type": "UNKNOWN"},
        ]
    )
    if dice.random() < 0.2 and len(whole) > 1:
        whole = dict(whole)
        field = dice.choice(list(whole))
        if dice.random() < 0.3:
            del whole[field]
        else:
            whole[field] = dice.choice([None, 7, "", ["x"], {}])
    return whole


def random_message(dice: random.Random, message_id: str) -> dict[str, Any]:
    """What an agent may put into a snapshot: complete, half of a call, or nonsense."""
    calls: Any = dice.choice(
        [
            [{"id": "c1", "type": "function", "function": {"name": "t", "arguments": ""}}],
            [{"id": "c2", "function": {"arguments": 7}}, None, "x", {}],
            [{"id": "c2", "function": None}],
            7,
            None,
        ]
    )
    content = dice.choice(["hi", "", None, 7, {"a": 1}, [{"type": "text", "text": "x"}]])
    return dice.choice(
        [
            {"id": message_id, "role": "user", "content": "hi"},
            {"id": message_id, "role": "assistant", "content": content},
            {"id": message_id, "role": "assistant", "toolCalls": calls},
            {"id": dice.choice(["", None, 7]), "role": "user", "content": "hi"},
        ]
    )


def test_a_client_needs_an_agent_or_a_session(page: Page) -> None:
    """A mistake of the caller is told at once, not by the server."""
    assert run(
        page,
        """try { new NoobleSession({ url: "ws://client.test/ws" }); }
           catch (error) { return error instanceof TypeError; }""",
    )


FAKE_SOCKET = """
    window.WebSocket = class {
      static OPEN = 1;
      static made = [];
      readyState = 1;
      sent = [];
      constructor() { WebSocket.made.push(this); queueMicrotask(() => this.onopen()); }
      send(data) { this.sent.push(JSON.parse(data)); }
      close() {}
      hear(frame) { this.onmessage({ data: JSON.stringify(frame) }); }
    };
    const settled = () => new Promise((resolve) => setTimeout(resolve));
    const session = new NoobleSession({ url: "ws://client.test/ws", agent: "demo" });
    session.connect();
    await settled();
    const socket = WebSocket.made[0];
    socket.hear(argument.opened);
    socket.hear({ type: "snapshot", cursor: { epoch: "e", seq: 0 }, events: argument.events });
"""


def test_a_bare_cancel_names_the_open_run(page: Page) -> None:
    """Sent again after a lost answer it must not hit the run after it."""
    seq = iter(range(1, 10))

    def of_run(run_id: str, kind: str) -> dict[str, Any]:
        return event(next(seq), run_id=run_id, event={"type": kind, "runId": run_id})

    named = run(
        page,
        FAKE_SOCKET
        + """
        const cancelled = () => { session.cancel(); return socket.sent.at(-1).run_id ?? null; };
        const named = [cancelled()];
        for (const frame of argument.frames) {
          socket.hear(frame);
          named.push(cancelled());
        }
        const unanswered = session.core.unanswered.map((command) => command.run_id ?? null);
        session.disconnect();
        return [named, unanswered];
        """,
        {
            "opened": opened(resumed=False, heartbeat_ms=25_000),
            "events": [{"type": "RUN_STARTED", "runId": "r1"}],
            "frames": [
                of_run("r1", "RUN_FINISHED"),
                of_run("r2", "RUN_STARTED"),
                of_run("r2", "TEXT_MESSAGE_START"),
                of_run("other", "RUN_ERROR"),
                of_run("r2", "RUN_ERROR"),
            ],
        },
    )
    expected = ["r1", None, "r2", "r2", "r2", None]
    assert named == [expected, expected], "what is sent again is what was sent"


def test_a_bare_cancel_is_safe_when_nothing_runs(page: Page) -> None:
    """The run that it named is over and forgotten: then there is nothing to do. A run that the
    caller named must exist."""
    outcomes = run(
        page,
        FAKE_SOCKET
        + """
        const refuse = () => socket.hear({ ...argument.refusal, re: socket.sent.at(-1).id });
        const tell = (promise) => promise.then((ack) => ack.status, (error) => error.code);
        const bare = tell(session.cancel());
        refuse();
        const named = tell(session.cancel("r7"));
        refuse();
        const outcomes = await Promise.all([bare, named]);
        session.disconnect();
        return outcomes;
        """,
        {
            "opened": opened(resumed=False, heartbeat_ms=25_000),
            "events": [{"type": "RUN_STARTED", "runId": "r1"}],
            "refusal": {"type": "error", "code": "run_not_found", "message": "x"},
        },
    )
    assert outcomes == ["accepted", "run_not_found"]
