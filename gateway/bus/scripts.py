"""The Lua scripts of `scripts/`: loaded once, called by SHA, repeated when an answer is lost.

A file begins with `#!lua`; without that line Cluster would not reject undeclared cross-slot keys.
Session scripts get the files of `_SHARED` after their first line.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple, cast

from loguru import logger
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    InvalidResponse,
    MaxConnectionsError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.bus import keys
from gateway.bus.connection import Client, in_time, same_connection
from gateway.session.breaker import Breaker, BreakerState
from gateway.session.context import OF_NOBODY
from gateway.session.errors import Fenced, Refused, Rejected, TooLarge, Unavailable
from gateway.session.probe import UNHEARD, ServiceError, ServiceProbe
from gateway.session.tracing import UNTRACED, CallTracer
from protocol.codes import ErrorCode

Argument = str | bytes | int | float

FAULTS = (RedisError, RedisClusterException, OSError)
"""Faults of Redis or of the way to it: what was asked may or may not have happened."""

_THRESHOLD = 2
"""A call has tried three times, or for three seconds. On an idle node only beat and sweep ask."""
_PAUSE_S = 1.0
"""Redis is asked anew after this; a node's beat, once a second, is the one that asks."""
_PROBE_S = 4.0
_CONFIRM_MS = 1000
"""How long the replicas may take; less than what bounds the whole call."""
_FLUSH_MS = 2000
"""How long the disk is waited for; usually it has everything within a second."""
_WAITING = 32
"""Calls that wait for replicas or the disk hold a connection each; some are left to the others."""

_ATTEMPTS = 3
_FIRST_PAUSE_S = 0.05
_PASSING = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY", "TRYAGAIN")
"""The first words of errors that a server answers while it changes its state."""
_EXPECTED = (*_PASSING, "MISCONF", "NOREPLICAS", "OOM")

_STANDALONE = {
    *("dispatch", "take", "presence", "beat", "announce", "survey", "withdraw"),
    *("forget", "bury", "replay", "drop_dead", "journal_state"),
}
_SHARED = ("lib", "journal", "runs")


@cache
def source(name: str) -> str:
    """The text of a script as the server gets it."""
    folder = files("gateway.bus") / "scripts"
    text = (folder / f"{name}.lua").read_text()
    if name in _STANDALONE:
        return text
    shebang, _, body = text.partition("\n")
    shared = (f"{(folder / f'{part}.lua').read_text()}\n" for part in _SHARED)
    return f"{shebang}\n{''.join(shared)}{body}"


@cache
def digest(name: str) -> str:
    """Its SHA-1, by which it is called."""
    return sha1(source(name).encode(), usedforsecurity=False).hexdigest()


class Scripts:
    """Redis as the parts of the bus ask it: one client, its scripts, one breaker.

    Attributes:
        breaker: opened by a streak of calls that Redis did not answer, closed by any answer.
        calls: told of each call.
    """

    def __init__(self, client: Client, tracer: CallTracer = UNTRACED) -> None:
        """`client` is shared by all parts of the bus."""
        self.client = client
        self.calls: ServiceProbe = UNHEARD
        self._tracer = tracer
        self.breaker = Breaker(
            time.monotonic,
            threshold=_THRESHOLD,
            pause_s=_PAUSE_S,
            most_s=_PAUSE_S,
            probe_s=_PROBE_S,
        )
        self.breaker.watch(_log_changes())
        self._waiting = asyncio.Semaphore(_WAITING)

    @asynccontextmanager
    async def asking(
        self, operation: str, tenant: str = "", *, probe: bool = False
    ) -> AsyncGenerator[None]:
        """To be entered around everything that Redis is asked; it bounds the wait.

        Args:
            operation: what it is asked, for telemetry,
            tenant: and for whom.
            probe: ask even while Redis is known to be away.

        Raises:
            Unavailable: Redis does not answer; what was asked may have happened.
            Rejected: it says that it cannot.
        """
        breaker = self.breaker
        if probe:
            breaker.probe()
        elif wait_s := breaker.admit():
            self.calls.failed(tenant, operation, 0.0, "circuit_open")
            raise Unavailable(retry_after_ms=int(wait_s * 1000) + 1)
        began = time.perf_counter()
        try:
            async with in_time():
                yield
        except Exception as error:
            fault = _understand(error)
            self._note(fault)
            self.calls.failed(tenant, operation, time.perf_counter() - began, fault.code)
            if fault.told is None:
                raise
            raise fault.told from None
        except BaseException:
            breaker.release()
            raise
        breaker.succeed()
        self.calls.called(tenant, operation, time.perf_counter() - began)

    def _note(self, fault: "_Fault") -> None:
        if fault.answered:
            self.breaker.succeed()
        elif fault.answered is None:
            self.breaker.release()
        else:
            self.breaker.fail()

    async def pipeline(self, operation: str, *commands: tuple[Argument, ...]) -> list[Any]:
        """What each of the commands answers; they only read, and may be of any slots.

        `operation` is what telemetry calls them.

        Raises:
            Unavailable: when Redis does not answer.
        """
        pipeline: Any = self.client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        async with self.asking(operation):
            return cast("list[Any]", await pipeline.execute())

    async def call(
        self, name: str, key: str, *arguments: Argument, replicas: int = 0, probe: bool = False
    ) -> list[Any]:
        """Runs a script on the slot of `key`, repeating it when the answer was lost.

        Args:
            name: the script.
            key: its only key.
            arguments: its arguments.
            replicas: so many must confirm what the script wrote.
            probe: see `asking`.

        Raises:
            Unavailable: when Redis does not answer, or too few replicas confirm; what was asked
                may have happened.
            Refused, Fenced, TooLarge: what the script says.
        """
        with self._tracer.calling("redis", name):
            async with self.asking(name, keys.tenant_of(key), probe=probe):
                answer = await self._repeat(name, key, arguments, replicas)
        return check(answer)

    async def _repeat(
        self, name: str, key: str, arguments: Sequence[Argument], replicas: int
    ) -> Any:
        pause_s = _FIRST_PAUSE_S
        for _ in range(_ATTEMPTS - 1):
            try:
                return await self._evaluate(name, key, arguments, replicas)
            except FAULTS as error:
                if not _passes(name, error):
                    raise
                if isinstance(error, ReadOnlyError) and isinstance(self.client, Redis):
                    # It is the primary no more, and keeps its connections. New ones lead to the
                    # one that is, where one address stands for both.
                    await self.client.connection_pool.disconnect(inuse_connections=False)
            await asyncio.sleep(pause_s * (0.5 + random.random()))
            pause_s *= 4
        return await self._evaluate(name, key, arguments, replicas)

    async def _evaluate(
        self, name: str, key: str, arguments: Sequence[Argument], replicas: int
    ) -> Any:
        try:
            if replicas:
                return await self._confirmed(replicas, key, "EVALSHA", digest(name), arguments)
            return await self.client.evalsha(digest(name), 1, key, *arguments)
        except NoScriptError:
            if replicas:
                return await self._confirmed(replicas, key, "EVAL", source(name), arguments)
            return await self.client.eval(source(name), 1, key, *arguments)

    async def _confirmed(
        self, replicas: int, key: str, command: str, script: str, arguments: Sequence[Argument]
    ) -> Any:
        """The answer, once the replicas have what the script wrote.

        WAIT speaks of the writes of its own connection. It is sent behind the script in one go, so
        it costs no round trip of its own.
        """
        async with self._waiting, same_connection(self.client, key) as connection:
            answers = await _ask(
                connection,
                (command, script, 1, key, *arguments),
                ("WAIT", replicas, _CONFIRM_MS),
            )
        await self._raise_refusals(answers)
        if answers[1] < replicas:
            raise Unavailable("too few replicas of the message store confirmed it in time")
        return answers[0]

    async def _raise_refusals(self, answers: Sequence[Any]) -> None:
        for answer in answers:
            if isinstance(answer, MovedError):
                await cast("Any", self.client).nodes_manager.move_slot(answer)
                raise ConnectionError("the slot has moved")
            if isinstance(answer, ResponseError):
                raise answer

    async def settle(self, name: str, key: str, *arguments: Argument) -> None:
        """Returns when the server of `key` has on its disk what it was told up to now.

        Not every server can say so: it takes Redis 7.2 or Valkey, with an append-only file that is
        flushed by policy. Others are not waited for, nor is a disk that takes too long: it is told
        of in the log.

        Args:
            name: a script that writes something whenever it is called: WAITAOF, as WAIT, speaks of
                the writes of its own connection.
            key: its key, and `arguments` its arguments.
            arguments: see `key`.

        Raises:
            Unavailable: Redis does not answer.
        """
        async with (
            self._waiting,
            self.asking("settle", keys.tenant_of(key)),
            same_connection(self.client, key) as connection,
        ):
            [policy] = await _ask(connection, ("CONFIG", "GET", "appendfsync"))
            if isinstance(policy, list) and b"no" in policy:
                return
            written, flushed = await _ask(
                connection,
                ("EVAL", source(name), 1, key, *arguments),
                ("WAITAOF", 1, 0, _FLUSH_MS),
            )
            await self._raise_refusals([written])
        if isinstance(flushed, list) and not flushed[0]:
            logger.bind(**OF_NOBODY).warning(
                "Redis has not yet written to its disk what was erased; it would come back if the"
                " power failed now"
            )


async def _ask(connection: AbstractConnection, *commands: tuple[Argument, ...]) -> list[Any]:
    """What the commands are answered, sent in one go; refusals among it."""
    await connection.send_packed_command(connection.pack_commands(commands))
    answers: list[Any] = []
    for _ in commands:
        try:
            answers.append(await connection.read_response())
        except ResponseError as error:  # the connection is well, and has the other answers
            answers.append(error)
    return answers


class _Fault(NamedTuple):
    """Why a call failed.

    Attributes:
        code: telemetry's word for it.
        answered: Redis is there, and says no. None: that it failed says nothing of it.
        told: what the caller is told instead, if he is.
    """

    code: ServiceError
    answered: bool | None
    told: Unavailable | None


def _understand(error: Exception) -> _Fault:
    match error:
        case ResponseError():  # a refusal is an answer
            return _Fault("rejected", True, Rejected())
        case Unavailable():
            return _Fault("rejected", True, None)
        case MaxConnectionsError():  # it is we who are busy
            return _Fault("internal", None, Unavailable())
        case TimeoutError() | RedisTimeoutError():
            return _Fault("timeout", False, Unavailable())
        case InvalidResponse():
            return _Fault("protocol", False, Unavailable())
        case RedisError() | RedisClusterException() | OSError():
            return _Fault("connection", False, Unavailable())
        case _:
            return _Fault("internal", None, None)


def _log_changes() -> Callable[[Breaker], None]:
    """One line when Redis goes and one when it is back, however many calls failed meanwhile."""
    known = BreakerState.CLOSED

    def note(breaker: Breaker) -> None:
        nonlocal known
        if breaker.state is BreakerState.OPEN and known is BreakerState.CLOSED:
            logger.bind(**OF_NOBODY).warning(
                "Redis does not answer; calls fail at once until it does"
            )
            known = BreakerState.OPEN
        elif breaker.state is BreakerState.CLOSED and known is BreakerState.OPEN:
            logger.bind(**OF_NOBODY).info("Redis answers again")
            known = BreakerState.CLOSED

    return note


def _passes(name: str, error: Exception) -> bool:
    """Whether trying again at once may help."""
    if not isinstance(error, ResponseError):
        return True
    # redis-py cuts the first word off where it has a class of its own for it.
    kind = error.status_code or str(error).partition(" ")[0]
    if kind not in _EXPECTED:
        logger.bind(script=name, error=str(error)).error("Redis refused a script")
    return kind in _PASSING


def check(answer: Any) -> list[Any]:
    """The answer as a list, or the refusal in it raised."""
    if not isinstance(answer, list):
        return [answer]
    items = cast("list[Any]", answer)
    if items and isinstance(items[0], bytes) and items[0].startswith(b"!"):
        code, message = items[0][1:].decode(), items[1].decode()
        if code == "fenced":
            raise Fenced
        if code == "run_too_large":
            raise TooLarge
        if code == ErrorCode.UNAVAILABLE:
            raise Rejected(message)
        raise Refused(ErrorCode(code), message)
    return items
