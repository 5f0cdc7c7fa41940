"""A run's events on their way to Redis: gathered, numbered, bounded, sent one call after another.

The first delta of a message goes out at once; those that follow are gathered for a window and
joined into one event. Order is always kept: only neighbours are joined, and any other event sends
all that waits before it. One flusher per run does the sending; a delta costs no task.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from gateway.agents.backoff import persist
from gateway.agents.unfinished import Unfinished
from gateway.session.errors import Fenced, TooLarge, Unavailable
from gateway.session.model import AgentEvent, RunRef
from gateway.session.ports import RunQueue
from protocol.events import AgUiEvent, encode_event
from protocol.transcript import Transcript

JsonObject = dict[str, Any]

DELTAS: Final = {
    "TEXT_MESSAGE_CONTENT": "messageId",
    "TOOL_CALL_ARGS": "toolCallId",
    "REASONING_MESSAGE_CONTENT": "messageId",
}
"""Events whose `delta` continues the one before, and the field that says of what."""

BATCH_EVENTS = 200
BATCH_BYTES = 128 * 1024
"""What one `append` carries at most, so that no script call holds Redis for long."""

YIELD_S = 0.002
"""A writer in a tight loop lets others run after this time."""


@dataclass(slots=True)
class _Whole:
    """An event as it will be sent."""

    event: JsonObject
    json: bytes
    tokens: int

    @property
    def size(self) -> int:
        return len(self.json)


@dataclass(slots=True)
class _Delta:
    """Deltas of one message or tool call, to be joined."""

    kind: str
    key: str
    tokens: int
    size: int
    parts: list[str] = field(default_factory=list[str])

    def joined(self) -> _Whole:
        text = "".join(self.parts)
        if not text.isascii():
            # Half a surrogate pair is no text for JSON; two halves that came apart are joined.
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        event = {"type": self.kind, DELTAS[self.kind]: self.key, "delta": text}
        return _Whole(event, msgspec.json.encode(event), self.tokens)


class EventStream:
    """The events of one attempt at one run.

    Attributes:
        transcript: what the events that Redis took say.
        unfinished: what the events opened and did not close.
        ordinal: how many events Redis took: the number of the next.
    """

    def __init__(
        self,
        queue: RunQueue,
        ref: RunRef,
        claim_id: str,
        *,
        until: Callable[[], float],
        on_broken: Callable[[Exception], None],
        window_s: float,
        max_bytes: int = 256 * 1024,
        max_events: int = 1000,
    ) -> None:
        """Nothing is sent before `run`.

        Args:
            queue: where the events go.
            ref: the run.
            claim_id: the fence.
            until: the loop's time past which an unanswered call is not repeated.
            on_broken: told once why nothing more can be sent: `Fenced`, `TooLarge`, `Unavailable`.
            window_s: how long deltas are gathered.
            max_bytes: writers wait while more than this, or
            max_events: more than this many events, wait for Redis.
        """
        self.transcript = Transcript()
        self.unfinished = Unfinished()
        self.ordinal = 0
        self._queue = queue
        self._ref = ref
        self._claim_id = claim_id
        self._until = until
        self._on_broken = on_broken
        self._window_s = window_s
        self._max_bytes = max_bytes
        self._max_events = max_events
        self._clock = asyncio.get_running_loop().time
        self._waiting: deque[_Whole | _Delta] = deque()
        self._bytes = 0
        self._in_flight = 0
        self._flush_at = math.inf
        self._sent_at: dict[tuple[str, str], float] = {}
        self._yielded_at = -math.inf
        self._closed = False
        self._muted = False
        self._wake = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def begun(self) -> bool:
        """True once there was any event."""
        return bool(self.ordinal or self._in_flight or self._waiting)

    # --- writing --------------------------------------------------------------------------------

    async def put(self, event: AgUiEvent | JsonObject, tokens: int = 0) -> None:
        """Sends one event after all before it. Waits while too much waits for Redis."""
        await self._admit()
        self.add(event, tokens)

    def add(self, event: AgUiEvent | JsonObject, tokens: int = 0) -> None:
        """Like `put`, without waiting."""
        if self._muted:
            return
        if isinstance(event, dict):
            # A delta with members of its own stays as it is; they could not be joined.
            key = DELTAS.get(event["type"])
            if key is not None and len(event) == 3:
                self._add_delta(event["type"], event[key], event["delta"], tokens)
                return
            whole = _Whole(event, msgspec.json.encode(event), tokens)
        else:
            whole = _Whole(msgspec.to_builtins(event), encode_event(event), tokens)
        self.unfinished.note(whole.event)
        self._waiting.append(whole)
        self._bytes += whole.size
        self._flush_by(self._clock())

    async def delta(self, kind: str, key: str, text: str, tokens: int = 0) -> None:
        """Adds to a message or tool call; `kind` is one of `DELTAS`."""
        await self._admit()
        if not self._muted:
            self._add_delta(kind, key, text, tokens)

    def _add_delta(self, kind: str, key: str, text: str, tokens: int) -> None:
        tail = self._waiting[-1] if self._waiting else None
        if not (isinstance(tail, _Delta) and tail.key == key and tail.kind == kind):
            tail = _Delta(kind, key, 0, 0)
            self._waiting.append(tail)
            sent_at = self._sent_at.get((kind, key), -math.inf)
            self._flush_by(max(self._clock(), sent_at + self._window_s))
        tail.parts.append(text)
        tail.tokens += tokens
        tail.size += len(text)
        self._bytes += len(text)

    def _flush_by(self, time: float) -> None:
        if time < self._flush_at:
            self._flush_at = time
            self._wake.set()

    async def _admit(self) -> None:
        if self._muted or self._clock() - self._yielded_at > YIELD_S:
            await asyncio.sleep(0)
            self._yielded_at = self._clock()
        while not self._muted and (
            self._bytes > self._max_bytes or len(self._waiting) + self._in_flight > self._max_events
        ):
            self._room.clear()
            await self._room.wait()

    # --- sending --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Sends what is due until `close`, then the rest. Only one may run."""
        try:
            while await self._due():
                await self._send()
        except (Fenced, TooLarge, Unavailable) as error:
            self.mute()
            self._on_broken(error)

    async def flush(self) -> None:
        """Sends all that waits, when `run` is over.

        Raises:
            Fenced: another claim holds the run, or it is over.
            TooLarge: the run has reached its bound.
            Unavailable: Redis did not answer for too long.
        """
        while self._waiting:
            await self._send()

    def close(self) -> None:
        """No more writers: `run` sends the rest and returns."""
        self._closed = True
        self._wake.set()

    def mute(self) -> None:
        """Forgets what waits and takes nothing more."""
        self._muted = True
        self._waiting.clear()
        self._room.set()
        self.close()

    async def _due(self) -> bool:
        """Waits until something must be sent; False when nothing ever will."""
        while not self._closed and self._flush_at > self._clock():
            self._wake.clear()
            delay_s = None if self._flush_at == math.inf else self._flush_at - self._clock()
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._wake.wait()
        return bool(self._waiting)

    async def _send(self) -> None:
        batch = self._take()
        events = [AgentEvent(item.json, item.tokens) for item in batch]
        # A call that is repeated carries the same ordinal and the same events: applied once.
        await persist(
            lambda: self._queue.append(self._ref, self._claim_id, self.ordinal, events), self._until
        )
        self.ordinal += len(events)
        for item in batch:
            self.transcript.apply(item.event)
        self._in_flight = 0
        self._bytes = sum(item.size for item in self._waiting)
        self._room.set()

    def _take(self) -> list[_Whole]:
        now = self._clock()
        self._sent_at = {k: at for k, at in self._sent_at.items() if at + self._window_s > now}
        batch: list[_Whole] = []
        size = 0
        while self._waiting and len(batch) < BATCH_EVENTS and size < BATCH_BYTES:
            item = self._waiting.popleft()
            size += item.size
            if isinstance(item, _Delta):
                self._sent_at[item.kind, item.key] = now
                item = item.joined()
            batch.append(item)
        if not self._waiting:
            self._flush_at = math.inf
        self._in_flight = len(batch)
        return batch
