"""Ends sessions, and counts each end once: also one whose answer was lost."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import uuid4

from gateway.session.archive import Erasure
from gateway.session.errors import Refused, Unavailable
from gateway.session.model import Closed, SessionKey
from gateway.session.ports import Clock, Sessions
from gateway.session.probe import Probe

MOST = 1000
"""So many ends are asked after at a time."""

PATIENCE_S = 60.0
"""A call that Redis had not answered may still be carried out when Redis is back; not for ever."""


@dataclass(frozen=True, slots=True)
class _Unheard:
    key: SessionKey
    ask: Callable[[], Awaitable[Closed]]
    until: float


class Endings:
    """One node's ends of sessions.

    Who closes a session is told whether it was the one; that is what is counted. When the answer is
    lost nobody else would be told, so this node asks again, without closing anything by that.
    """

    def __init__(
        self,
        *,
        sessions: Sessions,
        erasure: Erasure,
        probe: Probe,
        clock: Clock,
        report: Callable[[str, Exception], None],
        interval_s: float = 1.0,
    ) -> None:
        self._sessions = sessions
        self._erasure = erasure
        self._probe = probe
        self._clock = clock
        self._report = report
        self._interval_s = interval_s
        self._unheard: list[_Unheard] = []

    async def close(self, key: SessionKey, user: str) -> None:
        """Ends a session for its user.

        Raises:
            Refused: there is none; or `Unavailable`, and it may or may not be over.
        """
        call_id = uuid4().hex

        def close(*, again: bool = False) -> Awaitable[Closed]:
            return self._sessions.close(key, user, call_id=call_id, again=again)

        await self._end(key, close, lambda: close(again=True))

    async def erase(self, key: SessionKey, user: str) -> None:
        """Removes what lives of a session of its user; one that is not over ends by that.

        Raises:
            Refused: as for `close`.
        """
        call_id = uuid4().hex

        def erase() -> Awaitable[Closed]:
            return self._erasure.erase(key, user, call_id=call_id)

        await self._end(key, erase, erase)

    async def _end(
        self,
        key: SessionKey,
        call: Callable[[], Awaitable[Closed]],
        ask: Callable[[], Awaitable[Closed]],
    ) -> None:
        """Counts what a call ended; `ask` tells what became of it."""
        try:
            closed = await call()
        except Unavailable:
            if len(self._unheard) < MOST:
                self._unheard.append(_Unheard(key, ask, self._clock() + PATIENCE_S))
            raise
        self._count(key, closed)

    async def run(self) -> None:
        """Asks after what was not answered until it is cancelled."""
        while True:
            try:
                await self.ask_again()
            except Unavailable:
                pass
            except Exception as error:  # noqa: BLE001 - the rest wants to be asked after, too
                self._report("the end of a session could not be asked after", error)
            await asyncio.sleep(self._interval_s)

    async def ask_again(self) -> None:
        """Asks once after each.

        Raises:
            Unavailable: Redis does not answer yet.
        """
        for call in list(self._unheard):
            try:
                closed = await call.ask()
            except Unavailable:
                raise
            except Refused:
                self._unheard.remove(call)  # long gone
                continue
            if closed.completed or closed.ended_ms or self._clock() > call.until:
                self._unheard.remove(call)
                self._count(call.key, closed)

    def _count(self, key: SessionKey, closed: Closed) -> None:
        if closed.completed:
            seconds = max(0, closed.ended_ms - closed.created_ms) / 1000
            self._probe.session(key.tenant, closed.agent).completed("completed", seconds)
