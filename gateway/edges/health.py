"""`/health/liveness` and `/health/readiness`."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping

from loguru import logger
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.session.patience import Patience

OnChange = Callable[[bool, Mapping[str, str]], None]
"""Told whether the node is ready, and `ok` or `error` by dependency."""

Check = Callable[[], Awaitable[object]]
"""Returns when the dependency is well, raises when it is not."""

FALL = 2
"""So many failures in a row make a dependency ill; one success makes it well again."""

_FIRST_S = 0.05


class Readiness:
    """The state of the dependencies, looked at in the background: a probe never waits for them.

    All of them are shown; those that the node can work without need not be well.

    Attributes:
        draining: the node stops; it is not ready any more then.
    """

    def __init__(
        self,
        checks: Mapping[str, Check],
        *,
        requires: Collection[str] | None = None,
        interval_s: float = 2.0,
        timeout_s: float = 2.0,
        on_change: OnChange | None = None,
    ) -> None:
        """`requires` names those that must be well, by default all; `on_change` is told how things
        are at first, and whenever that changes.
        """
        self._checks = dict(checks)
        self._requires = frozenset(self._checks if requires is None else requires)
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._failures = dict.fromkeys(self._checks, 0)
        self._well: set[str] = set()  # until its first success each is ill
        self._on_change = on_change
        self.draining = False
        self._tell()

    def drain(self) -> None:
        """The node stops: it is not ready any more."""
        self.draining = True
        self._tell()

    @property
    def checks(self) -> dict[str, str]:
        """`ok` or `error` by dependency."""
        return {name: "ok" if name in self._well else "error" for name in self._checks}

    @property
    def ready(self) -> bool:
        """True when the node may be given clients."""
        return not self.draining and all(
            name in self._well for name in self._checks if name in self._requires
        )

    async def run(self) -> None:
        """Checks until it is cancelled; often at first: what is needed is about to be there."""
        wait_s = _FIRST_S
        while True:
            async with asyncio.TaskGroup() as tasks:
                for name, check in self._checks.items():
                    tasks.create_task(self._look(name, check))
            await asyncio.sleep(min(wait_s, self._interval_s))
            wait_s = min(wait_s * 2, self._interval_s)

    async def _look(self, name: str, check: Check) -> None:
        try:
            async with Patience(self._timeout_s):
                await check()
        except Exception as error:  # noqa: BLE001 - any failure means that it is not well
            self._failures[name] += 1
            if self._failures[name] == FALL:  # from the start, or having been well
                self._well.discard(name)
                self._tell()
                logger.bind(dependency=name, error=repr(error)).warning("dependency is ill")
            return
        self._failures[name] = 0
        if name not in self._well:
            self._well.add(name)
            self._tell()
            logger.bind(dependency=name).info("dependency is well")

    def _tell(self) -> None:
        if self._on_change is not None:
            self._on_change(self.ready, self.checks)


def routes(readiness: Readiness) -> list[Route]:
    """The health probes."""

    async def liveness(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_request: Request) -> Response:
        is_ready = readiness.ready
        return JSONResponse(
            {"status": "ok" if is_ready else "error", "checks": readiness.checks},
            200 if is_ready else 503,
        )

    return [Route("/health/liveness", liveness), Route("/health/readiness", ready)]
