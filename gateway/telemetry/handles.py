"""Series bound once to their labels, which move aioprometheus' own store directly.

aioprometheus finds a series anew on each call: it checks the label names and serializes the labels
to JSON. A handle keeps the key that came of that, so that a move is one dictionary look-up, and
every reader of aioprometheus (`collector.get`, its renderers) sees the value.

Series and idleness: counters and histograms are never removed. A tenant's gauge that was zero at
every rendering for two minutes is, so that a graph comes down to zero before it ends, whoever
draws it. A handle outlives its series: the next move brings the series back. All of this runs on
the event loop's thread.
"""

import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

from aioprometheus import collectors
from aioprometheus.histogram import Histogram as StoredHistogram
from aioprometheus.metricdict import MetricDict

from gateway.telemetry import catalogue

Store = dict[Any, Any]
"""aioprometheus' series of one metric: value by opaque key."""

IDLE_S = 120.0
"""Longer than any Prometheus waits from scrape to scrape."""


class BoundCounter:
    """One series of a counter."""

    __slots__ = ("_key", "_store")

    def __init__(self, store: Store, key: object) -> None:
        self._store = store
        self._key = key

    def inc(self, amount: float = 1) -> None:
        """Adds `amount`.

        Raises:
            ValueError: it is negative.
        """
        if amount < 0:
            raise ValueError("a counter only grows")
        try:
            self._store[self._key] += amount
        except KeyError:  # shown only once it has moved
            self._store[self._key] = amount

    @property
    def series(self) -> tuple[Store, object]:
        """Where its value stands."""
        return self._store, self._key

    def reach(self, total: float) -> None:
        """Takes over a count that is kept elsewhere; one that is less changes nothing."""
        store, key = self._store, self._key
        store[key] = max(total, store.get(key, 0))


class BoundCounterPair:
    """Two counters that one fact moves on the path of a frame: at half the cost of two handles."""

    __slots__ = ("_first", "_first_key", "_second", "_second_key")

    def __init__(self, first: BoundCounter, second: BoundCounter) -> None:
        """Both are shown from zero on, and move by what is never negative."""
        self._first, self._first_key = first.series
        self._second, self._second_key = second.series

    def inc(self, first: int, second: int) -> None:
        """Adds to either."""
        self._first[self._first_key] += first
        self._second[self._second_key] += second


class BoundGauge:
    """One series of a gauge."""

    __slots__ = ("_key", "_store")

    def __init__(self, store: Store, key: object) -> None:
        self._store = store
        self._key = key

    def add(self, amount: float) -> None:
        """Adds `amount`, which may be negative."""
        store, key = self._store, self._key
        store[key] = store.get(key, 0) + amount

    def set(self, value: float) -> None:
        """Replaces the value."""
        self._store[self._key] = value


class BoundHistogram(StoredHistogram):
    """One series of a histogram: the very object in aioprometheus' store.

    aioprometheus keeps cumulative counts and so touches every bucket above each value. Here one
    count per bucket is kept, found by bisection, and the cumulative view is made when it is read.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        # Not the base's: it would set `buckets` and `observations`, which are computed here.
        self._bounds = tuple(float(bound) for bound in bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def counts(self) -> list[int]:
        """How many values fell into each bucket, and in none of those before it."""
        return self._counts

    @property
    def buckets(self) -> dict[float, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How many values were at most each bound."""
        bounds = (*self._bounds, float("inf"))
        return OrderedDict(zip(bounds, accumulate(self._counts), strict=True))

    @property
    def observations(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How many values there were."""
        return sum(self._counts)


class Series:
    """The metrics of a catalogue in a registry of their own, and the way to a handle.

    Attributes:
        registry: aioprometheus' registry, as its own tools want it.
    """

    def __init__(
        self, metrics: Iterable[catalogue.Metric], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self.registry = collectors.Registry()
        self._stores: dict[str, Store] = {}
        self._zero_since: dict[str, dict[object, float]] = {}
        for metric in metrics:
            collector = _collector(metric, self.registry)
            self._stores[metric.name] = _store_of(collector.values)
            if isinstance(metric, catalogue.Gauge) and "tenant_id" in metric.labels:
                self._zero_since[metric.name] = {}

    def counter(
        self, metric: catalogue.Counter, *values: str, from_zero: bool = True
    ) -> BoundCounter:
        """A counter's handle; the series is shown at zero, or only once it has moved."""
        store, key = self._find(metric, values)
        if from_zero:
            store.setdefault(key, 0)
        return BoundCounter(store, key)

    def gauge(self, metric: catalogue.Gauge, *values: str) -> BoundGauge:
        """A gauge's handle; the series is shown at zero."""
        store, key = self._find(metric, values)
        store.setdefault(key, 0)
        return BoundGauge(store, key)

    def histogram(self, metric: catalogue.Histogram, *values: str) -> BoundHistogram:
        """A histogram's handle; the series is shown with all counts at zero."""
        store, key = self._find(metric, values)
        return store.setdefault(key, BoundHistogram(metric.buckets))

    def remove_idle(self) -> None:
        """Removes the tenants' gauges that have been zero for long. Call before rendering."""
        now = self._clock()
        for name, since in self._zero_since.items():
            store = self._stores[name]
            zero = {key: since.get(key, now) for key, value in store.items() if value == 0}
            for key in [key for key, began in zero.items() if now - began >= IDLE_S]:
                del store[key], zero[key]
            self._zero_since[name] = zero

    def _find(self, metric: catalogue.Metric, values: tuple[str, ...]) -> tuple[Store, object]:
        # A lone surrogate has no place in UTF-8; aioprometheus would refuse it.
        clean = [value.encode("utf-8", "replace").decode() for value in values]
        labels = dict(zip(metric.labels, clean, strict=True))
        scratch = MetricDict()  # aioprometheus itself makes the key, whatever its form
        scratch[labels] = 0
        [key] = _store_of(scratch)
        return self._stores[metric.name], key


def _store_of(series: Any) -> Store:
    """The dictionary in a `MetricDict`, which has no annotations."""
    return series.store


def _collector(
    metric: catalogue.Metric, registry: collectors.Registry
) -> collectors.Counter | collectors.Gauge | collectors.Histogram:
    match metric:
        case catalogue.Counter():
            return collectors.Counter(metric.full_name, metric.help, registry=registry)
        case catalogue.Gauge():
            return collectors.Gauge(metric.full_name, metric.help, registry=registry)
        case catalogue.Histogram():
            return collectors.Histogram(
                metric.full_name, metric.help, registry=registry, buckets=metric.buckets
            )
        case _:
            raise TypeError(f"{metric.name}: neither a counter nor a gauge nor a histogram")
