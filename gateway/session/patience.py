"""A bound in time that hardly runs while this process stands still."""

import asyncio
from types import TracebackType

_SLICES = 4


class Patience:
    """As `asyncio.timeout`, for an answer of somebody else: a stall counts a quarter at most.

    A process that was stopped, throttled or busy for longer than the bound has not looked, and its
    answer may lie there: a loop that comes back runs its timers before it reads. So the bound is
    waited for in slices, and between two of them the loop reads.

    Raises:
        TimeoutError: on leaving, when the bound has passed within.
    """

    __slots__ = ("_left", "_slice_s", "_timeout", "_timer")

    def __init__(self, seconds: float) -> None:
        self._slice_s = seconds / _SLICES
        self._left = _SLICES
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._wait()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._timer.cancel()
        return await self._timeout.__aexit__(kind, error, traceback)

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._slice_s, self._passed)

    def _passed(self) -> None:
        self._left -= 1
        if self._left:
            self._wait()
        else:
            self._timeout.reschedule(asyncio.get_running_loop().time())
