"""An agent whose answers are known to the last character."""

import asyncio
import logging
import threading
import warnings

import httpx

from gateway.agents import Agent, Run

counting = Agent("counting", description="Counts: `count N PAUSE_MS`, or holds its tongue")


def expected(count: int) -> str:
    """What `count N` must answer."""
    return "".join(f"{number} " for number in range(count))


@counting.run
async def answer(run: Run) -> None:
    """Counts, or says nothing at all."""
    command, *arguments = run.text.split()
    if command == "silent":
        await asyncio.Event().wait()
    count, pause_ms = (int(argument) for argument in arguments)
    async with run.message() as message:
        for number in range(count):
            await message.write(f"{number} ", tokens=1)
            await asyncio.sleep(pause_ms / 1000)
    run.usage(model="counting", input_tokens=3, output_tokens=count + 2)


asking = Agent("asking", description="Asks a URL, continuing the trace: `get URL`; or fails")


@asking.run
async def ask(run: Run) -> None:
    """What a connector does."""
    command, *arguments = run.text.split()
    if command == "fail":
        raise RuntimeError(f"told to fail: {run.text}")
    if command == "get":
        async with httpx.AsyncClient() as http:
            answer = await http.get(arguments[0], headers=run.trace_headers)
        await run.say(str(answer.status_code))
    run.usage(provider="test", model="asking-1", input_tokens=3, output_tokens=7)


noisy = Agent("noisy", description="Its libraries log, warn and break: hostile text, secrets")

HOSTILE = (
    "{} {0} {name!r} <red>x</red> \\< a\nb\r %s \x1b[31m"
    " redis://ann:hunter2@host ?token=hunter2 Bearer hunter2hunter2"
)


@noisy.run
async def make_noise(run: Run) -> None:
    """All that a library may do."""
    logging.getLogger("some.library").warning(HOSTILE)
    logging.getLogger("some.library").error("%d", "not a number")
    warnings.warn(HOSTILE, RuntimeWarning, stacklevel=1)
    thread = threading.Thread(target=_break)
    thread.start()
    thread.join()
    future = asyncio.get_running_loop().create_future()
    future.set_exception(RuntimeError(HOSTILE))
    del future  # never retrieved: asyncio says so
    _break()


def _break() -> None:
    raise RuntimeError(HOSTILE)
