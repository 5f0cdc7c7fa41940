"""The Prometheus text exposition format, version 0.0.4, with every label value escaped.

aioprometheus' own formatter writes label values as they are, so that a tenant named `a"} 1` could
break or forge a scrape; and it decodes each series' labels on each scrape. Here what stands ahead
of a value is made once, and the text comes in pieces, between which the event loop has its turn.
The format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import msgspec
from aioprometheus import collectors
from aioprometheus.metricdict import MetricDict

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LINES = 1000
"""So many in a piece: about a millisecond."""

_LABEL_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})

Labels = Mapping[str, str]
Heads = dict[Any, tuple[str, ...]]
"""What stands ahead of the values of each series, by its key in aioprometheus' store."""


class TextFormatter:
    """Turns a registry of counters, gauges and histograms into text, again and again."""

    def __init__(self) -> None:
        self._heads: dict[str, Heads] = {}

    def marshall(self, registry: collectors.Registry) -> bytes:
        """All metrics of the registry."""
        return b"".join(self.pieces(registry))

    def pieces(self, registry: collectors.Registry) -> Iterator[bytes]:
        """The same, piece by piece.

        Series may come, go and move in between: each stands in it once, as it was at one moment,
        or not at all.
        """
        lines: list[str] = []
        for collector in registry.get_all():
            name, kind = collector.name, collector.kind.name
            lines.append(f"# HELP {name} {collector.doc.translate(_HELP_ESCAPES)}")
            lines.append(f"# TYPE {name} {kind}")
            store: dict[Any, Any] = _store_of(collector.values)
            heads = self._heads.get(name, {})
            if len(heads) > len(store):  # some are gone for good
                heads = {}
            self._heads[name] = heads
            for key, value in list(store.items()):
                head = heads.get(key)
                if head is None:
                    head = heads[key] = _heads_of(collector, key, value)
                if len(head) == 1:
                    lines.append(head[0] + _number(value))
                else:
                    numbers = (*value.buckets.values(), value.observations, value.sum)
                    lines.extend(map(str.__add__, head, map(_number, numbers)))
                if len(lines) >= LINES:
                    lines.append("")
                    yield "\n".join(lines).encode()
                    lines = []
        lines.append("")
        yield "\n".join(lines).encode()


def _heads_of(collector: collectors.Collector, key: Any, value: Any) -> tuple[str, ...]:
    name = collector.name
    labels = {} if key == MetricDict.EMPTY_KEY else _labels(key)
    pairs = _label_pairs({**collector.const_labels, **labels})
    braced = f"{{{pairs}}}" if pairs else ""
    match collector:
        case collectors.Counter() | collectors.Gauge():
            return (f"{name}{braced} ",)
        case collectors.Histogram():
            bucket = f'{name}_bucket{{{pairs}{"," if pairs else ""}le="'
            bounds = (f'{bucket}{_bound(bound)}"}} ' for bound in value.buckets)
            return (*bounds, f"{name}_count{braced} ", f"{name}_sum{braced} ")
        case _:
            raise TypeError(f"{name}: summaries cannot be added up over nodes; use a histogram")


_labels = msgspec.json.Decoder(dict[str, str]).decode


def _store_of(series: Any) -> dict[Any, Any]:
    """The dictionary in a `MetricDict`, which has no annotations."""
    return series.store


def _label_pairs(labels: Labels) -> str:
    return ",".join(f'{name}="{value.translate(_LABEL_ESCAPES)}"' for name, value in labels.items())


@cache  # there are few, and each is written once per series
def _bound(value: float) -> str:
    return _number(value)


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    if value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return repr(value).replace("inf", "+Inf").replace("-+", "-").replace("nan", "NaN")
