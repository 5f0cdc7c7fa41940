"""Agents that make trouble for their worker."""

import asyncio
import os
import signal
import time
from contextlib import suppress

from gateway.agents import Agent, Run
from support import agents

unruly = Agent("unruly", description="Does not stop, blocks its worker, or kills it")
phoenix = Agent("phoenix", description="Counts, and may begin anew", restartable=True)
phoenix.run(agents.answer)

FOR_EVER = 10**9
CALLED = "called, and silent"
"""A worker's line when it has begun a `late` answer: `RUN_STARTED` is there before."""


@unruly.run
async def answer(run: Run) -> None:
    """Does as it is told.

    count N PAUSE_MS    behaves
    hold                streams on and on, and swallows its cancellation
    block SECONDS       says a word and blocks its worker's event loop
    die                 kills its worker before it says anything
    late                says nothing in its first attempt, then which attempt it is
    open                leaves a message and a tool call open, and streams on
    """
    command, *arguments = run.text.split()
    match command:
        case "hold":
            await _hold(run)
        case "block":
            await run.say("from now on nobody else does anything")
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.1)  # until it is on its way
            time.sleep(float(arguments[0]))
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "late":
            if run.attempt == 1:
                print(CALLED, flush=True)
                await asyncio.Event().wait()
            await run.say(f"attempt {run.attempt}")
        case "open":
            await run.emit({"type": "TOOL_CALL_START", "toolCallId": "c1", "toolCallName": "t"})
            await _count(run)
        case _:
            await agents.answer(run)


async def _count(run: Run) -> None:
    async with run.message() as message:
        for number in range(FOR_EVER):
            await message.write(f"{number} ")
            await asyncio.sleep(0.005)


async def _hold(run: Run) -> None:
    async with run.message() as message:
        for number in range(FOR_EVER):
            try:
                await message.write(f"{number} ")
                await asyncio.sleep(0.005)
            except asyncio.CancelledError:
                continue
