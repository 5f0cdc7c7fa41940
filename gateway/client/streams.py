"""Bounded buffers between the socket and who reads.

A buffer that somebody reads and that is full stops the socket. A run that nobody iterates must stop
nothing: it keeps its first events up to the bound, and past it says `HistoryReset` to whoever
iterates it later.
"""

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, Literal, TypeVar

from gateway.client.errors import HistoryReset

T = TypeVar("T")
JsonObject = dict[str, Any]

TERMINAL_TYPES = frozenset({"RUN_FINISHED", "RUN_ERROR"})


class Buffer(Generic[T]):
    """Items in order, then an end. `put` never waits: who fills it looks at `full` and waits."""

    def __init__(self, limit: int, on_room: Callable[[], None]) -> None:
        """`on_room` is called when it is no longer full."""
        self._limit = limit
        self._on_room = on_room
        self._items: deque[T] = deque()
        self._wake = asyncio.Event()
        self._ended = False
        self._failure: Callable[[], Exception] = StopAsyncIteration

    @property
    def full(self) -> bool:
        """True when no more should be put in."""
        return len(self._items) >= self._limit

    def put(self, item: T) -> None:
        """Adds an item; after the end, nothing."""
        if not self._ended:
            self._items.append(item)
            self._wake.set()

    def end(self, failure: Callable[[], Exception] = StopAsyncIteration) -> None:
        """Nothing more follows; `failure` makes what readers get then. The first end counts."""
        if not self._ended:
            self._ended, self._failure = True, failure
            self._wake.set()

    def clear(self) -> None:
        """Drops what is in it."""
        self._items.clear()
        self._on_room()

    async def get(self) -> T:
        """The next item. A cancelled call takes none."""
        while not self._items:
            if self._ended:
                raise self._failure()
            self._wake.clear()
            await self._wake.wait()
        was_full = self.full
        item = self._items.popleft()
        if was_full:
            self._on_room()
        return item


class Reader(Generic[T]):
    """An iteration over a buffer. It lasts as long as it is held: a loop that was left is over."""

    def __init__(self, buffer: Buffer[T], source: object = None) -> None:
        """`source` fills the buffer, and must live for that as long as this does."""
        self.buffer = buffer
        self._source = source

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        return await self.buffer.get()


class RunFeed:
    """The events of one run on their way to its handle."""

    def __init__(self, run_id: str, limit: int, on_room: Callable[[], None]) -> None:
        self.run_id = run_id
        self._on_room = on_room
        self._buffer: Buffer[JsonObject] = Buffer(limit, on_room)
        self._reader: weakref.ref[Reader[JsonObject]] | None = None

    @property
    def stalled(self) -> bool:
        """True when somebody reads, and slower than events come."""
        return self._buffer.full and self._is_read()

    def put(self, event: JsonObject) -> None:
        """Adds an event; the terminal one is the last."""
        if self._buffer.full and not self._is_read():
            self.fail("lagged")
            self._buffer.clear()
        self._buffer.put(event)
        if event.get("type") in TERMINAL_TYPES:
            self._buffer.end()

    def fail(self, reason: str) -> None:
        """What follows cannot be told event by event."""
        self._buffer.end(lambda: HistoryReset(reason))

    def end(self, failure: Callable[[], Exception]) -> None:
        """Nothing follows any more; unless the run was over, readers get the failure."""
        self._buffer.end(failure)

    def read(self) -> Reader[JsonObject]:
        """Begins, or goes on with, the iteration."""
        reader = Reader(self._buffer, self)
        on_room = self._on_room  # not by way of `self`: that would be a cycle
        self._reader = weakref.ref(reader, lambda _: on_room())
        return reader

    def _is_read(self) -> bool:
        return self._reader is not None and self._reader() is not None


class Run:
    """A run of this session: iterate it for its AG-UI events, until and with its terminal event.

    A connection that is lost in between changes nothing. The iteration raises `HistoryReset` when
    the events cannot be continued, and `Disconnected` when the session is out of reach before the
    run has ended. A loop that was left may be taken up again; one at a time.

    Attributes:
        run_id: its id.
        status: `accepted`; `queued` behind another run; `duplicate` when the server had the command
            already, as after a lost answer.
    """

    def __init__(self, feed: RunFeed, status: Literal["accepted", "queued", "duplicate"]) -> None:
        """Made by the session's commands."""
        self.run_id = feed.run_id
        self.status = status
        self._feed = feed

    def __aiter__(self) -> AsyncIterator[JsonObject]:
        return self._feed.read()
