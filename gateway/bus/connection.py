"""`REDIS_URL` to a client, and what is checked before anything is served."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakSet

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisClusterException, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.session.errors import CannotStart
from gateway.session.masking import mask
from gateway.session.patience import Patience

Client = Redis | RedisCluster

CLUSTER_SCHEME = "redis+cluster://"
SCHEMES = ("redis://", "rediss://", "unix://", CLUSTER_SCHEME)

_CONNECT_TIMEOUT_S = 2.0
_ANSWER_TIMEOUT_S = 3.0
_MAX_CONNECTIONS = 64
_MINIMUM_VERSION = (7, 0)


class UnusableRedis(CannotStart):
    """Redis cannot be used; the message is one line for a person."""


class Reconnects:
    """Counts connections that were made anew after they were lost.

    Attributes:
        count: of all that a client has. A subscriber's are new each time, and not among them.
    """

    def __init__(self) -> None:
        self.count = 0
        self._known: WeakSet[AbstractConnection] = WeakSet()

    async def on_connect(self, connection: AbstractConnection) -> None:
        """What redis-py calls in place of its own, with a connection whose socket is there."""
        await connection.on_connect()
        self.count += connection in self._known
        self._known.add(connection)


def create_client(url: str, reconnects: Reconnects | None = None) -> Client:
    """A client for `redis://`, `rediss://`, `unix://` or `redis+cluster://` (any one node of it).

    Its `reconnects` are counted where somebody wants to know.

    Raises:
        UnusableRedis: for another scheme or an unreadable URL.
    """
    options: dict[str, Any] = {
        "socket_connect_timeout": _CONNECT_TIMEOUT_S,
        # Not redis-py's own: before Python 3.12 its `asyncio.wait_for` around each send swallows a
        # cancellation that comes when the send is done, and the task never ends. See `in_time`.
        "socket_timeout": None,
        "socket_keepalive": True,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),  # repeating is ours: only we know what is idempotent
    }
    if url.startswith("unix://"):
        options.pop("socket_keepalive")
    try:
        if url.startswith(CLUSTER_SCHEME):
            plain = "redis://" + url.removeprefix(CLUSTER_SCHEME)
            cluster = RedisCluster.from_url(plain, max_connections=_MAX_CONNECTIONS, **options)
            if reconnects is not None:
                # It takes no such option, but hands what it has on to each node.
                for owner in (cluster.nodes_manager, *cluster.startup_nodes):
                    owner.connection_kwargs["redis_connect_func"] = reconnects.on_connect
            return cluster
        if not url.startswith(SCHEMES):
            raise UnusableRedis(f"REDIS_URL={mask(url)}: must begin with {', '.join(SCHEMES)}")
        if reconnects is not None:
            options["redis_connect_func"] = reconnects.on_connect
        # The pool makes callers wait instead of failing when all connections are in use.
        pool = BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
            url, max_connections=_MAX_CONNECTIONS, timeout=_ANSWER_TIMEOUT_S, **options
        )
    except ValueError as error:
        raise UnusableRedis(f"REDIS_URL={mask(url)}: {error}") from None
    return Redis.from_pool(pool)


def in_time() -> Patience:
    """Bounds the wait for an answer; to be entered around every call of the client.

    Raises:
        TimeoutError: the answer did not come; what was asked may have happened.
    """
    return Patience(_ANSWER_TIMEOUT_S)


def create_connection(client: Client, channel: str) -> AbstractConnection:
    """A connection of its own to the server that carries `channel`, not yet connected."""
    if isinstance(client, RedisCluster):
        node: Any = client.get_node_from_key(channel)
        return node.connection_class(**node.connection_kwargs)
    pool: Any = client.connection_pool
    return pool.make_connection()


def server_of(client: Client, key: str) -> str:
    """A name of the server that has `key`, to tell it from others."""
    node: Any = client.get_node_from_key(key) if isinstance(client, RedisCluster) else None
    return node.name if node else ""


@asynccontextmanager
async def same_connection(client: Client, key: str) -> AsyncGenerator[AbstractConnection]:
    """A pooled connection to the server that has `key`, for commands that must share it.

    Every answer must be read before it is left, or it must be left by an exception.
    """
    if isinstance(client, RedisCluster):
        await client.initialize()
        node: Any = client.get_node_from_key(key)
        connection: AbstractConnection = node.acquire_connection()
        try:
            await node.disconnect_if_needed(connection)
            yield connection
        finally:
            node.release(connection)
    else:
        pool: Any = client.connection_pool
        connection = await pool.get_connection()
        try:
            yield connection
        finally:
            await pool.release(connection)


async def check_server(client: Client, url: str) -> int:
    """Checks that the server answers, is recent enough and never evicts. Answers its replicas.

    Raises:
        UnusableRedis: when not.
    """
    where = f"REDIS_URL={mask(url)}"
    try:
        try:
            info = await _info(client)
        except RedisTimeoutError:  # of connecting, while perhaps we stood still ourselves
            info = await _info(client)
    except AuthenticationError as error:
        raise UnusableRedis(f"{where}: the server refuses the credentials ({error})") from None
    except (RedisError, RedisClusterException, OSError) as error:
        raise UnusableRedis(f"{where}: no usable answer ({_one_line(error)})") from None
    version = str(info.get("valkey_version") or info.get("redis_version") or "0.0")
    if tuple(int(part) for part in version.split(".")[:2]) < _MINIMUM_VERSION:
        raise UnusableRedis(f"{where}: server version {version}, but 7.0 or later is needed")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise UnusableRedis(
            f"{where}: maxmemory-policy is {policy}, but must be noeviction"
            " (an evicted key would be a lost message)"
        )
    return int(info.get("connected_slaves", 0))


async def _info(client: Client) -> dict[str, Any]:
    async with in_time():
        if isinstance(client, RedisCluster):
            await client.initialize()
            node: Any = client.get_default_node()
            return await client.info(target_nodes=node)  # pyright: ignore[reportUnknownMemberType]
        return await client.info()  # pyright: ignore[reportUnknownMemberType]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
