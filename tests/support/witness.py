"""An agent that counts, whose answers prove themselves, and that writes down when it was called.

It is asked with `VERB COUNT TAG`. Its answer is `TAG/COUNT 0 1 2 ... COUNT-1 `: whoever reads it
knows what must stand there, and a lost, doubled or swapped event shows.

    words   a word every few milliseconds, through the SDK, which joins them
    burst   one event a word, as fast as they go
    flow    likewise, ten at a time, every hundredth of a second
    late    silent for a while first, so that a worker can die before its first event
    ask     a question; the answer's payload is `VERB COUNT TAG` again
    fail    the agent raises in mid-answer

The journal (`WITNESS_JOURNAL`, a folder) has a file for each process, with a line for each call and
for each return: `TIME start|end RUN SESSION ATTEMPT`. It survives kill -9.
"""

import asyncio
import os
import time
from pathlib import Path

from gateway.agents import Agent, Run

LATE_S = 1.0
WORD_S = 0.004
FLOW_S = 0.01
JOURNAL = "WITNESS_JOURNAL"
PROCESS_NAME = "STACK_PROCESS"

witness = Agent("witness", description="Counts, and writes down that it was asked")


def expected(tag: str, count: int, words: int | None = None) -> str:
    """What the answer is, or its beginning of so many words."""
    head = [f"{tag}/{count} "]
    return "".join(head + [f"{number} " for number in range(count if words is None else words)])


@witness.run
async def answer(run: Run) -> None:
    """Does as it is told."""
    _note("start", run)
    try:
        await _answer(run)
    finally:
        _note("end", run)


async def _answer(run: Run) -> None:
    text = str(run.resume[0].payload) if run.resume else run.text
    verb, number, tag = text.split()
    count = int(number)
    if verb == "ask":
        run.interrupt("confirm", message=tag)
        return
    if verb == "late":
        await asyncio.sleep(LATE_S)
    async with run.message() as message:
        if verb in ("burst", "flow"):
            await _burst(run, message.id, tag, count, pause_s=FLOW_S if verb == "flow" else 0)
            return
        await message.write(expected(tag, count, 0))
        for word in range(count):
            if verb == "fail" and word == count // 2:
                raise RuntimeError("as it was told")
            await message.write(f"{word} ", tokens=1)
            await asyncio.sleep(WORD_S)


async def _burst(run: Run, message_id: str, tag: str, count: int, *, pause_s: float) -> None:
    event = {"type": "TEXT_MESSAGE_CONTENT", "messageId": message_id}
    # With a member of its own each stays an event: the SDK joins plain deltas only.
    await run.emit({**event, "delta": expected(tag, count, 0), "n": -1})
    for word in range(count):
        await run.emit({**event, "delta": f"{word} ", "n": word}, tokens=1)
        if pause_s and word % 10 == 0:
            await asyncio.sleep(pause_s)


def _note(what: str, run: Run) -> None:
    folder = os.environ.get(JOURNAL)
    if folder is None:
        return
    name = os.environ.get(PROCESS_NAME, "worker")
    line = f"{time.time():.3f} {what} {run.run_id} {run.session_id} {run.attempt}\n"
    with (Path(folder) / f"{name}.txt").open("a") as journal:
        journal.write(line)
