"""What a dashboard is made of, as data: rows of panels, each with its queries."""

from dataclasses import dataclass
from typing import Literal

from promql import quantile

from gateway.telemetry import catalogue as c

PERCENTILES = (0.5, 0.95, 0.99)

BREAKER = {0: ("closed", "green"), 1: ("half-open", "yellow"), 2: ("open", "red")}
UP = {0: ("down", "red"), 1: ("up", "green")}
"""What the values of such gauges are called, each with its colour."""


@dataclass(frozen=True)
class Query:
    """One line, or family of lines, of a panel; `legend` names a series by its labels."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        unit: one of Grafana's.
        kind: lines over time, a number (the newest, with its colour), or states over time.
        warn: from here on it is yellow, and
        alarm: from here on red.
        names: what values are called, each with its colour.
        width: of 24.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Literal["lines", "number", "states"] = "lines"
    warn: float | None = None
    alarm: float | None = None
    names: dict[int, tuple[str, str]] | None = None
    width: int = 8


@dataclass(frozen=True)
class Row:
    """A titled row of panels."""

    title: str
    panels: tuple[Panel, ...]


def percentiles(metric: c.Histogram, *by: str) -> tuple[Query, ...]:
    """The 50th, 95th and 99th percentile."""
    names = " ".join("{{" + label + "}}" for label in by)
    return tuple(
        Query(quantile(part, metric, *by), f"p{part * 100:.0f} {names}".strip())
        for part in PERCENTILES
    )
