"""The demo agent: it streams words, and shows every ability from the chat box."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterable
from itertools import cycle, islice
from typing import Any

import msgspec

from gateway.agents.sdk import Agent, Run

agent = Agent("demo", description="Streams words; /help lists what else it shows")

WORD_S = 0.03
SLOW_WORD_S = 0.3
MAX_SLOW_S = 300
MAX_BURST = 100_000

HELP = """What I can show you:
- /tool asks your client to run a tool of its own (its local time)
- /ask asks you a question and waits for your answer
- /slow 20 takes 20 seconds, so that there is time to stop it or to reconnect
- /burst 1000 sends 1,000 tokens as fast as it can
- /fail fails
- /help shows this list
Anything else I simply answer."""

_OPENINGS = (
    "You wrote: “{text}”. A good place to start.",
    "“{text}”, you say. Let me turn that over for a moment.",
    "About “{text}”: there is more to it than it seems.",
    "Thank you for “{text}”. Here is what comes to mind.",
)
_MIDDLES = (
    (
        "These words leave my process one by one, cross Redis, and reach every tab that follows "
        "this session, in the same order."
    ),
    (
        "I am a small program without a model behind me, so what I lack in insight I make up for "
        "in punctuality: a word every few hundredths of a second."
    ),
    (
        "If you close this tab and come back, the rest of this sentence will be waiting for you, "
        "and not a word of it twice."
    ),
    (
        "Another worker could have answered you just as well; whoever was free first took your "
        "message and made it its own."
    ),
)
_CLOSINGS = (
    "Ask me something else, and I will answer that, too.",
    "That is all I know about it, and I know it by heart.",
    "Now it is your turn.",
)
_SLOWLY = (
    "slowly but surely one word follows another and none of them is in a hurry "
    "because there is time enough to stop me or to close this page and to come back "
)


@agent.run
async def answer(run: Run) -> None:
    """Answers a message, a person's reply or a tool's result."""
    if run.resume:
        await _after_question(run)
    elif run.tool_results:
        await _after_tool(run)
    else:
        name, _, argument = run.text.strip().partition(" ")
        command = _COMMANDS.get(name.lower())
        await (_reply(run) if command is None else command(run, argument.strip()))


async def _stream(run: Run, words: Iterable[str], pause_s: float) -> None:
    """Streams words at a steady pace and reports them as tokens."""
    count = 0
    try:
        async with run.message() as message:
            for word in words:
                if count and pause_s:
                    await asyncio.sleep(pause_s)
                await message.write(word, tokens=1)
                count += 1
    finally:
        run.usage(model="demo", input_tokens=len(run.text.split()), output_tokens=count)


def _words(text: str) -> list[str]:
    """The text in pieces that end with the white space after each word."""
    pieces: list[str] = []
    for line in text.splitlines(keepends=True):
        words = line.split(" ")
        pieces += [f"{word} " for word in words[:-1]] + words[-1:]
    return pieces


async def _say(run: Run, text: str) -> None:
    await _stream(run, _words(text), WORD_S)


async def _reply(run: Run) -> None:
    seed = zlib.crc32(run.text.encode())
    shown = run.text if len(run.text) <= 200 else f"{run.text[:200]}…"
    opening = _OPENINGS[seed % len(_OPENINGS)].format(text=" ".join(shown.split()))
    middle = _MIDDLES[seed // 7 % len(_MIDDLES)]
    text = f"{opening} {middle} {_CLOSINGS[seed // 31 % len(_CLOSINGS)]}"
    if not any(message.get("role") == "assistant" for message in run.messages):
        text += f"\n\n{HELP}"
    await _say(run, text)


async def _help(run: Run, _argument: str) -> None:
    await _say(run, HELP)


async def _tool(run: Run, argument: str) -> None:
    await _say(run, "One moment, I ask your client.")
    await run.call_client_tool(argument or "get_local_time", {})


async def _after_tool(run: Run) -> None:
    for result in run.tool_results:
        if result.get("error"):
            await _say(run, f"Your client could not do it: {result['error']}")
        else:
            await _say(run, f"Your client answered: {_plain(result.get('content'))}")


async def _ask(run: Run, _argument: str) -> None:
    await _say(run, "Before I go on, I need to know one thing.")
    run.interrupt(
        "confirmation", message="Shall I tell you a secret?", response_schema={"type": "boolean"}
    )


async def _after_question(run: Run) -> None:
    reply = run.resume[0]
    if reply.status == "cancelled":
        await _say(run, "You would rather not say. That is fine.")
    elif reply.payload is True:
        await _say(run, "Then listen: while you were thinking, nothing of me was waiting for you.")
    elif reply.payload is False:
        await _say(run, "As you like. I keep it to myself.")
    else:
        await _say(run, f"You answered: {_plain(reply.payload)}")


async def _slow(run: Run, argument: str) -> None:
    seconds = _number(argument, 20, MAX_SLOW_S)
    count = max(1, int(seconds / SLOW_WORD_S))
    await _stream(run, islice(cycle(_words(_SLOWLY)[:-1]), count), SLOW_WORD_S)


async def _burst(run: Run, argument: str) -> None:
    count = _number(argument, 1000, MAX_BURST)
    await _stream(run, (f"t{i} " for i in range(count)), 0)


async def _fail(run: Run, _argument: str) -> None:
    await run.say("This is going to")
    raise RuntimeError("the demo agent fails on request")


def _number(argument: str, default: int, most: int) -> int:
    known = argument.isascii() and argument.isdigit()
    return min(most, int(argument[:9])) if known else default


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


_COMMANDS: dict[str, Callable[[Run, str], Awaitable[None]]] = {
    "/help": _help,
    "/tool": _tool,
    "/ask": _ask,
    "/slow": _slow,
    "/burst": _burst,
    "/fail": _fail,
}
