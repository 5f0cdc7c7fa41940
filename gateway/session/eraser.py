"""Removes sessions for good, and those that were made live again while that was done."""

from gateway.session.archive import History, Journal, Recalled
from gateway.session.endings import Endings
from gateway.session.errors import Refused
from gateway.session.model import SessionKey, SessionView
from protocol.codes import ErrorCode


class Eraser:
    """One session at a time. Raises (all): `Unavailable`; to be called again then."""

    def __init__(self, *, history: History, journal: Journal, endings: Endings) -> None:
        self._history = history
        self._journal = journal
        self._endings = endings

    async def erase(self, key: SessionKey, user: str) -> bool:
        """Removes a session wherever it is. Whose it is was asked before.

        False when what lives by this name is another user's.
        """
        # The archive's tombstone first: what waits in the journal must not bring it back. What
        # lives comes last: while it is there, its user can ask for all of this again.
        await self._history.erase(key.tenant, user, key.session_id)
        await self._journal.drop_dead(key.tenant, user, key.session_id)
        return await self.erase_live(key, user)

    async def erase_live(self, key: SessionKey, user: str) -> bool:
        """Removes what lives of a session with a tombstone in the archive. Answers as `erase`."""
        try:
            await self._endings.erase(key, user)
        except Refused as refused:
            if refused.code != ErrorCode.SESSION_NOT_FOUND:
                raise
            return False
        return True

    async def came_between(self, view: SessionView, recalled: Recalled) -> bool:
        """Whether a session was erased while it was made of what was `recalled`; it goes again.

        Who erases sets the archive's tombstone before he looks for what lives, and who makes it
        live looks for tombstones after that: one of the two sees the other.
        """
        if not (
            view.created and await self._history.is_erased(view.key, view.user, recalled.begun_ms)
        ):
            return False
        await self.erase(view.key, view.user)
        return True
