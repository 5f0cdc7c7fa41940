"""The search for what is left behind in Redis finds it."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis
from support.server import RedisServer

from chaos.audit import leftovers

BASE = "{p1}:acme:s1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path_factory.mktemp("audit"))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Redis]:
    """With one session in order: a run is open, another waits."""
    with server.client() as client:
        client.flushall()
        client.hset(f"s:{BASE}", mapping={"state": "running", "home": "n1", "open": "r1"})
        client.hset(f"r:{BASE}:r1", "status", "running")
        client.hset(f"r:{BASE}:r2", "status", "pending")
        client.rpush(f"w:{BASE}", "r2")
        client.rpush(f"l:{BASE}", "an entry")
        client.zadd("due:{p1}", {"expiry|acme:s1|": 1, "lease|acme:s1|r1": 1})
        client.xadd("j:{p1}", {"run": "r0"})
        client.hset("agents", "demo", "{}")
        client.zadd("nodes", {"n1": 1})
        client.set("c:{p1}:acme:gone", "", ex=60)
        yield client


def found(server: RedisServer) -> list[str]:
    fleet: Any = SimpleNamespace(redis=server)
    return leftovers(fleet)


def test_what_is_in_order(server: RedisServer, redis: Redis) -> None:
    assert found(server) == []


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (("SET", "stray", "1"), "neither an expiry nor a session"),
        (("SET", "l:{p1}:acme:gone", "1"), "neither an expiry nor a session"),
        (("HSET", f"r:{BASE}:r9", "status", "done"), "a run that is neither open nor waiting"),
        (("ZREM", "due:{p1}", "expiry|acme:s1|"), "a session that never expires"),
        (("ZADD", "due:{p1}", "1", "expiry|acme:gone|"), "of a session that is no more"),
        (("ZADD", "due:{p1}", "1", "lease|acme:s1|r8"), "of a run that is over"),
        (("HSET", "aw:{a:demo}", "acme|s1|r1", "1"), "runs wait, though all is quiet"),
    ],
)
def test_what_is_left_behind(
    server: RedisServer, redis: Redis, command: tuple[str, ...], complaint: str
) -> None:
    redis.execute_command(*command)
    [wrong] = found(server)
    assert complaint in wrong
