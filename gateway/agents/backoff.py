"""How a call is repeated while Redis does not answer: exponential, capped, with full jitter."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.session.errors import Unavailable

T = TypeVar("T")

BASE_S = 0.05
CAP_S = 2.0


class Backoff:
    """Delays that grow until `reset`."""

    def __init__(self) -> None:
        self._failures = 0

    def next_s(self) -> float:
        """The next delay, in seconds."""
        # The exponent is bounded: an outage of a day must not make a number of a thousand digits.
        ceiling = min(CAP_S, BASE_S * 2 ** min(self._failures, 16))
        self._failures += 1
        return random.uniform(ceiling / 2, ceiling)

    def reset(self) -> None:
        """The call came through: start from the shortest delay again."""
        self._failures = 0


async def persist(call: Callable[[], Awaitable[T]], until: Callable[[], float]) -> T:
    """Repeats an idempotent call while Redis does not answer.

    Args:
        call: made anew for each try, with the same arguments.
        until: the time (of the loop) past which there is no point; asked before each repetition.

    Raises:
        Unavailable: when that time has come.
    """
    backoff = Backoff()
    clock = asyncio.get_running_loop().time
    while True:
        try:
            return await call()
        except Unavailable:
            delay_s = backoff.next_s()
            if clock() + delay_s > until():
                raise
        await asyncio.sleep(delay_s)
