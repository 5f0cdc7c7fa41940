"""The sweep: every due time of the fleet, acted on by any node."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import msgspec

from gateway.session.beat import Beat
from gateway.session.errors import Fenced, Refused, Rejected, Unavailable
from gateway.session.log import Moved, events_of, read_stretch
from gateway.session.model import Advanced, Due, Ending, RunRef, SessionKey
from gateway.session.ports import Deadlines, Dispatcher, Sessions
from gateway.session.probe import Probe
from protocol.events import RunError, encode_event
from protocol.transcript import Transcript

BATCH = 100
MOST = 5_000

RECOVERY_S = 5.0
"""Within this time after an interruption workers come back for the runs that waited."""

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
    of a node, which cannot know, nobody's lease is judged before one full lease has passed. Nor
    is it said of a session that its clients are gone before one full resume grace has, or of a
    waiting run that nobody came for it before workers had the time to come back.
    """

    def __init__(
        self,
        *,
        deadlines: Deadlines,
        sessions: Sessions,
        queue: Dispatcher,
        probe: Probe,
        beat: Beat,
        adopt: Callable[[SessionKey, str, str], Awaitable[None]],
        report: Callable[[str, Exception], None],
        lease_s: float = 30.0,
        grace_s: float = 120.0,
        node_lease_s: float = 10.0,
        interval_s: float = 1.0,
    ) -> None:
        """`beat` tells for how long Redis has been there; `adopt` takes a home, see `hub`."""
        self._deadlines = deadlines
        self._sessions = sessions
        self._queue = queue
        self._probe = probe
        self._beat = beat
        self._adopt = adopt
        self._report = report
        # What is judged by who lives waits until Redis has been there for so long.
        self._patience_s = {
            "lease": lease_s,
            "wait": min(RECOVERY_S, node_lease_s),
            "detach": grace_s,
            "expiry": node_lease_s,
            "home": node_lease_s,
        }
        self._interval_s = interval_s
        self._postponed = 0
        self._unanswered: dict[tuple[str, RunRef], Due] = {}

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
            Unavailable: Redis does not answer, which counts as an interruption.
        """
        try:
            found = await self._deadlines.due(min(BATCH + self._postponed, MOST))
            # One of each: what is not due any more must not be asked for twice.
            dues = list(({(due.kind, due.ref): due for due in found} | self._unanswered).values())
            random.shuffle(dues)  # or one for which Redis never answers would hide those behind it
            self._postponed = 0
            for due in dues:
                # Asked for each: a sweep may last, and Redis be gone and back meanwhile.
                patience_s = self._patience_s.get(due.kind)
                if patience_s is not None and self._beat.steady_s < patience_s:
                    self._postponed += 1
                else:
                    await self._act(due)
        except Unavailable:
            self._beat.doubt()
            raise

    async def _act(self, due: Due) -> None:
        try:
            advanced = await self._advance(due)
            if advanced.completed:
                seconds = max(0, advanced.now_ms - advanced.created_ms) / 1000
                session = self._probe.session(due.ref.tenant, advanced.agent)
                session.completed("expired", seconds)
            if advanced.adopt:
                await self._adopt(due.ref.session, advanced.user, advanced.dead_home)
            following = advanced.dispatch
            if advanced.end:
                following = await self._end(due.ref, advanced)
            if following is not None:
                await self._queue.dispatch(following, advanced.agent)
        except Rejected:
            pass  # what Redis has no room for, or no sense of, must not stop the others
        except Unavailable:
            raise
        except Refused:
            pass  # the session to adopt has ended
        except Exception as error:  # noqa: BLE001 - the others are due, too
            self._report(f"the deadline {due.kind} of a run could not be acted on", error)

    async def _advance(self, due: Due) -> Advanced:
        """Asks again for an expiry whose answer was lost: only this node would be told of it."""
        mark = (due.kind, due.ref)
        if due.kind == "expiry":
            self._unanswered[mark] = due
        advanced = await self._deadlines.advance(due)
        self._unanswered.pop(mark, None)
        return advanced

    async def _end(self, ref: RunRef, advanced: Advanced) -> RunRef | None:
        try:
            said = await self._said(ref, advanced)
            ending = forced_ending(advanced.end, said, advanced.attempt)
            following = await self._deadlines.end_by_force(
                ref, advanced.claim_id, advanced.ordinal, advanced.end, ending
            )
        except Moved:
            return None  # it stays due: the next sweep reads it anew
        except Fenced:
            return None  # its worker came back
        self._probe.run_forced(ref, advanced.agent, advanced.end)
        return following

    async def _said(self, ref: RunRef, advanced: Advanced) -> Transcript:
        """What the run said so far."""
        said = Transcript()
        stretch = read_stretch(self._sessions, ref.session, advanced.first_seq, advanced.cursor)
        async for entries in stretch:
            for event in events_of(entries):
                # What these carry is in the session's transcript; only the run's words are new.
                if event.get("type") not in _OWN_MESSAGES:
                    said.apply(event)
        return said


def forced_ending(code: str, said: Transcript, attempt: int = 1) -> Ending:
    """The end of a run that nobody can finish: what it said so far is kept, marked incomplete."""
    said.mark_incomplete()
    message = _MESSAGES.get(code, "the run was ended by force")
    if code == "worker_lost" and attempt > 1:
        message += f" (attempt {attempt})"
    return Ending(
        kind="X",
        event=encode_event(RunError(message, code)),
        messages=[_encode(message) for message in said.messages],
        code=code,
    )
