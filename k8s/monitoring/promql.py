"""PromQL out of the catalogue: a metric or label that it lacks is an error.

Counters are rated, gauges are not, and what every node shows alike is never added up. Each
expression is narrowed by the dashboards' variables, as far as its metric has their labels.
"""

from gateway.telemetry import catalogue
from gateway.telemetry.catalogue import Counter, Gauge, Histogram, Metric

JOB = "nooble-gateway"
"""The name of the scrape job, see `prometheus.yaml`."""

VARIABLES = {"tenant_id": "tenant", "agent_id": "agent", "instance": "instance"}
"""The dashboards' variable that narrows a label."""

SHARED = frozenset(
    {
        catalogue.QUEUE_DEPTH,
        catalogue.QUEUE_LAG_SECONDS,
        catalogue.AGENT_WORKERS,
        catalogue.AGENT_SLOTS,
        catalogue.ARCHIVE_JOURNAL_FILL,
        catalogue.ARCHIVE_DEAD_LETTERS,
    }
)
"""What is true of the whole fleet: every node shows it, so the largest is taken."""


def rate(metric: Counter | Histogram, *by: str, **labels: str) -> str:
    """How much a counter grows, or how often a histogram observes, a second."""
    name = metric.full_name + ("_count" if isinstance(metric, Histogram) else "")
    return f"{_over('sum', metric, by)}(rate({_selected(metric, name, labels)}[$__rate_interval]))"


def a_minute(metric: Counter | Histogram, *by: str, **labels: str) -> str:
    """The same, a minute."""
    return f"60 * {rate(metric, *by, **labels)}"


def level(metric: Gauge, *by: str, **labels: str) -> str:
    """Where a gauge stands: added up over the nodes, or the one value that they share."""
    over = "max" if metric in SHARED else "sum"
    return f"{_over(over, metric, by)}({_selected(metric, metric.full_name, labels)})"


def highest(metric: Gauge, *by: str, **labels: str) -> str:
    """The largest of a gauge's values."""
    return f"{_over('max', metric, by)}({_selected(metric, metric.full_name, labels)})"


def lowest(metric: Gauge, *by: str, **labels: str) -> str:
    """The smallest of a gauge's values."""
    return f"{_over('min', metric, by)}({_selected(metric, metric.full_name, labels)})"


def quantile(share: float, metric: Histogram, *by: str, **labels: str) -> str:
    """What that share of the observations did not exceed."""
    buckets = _selected(metric, metric.full_name + "_bucket", labels)
    over = f"{_over('sum', metric, (*by, 'le'))}(rate({buckets}[$__rate_interval]))"
    return f"histogram_quantile({share}, {over})"


def share(of: Counter, whole: Counter, *by: str) -> str:
    """Which part of `whole` is `of`; zero, not nothing, where `of` has no series yet."""
    above, below = rate(of, *by), rate(whole, *by)
    return f"({above} or 0 * {below}) / {below}"


def most(expression: str) -> str:
    """The ten largest series, where most are at zero all the time."""
    return f"topk(10, {expression})"


def _over(aggregation: str, metric: Metric, by: tuple[str, ...]) -> str:
    for label in by:
        _check(metric, label)
    return f"{aggregation} by ({', '.join(by)}) " if by else aggregation


def _selected(metric: Metric, name: str, labels: dict[str, str]) -> str:
    """`labels` are regular expressions; one that begins with `!` must not match."""
    matchers = [f'job="{JOB}"'] if not metric.prefix else []
    for label, variable in VARIABLES.items():
        if label == "instance" or label in metric.labels:
            matchers.append(f'{label}=~"${variable}"')
    for label, pattern in labels.items():
        _check(metric, label)
        operator = "!~" if pattern.startswith("!") else "=~"
        matchers.append(f'{label}{operator}"{pattern.removeprefix("!")}"')
    return f"{name}{{{', '.join(matchers)}}}"


def _check(metric: Metric, label: str) -> None:
    if label not in (*metric.labels, "instance", "le"):
        raise ValueError(f"{metric.full_name} has no label {label}")
