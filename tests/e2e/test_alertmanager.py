"""A real Alertmanager: whom it tells what, and which alert holds back which."""

import json
import subprocess
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import yaml
from support.following import until
from support.monitoring import MONITORING, alerts, tool_or_skip
from support.net import free_port

Labels = dict[str, str]
SECRETS = "/etc/alertmanager/secrets"


def config() -> dict[str, Any]:
    """Ours, but nobody waits for a group to fill."""
    text = (MONITORING / "alertmanager.yaml").read_text()
    read: dict[str, Any] = yaml.safe_load(text)
    for route in (read["route"], *read["route"]["routes"]):
        route["group_wait"] = "0s"
    return read


@asynccontextmanager
async def alertmanager(folder: Path, config: dict[str, Any]) -> AsyncGenerator[httpx.Client]:
    """One that runs; yields a client of its API."""
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


def fire(client: httpx.Client, *alerts: dict[str, Labels]) -> None:
    """As Prometheus would."""
    answer = client.post("/alerts", json=alerts)
    assert answer.status_code == 200, answer.text


# --- who is told ----------------------------------------------------------------------------------


class Post:
    """PagerDuty, Slack and the dead man's switch in one: what came, by the path that it came to."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.came: dict[str, tuple[str | None, dict[str, Any]]] = {}


@contextmanager
def post_office() -> Iterator[Post]:
    class Clerk(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            post.came[self.path] = (self.headers["Authorization"], body)
            self.send_response(202)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Clerk) as server:
        post = Post(server.server_port)
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield post
        finally:
            server.shutdown()
            thread.join()


async def test_people_are_told_what_is_wrong_and_what_to_read(tmp_path: Path):
    [error_rate] = [alert for alert in alerts() if alert.name == "HighErrorRate"]
    [watchdog] = [alert for alert in alerts() if alert.name == "Watchdog"]
    with post_office() as post:
        secrets = {
            "pagerduty-routing-key": "the-key",
            "slack-webhook-url": post.url + "/slack",
            "watchdog-token": "the-token",
        }
        for name, secret in secrets.items():
            (tmp_path / name).write_text(secret)
        read = json.loads(json.dumps(config()).replace(SECRETS, str(tmp_path)))
        receivers = {receiver["name"]: receiver for receiver in read["receivers"]}
        receivers["pagerduty"]["pagerduty_configs"][0]["url"] = post.url + "/pagerduty"
        receivers["watchdog"]["webhook_configs"][0]["url"] = post.url + "/watchdog"
        async with alertmanager(tmp_path, read) as client:
            for alert in (error_rate, watchdog):
                labels = {"alertname": alert.name, **alert.labels}
                fire(client, {"labels": labels, "annotations": alert.annotations})
            await until(lambda: len(post.came) == 3)

    summary = error_rate.annotations["summary"]
    description = error_rate.annotations["description"]
    runbook = "k8s/monitoring/runbooks/HighErrorRate.md"
    _, called = post.came["/pagerduty"]
    assert called["routing_key"] == "the-key"
    assert called["payload"]["summary"] == summary
    assert called["payload"]["severity"] == "critical"
    assert called["payload"]["custom_details"]["runbook"] == runbook
    assert called["payload"]["custom_details"]["alerts"].strip() == description
    [written] = post.came["/slack"][1]["attachments"]
    assert written["title"] == f"[firing] HighErrorRate: {summary}"
    assert written["text"].split("\n") == [description, f"Runbook: {runbook}"]
    assert written["color"] == "danger"
    token, barked = post.came["/watchdog"]
    assert token == "Bearer the-token"
    assert [alert["labels"]["alertname"] for alert in barked["alerts"]] == ["Watchdog"]


# --- what is held back ----------------------------------------------------------------------------


async def test_a_cause_holds_back_what_follows_from_it_and_nothing_else(tmp_path: Path):
    causes: list[Labels] = [
        {"alertname": "NoWorkers", "agent_id": "a", "queue": "a", "service": "agent:a"},
        {"alertname": "DatabaseDown", "service": "database", "queue": "archive"},
        {"alertname": "HighErrorRate"},
        {"alertname": "TargetDown", "instance": "a:8000"},
        {"alertname": "Watchdog"},
    ]
    followers: list[Labels] = [
        {"alertname": "QueueBacklog", "tenant_id": "acme", "queue": "a"},
        {"alertname": "QueueWaitHigh", "agent_id": "a"},
        {"alertname": "ServiceConnectionFailure", "service": "agent:a"},
        {"alertname": "CircuitOpen", "service": "database"},
        {"alertname": "QueueBacklog", "tenant_id": "_all", "queue": "archive"},
        {"alertname": "ErrorBudgetBurnFast"},
        {"alertname": "NodeLost"},
    ]
    others: list[Labels] = [
        {"alertname": "QueueBacklog", "tenant_id": "acme", "queue": "b"},
        {"alertname": "QueueWaitHigh", "agent_id": "b"},
        {"alertname": "ServiceConnectionFailure", "service": "redis"},
        {"alertname": "CircuitOpen", "service": "agent:b"},
        {"alertname": "HighLatency", "role": "user"},
    ]
    read = config()
    read["receivers"] = [{"name": receiver["name"]} for receiver in read["receivers"]]
    async with alertmanager(tmp_path, read) as client:
        fire(client, *({"labels": labels} for labels in (*causes, *followers, *others)))
        await until(lambda: _held_back(client) == _sorted(followers))
        fire(client, {"labels": {"alertname": "GatewayDown"}})
        await until(lambda: _held_back(client) == _sorted([*causes[:-1], *followers, *others]))


def _held_back(client: httpx.Client) -> list[list[tuple[str, str]]]:
    """The labels of the alerts of which nobody is told."""
    known = client.get("/alerts").json()
    return _sorted([alert["labels"] for alert in known if alert["status"]["inhibitedBy"]])


def _sorted(labels: list[Labels]) -> list[list[tuple[str, str]]]:
    return sorted(sorted(each.items()) for each in labels)
