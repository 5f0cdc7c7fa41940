"""The Lua scripts of `scripts/`: loaded once, called by SHA, repeated when an answer is lost.

A file begins with `#!lua`; without that line Cluster would not reject undeclared cross-slot keys.
Session scripts get `lib.lua` after their first line.
"""

import asyncio
import random
from collections.abc import Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, cast

from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MaxConnectionsError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    TimeoutError,
)

from gateway.bus.connection import Client, in_time
from gateway.session.errors import Fenced, Refused, TooLarge, Unavailable
from protocol.codes import ErrorCode

Argument = str | bytes | int | float

TRANSIENT = (
    ConnectionError,
    TimeoutError,
    BusyLoadingError,
    ClusterDownError,
    MaxConnectionsError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    OSError,
)
"""Faults that say nothing about what was asked: it may or may not have happened."""

_ATTEMPTS = 3
_FIRST_PAUSE_S = 0.05

_STANDALONE = {"dispatch", "take", "presence", "beat"}


@cache
def source(name: str) -> str:
    """The text of a script as the server gets it."""
    folder = files("gateway.bus") / "scripts"
    text = (folder / f"{name}.lua").read_text()
    if name in _STANDALONE:
        return text
    shebang, _, body = text.partition("\n")
    return f"{shebang}\n{(folder / 'lib.lua').read_text()}\n{body}"


@cache
def digest(name: str) -> str:
    """Its SHA-1, by which it is called."""
    return sha1(source(name).encode(), usedforsecurity=False).hexdigest()


async def call(client: Client, name: str, key: str, *arguments: Argument) -> list[Any]:
    """Runs a script on the slot of `key`, repeating it when the answer was lost.

    Raises:
        Unavailable: when Redis does not answer; what was asked may have happened.
        Refused, Fenced, TooLarge: what the script says.
    """
    pause_s = _FIRST_PAUSE_S
    for attempt in range(_ATTEMPTS):
        try:
            return check(await _evaluate(client, name, key, arguments))
        except TRANSIENT:
            if attempt == _ATTEMPTS - 1:
                raise Unavailable from None
        await asyncio.sleep(pause_s * (0.5 + random.random()))
        pause_s *= 4
    raise AssertionError("unreachable")


async def _evaluate(client: Client, name: str, key: str, arguments: Sequence[Argument]) -> Any:
    async with in_time():
        try:
            return await client.evalsha(digest(name), 1, key, *arguments)
        except NoScriptError:
            return await client.eval(source(name), 1, key, *arguments)


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
        raise Refused(ErrorCode(code), message)
    return items
