"""A run queue for one run that keeps the port's promises: applied once, fenced, bounded."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.session.errors import Fenced, TooLarge, Unavailable
from gateway.session.model import AgentEvent, Claim, Ending, Lease, RunRef
from protocol.events import RunAgentInput

REF = RunRef("acme", "session-1", "run-1")


def user(text: str, message_id: str = "u1") -> dict[str, Any]:
    return {"id": message_id, "role": "user", "content": text}


def claim(
    *messages: dict[str, Any],
    new: int = 1,
    attempt: int = 1,
    state: Any = None,
    cancelled: bool = False,
    metadata: dict[str, Any] | None = None,
    timeout_s: float = 600,
    client_state: Any = msgspec.UNSET,
    **given: Any,
) -> Claim:
    """A claim on a run whose transcript is `messages`, the last `new` of them being its own."""
    messages = messages or (user("hello"),)
    run_input = RunAgentInput(
        REF.session_id, REF.run_id, list(messages[len(messages) - new :]), client_state, **given
    )
    return Claim(
        ref=REF,
        agent="test",
        user="ann",
        attempt=attempt,
        claim_id=f"{attempt}@1",
        messages=[msgspec.json.encode(message) for message in messages],
        run_input=msgspec.json.encode(run_input),
        state=None if state is None else msgspec.json.encode(state),
        metadata=metadata or {},
        task_type="run",
        traceparent="",
        deadline_ms=1_000_000 + int(timeout_s * 1000),
        now_ms=1_000_000,
        cancelled=cancelled,
    )


class Recorder:
    """Attributes:
    log: what Redis would hold.
    calls: (ordinal, events) of every `append` that arrived, repeated ones included.
    lose: how many of the next calls are applied, but their answer is lost.
    lose_endings: likewise, of the next calls of `finish`.
    refuse: how many of the next calls do not arrive at all.
    gate: cleared, appends wait.
    """

    def __init__(self, *, claim_id: str = "1@1", max_events: int = 50_000) -> None:
        self.log: list[AgentEvent] = []
        self.calls: list[tuple[int, list[AgentEvent]]] = []
        self.ending: Ending | None = None
        self.endings = 0
        self.handed_back = 0
        self.lose = 0
        self.lose_endings = 0
        self.refuse = 0
        self.fenced = False
        self.status = "running"
        self.gate = asyncio.Event()
        self.gate.set()
        self._claim_id = claim_id
        self._max_events = max_events
        self._busy = False
        self._grown = asyncio.Event()

    # --- what the tests look at ------------------------------------------------------------------

    @property
    def events(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(event.json) for event in self.log]

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    @property
    def text(self) -> str:
        return "".join(
            event["delta"] for event in self.events if event["type"] == "TEXT_MESSAGE_CONTENT"
        )

    @property
    def end(self) -> dict[str, Any]:
        assert self.ending is not None, "the run has not ended"
        return msgspec.json.decode(self.ending.event)

    @property
    def messages(self) -> list[dict[str, Any]]:
        assert self.ending is not None, "the run has not ended"
        return [msgspec.json.decode(message) for message in self.ending.messages]

    async def until(self, count: int) -> None:
        """Waits until the log holds that many events."""
        while len(self.log) < count:
            self._grown.clear()
            await self._grown.wait()

    # --- the port --------------------------------------------------------------------------------

    async def append(
        self, ref: RunRef, claim_id: str, ordinal: int, events: Sequence[AgentEvent]
    ) -> None:
        assert ref == REF
        assert not self._busy, "appends of a run are serial"
        self._busy = True
        try:
            await self.gate.wait()
            self._arrive(claim_id)
            self.calls.append((ordinal, list(events)))
            if ordinal > len(self.log):
                raise Fenced
            applied = len(self.log) - ordinal
            assert [*self.log[ordinal:], *events[applied:]] == list(events), "not the same events"
            if len(self.log) + len(events) - applied > self._max_events:
                raise TooLarge
            self.log += events[applied:]
            self._grown.set()
            self._answer()
        finally:
            self._busy = False

    async def finish(
        self, ref: RunRef, claim_id: str, ordinal: int, ending: Ending
    ) -> tuple[RunRef, str] | None:
        self._arrive(claim_id, over=True)
        if self.ending is None:
            if ordinal != len(self.log):
                raise Fenced
            self.ending = ending
        assert ending == self.ending
        self.endings += 1
        if self.lose_endings:
            self.lose_endings -= 1
            raise Unavailable
        return None

    async def hand_back(self, ref: RunRef, claim_id: str) -> bool:
        self._arrive(claim_id)
        if self.log or self.status != "running":
            return False
        self.handed_back += 1
        return True

    async def renew(self, held: Sequence[tuple[RunRef, str]]) -> list[Lease]:
        return [Lease(not self.fenced, self.status == "cancelling") for _ in held]

    async def dispatch(self, ref: RunRef, agent: str) -> None:
        raise NotImplementedError

    async def take(self, agent: str, count: int) -> list[RunRef]:
        raise NotImplementedError

    async def claim(self, ref: RunRef, worker_id: str) -> Claim | None:
        raise NotImplementedError

    def _arrive(self, claim_id: str, *, over: bool = False) -> None:
        if self.refuse:
            self.refuse -= 1
            raise Unavailable
        if self.fenced or claim_id != self._claim_id or (self.ending is not None and not over):
            raise Fenced

    def _answer(self) -> None:
        if self.lose:
            self.lose -= 1
            raise Unavailable
