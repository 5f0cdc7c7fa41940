"""Removes what is older than its tenant keeps: runs and messages first, then silent sessions."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

from loguru import logger
from sqlalchemy import bindparam, exists, func, select, update

from gateway.archive.database import ERASING, RETAINING, Database, hold, try_hold
from gateway.archive.erasure import BATCH, remove_runs, remove_sessions
from gateway.archive.schema import runs, sessions
from gateway.session.errors import Unavailable

DAY_MS = 24 * 3600 * 1000
_INTERVAL_S = 3600.0
_PAUSE_S = 0.05
"""Between two steps, so that who writes has his turn."""


class Retention:
    """Every node tries, once an hour; one at a time does it."""

    def __init__(
        self,
        database: Database,
        *,
        days: int | None,
        tenants: Mapping[str, int],
        now_ms: Callable[[], int],
        report: Callable[[str, Exception], None],
    ) -> None:
        """See `sweep`.

        Args:
            database: stays the caller's.
            days: how long history is kept; None: for good.
            tenants: how long by tenants for whom that is otherwise.
            now_ms: the wall clock.
            report: is told of a fault that this survives.
        """
        self._database = database
        self._days = days
        self._tenants = dict(tenants)
        self._now_ms = now_ms
        self._report = report

    async def run(self) -> None:
        """Sweeps until it is cancelled; where all is kept for good, there is nothing to do."""
        while self._days is not None or self._tenants:
            try:
                await self.sweep()
            except Unavailable:
                pass  # an hour more or less
            except Exception as error:  # noqa: BLE001 - the next round may go better
                self._report("history could not be thinned out", error)
            await asyncio.sleep(_INTERVAL_S)

    async def sweep(self) -> int:
        """Removes what is too old, in bounded steps. Answers how many runs.

        A run is as old as its end, a session as its last sign of life: it goes when nothing is left
        of it. Usage stays, since it names nobody.

        Raises:
            HistoryAway: the database does not answer.
        """
        removed = 0
        for tenant in await self._tenants_known():
            days = self._tenants.get(tenant, self._days)
            if days is not None:
                removed += await self._thin(tenant, self._now_ms() - days * DAY_MS)
        return removed

    async def _tenants_known(self) -> list[str]:
        if self._days is None:
            return list(self._tenants)
        found: set[str] = set()
        async with self._database.reading() as connection:
            for table in (sessions, runs):
                tenant = table.c.tenant_id
                following = select(func.min(tenant)).where(tenant > bindparam("last"))
                last = ""  # by the key, from one to the next: a list of tenants is kept nowhere
                while last := await connection.scalar(following, {"last": last}):
                    found.add(last)
        return sorted(found)

    async def _thin(self, tenant: str, before_ms: int) -> int:
        removed = 0
        for step in (self._thin_runs, self._thin_sessions):
            count: int | None = BATCH
            while count == BATCH:
                count = await step(tenant, before_ms)
                if step == self._thin_runs:
                    removed += count or 0
                await asyncio.sleep(_PAUSE_S if count else 0)
            if count is None:
                break
        if removed:
            logger.bind(tenant=tenant, runs=removed).info("history past its retention was removed")
        return removed

    async def _thin_runs(self, tenant: str, before_ms: int) -> int | None:
        """One step. None: another node is at it."""
        r = runs.c
        async with self._database.writing(tenant) as connection:
            if not await try_hold(connection, RETAINING):
                return None
            where = [r.tenant_id == tenant, r.ended_ms < before_ms]
            gone = await remove_runs(connection, where, r.ended_ms)
            runs_gone: Counter[str] = Counter()
            messages_gone: Counter[str] = Counter()
            for row in gone:
                runs_gone[row.session_id] += 1
                messages_gone[row.session_id] += row.messages
            if gone:
                await connection.execute(
                    _FEWER,
                    [
                        {"t": tenant, "s": name, "r": count, "m": messages_gone[name]}
                        for name, count in sorted(runs_gone.items())
                    ],
                )
        return len(gone)

    async def _thin_sessions(self, tenant: str, before_ms: int) -> int | None:
        """Likewise."""
        s = sessions.c
        async with self._database.writing(tenant) as connection:
            if not await try_hold(connection, RETAINING):
                return None
            # No writer is between a late run and its session. A run without one nobody would find.
            await hold(connection, ERASING)
            found = await connection.execute(
                select(s.session_id)
                .where(s.tenant_id == tenant, s.active_ms < before_ms, ~_HAS_RUNS)
                .order_by(s.active_ms)
                .limit(BATCH)
            )
            keys = [row.session_id for row in found]
            await remove_sessions(connection, tenant, keys)
        return len(keys)


_of_session = (sessions.c.tenant_id == bindparam("t"), sessions.c.session_id == bindparam("s"))
_FEWER = (
    update(sessions)
    .where(*_of_session)
    .values(runs=sessions.c.runs - bindparam("r"), messages=sessions.c.messages - bindparam("m"))
)
_HAS_RUNS = exists().where(
    runs.c.tenant_id == sessions.c.tenant_id, runs.c.session_id == sessions.c.session_id
)
