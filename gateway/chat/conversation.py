"""One chat: what is shown, what is typed, which tools are run for the agent."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, cast

from gateway.chat.earlier import Earlier, Unlisted, text_of
from gateway.chat.terminal import Lines, Screen
from gateway.chat.tools import TOOLS, run_tool
from gateway.client import (
    Attached,
    Deliver,
    Disconnected,
    Lost,
    Notice,
    Refusal,
    Replace,
    Run,
    Session,
    SessionEvent,
)
from protocol.codes import CloseCode
from protocol.frames import JsonObject, Reset, RunInfo

HELP = (
    "(/sessions lists earlier ones, /open N opens one, /cancel or Ctrl-C stops an answer,"
    " /quit or Ctrl-D leaves)"
)


class Conversation:
    """One chat: a task shows, one types, one runs the client's tools, one stops answers.

    Attributes:
        wanted: the session for which the user left this one.
    """

    def __init__(self, session: Session, screen: Screen, lines: Lines, earlier: Earlier) -> None:
        self.wanted: str | None = None
        self._session = session
        self._screen = screen
        self._lines = lines
        self._earlier = earlier
        self._events = session.events()
        self._left = asyncio.Event()
        self._code = 0
        self._progress = asyncio.Event()
        self._open_runs: set[str] = set()
        self._ended_runs: set[str] = set()
        self._own_runs: set[str] = set()
        self._sending = 0
        self._replaced = 0
        self._history_follows = False
        self._calls: asyncio.Queue[str] = asyncio.Queue()
        self._calls_open = 0
        self._questions: list[JsonObject] = []
        self._payloads: dict[str, Any] = {}
        self._stop = asyncio.Event()
        self._stopping = False
        self._connected = True

    async def run(self) -> int:
        """Until the user leaves or the session is out of reach; the exit code."""
        loop = asyncio.get_running_loop()
        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(signal.SIGINT, self._on_interrupt)
        try:
            self._begin()
            async with asyncio.TaskGroup() as group:
                parts = (self._show, self._type, self._run_tools, self._stop_runs, self._watch)
                tasks = [group.create_task(self._guarded(part())) for part in parts]
                await self._left.wait()
                for task in tasks:
                    task.cancel()
        finally:
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(signal.SIGINT)
        return self._code

    async def _guarded(self, part: Coroutine[Any, Any, None]) -> None:
        try:
            await part
        except Disconnected as gone:
            if not self._left.is_set():
                self._screen.note(f"(disconnected: {gone})")
                self._code = 1
                self._left.set()

    async def _watch(self) -> None:
        await self._screen.broken.wait()
        self._code = 1
        self._left.set()

    def _on_interrupt(self) -> None:
        if self._open_runs and not self._stopping:
            self._stopping = True
            self._stop.set()
        else:
            self._left.set()

    def _begin(self) -> None:
        opened = self._session.opened
        if self._screen.interactive:
            self._screen.note(f"Session {opened.session_id} with {opened.agent} {HELP}")
        for message in self._session.messages:
            self._show_message(message)
        self._open_runs = {run.run_id for run in opened.runs}
        self._questions = list(opened.interrupts)
        self._ready_for_input()

    # --- out --------------------------------------------------------------------------------------

    async def _show(self) -> None:
        async for happening in self._events:
            if isinstance(happening, Deliver):
                self._show_event(happening.run_id, happening.event)
            else:
                self._show_state(happening)

    def _show_state(self, happening: SessionEvent) -> None:
        screen = self._screen
        match happening:
            case Replace():
                self._replaced += 1
                self._history_follows = False
                screen.note("(the history was replaced)")
                for message in self._session.messages[-1:]:
                    self._show_message(message)
                self._ready_for_input()
            case Lost(code=CloseCode.RESTART) if self._connected:
                self._connected = False
                screen.note("(the gateway restarts; reconnecting", end="")
            case Lost(reason=reason) if self._connected:
                self._connected = False
                why = f": {reason}" if reason else ""
                screen.note(f"(connection lost{why}; reconnecting", end="")
            case Lost():
                screen.add(".")
            case Attached(opened=opened):
                self._connected = True
                screen.add(", connected)", end="\n")
                if not opened.resumed:
                    self._survivors(opened.runs)
            case Notice(frame=Reset(runs=runs)):
                self._survivors(runs)
            case _:
                pass

    def _show_event(self, run_id: str, event: JsonObject) -> None:
        screen = self._screen
        match event:
            case {"type": "RUN_STARTED"}:
                self._started(run_id, event)
            case {"type": "TEXT_MESSAGE_START"}:
                screen.end_line()
            case {"type": "TEXT_MESSAGE_CONTENT", "delta": str(delta)}:
                screen.say(delta)
            case {"type": "TEXT_MESSAGE_END"}:
                screen.end_line()
            case {"type": "TOOL_CALL_START", "toolCallName": str(name)}:
                screen.note(f"(tool: {name})")
            case {"type": "RUN_ERROR"}:
                screen.note(f"(failed: {event.get('code')}: {event.get('message')})")
                if self._is_own(run_id) and not screen.interactive:
                    self._code = 1
                self._ended(run_id)
            case {"type": "RUN_FINISHED"}:
                self._finished(run_id, event.get("outcome"))
            case _:
                pass

    def _started(self, run_id: str, event: JsonObject) -> None:
        if run_id not in self._ended_runs:
            self._open_runs.add(run_id)
        self._questions, self._payloads = [], {}
        if not self._is_own(run_id):
            match event:
                case {"input": {"messages": [*messages]}}:
                    for message in messages:
                        self._show_message(message)
                case _:
                    pass

    def _finished(self, run_id: str, outcome: Any) -> None:
        match outcome:
            case {"type": "cancelled"}:
                self._screen.note("(stopped)")
            case {"type": "interrupt", "interrupts": [*interrupts]}:
                self._questions = [i for i in interrupts if isinstance(i, dict)]
            case {"pendingToolCallIds": [*calls]} if self._is_own(run_id):
                for call in calls:
                    self._calls_open += 1
                    self._calls.put_nowait(str(call))
            case _:
                pass
        self._ended(run_id)

    def _ended(self, run_id: str) -> None:
        self._screen.end_line()
        self._ended_runs.add(run_id)
        self._open_runs.discard(run_id)
        self._ready_for_input()

    def _is_own(self, run_id: str) -> bool:
        """True for what this chat asked for; its answer may still be on its way."""
        return self._sending > 0 or run_id in self._own_runs

    def _survivors(self, runs: list[RunInfo]) -> None:
        """What was shown is void; these runs go on, and a history follows."""
        self._open_runs = {run.run_id for run in runs}
        self._history_follows = True

    def _show_message(self, message: Any) -> None:
        match message:
            case {"role": "user", "content": content}:
                self._screen.end_line()
                self._screen.say(f"> {text_of(content)}\n")
            case {"role": "assistant", "content": str(content)} if content:
                self._screen.end_line()
                self._screen.say(content)
            case _:
                pass

    def _ready_for_input(self) -> None:
        if not self._open_runs:
            self._stopping = False
            for question in self._questions[:1]:
                self._screen.note(f"? {question.get('message') or question.get('reason')}")
            if not self._calls_open:
                self._screen.prompt()
        self._progress.set()

    # --- in ---------------------------------------------------------------------------------------

    async def _type(self) -> None:
        while True:
            if not self._screen.interactive:
                await self._idle()
            line = await self._lines.next()
            if line is None:
                break
            self._screen.entered()
            try:
                await self._enter(line.strip())
            except Refusal as refusal:
                self._screen.note(f"(refused: {refusal})")
                self._ready_for_input()
            if self._left.is_set():
                return
        self._left.set()

    async def _idle(self) -> None:
        while self._open_runs or self._calls_open or self._history_follows:
            self._progress.clear()
            await self._progress.wait()

    async def _enter(self, text: str) -> None:
        if not text:
            self._ready_for_input()
        elif text == "/quit":
            self._left.set()
        elif text == "/sessions":
            await self._list()
        elif text == "/open":
            self._screen.note("(/open N opens one of those that /sessions lists)")
            self._ready_for_input()
        elif text.startswith("/open "):
            self._leave_for(text.removeprefix("/open ").strip())
        elif text == "/cancel" and self._questions and not self._open_runs:
            await self._answer(declined=[str(q.get("id")) for q in self._questions])
        elif text == "/cancel":
            self._stop.set()
        elif self._questions and not self._open_runs:
            await self._answer_question(text)
        else:
            await self._begin_run(self._session.send(text, tools=TOOLS))

    async def _list(self) -> None:
        try:
            entries = await self._earlier.entries()
        except Unlisted as problem:
            self._screen.note(f"({problem})")
        else:
            for number, entry in enumerate(entries, 1):
                here = "*" if entry.session_id == self._session.session_id else " "
                self._screen.note(f"{number:>3}{here} {entry}")
            if not entries:
                self._screen.note("(no conversations yet)")
        self._ready_for_input()

    def _leave_for(self, which: str) -> None:
        """A number of the list, or a session's id."""
        listed = self._earlier.listed
        if not which.isdecimal():
            self.wanted = which
        elif 1 <= int(which) <= len(listed):
            self.wanted = listed[int(which) - 1].session_id
        if self.wanted is None:
            self._screen.note(f"(there is no {which}; /sessions lists what there is)")
            self._ready_for_input()
        else:
            self._left.set()

    async def _answer_question(self, text: str) -> None:
        """One question after the other; the last answer sends them all."""
        question, *others = self._questions
        try:
            payload = _payload(text, question.get("responseSchema"))
        except ValueError as error:
            self._screen.note(f"({error})")
            self._ready_for_input()
            return
        self._payloads[str(question.get("id"))] = payload
        if others:
            self._questions = others
            self._ready_for_input()
        else:
            await self._answer()

    async def _answer(self, declined: Sequence[str] = ()) -> None:
        asked = self._questions
        await self._begin_run(self._session.answer(self._payloads, cancelled=declined))
        if self._questions is asked:  # else the run has begun already, and may have asked anew
            self._questions, self._payloads = [], {}

    async def _begin_run(self, command: Awaitable[Run | None]) -> None:
        replaced = self._replaced
        self._sending += 1
        try:
            run = await command
        finally:
            self._sending -= 1
        if run is None:
            return
        self._own_runs.add(run.run_id)
        told = run.status == "duplicate" and self._replaced > replaced  # by the new history
        if run.run_id not in self._ended_runs and not told:
            self._open_runs.add(run.run_id)

    async def _stop_runs(self) -> None:
        while True:
            await self._stop.wait()
            self._stop.clear()
            try:
                await self._session.cancel()
            except Refusal as refusal:
                self._screen.note(f"(refused: {refusal})")

    # --- the client's tools -----------------------------------------------------------------------

    async def _run_tools(self) -> None:
        while True:
            call_id = await self._calls.get()
            content, error = run_tool(self._session.messages, call_id)
            try:
                await self._begin_run(self._session.tool_result(call_id, content, error))
            except Refusal as refusal:
                self._screen.note(f"(refused: {refusal})")
            finally:
                self._calls_open -= 1
                self._ready_for_input()


def _payload(text: str, schema: Any) -> Any:
    """What was typed, as the question wants it."""
    kind = cast(JsonObject, schema).get("type", "string") if isinstance(schema, dict) else "string"
    if kind == "string":
        return text
    if kind == "boolean":
        if text.lower() in ("y", "yes", "true"):
            return True
        if text.lower() in ("n", "no", "false"):
            return False
        raise ValueError("please answer yes or no")
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError("please answer in JSON") from None
