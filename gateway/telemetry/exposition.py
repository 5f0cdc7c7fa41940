"""The Prometheus text exposition format, version 0.0.4, with every label value escaped.

aioprometheus' own formatter writes label values as they are, so that a tenant named `a"} 1` could
break or forge a scrape. The format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

# pyright: reportIncompatibleMethodOverride=false
# `IFormatter` has no annotations, so that every method of it seems to return None.

from collections.abc import Mapping
from functools import cache
from typing import Any

from aioprometheus import collectors
from aioprometheus.formats.base import IFormatter

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LABEL_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})

Labels = Mapping[str, str]


class TextFormatter(IFormatter):
    """Turns a registry of counters, gauges and histograms into text."""

    def get_headers(self) -> dict[str, str]:
        """The HTTP headers of an answer in this format."""
        return {"Content-Type": CONTENT_TYPE}

    def marshall(self, registry: collectors.Registry) -> bytes:
        """All metrics of the registry."""
        lines: list[str] = []
        for collector in registry.get_all():
            name, const_labels = collector.name, collector.const_labels
            match collector:
                case collectors.Counter() | collectors.Gauge():
                    form = self._format_counter
                case collectors.Histogram():
                    form = self._format_histogram
                case _:
                    form = self._format_summary
            lines.append(f"# HELP {name} {collector.doc.translate(_HELP_ESCAPES)}")
            lines.append(f"# TYPE {name} {collector.kind.name}")
            for series in collector.get_all():
                lines.extend(form(series, name, const_labels))
        lines.append("")
        return "\n".join(lines).encode()

    def _format_counter(
        self, counter: tuple[Labels, Any], name: str, const_labels: Labels
    ) -> list[str]:
        labels, value = counter
        pairs = _label_pairs({**const_labels, **labels})
        return [f"{name}{{{pairs}}} {_number(value)}" if pairs else f"{name} {_number(value)}"]

    def _format_gauge(
        self, gauge: tuple[Labels, Any], name: str, const_labels: Labels
    ) -> list[str]:
        return self._format_counter(gauge, name, const_labels)

    def _format_histogram(
        self, histogram: tuple[Labels, Any], name: str, const_labels: Labels
    ) -> list[str]:
        labels, values = histogram
        pairs = _label_pairs({**const_labels, **labels})
        bucket = f'{name}_bucket{{{pairs}{"," if pairs else ""}le="'
        braced = f"{{{pairs}}}" if pairs else ""
        return [
            f'{bucket}{_bound(what)}"}} {value}'
            if isinstance(what, float)
            else f"{name}_{what}{braced} {_number(value)}"
            for what, value in values.items()
        ]

    def _format_summary(
        self, summary: tuple[Labels, Any], name: str, const_labels: Labels
    ) -> list[str]:
        raise TypeError(f"{name}: summaries cannot be added up over nodes; use a histogram")


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
