"""The kinds of metrics, as the catalogue declares them."""

from dataclasses import dataclass, field

PREFIX = "nooble_orchestrator_"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `name` goes without the prefix, `labels` in the order in which they are bound.

    `prefix` is another one only where the name is everybody's, as that of `process_open_fds`.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    prefix: str = field(default=PREFIX, kw_only=True)

    @property
    def full_name(self) -> str:
        """The name as it is exposed."""
        return self.prefix + self.name


@dataclass(frozen=True, slots=True)
class Counter(Metric):
    """Only grows. Its series are never removed."""


@dataclass(frozen=True, slots=True)
class Gauge(Metric):
    """Goes up and down. A tenant's series that stays at zero is removed, see `handles`."""


@dataclass(frozen=True, slots=True)
class Histogram(Metric):
    """Counts observations by upper bound, bounds included; `+Inf` is understood."""

    buckets: tuple[float, ...] = ()
