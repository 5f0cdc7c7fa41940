"""The alerts of `k8s/monitoring/rules.yaml`: what they say, and on which side of a boundary."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.monitoring import MONITORING, RULES, alerts, run_tool

TESTS = sorted((MONITORING / "rules_test").glob("*.yaml"))

SEED = {
    "HighErrorRate": "critical",
    "ServiceConnectionFailure": "warning",
    "HighLatency": "warning",
    "QueueBacklog": "warning",
    "HighSessionCount": "warning",
}
BEYOND = {
    "ErrorBudgetBurnFast",
    "ErrorBudgetBurnSlow",
    "Watchdog",
    "GatewayDown",
    "TargetDown",
    "NodeLost",
    "CrashLooping",
    "RedisUnreachable",
    "RedisSubscriptionDown",
    "DatabaseDown",
    "EventLoopLag",
    "SlowFirstEvent",
    "QueueWaitHigh",
    "SlowConsumers",
    "ReconnectStorm",
    "ConnectionsDropped",
    "HandshakeRejections",
    "AuthFailureSpike",
    "PubSubGaps",
    "NoWorkers",
    "CircuitOpen",
    "SessionLeak",
    "FileDescriptorsHigh",
    "LabelOverflow",
}


def test_prometheus_takes_the_rules():
    assert "SUCCESS" in run_tool("promtool", "check", "rules", RULES)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_each_alert_fires_beyond_its_boundary_and_not_before(path: Path):
    assert "SUCCESS" in run_tool("promtool", "test", "rules", path)


def test_the_users_alerts_are_there_with_their_severity_and_those_beyond():
    severities = {alert.name: alert.severity for alert in alerts()}
    assert len(severities) == len(alerts())
    assert SEED.items() <= severities.items()
    assert severities.keys() >= BEYOND
    assert set(severities.values()) == {"critical", "warning", "none"}
    assert [name for name, severity in severities.items() if severity == "none"] == ["Watchdog"]


def test_each_alert_is_tested_where_it_fires_and_where_it_does_not():
    cases: list[dict[str, Any]] = [
        case
        for path in TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    fires = {case["alertname"] for case in cases if case.get("exp_alerts")}
    silent = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    names = {alert.name for alert in alerts()}
    assert fires == names
    assert silent == names - {"Watchdog"}


def test_each_condition_is_written_so_that_a_program_can_take_it_apart():
    for alert in alerts():
        assert alert.comparisons or alert.name == "Watchdog", alert.name
        for comparison in alert.comparisons:
            assert " and " not in comparison.left, alert.name
