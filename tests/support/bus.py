"""The real engine for tests: a server, alone or as a one-node cluster, and a bus on it."""

import asyncio
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from redis import Redis
from redis.asyncio import RedisCluster
from redis.exceptions import RedisError

from gateway.bus import keys
from gateway.bus.bus import Bus
from gateway.bus.connection import Client, create_client
from gateway.bus.embedded import server_arguments, server_binary
from gateway.session.model import Limits
from support.net import free_port

QUICK = Limits(
    pending_runs=3,
    lease_s=0.15,
    max_attempts=2,
    run_timeout_s=0.4,
    queue_wait_s=0.3,
    interrupt_ttl_s=0.15,
    cancel_grace_s=0.1,
    session_ttl_s=0.15,
    dispatch_retry_s=0.05,
    node_lease_s=0.1,
)
"""Deadlines that a test can wait for."""

_START_TIMEOUT_S = 45.0

IN_NO_HURRY = ("--appendfsync", "no")
"""A busy disk stalls nobody; what a process has written survives its end all the same."""


@contextmanager
def running_server(*, cluster: bool = False) -> Iterator[str]:
    """A server of its own; yields its URL.

    As a one-node cluster every cross-slot access is an error, as it would be in production.
    """
    with tempfile.TemporaryDirectory(prefix="nooble-bus-") as name:
        folder = Path(name)
        socket = folder / "valkey.sock"
        arguments = [*server_arguments(folder, socket), *IN_NO_HURRY]
        port = free_port() if cluster else 0
        if cluster:
            arguments += ["--port", str(port), "--bind", "127.0.0.1", "--cluster-enabled", "yes"]
            arguments += ["--cluster-port", str(free_port())]
        binary = server_binary()
        assert binary is not None, "install nooble-gateway[embedded]"
        process = subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL)
        try:
            with Redis(unix_socket_path=str(socket)) as client:
                _wait_for(client, process)
                if cluster:
                    client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
                    _wait_for_cluster(client)
            yield f"redis+cluster://127.0.0.1:{port}" if cluster else f"unix://{socket}"
        finally:
            process.kill()
            process.wait()


def _wait_for(client: Redis, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            client.ping()
        except (OSError, RedisError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("the server does not come up") from error
            time.sleep(0.005)
        else:
            return


def _wait_for_cluster(client: Redis) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
        assert time.monotonic() < deadline, "the cluster does not form"
        time.sleep(0.005)


@asynccontextmanager
async def connected_bus(
    url: str, limits: Limits | None = None, *, ack_replicas: int = 0
) -> AsyncIterator[Bus]:
    """A bus on a running server."""
    client = create_client(url)
    bus = Bus(client, limits or Limits(), ack_replicas=ack_replicas)
    try:
        async with asyncio.TaskGroup() as group:
            follower = group.create_task(bus.notices.run())
            await asyncio.sleep(0)
            yield bus
            follower.cancel()
    finally:
        await client.aclose()


@asynccontextmanager
async def running_bus(limits: Limits | None = None, *, cluster: bool = False) -> AsyncIterator[Bus]:
    """A bus on a server of its own."""
    with running_server(cluster=cluster) as url:
        async with connected_bus(url, limits) as bus:
            yield bus


async def archive_all(bus: Bus) -> None:
    """As if the archive had taken all that the journals have, of other tests too."""
    while read := await bus.journal.read(range(keys.PARTITIONS), 1000):
        await bus.journal.forget([entry.id for entry in read])


async def cut_subscribers(client: Client) -> None:
    """The server ends every subscriber connection; all are made again."""
    where = {"target_nodes": client.get_nodes()} if isinstance(client, RedisCluster) else {}
    await client.execute_command("CLIENT KILL TYPE pubsub", **where)
