"""A real Alertmanager: which alerts hold back which, so that one cause calls once."""

import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from support.following import until
from support.monitoring import MONITORING, tool_or_skip
from support.net import free_port

Labels = dict[str, str]


@asynccontextmanager
async def alertmanager(folder: Path) -> AsyncGenerator[httpx.Client]:
    """One with our routes and rules, whose receivers tell nobody."""
    config: dict[str, Any] = yaml.safe_load((MONITORING / "alertmanager.yaml").read_text())
    config["receivers"] = [{"name": receiver["name"]} for receiver in config["receivers"]]
    path = folder / "alertmanager.yaml"
    path.write_text(yaml.safe_dump(config))
    port = free_port()
    process = subprocess.Popen(
        [
            tool_or_skip("prometheus-alertmanager"),
            f"--config.file={path}",
            f"--storage.path={folder}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
            "--log.level=error",
        ]
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v2", timeout=10) as client:
            await until(lambda: _answers(client))
            yield client
    finally:
        process.kill()
        process.wait()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/status").status_code == 200
    except httpx.TransportError:
        return False


def fire(client: httpx.Client, *alerts: Labels) -> None:
    """As Prometheus would."""
    answer = client.post("/alerts", json=[{"labels": labels} for labels in alerts])
    assert answer.status_code == 200, answer.text


def held_back(client: httpx.Client) -> list[Labels]:
    """The labels of the alerts of which nobody is told."""
    alerts = client.get("/alerts").json()
    return [alert["labels"] for alert in alerts if alert["status"]["inhibitedBy"]]


async def test_a_cause_holds_back_what_follows_from_it_and_nothing_else(tmp_path: Path):
    causes: list[Labels] = [
        {"alertname": "NoWorkers", "agent_id": "a", "queue": "a", "service": "agent:a"},
        {"alertname": "DatabaseDown", "service": "database", "queue": "archive"},
        {"alertname": "HighErrorRate"},
        {"alertname": "Watchdog"},
    ]
    followers: list[Labels] = [
        {"alertname": "QueueBacklog", "tenant_id": "acme", "queue": "a"},
        {"alertname": "QueueWaitHigh", "agent_id": "a"},
        {"alertname": "ServiceConnectionFailure", "service": "agent:a"},
        {"alertname": "CircuitOpen", "service": "database"},
        {"alertname": "QueueBacklog", "tenant_id": "_all", "queue": "archive"},
        {"alertname": "ErrorBudgetBurnFast"},
    ]
    others: list[Labels] = [
        {"alertname": "QueueBacklog", "tenant_id": "acme", "queue": "b"},
        {"alertname": "QueueWaitHigh", "agent_id": "b"},
        {"alertname": "ServiceConnectionFailure", "service": "redis"},
        {"alertname": "CircuitOpen", "service": "agent:b"},
        {"alertname": "HighLatency", "role": "user"},
    ]
    async with alertmanager(tmp_path) as client:
        fire(client, *causes, *followers, *others)
        await until(lambda: _are_held_back(client, followers))
        fire(client, {"alertname": "GatewayDown"})
        await until(lambda: _are_held_back(client, [*causes[:-1], *followers, *others]))


def _are_held_back(client: httpx.Client, expected: list[Labels]) -> bool:
    return _sorted(held_back(client)) == _sorted(expected)


def _sorted(labels: list[Labels]) -> list[list[tuple[str, str]]]:
    return sorted(sorted(each.items()) for each in labels)
