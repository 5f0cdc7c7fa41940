"""`Erasure` on Redis: removes what lives of a session, and finds the sessions of a user."""

from gateway.bus import keys
from gateway.bus.scripts import Scripts
from gateway.bus.sessions import parse_closed
from gateway.session.model import Closed, SessionKey


class RedisErasure:
    """See `gateway.session.archive.Erasure`."""

    def __init__(self, scripts: Scripts, *, ack_replicas: int = 0) -> None:
        """`ack_replicas` replicas confirm what `erase` answers."""
        self._scripts = scripts
        self._ack_replicas = ack_replicas

    async def sessions_of(self, tenant: str, user: str) -> list[SessionKey]:
        """Every session of a user that lives, ended ones that are still remembered too."""
        pages = await self._scripts.pipeline(
            *(
                ("ZRANGE", keys.user_sessions(number, tenant, user), 0, -1)
                for number in range(keys.PARTITIONS)
            )
        )
        return [SessionKey(tenant, session_id.decode()) for page in pages for session_id in page]

    async def erase(self, key: SessionKey, user: str, *, call_id: str) -> Closed:
        """Ends the session and removes all that it has; its worker is told to stop."""
        return parse_closed(
            await self._scripts.call(
                "erase", keys.session(key), user, call_id, replicas=self._ack_replicas
            )
        )
