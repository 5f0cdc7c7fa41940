"""What panels, alerts and recording rules ask for: metrics of the catalogue, each as it must be."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.monitoring import (
    MONITORING,
    Query,
    Use,
    alerts,
    live,
    panel_queries,
    records,
    run_tool,
    uses,
)

from gateway.telemetry.catalogue import CATALOGUE, Counter, Gauge, Histogram, Metric

TARGET = {"instance", "job"}
"""The labels that Prometheus gives every series of a target."""

SHARED = {
    "queue_depth",
    "queue_lag_seconds",
    "agent_workers",
    "agent_slots",
    "archive_journal_fill",
    "archive_dead_letters",
}
RATES = {"rate", "increase"}

BY_NAME: dict[str, Metric] = {
    metric.full_name + suffix: metric
    for metric in CATALOGUE
    for suffix in (("_bucket", "_count", "_sum") if isinstance(metric, Histogram) else ("",))
}


def everything() -> Iterator[Query]:
    """All expressions of panels and rules."""
    yield from panel_queries()
    yield from (Query(alert.name, alert.expression) for alert in alerts())
    yield from (Query(name, expression) for name, expression in records().items())


def faults(use: Use) -> Iterator[str]:
    """What is wrong with the way in which a metric of the catalogue stands in an expression."""
    metric = BY_NAME[use.metric]
    known = {*metric.labels, *TARGET}
    if isinstance(metric, Histogram):
        known.add("le")
    if unknown := (use.labels | use.grouped_by) - known:
        yield f"has no label {sorted(unknown)}"
    rated = bool(RATES.intersection(use.within[-1:]) and use.window)
    if isinstance(metric, Counter | Histogram) and not rated:
        yield "only grows: it must be rated"
    if isinstance(metric, Gauge) and RATES.intersection(use.within):
        yield "is a gauge: it must not be rated"
    if use.metric.endswith("_bucket") and (
        "le" not in use.grouped_by or "histogram_quantile" not in use.within
    ):
        yield "has buckets: their bounds must be kept, for histogram_quantile"
    if metric.name in SHARED and "max" not in use.within:
        yield "is shown by every node: the maximum is to be taken"


def found_in(expression: str) -> list[str]:
    """All faults of an expression."""
    said: list[str] = []
    for use in uses(expression):
        if use.metric in BY_NAME:
            said += [f"{use.metric} {fault}" for fault in faults(use)]
        elif use.metric not in records() and use.metric != "up":
            said.append(f"{use.metric} is not in the catalogue")
    return said


def test_every_expression_asks_for_what_the_catalogue_has_and_as_it_must_be_asked():
    wrong = {
        f"{query.where}: {query.expression}": said
        for query in everything()
        if (said := found_in(query.expression))
    }
    assert not wrong


@pytest.mark.parametrize(
    "expression",
    [
        "sum(nooble_orchestrator_sessions)",
        "sum by (agent_id) (nooble_orchestrator_sessions_active)",
        'sum(nooble_orchestrator_sessions_active{agent_id="demo"})',
        "sum(nooble_orchestrator_sessions_created_total)",
        "rate(sum(nooble_orchestrator_sessions_created_total)[5m:])",
        "sum(rate(nooble_orchestrator_sessions_active[5m]))",
        "sum by (queue) (nooble_orchestrator_queue_depth)",
        "histogram_quantile(0.9, sum(rate(nooble_orchestrator_queue_wait_seconds_bucket[5m])))",
        "sum by (le) (rate(nooble_orchestrator_queue_wait_seconds_bucket[5m]))",
    ],
)
def test_a_wrong_expression_is_found(expression: str):
    assert found_in(expression)


def test_every_metric_of_the_catalogue_is_on_a_dashboard():
    shown = {
        BY_NAME[use.metric].full_name
        for query in panel_queries()
        for use in uses(query.expression)
        if use.metric in BY_NAME
    }
    assert {metric.full_name for metric in CATALOGUE} == shown


def test_prometheus_takes_the_expression_of_every_panel(tmp_path: Path):
    rules = [
        {"record": f"panel:{number}", "expr": live(query.expression)}
        for number, query in enumerate(panel_queries())
    ]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert "SUCCESS" in run_tool("promtool", "check", "rules", path)


def test_the_dashboards_are_what_their_code_makes():
    done = subprocess.run(
        [sys.executable, MONITORING / "dashboards.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(MONITORING.parents[1])},
    )
    assert done.returncode == 0, done.stdout + done.stderr
