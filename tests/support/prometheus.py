"""A real Prometheus, as Debian packages it, that scrapes what a test says."""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from support.monitoring import tool_or_skip
from support.net import free_port

_PATIENCE_S = 45.0
_DURATION = r"(\d+)([smhd])"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def shortened(expression: str, window_s: int) -> str:
    """The same with no range and no offset longer than that. Thresholds stay."""
    return re.sub(
        rf"(?<=\[|\s){_DURATION}(?=\]|:|\s|\)|$)", lambda it: _at_most(it, window_s), expression
    )


def hurried(groups: Sequence[Mapping[str, Any]], *, window_s: int, hold_s: int) -> dict[str, Any]:
    """A file of the same rules, shortened, and with no `for` longer than `hold_s`."""

    def rule(old: Mapping[str, Any]) -> dict[str, Any]:
        new = {**old, "expr": shortened(old["expr"], window_s)}
        if "for" in old:
            new["for"] = re.sub(_DURATION, lambda it: _at_most(it, hold_s), old["for"])
        return new

    return {"groups": [{**each, "rules": [*map(rule, each["rules"])]} for each in groups]}


def _at_most(duration: re.Match[str], most_s: int) -> str:
    return f"{min(most_s, int(duration[1]) * _SECONDS[duration[2]])}s"


class Prometheus:
    """What it knows, over its HTTP API."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        """`client` has its address."""
        self._client = client

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        folder: Path,
        scrape: Sequence[Mapping[str, Any]],
        rules: Mapping[str, Any],
        *,
        interval_s: int = 1,
    ) -> "AsyncIterator[Prometheus]":
        """Scrapes and evaluates at that interval; `scrape` and `rules` as in its own files."""
        interval = f"{interval_s}s"
        every = ("scrape_interval", "scrape_timeout", "evaluation_interval")
        config = {
            "global": dict.fromkeys(every, interval),
            "rule_files": ["rules.json"],
            "scrape_configs": scrape,
        }
        address = f"127.0.0.1:{free_port()}"
        process = _start(folder, address, config, rules)
        try:
            async with httpx.AsyncClient(
                base_url=f"http://{address}", timeout=30, trust_env=False, verify=False
            ) as client:
                made = cls(client)
                await made._wait_until_ready(process)
                yield made
        finally:
            process.kill()  # its data is nobody's
            process.wait()

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector that the expression is now: label sets and values.

        What is no number (`NaN`, as a quantile of nothing) is left out.
        """
        data = await self._get("/api/v1/query", query=expression)
        result = data["result"]
        if data["resultType"] == "scalar":
            result = [{"metric": {}, "value": result}]
        return [each for each in result if each["value"][1] != "NaN"]

    async def names(self) -> set[str]:
        """The names of all series that it ever had."""
        return set(await self._get("/api/v1/label/__name__/values"))

    async def wait_for_targets(self, *addresses: str) -> None:
        """Waits until it scrapes these, and no others."""
        deadline = time.monotonic() + _PATIENCE_S
        wanted = dict.fromkeys(addresses, "up")
        while True:
            active = (await self._get("/api/v1/targets", state="active"))["activeTargets"]
            found = {target["labels"]["instance"]: target["health"] for target in active}
            if found == wanted:
                return
            assert time.monotonic() < deadline, f"{found}, not {wanted}"
            await asyncio.sleep(0.1)

    async def firing(self) -> dict[str, dict[str, Any]]:
        """The alerts that fire, by name; of each, one."""
        alerts = (await self._get("/api/v1/alerts"))["alerts"]
        return {each["labels"]["alertname"]: each for each in alerts if each["state"] == "firing"}

    async def wait_for_alerts(
        self, *, firing: Collection[str] = (), silent: Collection[str] = ()
    ) -> None:
        """Waits until these alerts fire, and those do not."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            found = await self.firing()
            if found.keys() >= {*firing} and found.keys().isdisjoint(silent):
                return
            assert time.monotonic() < deadline, f"not {firing} without {silent}, but {found}"
            await asyncio.sleep(0.1)

    async def _get(self, path: str, **params: str) -> Any:
        answer = (await self._client.get(path, params=params)).json()
        assert answer["status"] == "success", f"{params}: {answer.get('error')}"
        return answer["data"]

    async def _wait_until_ready(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            assert process.poll() is None, "Prometheus has ended; see prometheus.log"
            assert time.monotonic() < deadline, "Prometheus never was ready; see prometheus.log"
            with suppress(httpx.TransportError):
                if (await self._client.get("/-/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.05)


def _start(
    folder: Path, address: str, config: Mapping[str, Any], rules: Mapping[str, Any]
) -> "subprocess.Popen[bytes]":
    """JSON is YAML, too."""
    (folder / "rules.json").write_text(json.dumps(rules))
    (folder / "prometheus.json").write_text(json.dumps(config))
    with (folder / "prometheus.log").open("wb") as log:
        return subprocess.Popen(
            [
                tool_or_skip("prometheus"),
                f"--config.file={folder / 'prometheus.json'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
