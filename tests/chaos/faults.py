"""The faults, and the schedule that deals them out: each in turn, in the order of the seed."""

import asyncio
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from random import Random

from chaos.fleet import NODES, WORKERS, Fleet
from chaos.proxy import Mode
from chaos.tape import Fault

Do = Callable[["Breaker"], Awaitable[None]]


class Breaker:
    """Breaks a fleet, one thing after the other, and writes down what it did.

    Args:
        lease_s: the fleet's lease: what is stopped for less must cost no run.
        recovery_s: how long all is well between two faults, at most.
        say: is told of each fault.
    """

    def __init__(
        self,
        fleet: Fleet,
        random: Random,
        *,
        lease_s: float,
        recovery_s: float,
        say: Callable[[str], None],
    ) -> None:
        self.fleet = fleet
        self.random = random
        self.faults: list[Fault] = []
        self.lease_s = lease_s
        self._recovery_s = recovery_s
        self._say = say

    async def run(self, kinds: list[str]) -> None:
        """Does these, each with a time to recover.

        Raises:
            AssertionError: something did not survive.
        """
        for kind in kinds:
            began = time.monotonic()
            await FAULTS[kind](self)
            self._say(f"{self.faults[-1].kind} for {time.monotonic() - began:.1f} s")
            await self.fleet.healthy()
            await self.last(self._recovery_s * 0.4, self._recovery_s)

    @asynccontextmanager
    async def fault(self, kind: str, *stops: str, loses: bool = False) -> AsyncIterator[None]:
        """Something is broken inside of this."""
        at = time.time()
        # Noted when it begins already: what follows from it may be seen before it is over.
        self.faults.append(Fault(kind, at, at + 3600, stops, loses))
        number = len(self.faults) - 1
        yield
        self.faults[number] = Fault(kind, at, time.time(), stops, loses)

    async def last(self, shortest_s: float, longest_s: float) -> None:
        """Lets it be broken for a while."""
        await asyncio.sleep(self.random.uniform(shortest_s, longest_s))

    def node(self) -> str:
        """One of the nodes."""
        return f"node-{self.random.randrange(NODES)}"

    def worker(self) -> str:
        """One of the workers."""
        return f"worker-{self.random.randrange(WORKERS)}"


# --- processes ------------------------------------------------------------------------------------


async def _kill(breaker: Breaker, *names: str) -> None:
    async with breaker.fault(f"kill -9 {' and '.join(names)}", *names):
        for name in names:
            breaker.fleet.process(name).kill()
        await breaker.last(0.5, 3)
        for name in names:
            await breaker.fleet.start(name)


async def _drain(breaker: Breaker, name: str) -> None:
    async with breaker.fault(f"SIGTERM {name}", name):
        await breaker.fleet.drain(name)
        await breaker.fleet.start(name)


async def _stop(breaker: Breaker, name: str, shortest_s: float, longest_s: float) -> None:
    async with breaker.fault(f"SIGSTOP {name}", name):
        breaker.fleet.process(name).signal(signal.SIGSTOP)
        await breaker.last(shortest_s, longest_s)
        breaker.fleet.process(name).signal(signal.SIGCONT)


async def _net(breaker: Breaker, mode: Mode, name: str) -> None:
    # A worker that Redis does not hear for a lease loses its runs; one that is back before must
    # not.
    longest_s = breaker.lease_s * 0.5 if mode in ("hold", "delay") else breaker.lease_s * 1.5
    stops = () if mode in ("hold", "delay", "cut") else (name,)
    async with breaker.fault(f"net {mode} {name}", *stops):
        breaker.fleet.proxies.set(name, mode)
        if mode != "cut":
            await breaker.last(1.0, longest_s)
            breaker.fleet.proxies.set(name, "pass")


# --- Redis ----------------------------------------------------------------------------------------


async def _redis_pause(breaker: Breaker) -> None:
    """Also for longer than a lease: nobody could renew it, so nobody may be judged by it."""
    async with breaker.fault("SIGSTOP redis"):
        breaker.fleet.redis.pause()
        await breaker.last(breaker.lease_s * 0.5, breaker.lease_s * 1.5)
        breaker.fleet.redis.resume()


async def _redis_restart(breaker: Breaker) -> None:
    async with breaker.fault("SIGTERM redis"):
        await asyncio.to_thread(breaker.fleet.redis.stop)
        await breaker.last(0.5, breaker.lease_s * 1.2)
        await asyncio.to_thread(breaker.fleet.redis.start)


async def _redis_kill(breaker: Breaker) -> None:
    async with breaker.fault("kill -9 redis", loses=True):
        await asyncio.to_thread(breaker.fleet.redis.kill)
        await breaker.last(0.2, 2)
        await asyncio.to_thread(breaker.fleet.redis.start)


async def _redis_power_failure(breaker: Breaker) -> None:
    """The last second is gone, as `everysec` allows."""
    redis = breaker.fleet.redis
    async with breaker.fault("power failure redis", loses=True):
        before = redis.written()
        await breaker.last(0.3, 1.0)
        await asyncio.to_thread(redis.kill)
        redis.lose_since(before)
        await breaker.last(0.2, 2)
        await asyncio.to_thread(redis.start)


async def _redis_empty(breaker: Breaker) -> None:
    redis = breaker.fleet.redis
    async with breaker.fault("empty restart redis", loses=True):
        await asyncio.to_thread(redis.kill)
        redis.lose_all()
        await breaker.last(0.2, 2)
        await asyncio.to_thread(redis.start)


# --- the archive ----------------------------------------------------------------------------------


async def _archive_lock(breaker: Breaker) -> None:
    """Another process holds the database: history waits in Redis."""
    async with breaker.fault("lock archive"):
        with closing(sqlite3.connect(breaker.fleet.history, isolation_level=None)) as connection:
            connection.execute("PRAGMA busy_timeout = 10000")
            connection.execute("BEGIN IMMEDIATE")
            await breaker.last(3, 12)
            connection.execute("ROLLBACK")


FAULTS: dict[str, Do] = {
    "node_kill": lambda b: _kill(b, b.node()),
    "node_drain": lambda b: _drain(b, b.node()),
    "node_pause": lambda b: _stop(b, b.node(), 1, 5),
    "node_freeze": lambda b: _stop(b, b.node(), 11, 14),
    "node_hold": lambda b: _net(b, "hold", b.node()),
    "node_swallow": lambda b: _net(b, "swallow", b.node()),
    "node_deaf": lambda b: _net(b, "swallow_down", b.node()),
    "node_mute": lambda b: _net(b, "swallow_up", b.node()),
    "node_delay": lambda b: _net(b, "delay", b.node()),
    "node_cut": lambda b: _net(b, "cut", b.node()),
    "node_refuse": lambda b: _net(b, "refuse", b.node()),
    "worker_kill": lambda b: _kill(b, b.worker()),
    "worker_drain": lambda b: _drain(b, b.worker()),
    "worker_freeze": lambda b: _stop(b, b.worker(), b.lease_s * 1.2, b.lease_s * 1.6),
    "worker_hold": lambda b: _net(b, "hold", b.worker()),
    "worker_swallow": lambda b: _net(b, "swallow", b.worker()),
    "worker_deaf": lambda b: _net(b, "swallow_down", b.worker()),
    "worker_delay": lambda b: _net(b, "delay", b.worker()),
    "worker_cut": lambda b: _net(b, "cut", b.worker()),
    "worker_refuse": lambda b: _net(b, "refuse", b.worker()),
    "both_kill": lambda b: _kill(b, b.node(), b.worker()),
    "redis_pause": _redis_pause,
    "redis_restart": _redis_restart,
    "redis_kill": _redis_kill,
    "redis_power_failure": _redis_power_failure,
    "redis_empty": _redis_empty,
    "archive_lock": _archive_lock,
}
"""Every kind of fault."""


def schedule(random: Random) -> list[str]:
    """All kinds in a random order."""
    kinds = list(FAULTS)
    random.shuffle(kinds)
    return kinds
