"""A primary and its replica, alone or as a cluster."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from gateway.bus.embedded import server_arguments, server_binary
from support.bus import IN_NO_HURRY
from support.net import free_port

_PATIENCE_S = 45.0


class Server:
    """One server on a loopback port."""

    def __init__(self, folder: Path, *extra: str) -> None:
        """Starts it; `extra` are further arguments."""
        self.port = free_port()
        self._start(folder, extra)

    @property
    def url(self) -> str:
        """For `REDIS_URL`."""
        return f"redis://127.0.0.1:{self.port}"

    @contextmanager
    def client(self) -> "Iterator[Redis]":
        """A connection for the test's own questions."""
        with Redis(port=self.port, socket_timeout=5) as client:
            yield client

    def ask(self, *command: Any) -> Any:
        """One command."""
        with self.client() as client:
            return client.execute_command(*command)

    def waits(self) -> int:
        """How often a client has asked that replicas confirm."""
        with self.client() as client:
            return client.info("commandstats").get("cmdstat_wait", {}).get("calls", 0)

    def _start(self, folder: Path, extra: tuple[str, ...]) -> None:
        folder.mkdir(parents=True)
        binary = server_binary()
        assert binary is not None, "install nooble-gateway[embedded]"
        arguments = [*server_arguments(folder, folder / "valkey.sock"), *IN_NO_HURRY]
        arguments += ["--port", str(self.port), "--bind", "127.0.0.1"]
        arguments += ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"]
        self.process = subprocess.Popen([binary, *arguments, *extra])

        def serves() -> bool:
            try:
                return self.ask("PING") in (b"PONG", True)
            except (OSError, RedisError):
                assert self.process.poll() is None, "the server has ended"
                return False

        until(serves)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """It answers nothing, and its sockets stay open."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `pause`."""
        self.process.send_signal(signal.SIGCONT)

    def in_step_with(self, primary: "Server") -> bool:
        """True when this replica has all that its primary has."""
        with primary.client() as one, self.client() as other:
            here, there = other.info("replication"), one.info("replication")
        return (
            here.get("master_link_status") == "up"
            and here["slave_repl_offset"] == there["master_repl_offset"]
        )


@contextmanager
def running(folder: Path, *extra: str) -> "Iterator[Server]":
    """A server, gone at the end."""
    server = Server(folder, *extra)
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def primary_and_replica(folder: Path) -> "Iterator[tuple[Server, Server]]":
    """A primary, and a replica that is in step with it."""
    with (
        running(folder / "primary") as primary,
        running(folder / "replica", "--replicaof", f"127.0.0.1 {primary.port}") as replica,
    ):
        until(lambda: replica.in_step_with(primary))
        yield primary, replica


@contextmanager
def cluster_pair(folder: Path) -> "Iterator[tuple[Server, Server]]":
    """A cluster of one primary, which has all slots, and its replica."""

    bus_ports = [free_port(), free_port()]

    def node(number: int) -> AbstractContextManager[Server]:
        arguments = ("--cluster-enabled", "yes", "--cluster-port", str(bus_ports[number]))
        return running(folder / f"node-{number}", *arguments)

    with node(0) as primary, node(1) as replica:
        primary.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        replica.ask("CLUSTER", "MEET", "127.0.0.1", primary.port, bus_ports[0])
        name = primary.ask("CLUSTER", "MYID").decode()
        until(lambda: name in replica.ask("CLUSTER", "NODES").decode())
        until(lambda: _accepted(replica, "CLUSTER", "REPLICATE", name))
        until(lambda: replica.in_step_with(primary))
        for server in (primary, replica):
            until(lambda server=server: "cluster_state:ok" in str(server.ask("CLUSTER", "INFO")))
        yield primary, replica


def _accepted(server: Server, *command: str) -> bool:
    try:
        server.ask(*command)
    except ResponseError:
        return False
    return True


def until(true: Callable[[], bool]) -> None:
    """Waits for something that is true soon."""
    deadline = time.monotonic() + _PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
