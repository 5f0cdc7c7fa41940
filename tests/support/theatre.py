"""A stack whose Redis can be killed and comes back with its append-only file."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from support.server import RedisServer
from support.stack import DEMO, Stack


@contextmanager
def theatre(
    folder: Path, *, nodes: int = 2, agent: str = DEMO, **environment: str
) -> Generator[tuple[Stack, RedisServer]]:
    """Nodes and a worker on a server of their own; `environment` are settings for all."""
    server = RedisServer(folder / "redis")
    server.start()
    stack = Stack(f"unix://{server.socket}", folder, environment)
    try:
        stack.add_worker(agent)
        for _ in range(nodes):
            stack.add_node()
        stack.wait_until_ready()
        yield stack, server
    finally:
        stack.stop()
        server.stop()
