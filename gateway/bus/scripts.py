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

from loguru import logger
from redis.exceptions import NoScriptError, RedisError, ResponseError

from gateway.bus.connection import Client, in_time
from gateway.session.errors import Fenced, Refused, TooLarge, Unavailable
from protocol.codes import ErrorCode

Argument = str | bytes | int | float

FAULTS = (RedisError, OSError)
"""Faults of Redis or of the way to it: what was asked may or may not have happened."""

_ATTEMPTS = 3
_FIRST_PAUSE_S = 0.05
_PASSING = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY", "TRYAGAIN")
"""How the errors begin that a server answers while it changes its state."""
_EXPECTED = (*_PASSING, "MISCONF", "NOREPLICAS", "OOM")

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
        except FAULTS as error:
            if attempt == _ATTEMPTS - 1 or not _passes(name, error):
                raise Unavailable from None
        await asyncio.sleep(pause_s * (0.5 + random.random()))
        pause_s *= 4
    raise AssertionError("unreachable")


def _passes(name: str, error: Exception) -> bool:
    """Whether trying again at once may help."""
    if isinstance(error, TimeoutError):
        return False  # a server that stalls would only make the caller wait as long again
    if not isinstance(error, ResponseError):
        return True
    if not str(error).startswith(_EXPECTED):
        logger.bind(script=name, error=str(error)).error("Redis refused a script")
    return str(error).startswith(_PASSING)


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
