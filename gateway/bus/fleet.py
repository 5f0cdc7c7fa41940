"""`Announcements` on Redis: what the nodes of the fleet tell of themselves."""

from gateway.bus import keys
from gateway.bus.scripts import Scripts
from gateway.session.model import Limits

_KEEP_LEASES = 3
"""So long after its last word goes what a node said; when it is dead, nobody lists it before."""


class RedisAnnouncements:
    """See `gateway.session.ports.Announcements`."""

    def __init__(self, scripts: Scripts, limits: Limits) -> None:
        """`scripts` are shared with the other parts of the bus."""
        self._scripts = scripts
        self._ttl_ms = int(limits.node_lease_s * 1000 * _KEEP_LEASES)

    async def announce(self, node: str, address: str, summary: bytes) -> dict[str, str]:
        """Says where a node is and how it does; answers the addresses of all that live."""
        answer = await self._scripts.call(
            "announce", keys.NODES, node, self._ttl_ms, address, summary, "address"
        )
        return {
            name.decode(): where.decode()
            for name, where in zip(answer[::2], answer[1::2], strict=True)
        }

    async def summaries(self) -> dict[str, bytes]:
        """What the nodes that live have said last."""
        answer = await self._scripts.call("announce", keys.NODES, "", 0, "", "", "summary")
        return {name.decode(): said for name, said in zip(answer[::2], answer[1::2], strict=True)}
