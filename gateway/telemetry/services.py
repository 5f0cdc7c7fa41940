"""The calls of services: how many, how long they took, why they failed. Implements `ServiceProbe`.

A call finds its series by what it is told, in one dictionary: binding them is for the first one.
"""

from collections.abc import Callable, Mapping

from gateway.session.probe import ServiceError
from gateway.telemetry import catalogue
from gateway.telemetry.handles import BoundCounter, Series


class ServiceCalls:
    """The calls of one service on this node."""

    def __init__(self, series: Series, service: str, label: Callable[[str], str]) -> None:
        """`label` is the label value of a tenant."""
        self._series = series
        self._service = service
        self._label = label
        self._operations: dict[tuple[str, str], _Operation] = {}

    def called(self, tenant: str, operation: str, seconds: float) -> None:
        """It answered, be it with a refusal."""
        found = self._find(tenant, operation)
        found.total.inc()
        found.seconds.observe(seconds)

    def failed(self, tenant: str, operation: str, seconds: float, error: ServiceError) -> None:
        """It did not. The time of one that was not even asked is none."""
        found = self._find(tenant, operation)
        found.total.inc()
        found.failures(error).inc()
        if error != "circuit_open":
            found.seconds.observe(seconds)

    def _find(self, tenant: str, operation: str) -> "_Operation":
        labels = self._label(tenant) if tenant else catalogue.ALL_TENANTS, operation
        found = self._operations.get(labels)
        if found is None:
            found = _Operation(self._series, labels[0], self._service, operation)
            self._operations[labels] = found
        return found


class _Operation:
    """The series of one tenant, service and operation; failures once there are any."""

    __slots__ = ("_failures", "_labels", "_series", "seconds", "total")

    def __init__(self, series: Series, *labels: str) -> None:
        self._series = series
        self._labels = labels
        self._failures: dict[str, BoundCounter] = {}
        self.total = series.counter(catalogue.SERVICE_CALL_TOTAL, *labels)
        self.seconds = series.histogram(catalogue.SERVICE_CALL_SECONDS, *labels)

    def failures(self, error: str) -> BoundCounter:
        """Those with one code."""
        found = self._failures.get(error)
        if found is None:
            found = self._failures[error] = self._series.counter(
                catalogue.SERVICE_CALL_FAILURES_TOTAL, *self._labels, error
            )
        return found


class RedisMetrics:
    """The connections to Redis, by role."""

    def __init__(self, series: Series) -> None:
        self._up = {role: series.gauge(catalogue.REDIS_UP, role) for role in _ROLES}
        self._reconnects = {
            role: series.counter(catalogue.REDIS_RECONNECTS_TOTAL, role) for role in _ROLES
        }

    def set(self, *, up: Mapping[str, bool], reconnects: Mapping[str, int]) -> None:
        """As of now."""
        for role in _ROLES:
            self._up[role].set(int(up[role]))
            self._reconnects[role].reach(reconnects[role])


_ROLES = ("commands", "pubsub")
