"""`Erasure` on Redis: removes what lives of a session, and finds the sessions of a user."""

from collections.abc import Sequence

from redis.exceptions import RedisClusterException

from gateway.bus import keys
from gateway.bus.connection import server_of
from gateway.bus.scripts import Scripts
from gateway.bus.sessions import parse_closed
from gateway.session.errors import Unavailable
from gateway.session.model import Closed, SessionKey

_TIME = "return redis.call('TIME')"


class RedisErasure:
    """See `gateway.session.archive.Erasure`."""

    def __init__(self, scripts: Scripts, *, ack_replicas: int = 0) -> None:
        """`ack_replicas` replicas confirm what `erase` answers."""
        self._scripts = scripts
        self._ack_replicas = ack_replicas

    async def sessions_of(self, tenant: str, user: str) -> list[SessionKey]:
        """Every session of a user that lives, ended ones that are still remembered too."""
        pages = await self._scripts.pipeline(
            "sessions_of",
            *(
                ("ZRANGE", keys.user_sessions(number, tenant, user), 0, -1)
                for number in range(keys.PARTITIONS)
            ),
        )
        return [SessionKey(tenant, session_id.decode()) for page in pages for session_id in page]

    async def now_ms(self) -> int:
        """The time by the servers' clocks: the earliest, which no session that begins later has."""
        times = await self._scripts.pipeline(
            "time", *(("EVAL", _TIME, 1, keys.journal(number)) for number in range(keys.PARTITIONS))
        )
        return min(int(seconds) * 1000 + int(micros) // 1000 for seconds, micros in times)

    async def erase(self, key: SessionKey, user: str, *, call_id: str) -> Closed:
        """Ends the session and removes all that it has; its worker is told to stop."""
        cursor = b"0"
        while True:
            [cursor] = await self._scripts.call("erase_runs", keys.session(key), user, cursor)
            if cursor == b"0":
                break
        return parse_closed(
            await self._scripts.call(
                "erase", keys.session(key), user, call_id, replicas=self._ack_replicas
            )
        )

    async def settle(self, sessions: Sequence[SessionKey], user: str) -> None:
        """Returns when the servers have on their disks it; see `Scripts.settle`."""
        client = self._scripts.client
        try:
            servers = {server_of(client, keys.session(key)): key for key in sessions}
        except RedisClusterException:  # a slot is nobody's
            raise Unavailable from None
        for key in servers.values():  # one speaks for all that were erased before
            await self._scripts.settle("erase", keys.session(key), user, "")
