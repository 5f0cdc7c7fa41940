"""What an agent does with its run, and what the run becomes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from ag_ui.core import Event
from loguru import logger
from pydantic import TypeAdapter
from support.recorder import REF, Recorder, claim, user

from gateway.agents import Agent, AgentError, Run
from gateway.agents.execution import Execution
from gateway.agents.patch import PatchError
from gateway.session.model import Claim

Function = Callable[[Run], Awaitable[None]]


def execution_of(
    function: Function, recorder: Recorder, given: Claim | None = None, **options: Any
) -> Execution:
    agent = Agent("test")
    agent.run(function)
    return Execution(agent, given or claim(), recorder, **options)


async def play(function: Function, given: Claim | None = None, **bounds: int) -> Recorder:
    """Runs an agent's function to its end; every event is checked by AG-UI's own models."""
    recorder = Recorder(**bounds)
    assert await execution_of(function, recorder, given).run() is None
    check = TypeAdapter(Event)
    for event in [*recorder.events, recorder.end]:
        check.validate_python(event)
    return recorder


@asynccontextmanager
async def playing(
    function: Function, recorder: Recorder, **options: Any
) -> AsyncIterator[Execution]:
    execution = execution_of(function, recorder, **options)
    async with asyncio.TaskGroup() as group:
        group.create_task(execution.run())
        yield execution


@pytest.fixture
def logged():
    lines: list[str] = []
    handler = logger.add(lambda message: lines.append(str(message)), format="{message}")
    yield lines
    logger.remove(handler)


async def until_cancelled() -> None:
    await asyncio.Event().wait()


async def stay(_run: Run) -> None:
    await until_cancelled()


# --- messages -------------------------------------------------------------------------------------


async def test_the_ten_line_agent() -> None:
    async def echo(run: Run) -> None:
        async with run.message() as message:
            for word in run.text.split():
                await message.write(word + " ")

    recorder = await play(echo, claim(user("one two three")))
    assert recorder.text == "one two three "
    assert recorder.types[0] == "TEXT_MESSAGE_START"
    assert recorder.types[-1] == "TEXT_MESSAGE_END"
    assert recorder.end == {
        "type": "RUN_FINISHED",
        "threadId": REF.session_id,
        "runId": REF.run_id,
        "outcome": {"type": "success"},
    }
    assert recorder.ending.kind == "F"
    assert recorder.messages == [
        {
            "id": recorder.events[0]["messageId"],
            "role": "assistant",
            "content": "one two three ",
        }
    ]


async def test_a_run_knows_what_it_was_given() -> None:
    seen: list[Run] = []

    async def look(run: Run) -> None:
        seen.append(run)

    parts = [{"type": "text", "text": "what "}, {"type": "image", "url": "x"}]
    newest = {"id": "u2", "role": "user", "content": [*parts, {"type": "text", "text": "is it?"}]}
    answer = {"id": "a1", "role": "assistant", "content": "hm"}
    await play(
        look,
        claim(
            user("first"), answer, newest,
            state={"n": 1},
            metadata={"plan": "pro"},
            timeout_s=60,
            tools=[{"name": "t"}],
            context=[{"description": "d", "value": "v"}],
            forwarded_props={"p": 1},
        ),
    )  # fmt: skip
    run = seen[0]
    assert (run.tenant, run.session_id, run.run_id, run.user, run.attempt) == (*REF, "ann", 1)
    assert run.text == "what is it?"
    assert run.messages == [user("first"), answer, newest]
    assert run.tools == [{"name": "t"}]
    assert run.context == [{"description": "d", "value": "v"}]
    assert run.forwarded_props == {"p": 1}
    assert run.metadata == {"plan": "pro"}
    assert run.state == {"n": 1}
    assert (run.resume, run.tool_results) == ([], [])
    assert not run.cancelled.is_set()
    assert 50 < run.deadline - asyncio.get_running_loop().time() <= 60


async def test_only_what_the_run_added_goes_to_the_transcript() -> None:
    async def snapshot(run: Run) -> None:
        added = {"id": "a2", "role": "assistant", "content": "new"}
        await run.emit({"type": "MESSAGES_SNAPSHOT", "messages": [*run.messages, added]})

    recorder = await play(snapshot, claim(user("hi")))
    assert [message["id"] for message in recorder.messages] == ["a2"]


async def test_writing_to_an_ended_message_is_an_error() -> None:
    async def late(run: Run) -> None:
        async with run.message() as message:
            await message.write("a")
        with pytest.raises(RuntimeError, match="ended"):
            await message.write("b")

    assert (await play(late)).text == "a"


async def test_what_is_left_open_is_closed_last_first() -> None:
    async def careless(run: Run) -> None:
        await run.emit({"type": "STEP_STARTED", "stepName": "s"})
        await run.emit({"type": "REASONING_MESSAGE_START", "messageId": "r", "role": "reasoning"})
        await run.emit({"type": "TOOL_CALL_START", "toolCallId": "t", "toolCallName": "n"})

    recorder = await play(careless)
    assert recorder.types[3:] == ["TOOL_CALL_END", "REASONING_MESSAGE_END", "STEP_FINISHED"]


# --- failures -------------------------------------------------------------------------------------


async def test_an_exception_is_logged_and_its_text_is_not_told(logged: list[str]) -> None:
    async def broken(run: Run) -> None:
        async with run.message() as message:
            await message.write("so far")
            raise ValueError("the password is hunter2")

    recorder = await play(broken)
    assert recorder.ending.kind == "X"
    assert recorder.ending.code == "internal"
    assert recorder.end == {
        "type": "RUN_ERROR",
        "message": "the agent failed",
        "code": "internal",
    }
    assert recorder.types[-1] == "TEXT_MESSAGE_END"
    assert recorder.events[-1]["incomplete"] is True
    assert recorder.messages[0]["content"] == "so far"
    assert recorder.messages[0]["metadata"] == {"incomplete": True}
    assert "ValueError: the password is hunter2" in "".join(logged)


async def test_an_agent_error_is_told() -> None:
    async def refuse(run: Run) -> None:
        await run.say("complete")
        raise AgentError("out of credits", "quota_exceeded")

    recorder = await play(refuse)
    assert (recorder.end["message"], recorder.end["code"]) == ("out of credits", "quota_exceeded")
    assert recorder.ending.code == "quota_exceeded"
    assert "metadata" not in recorder.messages[0], "a message that was complete stays so"


async def test_a_cancellation_of_its_own_making_is_a_failure() -> None:
    async def odd(_run: Run) -> None:
        raise asyncio.CancelledError

    recorder = await play(odd)
    assert recorder.end["code"] == "internal"


async def test_a_run_past_its_bound_ends_too_large() -> None:
    async def endless(run: Run) -> None:
        while True:
            await run.say("more")

    recorder = await play(endless, max_events=50)
    assert len(recorder.log) <= 50
    assert (recorder.ending.kind, recorder.ending.code) == ("X", "too_large")
    assert recorder.end["code"] == "too_large"


async def test_a_run_whose_closing_does_not_fit_ends_too_large() -> None:
    async def careless(run: Run) -> None:
        await run.emit({"type": "TEXT_MESSAGE_START", "messageId": "m"})

    recorder = await play(careless, max_events=1)
    assert recorder.ending.code == "too_large"
    assert recorder.messages[0]["metadata"] == {"incomplete": True}


# --- being stopped --------------------------------------------------------------------------------


async def test_cancel_stops_the_agent_closes_what_is_open_and_keeps_what_was_said() -> None:
    recorder = Recorder()
    cleaned: list[bool] = []

    async def talk(run: Run) -> None:
        async with run.message() as message:
            try:
                await message.write("some")
                await message.write("thing")
                await until_cancelled()
            finally:
                cleaned.append(run.cancelled.is_set())

    async with playing(talk, recorder) as execution:
        await recorder.until(2)
        execution.cancel()
    assert cleaned == [True]
    assert recorder.types[-1] == "TEXT_MESSAGE_END"
    assert (recorder.ending.kind, recorder.end["outcome"]) == ("C", {"type": "cancelled"})
    assert recorder.messages[0]["content"] == "something"
    assert recorder.endings == 1


async def test_cancelling_again_does_not_disturb_the_cleaning_up() -> None:
    recorder = Recorder()
    started, cleaning, proceed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def tidy(run: Run) -> None:
        try:
            started.set()
            await until_cancelled()
        finally:
            cleaning.set()
            await proceed.wait()
            await run.say("tidied")

    async with playing(tidy, recorder) as execution:
        await started.wait()
        execution.cancel()
        await cleaning.wait()
        execution.cancel()
        proceed.set()
    assert recorder.text == "tidied"
    assert recorder.ending.kind == "C"


async def test_a_claim_that_is_cancelled_already_never_calls_the_agent() -> None:
    async def never(_run: Run) -> None:
        pytest.fail("called")

    recorder = await play(never, claim(cancelled=True))
    assert recorder.types == []
    assert recorder.ending.kind == "C"


async def test_cancel_in_the_very_moment_of_the_start() -> None:
    recorder = Recorder()
    async with playing(stay, recorder) as execution:
        execution.cancel()
    assert recorder.ending.kind == "C"


@pytest.mark.parametrize("notice", ["by an append", "by a renewal"])
async def test_fenced_stops_the_agent_and_sends_nothing(notice: str) -> None:
    """Guarantee 3: an attempt that lost its run is silent."""
    recorder = Recorder()
    stopped = asyncio.Event()

    async def talk(run: Run) -> None:
        await run.say("mine")
        try:
            while True:
                if recorder.fenced and notice == "by an append":
                    await run.say("not mine")
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            stopped.set()
            await run.say("last words")
            raise

    async with playing(talk, recorder) as execution:
        await recorder.until(3)
        if notice == "by a renewal":
            execution.fence()
        else:
            recorder.fenced = True
        await stopped.wait()
    assert recorder.text == "mine"
    assert recorder.ending is None
    assert recorder.handed_back == 0


class Stubborn:
    """Swallows every cancellation, as `except BaseException` in a loop does by mistake."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.turns = 0
        self.tidied = False

    async def run(self, run: Run) -> None:
        await run.say("mine")
        try:
            while True:
                try:
                    self.turns += 1
                    await asyncio.sleep(0.001)
                except asyncio.CancelledError:
                    self.cancelled += 1
        finally:
            self.tidied = True


@pytest.mark.parametrize("why", ["its run is lost", "its worker stops", "it became too large"])
async def test_an_agent_that_swallows_its_cancellation_is_let_go(
    why: str, logged: list[str]
) -> None:
    """Guarantee 4: or it would keep its slot, and its worker from stopping, for ever."""
    agent = Stubborn()
    recorder = Recorder(max_events=3)
    async with playing(agent.run, recorder, patience_s=0.05) as execution:
        await recorder.until(3)
        match why:
            case "its run is lost":
                execution.cancel()
                execution.fence()
            case "its worker stops":
                execution.abandon()
            case _:
                execution._stream.add({"type": "CUSTOM", "name": "n", "value": 1})
    turns = agent.turns
    await asyncio.sleep(0.02)
    assert agent.turns == turns, "none of its code runs any more"
    assert agent.cancelled
    assert agent.tidied
    assert [line for line in logged if "ignores its cancellation" in line]
    assert recorder.text == "mine"
    codes = {"its run is lost": None, "its worker stops": "worker_lost"}
    code = codes.get(why, "too_large")
    assert (recorder.ending.code if recorder.ending else None) == code


async def test_a_cancelled_agent_has_as_long_as_the_grace_to_clean_up(logged: list[str]) -> None:
    """Others end the grace; until then the run is its own."""
    recorder = Recorder()
    started = asyncio.Event()

    async def tidy(run: Run) -> None:
        try:
            started.set()
            await until_cancelled()
        finally:
            await asyncio.sleep(0.1)
            await run.say("tidied")

    async with playing(tidy, recorder, patience_s=0.01) as execution:
        await started.wait()
        execution.cancel()
    assert recorder.text == "tidied"
    assert logged == []


async def test_an_agent_that_cleans_up_in_time_is_not_let_go(logged: list[str]) -> None:
    recorder = Recorder()
    started, tidied = asyncio.Event(), asyncio.Event()

    async def tidy(_run: Run) -> None:
        try:
            started.set()
            await until_cancelled()
        finally:
            await asyncio.sleep(0.01)
            tidied.set()

    async with playing(tidy, recorder, patience_s=5) as execution:
        await started.wait()
        execution.fence()
    assert tidied.is_set()
    assert not [line for line in logged if "ignores" in line]


async def test_an_agent_that_holds_on_to_everything_is_let_go_all_the_same(
    logged: list[str],
) -> None:
    """Even to `GeneratorExit`."""
    recorder = Recorder()
    turns = exits = 0

    async def hold(run: Run) -> None:
        nonlocal turns, exits
        await run.say("mine")
        while exits < 2:  # Python throws it in once more when it throws the coroutine away
            try:
                turns += 1
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                pass
            except GeneratorExit:
                exits += 1

    async with playing(hold, recorder, patience_s=0.01) as execution:
        await recorder.until(3)
        execution.fence()
    held = turns
    await asyncio.sleep(0.02)
    assert turns == held
    assert "the agent was let go in the middle of something\n" in logged


async def test_redis_gone_until_the_deadline_of_the_run_stops_the_agent() -> None:
    recorder = Recorder()
    recorder.refuse = 10**9

    async def talk(run: Run) -> None:
        await run.say("hello?")
        await until_cancelled()

    async with playing(talk, recorder, given=claim(timeout_s=0.1)):
        pass
    assert recorder.calls == []
    assert recorder.ending is None


async def test_redis_gone_does_not_keep_a_worker_from_stopping() -> None:
    recorder = Recorder()
    recorder.refuse = 10**9

    async def talk(run: Run) -> None:
        await run.say("hello?")
        await until_cancelled()

    async with playing(talk, recorder) as execution:
        await asyncio.sleep(0)
        execution.abandon()
    assert recorder.ending is None


async def test_a_lost_answer_to_finish_is_asked_for_again() -> None:
    async def talk(run: Run) -> None:
        await run.say("done")

    recorder = Recorder()
    execution = execution_of(talk, recorder)
    recorder.lose_endings = 2
    await execution.run()
    assert recorder.ending.kind == "F"
    assert recorder.endings == 3


async def test_a_run_without_events_is_handed_back() -> None:
    recorder = Recorder()
    thinking = asyncio.Event()

    async def think(run: Run) -> None:
        try:
            thinking.set()
            await until_cancelled()
        finally:
            await run.say("never sent")

    async with playing(think, recorder) as execution:
        await thinking.wait()
        execution.hand_back()
    assert recorder.handed_back == 1
    assert recorder.log == []
    assert recorder.ending is None


async def test_a_cancelled_run_cannot_be_handed_back_and_ends_cancelled() -> None:
    recorder = Recorder()
    recorder.status = "cancelling"
    async with playing(stay, recorder) as execution:
        execution.hand_back()
    assert recorder.handed_back == 0
    assert recorder.ending.kind == "C"


async def test_a_run_with_events_goes_on_after_hand_back_and_ends_worker_lost() -> None:
    recorder = Recorder()

    async def talk(run: Run) -> None:
        async with run.message() as message:
            await message.write("begun")
            await until_cancelled()

    async with playing(talk, recorder) as execution:
        await recorder.until(2)
        execution.hand_back()
        await asyncio.sleep(0)
        assert recorder.ending is None
        execution.abandon()
    assert recorder.handed_back == 0
    assert recorder.ending.code == "worker_lost"
    assert recorder.messages[0]["metadata"] == {"incomplete": True}


# --- tools and questions --------------------------------------------------------------------------


async def test_a_tool_of_the_agents_own() -> None:
    async def search(run: Run) -> None:
        call = await run.tool_call("search", {"q": "x"})
        await call.result({"hits": 2})
        await run.say("two")

    recorder = await play(search)
    assert recorder.types[:4] == [
        "TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END", "TOOL_CALL_RESULT",
    ]  # fmt: skip
    assert recorder.events[1]["delta"] == '{"q":"x"}'
    asking, result, said = recorder.messages
    assert asking["toolCalls"][0]["function"] == {"name": "search", "arguments": '{"q":"x"}'}
    assert (result["role"], result["content"]) == ("tool", '{"hits":2}')
    assert said["content"] == "two"
    assert recorder.ending.kind == "F"
    assert recorder.ending.pending_tools == []


async def test_a_forgotten_result_does_not_leave_the_session_waiting() -> None:
    async def forget(run: Run) -> None:
        await run.tool_call("search", "{}")

    recorder = await play(forget)
    assert recorder.types[-1] == "TOOL_CALL_RESULT"
    assert recorder.ending.kind == "F"


async def test_client_tools_end_the_run_and_wait_in_order() -> None:
    calls: list[str] = []

    async def ask(run: Run) -> None:
        calls.append(await run.call_client_tool("where", {}))
        calls.append(await run.call_client_tool("when", {}))

    recorder = await play(ask)
    assert recorder.ending.kind == "I"
    assert recorder.ending.pending_tools == calls
    assert recorder.end["outcome"] == {"type": "success", "pendingToolCallIds": calls}


async def test_an_emitted_call_without_a_result_is_the_clients() -> None:
    async def proxy(run: Run) -> None:
        await run.emit({"type": "TOOL_CALL_START", "toolCallId": "t", "toolCallName": "n"})
        await run.emit({"type": "TOOL_CALL_END", "toolCallId": "t"})

    assert (await play(proxy)).ending.pending_tools == ["t"]


async def test_tool_results_reach_the_next_run() -> None:
    async def answer(run: Run) -> None:
        await run.say(run.tool_results[0]["content"])

    result = {"id": "r", "role": "tool", "toolCallId": "t", "content": "noon"}
    assert (await play(answer, claim(user("when?"), result))).text == "noon"


async def test_interrupts_end_the_run_with_questions() -> None:
    async def ask(run: Run) -> None:
        run.interrupt("confirm", message="Sure?", response_schema={"type": "boolean"})
        run.interrupt("name")
        await run.say("I have two questions")

    recorder = await play(ask)
    assert recorder.ending.kind == "I"
    first, second = recorder.end["outcome"]["interrupts"]
    assert recorder.end["outcome"]["type"] == "interrupt"
    assert first["message"] == "Sure?"
    assert first["responseSchema"] == {"type": "boolean"}
    assert set(second) == {"id", "reason"}
    assert first["id"] != second["id"]
    assert recorder.text == "I have two questions"
    assert b'"Sure?"' in recorder.ending.interrupts


async def test_answers_reach_the_next_run() -> None:
    async def answer(run: Run) -> None:
        entry = run.resume[0]
        await run.say(f"{entry.interrupt_id} {entry.status} {entry.payload}")

    resume = [{"interruptId": "i", "status": "resolved", "payload": True}]
    recorder = await play(answer, claim(user("x"), new=0, resume=resume))
    assert recorder.text == "i resolved True"


async def test_questions_and_client_tools_do_not_mix() -> None:
    async def mix(run: Run) -> None:
        await run.call_client_tool("t", {})
        with pytest.raises(RuntimeError, match="not with both"):
            run.interrupt("why")

    assert (await play(mix)).ending.interrupts == b""


async def test_a_question_about_an_own_call_leaves_its_result_open() -> None:
    async def approve(run: Run) -> None:
        call = await run.tool_call("delete_all", {})
        run.interrupt("approval", tool_call_id=call.id)

    recorder = await play(approve)
    assert "TOOL_CALL_RESULT" not in recorder.types
    assert recorder.ending.kind == "I"


# --- usage, state, other events -------------------------------------------------------------------


async def test_usage_that_was_not_reported_is_absent() -> None:
    async def talk(run: Run) -> None:
        await run.say("hi", tokens=1)

    recorder = await play(talk)
    assert "usage" not in recorder.end
    assert recorder.ending.output_tokens is None
    assert recorder.ending.input_tokens is None
    assert sum(event.tokens for event in recorder.log) == 1


async def test_usage_is_added_up_by_provider_and_model() -> None:
    async def talk(run: Run) -> None:
        run.usage(model="a", input_tokens=10, output_tokens=1)
        run.usage(model="a", input_tokens=5)
        run.usage(provider="p", model="b", output_tokens=4, reasoning_tokens=3)
        with pytest.raises(ValueError, match="below zero"):
            run.usage(output_tokens=-1)

    recorder = await play(talk)
    assert recorder.end["usage"] == [
        {"model": "a", "inputTokens": 15, "outputTokens": 1},
        {"provider": "p", "model": "b", "outputTokens": 4, "reasoningTokens": 3},
    ]
    assert (recorder.ending.output_tokens, recorder.ending.input_tokens) == (5, 15)


async def test_usage_before_a_failure_is_told_with_it() -> None:
    async def fail(run: Run) -> None:
        run.usage(output_tokens=7)
        raise AgentError("no")

    recorder = await play(fail)
    assert recorder.end["usage"] == [{"outputTokens": 7}]
    assert recorder.ending.input_tokens is None


async def test_state_is_replaced_patched_and_handed_on() -> None:
    async def change(run: Run) -> None:
        await run.set_state({"n": 1})
        await run.patch_state([{"op": "replace", "path": "/n", "value": 2}])
        with pytest.raises(PatchError):
            await run.patch_state([{"op": "remove", "path": "/absent"}])
        await run.emit({"type": "STATE_DELTA", "delta": [
            {"op": "add", "path": "/m", "value": 3}]})  # fmt: skip
        assert run.state == {"n": 2, "m": 3}

    recorder = await play(change, claim(state={"old": True}))
    assert recorder.types == ["STATE_SNAPSHOT", "STATE_DELTA", "STATE_DELTA"]
    assert recorder.ending.state == b'{"n":2,"m":3}'


async def test_a_state_that_nobody_touched_is_not_written() -> None:
    async def nothing(run: Run) -> None:
        assert run.state == {"old": True}

    assert (await play(nothing, claim(state={"old": True}))).ending.state is None


async def test_a_state_that_came_with_the_message_replaces_the_stored_one() -> None:
    async def nothing(run: Run) -> None:
        assert run.state == {"new": True}

    recorder = await play(nothing, claim(state={"old": True}, client_state={"new": True}))
    assert recorder.ending.state == b'{"new":true}'


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"type": 1},
        {"type": "RUN_FINISHED", "threadId": "t", "runId": "r"},
        {"type": "RUN_ERROR", "message": "m"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": 1},
        {"type": "REASONING_MESSAGE_CONTENT", "messageId": "m", "delta": 1},
        {"type": "STEP_STARTED"},
        {"type": "MESSAGES_SNAPSHOT", "messages": "all"},
    ],
)
async def test_a_wrong_event_is_the_authors_error_and_is_not_sent(event: dict[str, Any]) -> None:
    async def emit(run: Run) -> None:
        with pytest.raises(ValueError):
            await run.emit(event)

    recorder = await play(emit)
    assert recorder.log == []
    assert recorder.ending.kind == "F"


async def test_what_is_no_json_is_the_authors_error() -> None:
    async def emit(run: Run) -> None:
        with pytest.raises(TypeError):
            await run.custom("n", object())

    assert (await play(emit)).ending.kind == "F"


async def test_custom_and_unknown_events_pass_verbatim() -> None:
    unknown = {"type": "ACTIVITY_SNAPSHOT", "messageId": "a", "activityType": "x", "content": {}}

    async def emit(run: Run) -> None:
        await run.custom("progress", {"done": 0.5})
        await run.emit(unknown, tokens=2)

    recorder = await play(emit)
    assert recorder.events == [
        {"type": "CUSTOM", "name": "progress", "value": {"done": 0.5}},
        unknown,
    ]
    assert recorder.log[1].tokens == 2


# --- the agent ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "Upper", "-x", "a" * 64, "a b", "a\n"])
def test_a_name_that_clients_could_not_ask_for_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="agent name"):
        Agent(name)


def test_an_agent_has_one_async_function() -> None:
    agent = Agent("a")
    with pytest.raises(TypeError, match="async def"):
        agent.run(lambda run: None)

    async def one(run: Run) -> None: ...

    assert agent.run(one) is one
    with pytest.raises(TypeError, match="already"):
        agent.run(one)
