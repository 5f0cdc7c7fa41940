"""When all is quiet: what the nodes count, and what was left behind in Redis."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from redis import Redis

from chaos.crowd import Crowd
from chaos.fleet import NODES, Fleet

P = "nooble_orchestrator_"
_GLOBAL = {"agents", "nodes"}
_AGENT_KEYS = ("ap", "aw", "aq", "ar")
_PARTITION_KEYS = ("due", "j", "jb", "jd")


def series(fleet: Fleet, name: str) -> float:
    """A metric, over all its labels and all nodes."""
    return sum(
        value
        for number in range(NODES)
        for key, value in fleet.stack.metrics(number).items()
        if key.partition("{")[0] == P + name
    )


async def sockets(fleet: Fleet, crowd: Crowd, patience_s: float) -> list[str]:
    """No open socket without a connection: the gauge is what the clients have."""

    def wrong() -> list[str]:
        counted = series(fleet, "websocket_connections_active")
        attached = sum(each.attached for session in crowd.sessions for each in session.present)
        return [] if counted == attached else [f"{counted} connections, but {attached} clients"]

    return await _in_the_end(wrong, patience_s)


async def counts(fleet: Fleet, crowd: Crowd, patience_s: float, lost: bool) -> list[str]:
    """created - completed = active + dormant, by our own count; and no gauge is negative."""

    def wrong() -> list[str]:
        with fleet.redis.client() as redis:
            return _negative(fleet) + _sessions(fleet, crowd, _Keyspace(redis), lost)

    return await _in_the_end(wrong, patience_s)


async def journals(fleet: Fleet, patience_s: float) -> list[str]:
    """Everything has come to the archive, and nothing was refused by it."""

    def wrong() -> list[str]:
        with fleet.redis.client() as redis:
            return [
                f"{name.decode()} has {count} entries"
                for kind in ("j", "jd")
                for name in redis.scan_iter(f"{kind}:{{p*", count=1000)
                if (count := redis.xlen(name))
            ]

    return await _in_the_end(wrong, patience_s)


def _negative(fleet: Fleet) -> list[str]:
    return [
        f"{name} is {value} on node-{number}"
        for number in range(NODES)
        for name, value in fleet.stack.metrics(number).items()
        if value < 0
    ]


def _sessions(fleet: Fleet, crowd: Crowd, keyspace: "_Keyspace", lost: bool) -> list[str]:
    alive = {name: home for name, (state, home) in keyspace.sessions.items() if state != "ended"}
    ours = {s.id for s in crowd.sessions if s.id and not s.closed and s.reached}
    wrong = [f"session {name} is not in Redis" for name in ours - alive.keys()]
    # An `open` whose answer was lost leaves an empty session that no client knows.
    unknown = alive.keys() - {s.id for s in crowd.sessions}
    if len(unknown) > crowd.lost_opens:
        wrong.append(f"{len(unknown)} sessions that nobody made")
    if not lost:
        closed = {s.id for s in crowd.sessions if s.closed}
        wrong += [f"session {name} is closed, and lives" for name in alive.keys() & closed]
    active = [home for home in alive.values() if home in keyspace.nodes]
    # A home that was given up may stand in Redis again, when Redis lost that it was.
    deserted = [s for s in crowd.sessions if alive.get(s.id) in keyspace.nodes and not s.present]
    counted = series(fleet, "sessions_active")
    if not len(active) - (len(deserted) if lost else 0) <= counted <= len(active):
        wrong.append(
            f"sessions_active is {counted}, but {len(active)} of {len(alive)} sessions have a"
            f" living home: {dict(Counter(active))}; nobody follows"
            f" {[s.name for s in deserted]}, nobody knows"
            f" {[name for name in unknown if alive[name] in keyspace.nodes]}"
        )
    return wrong


async def _in_the_end(wrong: Callable[[], list[str]], patience_s: float) -> list[str]:
    deadline = time.monotonic() + patience_s
    while True:
        found = await asyncio.to_thread(wrong)
        if not found or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.3)


# --- keys -----------------------------------------------------------------------------------------


class _Keyspace:
    """All keys at one moment, when nobody writes."""

    def __init__(self, redis: Redis) -> None:
        self.names: list[str] = sorted(key.decode() for key in redis.scan_iter(count=1000))
        with redis.pipeline(transaction=False) as pipeline:
            for name in self.names:
                pipeline.ttl(name)
            self.ttl = dict(zip(self.names, pipeline.execute(), strict=True))
        hashes = [name for name in self.names if name.startswith("s:{")]
        with redis.pipeline(transaction=False) as pipeline:
            for name in hashes:
                pipeline.hmget(name, "state", "home", "open")
            found = [[(v or b"").decode() for v in row] for row in pipeline.execute()]
        self.sessions = {
            name.rpartition(":")[2]: (state, home)
            for name, (state, home, _) in zip(hashes, found, strict=True)
        }
        now_ms = redis.time()[0] * 1000
        self.nodes = {node.decode() for node in redis.zrangebyscore("nodes", now_ms, "+inf")}
        self.owners = {
            name[2:]: open_run for name, (_, _, open_run) in zip(hashes, found, strict=True)
        }


def leftovers(fleet: Fleet) -> list[str]:
    """Keys without an expiry or an owner, and due times of what is no more."""
    with fleet.redis.client() as redis:
        keyspace = _Keyspace(redis)
        wrong: list[str] = []
        for name in keyspace.names:
            kind, _, rest = name.partition(":")
            if keyspace.ttl[name] >= 0 or name in _GLOBAL or kind in _AGENT_KEYS:
                continue
            if kind in _PARTITION_KEYS:
                wrong += _stray_dues(redis, name, keyspace) if kind == "due" else []
            elif kind == "u":
                wrong += _stray_sessions(redis, name, keyspace)
            elif complaint := _unowned(redis, kind, rest, keyspace):
                wrong.append(f"{name}: {complaint}")
        for name in keyspace.names:
            if name.startswith("aw:") and (waiting := redis.hlen(name)):
                wrong.append(f"{name}: {waiting} runs wait, though all is quiet")
        return wrong


def _unowned(redis: Redis, kind: str, rest: str, keyspace: _Keyspace) -> str:
    """Why a key without an expiry should not be there."""
    base, run_id = rest, ""
    if kind == "r":
        base, _, run_id = rest.rpartition(":")
    if base not in keyspace.owners:
        return "neither an expiry nor a session"
    tag = base[: base.index("}") + 1]
    ident = base[len(tag) + 1 :]
    if kind == "s" and redis.zscore(f"due:{tag}", f"expiry|{ident}|") is None:
        return "a session that never expires"
    if run_id and run_id != keyspace.owners[base]:
        waiting: list[bytes] = redis.lrange(f"w:{base}", 0, -1)
        if run_id.encode() not in waiting:
            return f"a run that is neither open nor waiting: {redis.hget(f'r:{rest}', 'status')}"
    return ""


def _stray_sessions(redis: Redis, name: str, keyspace: _Keyspace) -> list[str]:
    """Sessions that a user's index says are alive."""
    tag, _, rest = name.partition(":")[2].partition(":")
    tenant = rest.partition(":")[0]
    named = [member.decode() for member in redis.zrangebyscore(name, "inf", "inf")]
    gone = [each for each in named if f"{tag}:{tenant}:{each}" not in keyspace.owners]
    return [f"{name}: {each} is no more" for each in gone]


def _stray_dues(redis: Redis, name: str, keyspace: _Keyspace) -> list[str]:
    wrong: list[str] = []
    tag = name.partition(":")[2]
    for member in redis.zrange(name, 0, -1):
        kind, ident, run_id = member.decode().split("|")
        base = f"{tag}:{ident}"
        if base not in keyspace.owners:
            wrong.append(f"{name}: {kind} of a session that is no more")
        elif run_id and redis.hget(f"r:{base}:{run_id}", "status") in (None, b"done"):
            wrong.append(f"{name}: {kind} of a run that is over")
    return wrong
