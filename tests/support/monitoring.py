"""What `k8s/monitoring` holds, taken apart: the rules, the panels, and the PromQL in both."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

MONITORING = Path(__file__).parents[2] / "k8s" / "monitoring"
RULES = MONITORING / "rules.yaml"
DASHBOARDS = (MONITORING / "main.json", MONITORING / "performance.json")

PACKAGES = {
    "promtool": "prometheus",
    "prometheus": "prometheus",
    "amtool": "prometheus-alertmanager",
    "prometheus-alertmanager": "prometheus-alertmanager",
}


def tool_or_skip(name: str) -> str:
    """Where a program of Prometheus is.

    Without it the test skips, or fails where `REQUIRE_PROMETHEUS=1` (CI).
    """
    if found := shutil.which(name):
        return found
    reason = f"needs {name} (Debian: apt-get install {PACKAGES[name]})"
    if os.environ.get("REQUIRE_PROMETHEUS", "0") not in ("", "0"):
        pytest.fail(f"REQUIRE_PROMETHEUS is set, and this test {reason}")
    pytest.skip(reason)


def run_tool(name: str, *arguments: str | Path) -> str:
    """What the program says; the test fails if it does."""
    done = subprocess.run(
        [tool_or_skip(name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


# --- rules ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One comparison of an alert's condition: what is looked at, and what it is compared with."""

    left: str
    operator: str
    threshold: float


@dataclass(frozen=True)
class Alert:
    """One alerting rule."""

    name: str
    group: str
    expression: str
    severity: str
    labels: dict[str, str]
    annotations: dict[str, str]

    @property
    def comparisons(self) -> list[Comparison]:
        """The comparisons in its condition; none in that of the watchdog."""
        return [found for part in _operands(self.expression) if (found := _comparison(part))]


@cache
def rule_groups() -> list[dict[str, Any]]:
    """The groups of `rules.yaml`, as they stand there."""
    return yaml.safe_load(RULES.read_text())["groups"]


def alerts() -> list[Alert]:
    """All alerting rules."""
    return [
        Alert(
            rule["alert"],
            group["name"],
            rule["expr"].strip(),
            rule["labels"]["severity"],
            rule["labels"],
            rule["annotations"],
        )
        for group in rule_groups()
        for rule in group["rules"]
        if "alert" in rule
    ]


def records() -> dict[str, str]:
    """The recording rules: expression by name."""
    return {
        rule["record"]: rule["expr"].strip()
        for group in rule_groups()
        for rule in group["rules"]
        if "record" in rule
    }


def _operands(expression: str) -> list[str]:
    """What stands between the outermost `and`, `or` and `unless`."""
    parts, depth, begin = [], 0, 0
    joins = r"\b(?:and|or|unless)\b(?:\s*(?:on|ignoring)\s*\([^()]*\))?"
    for found in re.finditer(rf'"[^"]*"|[()]|{joins}', expression):
        if found[0] == "(":
            depth += 1
        elif found[0] == ")":
            depth -= 1
        elif not depth and not found[0].startswith('"'):
            parts.append(expression[begin : found.start()])
            begin = found.end()
    return [part.strip() for part in (*parts, expression[begin:])]


def _comparison(part: str) -> Comparison | None:
    found = re.fullmatch(r"(.*\S)\s*(==|!=|>=|<=|>|<)\s*([\d.]+)", part, re.DOTALL)
    return Comparison(found[1], found[2], float(found[3])) if found else None


# --- dashboards -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    """One query. `where` names it to people: `main: Live connections`, `HighLatency`."""

    where: str
    expression: str


def dashboard(path: Path) -> dict[str, Any]:
    """A dashboard, as Grafana reads it."""
    return json.loads(path.read_text())


def panels(of: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A dashboard's panels, without the rows."""
    for panel in of["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", ())
        else:
            yield panel


def panel_queries() -> list[Query]:
    """The queries of all panels of both dashboards, as they stand there."""
    return [
        Query(f"{path.stem}: {panel['title']}", target["expr"])
        for path in DASHBOARDS
        for panel in panels(dashboard(path))
        for target in panel["targets"]
    ]


def alert_queries() -> list[Query]:
    """The left-hand sides of all alerts, each once."""
    return list(
        dict.fromkeys(
            Query(alert.name, comparison.left)
            for alert in alerts()
            for comparison in alert.comparisons
        )
    )


def live(expression: str, *, interval: str = "1m") -> str:
    """A panel's expression as Prometheus takes it: all tenants, agents and nodes."""
    expression = expression.replace("$__rate_interval", interval)
    return re.sub(r"\$\{?(?:tenant|agent|instance)\}?", ".*", expression)


# --- PromQL ---------------------------------------------------------------------------------------

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\[[^\]]*\]|[A-Za-z_][\w:]*|[\d.]+\w*|[=!]~|[!<>=]=|\S')
_GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = {"and", "or", "unless", "offset", "bool", "inf", "nan"}
_AGGREGATIONS = {"sum", "max", "min", "avg", "count", "topk", "bottomk"}


@dataclass(frozen=True)
class Use:
    """One place in an expression where a metric stands.

    Attributes:
        metric: its full name.
        labels: those that it is selected by.
        window: as in `5m`; None where it stands for its newest value.
        within: the functions and aggregations around it, from the outermost in.
        grouped_by: the labels that those aggregations keep.
    """

    metric: str
    labels: frozenset[str]
    window: str | None
    within: tuple[str, ...]
    grouped_by: frozenset[str]


def uses(expression: str) -> list[Use]:
    """Where metrics stand in a PromQL expression of the kind that we write: `sum by (x) (…)`."""
    tokens = [*_TOKEN.findall(expression), ""]
    found: list[Use] = []
    around: list[tuple[str, frozenset[str]]] = []
    caller, kept = "", frozenset[str]()
    at = 0
    while at < len(tokens) - 1:
        token, following = tokens[at], tokens[at + 1]
        at += 1
        if token in _GROUPING:
            close = tokens.index(")", at)
            kept = frozenset(tokens[at + 1 : close]) - {","}
            at = close + 1
        elif token == "(":
            around.append((caller, kept))
            caller, kept = "", frozenset()
        elif token == ")":
            around.pop()
        elif not re.match(r"[A-Za-z_]", token) or token in _WORDS:
            continue
        elif following == "(" or token in _AGGREGATIONS:
            caller = token
        else:
            labels, at = _labels(tokens, at)
            window = tokens[at].strip("[]") if tokens[at].startswith("[") else None
            found.append(
                Use(
                    token,
                    labels,
                    window,
                    tuple(name for name, _ in around if name),
                    frozenset[str]().union(*(by for _, by in around)),
                )
            )
    return found


def _labels(tokens: list[str], at: int) -> tuple[frozenset[str], int]:
    if tokens[at] != "{":
        return frozenset(), at
    close = tokens.index("}", at)
    inside = tokens[at + 1 : close]
    return frozenset(token for token in inside if re.match(r"[A-Za-z_]", token)), close + 1
