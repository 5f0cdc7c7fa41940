"""The beat: this node's sign of life, and what it learns by it."""

import asyncio
from collections.abc import Callable

from gateway.session.errors import Unavailable
from gateway.session.ports import Clock, Deadlines


class Beat:
    """Beats once a second, whatever else the node does, or others would take its sessions for lost.

    It is also how a node knows for how long Redis has answered without interruption: while Redis
    was away no worker could renew its lease, and while *we* were away others may have acted on our
    death.
    """

    def __init__(
        self,
        *,
        deadlines: Deadlines,
        node: str,
        clock: Clock,
        on_nodes: Callable[[dict[str, bool], bool, float], None],
        report: Callable[[str, Exception], None],
        lease_s: float = 10.0,
        interval_s: float = 1.0,
    ) -> None:
        """`on_nodes` hears which nodes live, whether there was an interruption, and until when (by
        the clock) the others take this one for alive: `lease_s` from a beat on.

        An interruption is more than half of that from beat to beat.
        """
        self._deadlines = deadlines
        self._node = node
        self._clock = clock
        self._on_nodes = on_nodes
        self._report = report
        self._interval_s = interval_s
        self._lease_s = lease_s
        self._gap_s = lease_s / 2
        self._beaten_at: float | None = None
        self._steady_from = 0.0
        self._doubted = False

    @property
    def steady_s(self) -> float:
        """For how long Redis has answered without interruption; below 0 while in doubt."""
        now = self._clock()
        if self._beaten_at is None or self._doubted or now - self._beaten_at > self._gap_s:
            return -1.0
        return now - self._steady_from

    def doubt(self) -> None:
        """Redis did not answer somebody: that is an interruption, too."""
        self._doubted = True

    async def run(self) -> None:
        """Beats until it is cancelled."""
        while True:
            try:
                await self.beat()
            except Unavailable:
                pass
            except Exception as error:  # noqa: BLE001 - the beat must go on
                self._report("a beat failed", error)
            await asyncio.sleep(self._interval_s)

    async def beat(self) -> None:
        """One beat.

        Raises:
            Unavailable: Redis does not answer; the next beat counts as one after an interruption.
        """
        began = self._clock()
        try:
            nodes = await self._deadlines.beat(self._node)
        except BaseException:
            self._beaten_at = None
            raise
        now = self._clock()
        # From begin to end: what lies between is the longest that Redis can have missed us for.
        last = self._beaten_at
        interrupted = last is None or self._doubted or now - last > self._gap_s
        if interrupted:
            self._steady_from = now
        self._beaten_at, self._doubted = began, False
        self._on_nodes(nodes, interrupted, began + self._lease_s)
