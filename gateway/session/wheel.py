"""One timer loop per node: pings, checks and time-outs of thousands of sockets share its ticks.

`loop.call_later` per connection would cost a heap entry and a handle each, and most time-outs never
fire. Here arming and disarming is one dictionary operation.
"""

import asyncio
from collections.abc import Callable
from math import ceil

from gateway.session.ports import Clock


class Timer:
    """An armed time-out. `cancel` disarms it; doing so twice, or after it fired, is harmless."""

    __slots__ = ("_slot", "callback")

    def __init__(self, slot: "dict[Timer, None]", callback: Callable[[], None]) -> None:
        self._slot = slot
        self.callback = callback

    def cancel(self) -> None:
        """Disarms it."""
        self._slot.pop(self, None)


class Wheel:
    """Calls back up to one tick late, never early. Callbacks run on the loop and must not block.

    Attributes:
        now: the clock at the last tick; good enough for "since when", and costs nothing to read.
    """

    def __init__(
        self, clock: Clock, report: Callable[[str, Exception], None], *, tick_s: float = 0.1
    ) -> None:
        self._clock = clock
        self._report = report
        self._tick_s = tick_s
        self._origin = self.now = clock()
        self._done = 0
        self._slots: dict[int, dict[Timer, None]] = {}

    def after(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Arms a time-out."""
        tick = ceil((self._clock() + delay_s - self._origin) / self._tick_s)
        slot = self._slots.setdefault(max(tick, self._done + 1), {})
        timer = Timer(slot, callback)
        slot[timer] = None
        return timer

    async def run(self) -> None:
        """Ticks until it is cancelled."""
        while True:
            await asyncio.sleep(self._tick_s)
            self.advance()

    def advance(self) -> None:
        """Fires what is due by the clock."""
        self.now = self._clock()
        tick = int((self.now - self._origin) / self._tick_s)
        while self._done < tick:
            self._done += 1
            slot = self._slots.pop(self._done, None)
            while slot:
                timer, _ = slot.popitem()
                try:
                    timer.callback()
                except Exception as error:  # noqa: BLE001 - one bad callback must not stop the rest
                    self._report("a timer failed", error)
