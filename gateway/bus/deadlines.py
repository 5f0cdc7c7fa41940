"""`Deadlines` on Redis: due times on its clock, over all partitions."""

import time
from typing import Any

from gateway.bus import keys
from gateway.bus.directory import RedisDirectory
from gateway.bus.runs import finish_arguments
from gateway.bus.scripts import Scripts
from gateway.bus.sessions import encode_limits
from gateway.session.model import Advanced, AgentInfo, Due, Ending, Limits, RunRef
from protocol.frames import Cursor


class RedisDeadlines:
    """See `gateway.session.ports.Deadlines`."""

    def __init__(self, scripts: Scripts, directory: RedisDirectory, limits: Limits) -> None:
        """`directory` tells a run that no worker came for from one that waited behind others."""
        self._scripts = scripts
        self._directory = directory
        self._limits = encode_limits(limits)
        self._node_lease_ms = int(limits.node_lease_s * 1000)
        # A dead node must be known as such for as long as a session may name it as its home.
        self._forget_ms = int(limits.session_ttl_s * 2000) + 3_600_000
        self._node = ""
        self._alive: list[str] = []
        self._offset_ms: float | None = None

    async def due(self, limit: int) -> list[Due]:
        """Due times that have passed, over all partitions, at most `limit` of each."""
        now_ms = await self._now_ms()
        pipeline: Any = self._scripts.client.pipeline(transaction=False)
        for number in range(keys.PARTITIONS):
            pipeline.zrange(
                keys.due(number),
                "-inf",
                now_ms,
                byscore=True,
                offset=0,
                num=limit,
                withscores=True,
            )
        async with self._scripts.asking("due"):
            pages: list[list[tuple[bytes, float]]] = await pipeline.execute()
        return [_parse(member, score) for page in pages for member, score in page]

    async def advance(self, due: Due) -> Advanced:
        """Acts on one due time if it still holds, else does nothing."""
        action, *rest = await self._scripts.call(
            "advance",
            keys.session(due.ref.session),
            due.kind,
            due.ref.run_id,
            self._limits,
            self._node,
            *self._alive,
        )
        match action:
            case b"dispatch":
                run_id, agent = (item.decode() for item in rest)
                ref = RunRef(due.ref.tenant, due.ref.session_id, run_id)
                return Advanced(agent=agent, dispatch=ref)
            case b"end":
                code, attempt, claim_id, ordinal, agent, first_seq, epoch, seq = rest
                name = agent.decode()
                end = await self._waited_for(name) if code == b"wait" else code.decode()
                return Advanced(
                    agent=name,
                    end=end,
                    attempt=int(attempt),
                    claim_id=claim_id.decode(),
                    ordinal=int(ordinal),
                    first_seq=int(first_seq),
                    cursor=Cursor(epoch.decode(), int(seq)),
                )
            case b"adopt":
                user, home = (item.decode() for item in rest)
                return Advanced(adopt=True, user=user, dead_home=home)
            case b"expired":
                agent, created_ms, now_ms = (item.decode() for item in rest)
                return Advanced(
                    agent=agent, completed=True, created_ms=int(created_ms), now_ms=int(now_ms)
                )
            case _:
                return Advanced()

    async def _waited_for(self, agent: str) -> str:
        status = await self._directory.status(AgentInfo(agent))
        return "timeout" if status.workers else "no_worker"

    async def end_by_force(
        self, ref: RunRef, claim_id: str, ordinal: int, code: str, ending: Ending
    ) -> RunRef | None:
        """Ends a run whose deadline has passed, fenced by claim and ordinal."""
        answer = await self._scripts.call(
            "finish",
            keys.session(ref.session),
            ref.run_id,
            claim_id,
            ordinal,
            "deadline",
            *finish_arguments(ending, self._limits),
        )
        next_id = answer[0].decode()
        return RunRef(ref.tenant, ref.session_id, next_id) if next_id else None

    async def beat(self, node: str) -> dict[str, bool]:
        """Says that this node lives. Answers the nodes known, and whether each is alive.

        Asked even while Redis is known to be away: it is how a node learns that it is back.
        """
        now_ms, *answer = await self._scripts.call(
            "beat", keys.NODES, node, self._node_lease_ms, self._forget_ms, probe=True
        )
        self._node = node
        self._offset_ms = int(now_ms) - time.monotonic() * 1000
        nodes = {
            name.decode(): bool(alive)
            for name, alive in zip(answer[::2], answer[1::2], strict=True)
        }
        self._alive = [name for name, alive in nodes.items() if alive]
        return nodes

    async def _now_ms(self) -> int:
        """The time by Redis, as the last beat told it; only a hint, the scripts decide."""
        if self._offset_ms is None:
            answer = await self._scripts.call("beat", keys.NODES, "", 0, self._forget_ms)
            now_ms = int(answer[0])
            self._offset_ms = now_ms - time.monotonic() * 1000
        return int(time.monotonic() * 1000 + self._offset_ms)

    async def leave(self, node: str) -> None:
        """Says that this node stops."""
        await self._scripts.call("beat", keys.NODES, node, 0, self._forget_ms)


def _parse(member: bytes, score: float) -> Due:
    kind, ident, run_id = member.decode().split("|")
    tenant, session_id = ident.split(":")
    return Due(kind, RunRef(tenant, session_id, run_id), int(score))
