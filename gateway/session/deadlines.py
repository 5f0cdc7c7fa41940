"""The sweep: every due time of the fleet, acted on by any node."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.session.errors import Fenced, Unavailable
from gateway.session.model import Advanced, Due, Ending, RunRef
from gateway.session.ports import Clock, Deadlines, Probe, RunQueue
from gateway.session.snapshot import event_of
from protocol.events import RunError, encode_event
from protocol.transcript import Transcript

BATCH = 100
MOST = 5_000

_MESSAGES = {
    "worker_lost": "the worker that held this run is gone",
    "no_worker": "no worker serves this agent now",
    "timeout": "the run took too long",
    "cancelled": "the run was cancelled, and its agent did not stop in time",
    "too_large": "the run became too large",
}
_OWN_MESSAGES = frozenset({"RUN_STARTED", "MESSAGES_SNAPSHOT"})
_encode = msgspec.json.Encoder().encode


class Sweep:
    """One node's sweeps, once a second. A sweep is bounded, and one bad item stops no other.

    While Redis was away no worker could renew its lease: after an interruption, and at the start
    of a node, which cannot know, nobody's lease is judged before one full lease has passed.
    """

    def __init__(
        self,
        *,
        deadlines: Deadlines,
        queue: RunQueue,
        probe: Probe,
        node: str,
        clock: Clock,
        on_nodes: Callable[[dict[str, bool], bool], None],
        report: Callable[[str, Exception], None],
        lease_s: float = 30.0,
        interval_s: float = 1.0,
        gap_s: float = 5.0,
    ) -> None:
        """`on_nodes` hears which nodes live, and whether there was an interruption."""
        self._deadlines = deadlines
        self._queue = queue
        self._probe = probe
        self._node = node
        self._clock = clock
        self._on_nodes = on_nodes
        self._report = report
        self._lease_s = lease_s
        self._interval_s = interval_s
        self._gap_s = gap_s
        self._succeeded_at: float | None = None
        self._leases_from = 0.0
        self._postponed = 0

    async def run(self) -> None:
        """Sweeps until it is cancelled."""
        while True:
            try:
                await self.sweep()
            except Unavailable:
                pass
            except Exception as error:  # noqa: BLE001 - the sweep must go on
                self._report("a sweep of the deadlines failed", error)
            await asyncio.sleep(self._interval_s)

    async def sweep(self) -> None:
        """One sweep.

        Raises:
            Unavailable: Redis does not answer; the next sweep counts as one after an interruption.
        """
        succeeded_at, self._succeeded_at = self._succeeded_at, None
        alive = await self._deadlines.beat(self._node)
        now = self._clock()
        interrupted = succeeded_at is None or now - succeeded_at > self._gap_s
        if interrupted:
            self._leases_from = now + self._lease_s
        self._on_nodes(alive, interrupted)
        dues = await self._deadlines.due(min(BATCH + self._postponed, MOST))
        judged = [due for due in dues if due.kind != "lease" or now >= self._leases_from]
        self._postponed = len(dues) - len(judged)
        for due in judged:
            await self._act(due)
        self._succeeded_at = self._clock()

    async def _act(self, due: Due) -> None:
        try:
            advanced = await self._deadlines.advance(due)
            if advanced.completed:
                seconds = max(0, advanced.now_ms - advanced.created_ms) / 1000
                session = self._probe.session(due.ref.tenant, advanced.agent)
                session.completed("expired", seconds)
            following = advanced.dispatch
            if advanced.end:
                following = await self._end(due.ref, advanced)
            if following is not None:
                await self._queue.dispatch(following, advanced.agent)
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - the others are due, too
            self._report(f"the deadline {due.kind} of a run could not be acted on", error)

    async def _end(self, ref: RunRef, advanced: Advanced) -> RunRef | None:
        ending = forced_ending(advanced.end, advanced.frames)
        try:
            return await self._deadlines.end_by_force(
                ref, advanced.attempt, advanced.ordinal, advanced.end, ending
            )
        except Fenced:
            return None  # its worker came back


def forced_ending(code: str, frames: list[bytes]) -> Ending:
    """The end of a run that nobody can finish: what it said so far is kept, marked incomplete."""
    transcript = Transcript()
    for frame in frames:
        event: dict[str, Any] = event_of(frame)
        # What these carry is in the session's transcript already; only the run's words are new.
        if event.get("type") not in _OWN_MESSAGES:
            transcript.apply(event)
    transcript.mark_incomplete()
    message = _MESSAGES.get(code, "the run was ended by force")
    return Ending(
        kind="X",
        event=encode_event(RunError(message, code)),
        messages=[_encode(message) for message in transcript.messages],
        code=code,
    )
