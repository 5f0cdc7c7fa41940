"""The breakers of agents: one for each tenant and agent, on each node.

A node hears how runs end in the sessions that it follows. A tenant's runs say nothing of another
tenant's, so that no tenant can shut an agent for another; the metric shows the worst.
"""

from collections.abc import Callable

from gateway.session.breaker import Breaker, BreakerState
from gateway.session.errors import Refused
from gateway.session.ports import Clock
from protocol.codes import ErrorCode

SPAN_S = 3.0
"""A worker that dies fails all its runs at once, and says nothing of the other workers."""

QUIET_S = 600.0
"""A failure that is longer ago says nothing any more; the longest pause is a minute."""

_MOST = 10_000
"""Failing pairs of tenant and agent that a node remembers."""

_FAILURES = frozenset(
    {ErrorCode.INTERNAL, ErrorCode.WORKER_LOST, ErrorCode.TIMEOUT, ErrorCode.NO_WORKER}
)
_SILENT = frozenset({ErrorCode.CANCELLED, ErrorCode.TOO_LARGE})
"""Ends by force that say nothing of the agent's health."""


class AgentBreakers:
    """Which agents are left alone for a while, since their runs fail in a row."""

    def __init__(
        self,
        clock: Clock,
        on_change: Callable[[str, int, int], None],
        on_open: Callable[[str, str], None],
    ) -> None:
        """`on_change` hears `agent:NAME`, the worst state of it and the most failures in a row;
        `on_open` the tenant and the agent that is left alone from now on.
        """
        self._clock = clock
        self._on_open = on_open
        self._on_change = on_change
        # Only those whose last run failed.
        self._breakers: dict[str, dict[str, Breaker]] = {}
        self._count = 0

    def admit(self, tenant: str, agent: str) -> None:
        """A run is to be accepted.

        Raises:
            Refused: not now; `retry_after_ms` says when.
        """
        breaker = self._find(tenant, agent)
        wait_s = breaker.admit() if breaker is not None else 0.0
        if wait_s:
            raise Refused(
                ErrorCode.CIRCUIT_OPEN,
                "the agent fails again and again, and is left alone for a while",
                retry_after_ms=int(wait_s * 1000) + 1,
            )

    def release(self, tenant: str, agent: str) -> None:
        """No run came of it."""
        breaker = self._find(tenant, agent)
        if breaker is not None:
            breaker.release()

    def ended(self, tenant: str, agent: str, kind: str, code: str) -> None:
        """A run ended; `kind` and `code` as in the log.

        An error that the agent raised itself is an answer: it is well. A cancel says nothing.
        """
        if kind == "X" and code in _FAILURES:
            self._fail(tenant, agent)
        elif kind == "C" or code in _SILENT:
            self.release(tenant, agent)
        else:
            self._succeed(tenant, agent)

    def state(self, tenant: str, agent: str) -> BreakerState:
        """Whether a tenant's messages reach the agent."""
        breaker = self._find(tenant, agent)
        return BreakerState.CLOSED if breaker is None else breaker.now

    def look(self) -> None:
        """Tells what only time has changed; to be called before somebody looks at the metrics.

        Who failed and was not asked again for long is forgotten: nobody would ever be told that he
        is well.
        """
        for agent, tenants in list(self._breakers.items()):
            for tenant, breaker in list(tenants.items()):
                if breaker.quiet_s > QUIET_S:
                    self._forget(tenant, agent)
            self._tell(agent)

    def _find(self, tenant: str, agent: str) -> Breaker | None:
        return self._breakers.get(agent, {}).get(tenant)

    def _fail(self, tenant: str, agent: str) -> None:
        breaker = self._find(tenant, agent)
        if breaker is None:
            if self._count >= _MOST:
                self._forget_closed()
            breaker = Breaker(self._clock, span_s=SPAN_S)
            breaker.watch(lambda _: self._tell(agent))
            self._breakers.setdefault(agent, {})[tenant] = breaker
            self._count += 1
        was = breaker.state
        breaker.fail()
        if was is BreakerState.CLOSED and breaker.state is BreakerState.OPEN:
            self._on_open(tenant, agent)

    def _forget_closed(self) -> None:
        for agent, tenants in list(self._breakers.items()):
            for tenant, breaker in list(tenants.items()):
                if breaker.state is BreakerState.CLOSED:
                    self._succeed(tenant, agent)

    def _succeed(self, tenant: str, agent: str) -> None:
        if self._find(tenant, agent) is not None:
            self._forget(tenant, agent)
            self._tell(agent)

    def _forget(self, tenant: str, agent: str) -> None:
        tenants = self._breakers[agent]
        del tenants[tenant]
        self._count -= 1
        if not tenants:
            del self._breakers[agent]

    def _tell(self, agent: str) -> None:
        breakers = self._breakers.get(agent, {}).values()
        self._on_change(
            f"agent:{agent}",
            max((each.now for each in breakers), default=BreakerState.CLOSED),
            max((each.failures for each in breakers), default=0),
        )
