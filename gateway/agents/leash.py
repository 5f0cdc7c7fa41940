"""A coroutine that can be let go of: however it holds on, no more of it runs."""

from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

from loguru import logger


class Leash:
    """Awaits a coroutine, in the task and context of whoever awaits the leash.

    Cancelling a task is a request, and code that swallows `CancelledError` refuses it. After
    `release` the next cancellation of the task is not handed on: the coroutine is closed instead,
    which runs its `finally` blocks up to their first `await`, and is not resumed again.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine = coroutine
        self._released = False

    def release(self) -> None:
        """To be followed by a cancellation of the task."""
        self._released = True

    def __await__(self) -> Generator[Any, Any, None]:
        step: Callable[[], Any] = partial(self._coroutine.send, None)
        while True:
            try:
                awaited = step()
            except StopIteration:
                return
            try:
                step = partial(self._coroutine.send, (yield awaited))
            except BaseException as error:
                if self._released:
                    self._close()
                    raise
                step = partial(self._coroutine.throw, error)

    def _close(self) -> None:
        try:
            self._coroutine.close()
        except Exception as error:  # noqa: BLE001 - what it says last does not matter any more
            logger.bind(error=str(error)).warning("the agent was let go in the middle of something")
