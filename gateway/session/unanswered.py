"""Sessions of which an `open` was not answered: it may have made this node their home."""

import asyncio
from collections.abc import Callable

from gateway.session.errors import Refused, Unavailable
from gateway.session.model import SessionKey, SessionView
from gateway.session.ports import Sessions

MOST = 1000
"""So many are asked after at a time."""


class Unanswered:
    """Finds out what became of them.

    Redis may carry out what it did not answer in time. The session then names this node as its
    home, which does not know of it; and as this node lives, no other would take it.
    """

    def __init__(
        self,
        *,
        sessions: Sessions,
        node: str,
        adopt: Callable[[SessionView], object],
        report: Callable[[str, Exception], None],
        interval_s: float = 1.0,
    ) -> None:
        """`adopt` is told of each that there is."""
        self._sessions = sessions
        self._node = node
        self._adopt = adopt
        self._report = report
        self._interval_s = interval_s
        self._users: dict[SessionKey, str] = {}

    def note(self, key: SessionKey, user: str) -> None:
        """That session was asked for, and there was no answer."""
        if len(self._users) < MOST:
            self._users[key] = user

    def forget(self) -> None:
        """This node stops: its homes end with it."""
        self._users.clear()

    async def run(self) -> None:
        """Asks after them until it is cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.ask_again()
            except Unavailable:
                pass
            except Exception as error:  # noqa: BLE001 - the rest wants to be asked after, too
                self._report("an unanswered session could not be asked after", error)

    async def ask_again(self) -> None:
        """Asks once after each.

        Raises:
            Unavailable: Redis does not answer yet.
        """
        for key in list(self._users):
            try:
                view = await self._sessions.open(key, self._users[key], node=self._node)
            except Unavailable:
                raise
            except Refused:
                pass  # it was never made, or is over
            else:
                self._adopt(view)
            self._users.pop(key, None)
