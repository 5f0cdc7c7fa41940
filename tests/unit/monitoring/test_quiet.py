"""No alert is raised by series that are not there yet, by a node at rest, or by its restart."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support.monitoring import RULES, alerts, run_tool

from gateway.session.breaker import Breaker
from gateway.telemetry.metrics import Telemetry

MINUTES, RESTART = 80, 50
"""How long it lasts, and when the node begins anew."""


def scraped() -> str:
    """What a node shows that is well, and has served somebody once."""
    telemetry = Telemetry(version="1", sessions_capacity=20_000)
    telemetry.connection_opened("acme")
    telemetry.session("acme", "demo").created()
    telemetry.readiness(True, {"redis": "ok", "database": "ok"})
    telemetry.redis(commands_up=True, pubsub_up=True, reconnects=0, subscriber_reconnects=0)
    for service in ("redis", "database"):
        telemetry.follow(service, Breaker(lambda: 0.0))
        telemetry.service(service).called("acme", "read", 0.001)
    return telemetry.render()[0].decode()


def history() -> list[dict[str, str]]:
    """The series of a node: what only grows stands at 1000, and after the restart at zero."""
    node = {"instance": "a:8000", "job": "nooble-gateway"}
    found = [_series("up", node, f"1x{MINUTES}")]
    for family in text_string_to_metric_families(scraped()):
        for sample in family.samples:
            grown = f"1000x{RESTART} 0x{MINUTES - RESTART - 1}"
            values = f"{sample.value:g}x{MINUTES}" if family.type == "gauge" else grown
            found.append(_series(sample.name, {**sample.labels, **node}, values))
    return found


def _series(name: str, labels: dict[str, str], values: str) -> dict[str, str]:
    inside = ", ".join(f'{label}="{value}"' for label, value in labels.items())
    return {"series": f"{name}{{{inside}}}", "values": values}


NODE = history()


@pytest.mark.parametrize(
    "series",
    [NODE, NODE[:1]],
    ids=["one node that restarts", "one without any metric"],
)
def test_nothing_is_raised(series: Sequence[dict[str, str]], tmp_path: Path):
    looks = [1, 15, 40, RESTART + 1, RESTART + 5, MINUTES]
    case = {
        "interval": "1m",
        "input_series": series,
        "alert_rule_test": [
            {"alertname": alert.name, "eval_time": f"{minute}m"}
            for alert in alerts()
            if alert.name != "Watchdog"
            for minute in looks
        ],
    }
    path = tmp_path / "quiet.yaml"
    path.write_text(
        yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [case]})
    )
    assert "SUCCESS" in run_tool("promtool", "test", "rules", path)
