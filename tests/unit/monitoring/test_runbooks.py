"""Every alert has a page that says what it means, what to look at and what to do."""

import re
from pathlib import Path

import pytest
from support.monitoring import DASHBOARDS, MONITORING, alerts, dashboard, panels

RUNBOOKS = sorted((MONITORING / "runbooks").glob("*.md"))
README = (MONITORING.parents[1] / "README.md").read_text()

TITLES = {
    item["title"]
    for path in DASHBOARDS
    for shown in [dashboard(path)]
    for item in (*shown["panels"], *panels(shown))
}


def test_every_alert_names_its_runbook_and_every_runbook_has_its_alert():
    named = {alert.name: alert.annotations["runbook_url"] for alert in alerts()}
    assert named == {path.stem: f"runbooks/{path.name}" for path in RUNBOOKS}
    assert all(alert.annotations.keys() >= {"summary", "description"} for alert in alerts())
    assert not [name for name in named if name not in README]


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_a_runbook_says_what_it_must_and_names_only_what_there_is(path: Path):
    text = path.read_text()
    assert re.findall(r"^#+ (.*)$", text, re.MULTILINE) == [
        path.stem,
        "What it means",
        "What to look at",
        "What to do",
    ]
    [alert] = [alert for alert in alerts() if alert.name == path.stem]
    assert f"{alert.annotations['summary']} Severity: {alert.severity}." in " ".join(text.split())
    missing = [
        link for link in re.findall(r"\]\(([^)]+)\)", text) if not (path.parent / link).exists()
    ]
    missing += [
        title
        for title in re.findall(r'"([A-Z][^"]*)"', " ".join(text.split()))
        if title not in TITLES
    ]
    missing += [name for name in re.findall(r"GATEWAY_[A-Z_]+", text) if name not in README]
    assert not missing
