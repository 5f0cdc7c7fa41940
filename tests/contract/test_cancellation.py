"""A cancellation that comes in the middle of a call of Redis is never lost."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.bus.bus import Bus
from gateway.session.model import AgentInfo, WorkerInfo

CALLS: dict[str, Callable[[Bus], Awaitable[object]]] = {
    "script": lambda bus: bus.runs.take("nobody", 1),
    "announce": lambda bus: bus.directory.announce(WorkerInfo("w", AgentInfo("cancelled"), 1, 0)),
    "due": lambda bus: bus.deadlines.due(1),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_cancelled_call_ends_cancelled(bus: Bus, name: str) -> None:
    """Redis-py's `socket_timeout` swallowed one cancel in four on Python 3.11: such a task never
    ends, and neither does the group that waits for it."""

    async def loop() -> None:
        await CALLS[name](bus)
        await asyncio.Event().wait()

    for turns in range(60):
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            task = group.create_task(loop())
            for _ in range(turns % 15):
                await asyncio.sleep(0)
            task.cancel()
