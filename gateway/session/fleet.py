"""The fleet as one node knows it: where the others are, and what they say of themselves."""

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple

from gateway.session.errors import Unavailable
from gateway.session.patience import Patience
from gateway.session.ports import Announcements, Clock

READ_TIMEOUT_S = 1.0
"""Who looks at the fleet waits no longer for Redis; what was known before is shown then."""


class Others(NamedTuple):
    """What the nodes said last, by node id, and for how long nothing was heard (0: just now)."""

    summaries: Mapping[str, bytes]
    silent_s: float


class Fleet:
    """Says what this node is, again and again, and knows who else is there.

    While Redis is away the last known stays. This node is always part of its own fleet.

    Attributes:
        addresses: where each living node shows its metrics, by node id.
    """

    def __init__(
        self,
        *,
        announcements: Announcements,
        node: str,
        address: str,
        summary: Callable[[], bytes],
        clock: Clock,
        report: Callable[[str, Exception], None],
        interval_s: float = 1.0,
    ) -> None:
        """`address` is where this node shows its metrics, `summary` says how it does."""
        self._announcements = announcements
        self._own = {node: address}
        self._summary = summary
        self._said = b""
        self._clock = clock
        self._report = report
        self._interval_s = interval_s
        self.addresses: Mapping[str, str] = self._own
        self._summaries: Mapping[str, bytes] = {}
        self._heard_at = clock()

    async def run(self) -> None:
        """Announces this node until it is cancelled."""
        while True:
            try:
                await self.announce()
            except Unavailable:
                pass
            except Exception as error:  # noqa: BLE001 - the next one may pass
                self._report("an announcement failed", error)
            await asyncio.sleep(self._interval_s)

    async def announce(self) -> None:
        """Says it once, and learns where the others are.

        A node that cannot say how it does says where it is, and what it said before.

        Raises:
            Unavailable: Redis does not answer.
        """
        [(node, address)] = self._own.items()
        try:
            self._said = self._summary()
        except Exception as error:  # noqa: BLE001 - who scrapes it must find it all the same
            self._report("the node could not be summed up", error)
        known = await self._announcements.announce(node, address, self._said)
        self.addresses = {**known, **self._own}

    async def ask(self) -> Others:
        """What the nodes said last, this one included if it was heard; costs Redis one call."""
        try:
            async with Patience(READ_TIMEOUT_S):
                self._summaries = await self._announcements.summaries()
        except (TimeoutError, Unavailable):
            return Others(self._summaries, max(self._clock() - self._heard_at, 0.001))
        self._heard_at = self._clock()
        return Others(self._summaries, 0.0)
