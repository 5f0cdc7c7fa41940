"""Real processes on loopback: a server, gateway nodes, workers. What e2e tests stand on."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from support import forked
from support.bus import running_server
from support.databases import new_history
from support.net import HTTP, free_port
from support.witness import PROCESS_NAME

DEMO = "gateway.agents.demo:agent"
COUNTING = "support.agents:counting"
_START_TIMEOUT_S = 45.0
_STOP_TIMEOUT_S = 30.0


class Process:
    """A command of the product, with its output kept for the failure message."""

    def __init__(
        self, name: str, log: Path, *arguments: str, cwd: Path | None = None, **environment: str
    ) -> None:
        """Starts `gateway ARGUMENTS`."""
        self.name = name
        self.log = log
        self._told = False
        self._began = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self.popen = forked.start(
                arguments,
                env={
                    **os.environ,
                    "GATEWAY_LOG_FORMAT": "json",
                    PROCESS_NAME: name,
                    **environment,
                },
                cwd=cwd,
                stdout=output,
                stderr=output,
            )

    def wait_for_line(self, text: str) -> None:
        """Waits until the process has said something."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while text not in self.output():
            assert self.popen.poll() is None, f"{self.name} ended:\n{self.output()}"
            assert time.monotonic() < deadline, f"{self.name} never said {text!r}"
            time.sleep(0.02)

    def output(self) -> str:
        """All that it printed."""
        with self.log.open("rb") as file:
            file.seek(self._began)  # what stands before it, an earlier one of the same name said
            return file.read().decode(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.popen.send_signal(number)

    def terminate(self) -> None:
        """Tells it to end."""
        self._told = True
        self.popen.terminate()

    def kill(self) -> None:
        """Ends it without a chance to say goodbye."""
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> int:
        """Ends it in order; answers its exit code.

        One that was told is not told again: it would hear that at its very end, and die of it.
        """
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            if not self._told:
                self.terminate()
        try:
            return self.popen.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop:\n{self.output()}") from None


class Stack:
    """Nodes and workers on one Redis."""

    def __init__(
        self,
        redis_url: str,
        folder: Path,
        environment: dict[str, str],
        own_urls: Mapping[str, str] | None = None,
    ) -> None:
        """Starts nothing yet. `own_urls`: of processes that reach Redis in another way, by name."""
        self.redis_url = redis_url
        self._folder = folder
        self._own_urls = own_urls or {}
        self._environment = {"GATEWAY_DATA_DIR": str(folder), **environment}
        if "DATABASE_URL" not in environment:
            new_history(folder)
        self._ports: list[int] = []
        self.nodes: list[Process] = []
        self.workers: list[Process] = []

    @classmethod
    @contextmanager
    def running(
        cls,
        folder: Path,
        *,
        nodes: int = 1,
        workers: int = 1,
        slots: int = 8,
        agent: str = DEMO,
        **environment: str,
    ) -> "Iterator[Stack]":
        """A running stack; `environment` are settings for all its processes."""
        with running_server() as url:
            stack = cls(url, folder, environment)
            try:
                for _ in range(workers):
                    stack.add_worker(agent, "--slots", str(slots))
                for _ in range(nodes):
                    stack.add_node()
                stack.wait_until_ready()
                yield stack
            finally:
                stack.stop()

    def add_worker(self, agent: str = DEMO, *options: str) -> Process:
        """Starts a worker; `wait_until_ready` waits for it."""
        name = f"worker-{len(self.workers)}"
        self.workers.append(self._process(name, "worker", agent, *options))
        return self.workers[-1]

    def add_node(self) -> Process:
        """Starts a node on a port of its own; `wait_until_ready` waits for it."""
        self._ports.append(free_port())
        self.nodes.append(self._node(len(self._ports) - 1))
        return self.nodes[-1]

    def start_node(self, number: int = 0) -> None:
        """Starts a node again, on the same port, and waits until it serves."""
        self.nodes[number] = self._node(number)
        self._wait_for_node(number)

    def start_worker(self, number: int, agent: str = DEMO, *options: str) -> None:
        """Starts a worker again, and waits until it serves."""
        self.workers[number] = self._process(f"worker-{number}", "worker", agent, *options)
        self.workers[number].wait_for_line('"worker serves"')

    def kill_node(self, number: int = 0) -> None:
        """kill -9."""
        self.nodes[number].kill()

    def wait_until_ready(self) -> None:
        """Waits until every node serves and every worker is known."""
        for number in range(len(self.nodes)):
            self._wait_for_node(number)
        for process in self.workers:
            process.wait_for_line('"worker serves"')
        self.wait_for_agents(workers=sum(p.popen.poll() is None for p in self.workers))

    def wait_for_agents(self, **wanted: int) -> None:
        """Waits until the agents together have so many `workers`, `busy` slots and so on."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            agents = self.get("/api/v1/agents")["agents"]
            found = {name: sum(agent[name] for agent in agents) for name in wanted}
            if all(found[name] >= value for name, value in wanted.items()):
                return
            assert time.monotonic() < deadline, f"{found}, not {wanted}"
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends everything in order, and insists that it ends without an error."""
        codes = {p.name: p.stop() for p in [*self.nodes, *self.workers]}
        bad = {name: code for name, code in codes.items() if code not in (0, -signal.SIGKILL)}
        assert not bad, f"exit codes {bad}:\n" + "\n".join(
            p.output() for p in [*self.nodes, *self.workers] if p.name in bad
        )

    @property
    def url(self) -> str:
        """The first node, for a browser."""
        return self.url_of(0)

    def url_of(self, number: int) -> str:
        """A node, for a browser."""
        return f"http://127.0.0.1:{self._ports[number]}"

    def ws_of(self, number: int = 0) -> str:
        """A node, for a WebSocket client."""
        return f"ws://127.0.0.1:{self._ports[number]}/ws"

    def get(self, path: str, number: int = 0) -> dict[str, list[dict[str, int]]]:
        """GET of a node, as JSON."""
        response = HTTP.get(self.url_of(number) + path)
        response.raise_for_status()
        return response.json()

    def metrics(self, number: int = 0) -> dict[str, float]:
        """What a node's `/metrics` says now: series to value."""
        lines = HTTP.get(self.url_of(number) + "/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {series: float(value) for series, value in pairs}

    def _node(self, number: int) -> Process:
        return self._process(f"node-{number}", "serve", "--port", str(self._ports[number]))

    def _process(self, name: str, *arguments: str) -> Process:
        url = self._own_urls.get(name, self.redis_url)
        return Process(name, self._log(name), *arguments, **{**self._environment, "REDIS_URL": url})

    def _wait_for_node(self, number: int) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            node = self.nodes[number]
            assert node.popen.poll() is None, f"{node.name} ended:\n{node.output()}"
            assert time.monotonic() < deadline, f"{node.name} never served:\n{node.output()}"
            try:
                if HTTP.get(self.url_of(number) + "/health/readiness").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.02)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"
