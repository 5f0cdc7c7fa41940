"""Reads the metrics back, as sums over their series: for who looks without a Prometheus.

Finding the series of a label's value takes time, so what was found is kept: the series of counters
and histograms are never removed.
"""

import asyncio
from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import msgspec
from aioprometheus.collectors import Registry

from gateway.telemetry import catalogue
from gateway.telemetry.handles import BoundHistogram

_AT_A_TIME = 1000
"""Histograms that are added up before the loop has its turn: some 0.5 ms."""

_Labels = dict[str, str]


class Reader:
    """What a registry holds, by metric."""

    def __init__(self, registry: Registry) -> None:
        """`registry` is that of `Telemetry`."""
        self._registry = registry
        self._found: dict[tuple[str, str, str], _Found] = {}

    def total(self, metric: catalogue.Metric, label: str = "", value: str = "") -> float:
        """A counter or gauge over its series; a counter also over those with a label's value."""
        store = self._store(metric)
        return sum(map(store.__getitem__, self._keys(metric, store, label, value)))

    def each(self, metric: catalogue.Gauge) -> Iterator[tuple[_Labels, float]]:
        """The series of a gauge."""
        for key, value in list(self._store(metric).items()):
            yield _labels(key), value

    def largest(
        self, metric: catalogue.Gauge, count: int | None = None
    ) -> list[tuple[_Labels, float]]:
        """The series of a gauge that are not zero, the largest first, at most `count`."""
        found = [(value, key) for key, value in self._store(metric).items() if value]
        found.sort(key=lambda pair: pair[0], reverse=True)
        return [(_labels(key), value) for value, key in found[:count]]

    def one(self, metric: catalogue.Gauge, labels: _Labels) -> float:
        """One series of a gauge; 0 if there is none."""
        values: Any = self._registry.get(metric.full_name).values
        return values.get(labels, 0.0)

    async def counts(
        self, metric: catalogue.Histogram, label: str = "", value: str = ""
    ) -> list[int]:
        """How many values fell into each bucket of a histogram, the last being `+Inf`."""
        store = self._store(metric)
        counts = [0] * (len(metric.buckets) + 1)
        found = cast(
            "list[BoundHistogram]",
            [store[key] for key in self._keys(metric, store, label, value)],
        )
        for start in range(0, len(found), _AT_A_TIME):
            rows = [histogram.counts for histogram in found[start : start + _AT_A_TIME]]
            counts = [*map(sum, zip(counts, *rows, strict=True))]
            await asyncio.sleep(0)
        return counts

    def _store(self, metric: catalogue.Metric) -> dict[Any, Any]:
        values: Any = self._registry.get(metric.full_name).values
        return values.store

    def _keys(
        self, metric: catalogue.Metric, store: dict[Any, Any], label: str, value: str
    ) -> "list[Any] | dict[Any, Any]":
        if not label:
            return store
        found = self._found.setdefault((metric.name, label, value), _Found())
        for key in islice(store, found.seen, None):
            if _labels(key).get(label) == value:
                found.keys.append(key)
        found.seen = len(store)
        return found.keys


class _Found:
    """The series with a label's value, among the first so many."""

    __slots__ = ("keys", "seen")

    def __init__(self) -> None:
        self.keys: list[Any] = []
        self.seen = 0


def _labels(key: object) -> _Labels:
    """The labels of a series; a metric without labels has a key that is no JSON."""
    return msgspec.json.decode(key, type=_Labels) if isinstance(key, bytes) else {}
