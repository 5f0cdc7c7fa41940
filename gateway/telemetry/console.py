"""The fleet's overview as JSON, made at most once a second however many look at it."""

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from gateway.session.fleet import Fleet
from gateway.session.ports import Clock
from gateway.telemetry.overview import Summary, merge

FRESH_S = 1.0
"""For so long an answer serves everybody."""


class Console:
    """What `/console` and `gateway top` show."""

    def __init__(self, fleet: Fleet, summary: Callable[[], Summary], clock: Clock) -> None:
        """`summary` says how this node does now; the others are asked through `fleet`."""
        self._fleet = fleet
        self._summary = summary
        self._clock = clock
        self._asking = asyncio.Lock()
        self._state = b""
        self._made_at = float("-inf")

    async def state(self) -> bytes:
        """An `overview.Overview` as JSON."""
        async with self._asking:
            if self._clock() - self._made_at >= FRESH_S:
                others = await self._fleet.ask()
                overview = merge(
                    self._summary(), _readable(others.summaries.values()), others.silent_s
                )
                self._state = msgspec.json.encode(overview)
                self._made_at = self._clock()
        return self._state


def _readable(summaries: Iterable[bytes]) -> Iterable[Summary]:
    """Those of our form: nodes of another version may say other things."""
    for each in summaries:
        try:
            yield msgspec.json.decode(each, type=Summary)
        except msgspec.MsgspecError:
            continue
