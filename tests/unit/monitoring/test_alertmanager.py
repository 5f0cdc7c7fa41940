"""Where `k8s/monitoring/alertmanager.yaml` sends alerts, and what Prometheus' own file says."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from support.monitoring import MONITORING, alerts, run_tool, uses

CONFIG = MONITORING / "alertmanager.yaml"
SECRETS = {
    "api_url",
    "bearer_token",
    "credentials",
    "password",
    "routing_key",
    "service_key",
    "slack_api_url",
}


def config() -> dict[str, Any]:
    return yaml.safe_load(CONFIG.read_text())


def members(of: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values, however deep."""
    if isinstance(of, dict):
        for key, value in of.items():
            yield key, value
            yield from members(value)
    elif isinstance(of, list):
        for item in of:
            yield from members(item)


def test_prometheus_and_alertmanager_take_their_files():
    assert "SUCCESS" in run_tool("amtool", "check-config", CONFIG)
    run_tool("promtool", "check", "config", MONITORING / "prometheus.yaml")


@pytest.mark.parametrize(
    ("receivers", "labels"),
    [
        ("pagerduty,slack", ["alertname=HighErrorRate", "severity=critical"]),
        ("pagerduty,slack", ["alertname=NoWorkers", "severity=critical", "agent_id=demo"]),
        ("slack", ["alertname=HighLatency", "severity=warning", "role=user"]),
        ("watchdog", ["alertname=Watchdog", "severity=none"]),
        ("slack", ["alertname=OfSomebodyElse"]),
    ],
)
def test_an_alert_goes_to_whom_its_severity_says(receivers: str, labels: list[str]):
    run_tool(
        "amtool",
        "config",
        "routes",
        "test",
        f"--config.file={CONFIG}",
        f"--verify.receivers={receivers}",
        *labels,
    )


def test_what_pages_for_one_agent_does_not_join_the_incident_of_another():
    """An incident that somebody has acknowledged calls nobody again."""
    [paging] = [each for each in config()["route"]["routes"] if each["receiver"] == "pagerduty"]
    told_apart_by = {
        label
        for alert in alerts()
        if alert.severity == "critical"
        for use in uses(alert.expression)
        for label in use.grouped_by
    }
    assert "agent_id" in told_apart_by
    assert told_apart_by | {"alertname", "service", "instance"} == set(paging["group_by"])


def test_no_secret_stands_in_the_file():
    inline = [(key, value) for key, value in members(config()) if key in SECRETS]
    assert not inline
    urls = [value for key, value in members(config()) if key == "url"]
    assert all(re.fullmatch(r"http://[\w.-]+(:\d+)?/", url) for url in urls)
    files = [value for key, value in members(config()) if key.endswith("_file")]
    assert len(files) == len(set(files)) == 3


def test_what_is_held_back_exists():
    names = {alert.name for alert in alerts()}
    matchers = [
        matcher
        for rule in config()["inhibit_rules"]
        for key in ("source_matchers", "target_matchers")
        for matcher in rule[key]
    ]
    for matcher in matchers:
        _, alternatives = re.fullmatch(r'alertname(=|=~|!~)"(.*)"', matcher).groups()
        for alternative in alternatives.split("|"):
            assert any(re.fullmatch(alternative, name) for name in names), matcher
