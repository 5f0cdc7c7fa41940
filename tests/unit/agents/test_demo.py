"""The demo agent's abilities, as a client would see them."""

import asyncio

import pytest
from support.recorder import Recorder, claim, user

from gateway.agents import demo
from gateway.agents.execution import Execution
from gateway.session.model import Claim


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "WORD_S", 0)
    monkeypatch.setattr(demo, "SLOW_WORD_S", 0.05)


async def say(given: str | Claim) -> Recorder:
    recorder = Recorder()
    given = claim(user(given)) if isinstance(given, str) else given
    await Execution(demo.agent, given, recorder).run()
    return recorder


async def test_it_mentions_what_it_was_asked_and_lists_its_commands_at_first() -> None:
    recorder = await say("the weather")
    assert "“the weather”" in recorder.text
    for command in demo._COMMANDS:
        assert f"- {command} " in recorder.text
    assert recorder.ending.kind == "F"


async def test_later_it_does_not_repeat_the_list_and_is_deterministic() -> None:
    said = {"id": "a", "role": "assistant", "content": "..."}
    later = claim(user("hi"), said, user("the weather", "u2"))
    first, second = await say(later), await say(later)
    assert "/burst" not in first.text
    assert first.text == second.text
    assert len({(await say(f"topic {i}")).text for i in range(20)}) == 20


async def test_it_reports_what_it_streamed() -> None:
    recorder = await say("/help")
    assert recorder.text == demo.HELP
    streamed = sum(event.tokens for event in recorder.log)
    assert recorder.ending.output_tokens == streamed > 20
    assert recorder.end["usage"] == [{"model": "demo", "inputTokens": 1, "outputTokens": streamed}]


@pytest.mark.parametrize(
    ("result", "expected"),
    [({"content": "noon"}, "answered: noon"), ({"content": "", "error": "no clock"}, "no clock")],
)
async def test_tool_asks_the_client_and_answers_with_the_result(result, expected) -> None:
    asked = await say("/tool")
    (call,) = asked.ending.pending_tools
    start = next(event for event in asked.events if event["type"] == "TOOL_CALL_START")
    assert (start["toolCallId"], start["toolCallName"]) == (call, "get_local_time")
    back = {"id": "r", "role": "tool", "toolCallId": call, **result}
    assert expected in (await say(claim(user("/tool"), *asked.messages, back))).text


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"status": "resolved", "payload": True}, "Then listen"),
        ({"status": "resolved", "payload": False}, "keep it to myself"),
        ({"status": "resolved", "payload": {"a": 1}}, '{"a":1}'),
        ({"status": "resolved", "payload": "maybe"}, "answered: maybe"),
        ({"status": "cancelled"}, "rather not say"),
    ],
)
async def test_ask_asks_and_answers_by_the_reply(entry, expected) -> None:
    asked = await say("/ask")
    (question,) = asked.end["outcome"]["interrupts"]
    assert question["responseSchema"] == {"type": "boolean"}
    resume = [{"interruptId": question["id"], **entry}]
    answered = await say(claim(user("/ask"), *asked.messages, new=0, resume=resume))
    assert expected in answered.text
    assert answered.ending.kind == "F"


async def test_slow_takes_one_word_at_a_time_and_can_be_stopped() -> None:
    recorder = await say("/slow 1")
    assert len(recorder.text.split()) == int(1 / demo.SLOW_WORD_S)

    recorder = Recorder()
    execution = Execution(demo.agent, claim(user("/slow 99999999999")), recorder)
    async with asyncio.TaskGroup() as group:
        group.create_task(execution.run())
        await recorder.until(4)
        execution.cancel()
    assert recorder.ending.kind == "C"
    assert recorder.end["usage"][0]["outputTokens"] >= 1


@pytest.mark.parametrize(("argument", "count"), [("", 1000), ("7", 7), ("no", 1000)])
async def test_burst_sends_that_many_tokens(argument: str, count: int) -> None:
    recorder = await say(f"/burst {argument}")
    assert recorder.text == "".join(f"t{i} " for i in range(count))
    assert recorder.ending.output_tokens == sum(event.tokens for event in recorder.log) == count
    assert len(recorder.log) < 30, "tokens are gathered"


async def test_burst_is_capped() -> None:
    assert (await say("/burst 1" + "0" * 5000)).ending.output_tokens == demo.MAX_BURST


async def test_fail_fails() -> None:
    recorder = await say("/fail")
    assert recorder.ending.code == "internal"
    assert "request" not in recorder.end["message"]


async def test_commands_are_found_in_any_case_and_with_space_around() -> None:
    assert (await say("  /HELP ")).text == demo.HELP
