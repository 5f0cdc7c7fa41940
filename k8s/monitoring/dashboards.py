"""Writes the two Grafana dashboards, `main.json` and `performance.json`, beside this file.

They are made out of the catalogue, so that no panel can ask for a metric that there is not.
`--check` says whether what is checked in is what this makes.
"""

import json
import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as styles
from grafana_foundation_sdk.models import dashboard as models
from main_panels import MAIN
from panels import Panel, Row
from performance_panels import PERFORMANCE

from gateway.telemetry import catalogue
from gateway.telemetry.catalogue import Metric

FOLDER = Path(__file__).parent
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "nooble-gateway"
HEIGHT, NUMBER_HEIGHT = 8, 4

VARIABLES: tuple[tuple[str, str, Metric, str], ...] = (
    # From counters, whose series stay: a tenant that is not connected now can still be chosen.
    ("tenant", "Tenant", catalogue.MESSAGES_PROCESSED_TOTAL, "tenant_id"),
    ("agent", "Agent", catalogue.SESSIONS_CREATED_TOTAL, "agent_id"),
    ("instance", "Node", catalogue.BUILD_INFO, "instance"),
)


def made() -> dict[Path, str]:
    """Both dashboards: JSON by file."""
    return {
        FOLDER / "main.json": _drawn("nooble-main", "Agent Orchestrator: Main", MAIN),
        FOLDER / "performance.json": _drawn(
            "nooble-performance", "Agent Orchestrator: Performance", PERFORMANCE
        ),
    }


def _drawn(uid: str, title: str, rows: tuple[Row, ...]) -> str:
    drawing = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description("Made by k8s/monitoring/dashboards.py: change it there.")
        .tags([TAG])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Dashboards of the gateway")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
    )
    for name, label, metric, of in VARIABLES:
        drawing.with_variable(_variable(name, label, metric, of))
    number = 0
    for row in rows:
        drawing.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            number += 1
            drawing.with_panel(_panel(panel).id(number))
    return json.dumps(drawing.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _variable(name: str, label: str, metric: Metric, of: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(f"label_values({metric.full_name}, {of})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def _panel(panel: Panel) -> Any:
    drawing: Any = {"lines": _lines, "number": _number, "states": _states}[panel.kind](panel)
    drawing.title(panel.title).description(panel.description).datasource(SOURCE).unit(panel.unit)
    drawing.span(panel.width)
    drawing.height(NUMBER_HEIGHT if panel.kind == "number" else HEIGHT)
    for letter, query in zip("ABCD", panel.queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(query.expression)
        target.legend_format(query.legend or panel.title)
        drawing.with_target(target.instant() if panel.kind == "number" else target.range())
    drawing.thresholds(
        dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(_steps(panel))
    )
    if panel.names:
        drawing.mappings(
            [
                models.ValueMap(
                    options={
                        str(value): models.ValueMappingResult(text=text, color=color, index=index)
                        for index, (value, (text, color)) in enumerate(panel.names.items())
                    }
                )
            ]
        )
    return drawing


def _lines(panel: Panel) -> timeseries.Panel:
    drawing = (
        timeseries.Panel()
        .min(0)
        .line_width(1)
        .fill_opacity(8)
        .show_points(styles.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(styles.LegendDisplayMode.LIST)
            .placement(styles.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(styles.TooltipDisplayMode.MULTI)
            .sort(styles.SortOrder.DESCENDING)
        )
    )
    if panel.warn is not None or panel.alarm is not None:
        drawing.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(styles.GraphTresholdsStyleMode.DASHED)
        )
    return drawing


def _number(panel: Panel) -> stat.Panel:
    coloured = panel.warn is not None or panel.alarm is not None
    return (
        stat.Panel()
        .graph_mode(styles.BigValueGraphMode.NONE)
        .color_mode(styles.BigValueColorMode.VALUE if coloured else styles.BigValueColorMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value("0")
    )


def _states(panel: Panel) -> statetimeline.Panel:
    return statetimeline.Panel().merge_values(True).show_value(styles.VisibilityMode.AUTO)


def _steps(panel: Panel) -> list[models.Threshold]:
    steps = [models.Threshold(value=None, color="green")]
    if panel.warn is not None and panel.warn != panel.alarm:
        steps.append(models.Threshold(value=panel.warn, color="yellow"))
    if panel.alarm is not None:
        steps.append(models.Threshold(value=panel.alarm, color="red"))
    return steps


def main(arguments: list[str]) -> int:
    """Writes them, or with `--check` says which are stale; 1 if any is."""
    if arguments not in ([], ["--check"]):
        print("usage: dashboards.py [--check]", file=sys.stderr)
        return 2
    stale = [path for path, text in made().items() if not path.exists() or path.read_text() != text]
    if arguments:
        for path in stale:
            print(f"{path.name} is not what dashboards.py makes: run `make dashboards`")
        return 1 if stale else 0
    for path, text in made().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
