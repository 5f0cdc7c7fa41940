"""`RunQueue` on Redis: from accepted runs to workers, and a run's life in their hands."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.bus import keys
from gateway.bus.scripts import Argument, Scripts
from gateway.bus.sessions import encode_limits
from gateway.session.ids import uuid7
from gateway.session.model import AgentEvent, Claim, Ending, Lease, Limits, RunRef
from gateway.session.queues import Waiting

_SLACK_S = 60.0
"""How much longer than any run may wait its reference stays in a queue."""


class RedisRuns:
    """See `gateway.session.ports.RunQueue`."""

    def __init__(self, scripts: Scripts, limits: Limits) -> None:
        """`scripts` are shared with the other parts of the bus."""
        self._scripts = scripts
        self._limits = limits
        self._encoded_limits = encode_limits(limits)
        self._lease_ms = int(limits.lease_s * 1000)
        self._stale_ms = int((limits.queue_wait_s + _SLACK_S) * 1000)

    async def _call(self, name: str, ref: RunRef, *arguments: Argument) -> list[Any]:
        return await self._scripts.call(name, keys.session(ref.session), ref.run_id, *arguments)

    async def dispatch(self, ref: RunRef, agent: str) -> Waiting:
        """Puts a run into its tenant's queue of the agent, once, and rings."""
        depth, since = await self._scripts.call(
            "dispatch",
            keys.waiting(agent),
            keys.reference(ref),
            ref.tenant,
            self._stale_ms,
        )
        return Waiting(depth, int(since or 0))

    async def take(self, agent: str, count: int) -> list[RunRef]:
        """At most `count` waiting runs, fairly over the tenants."""
        answer = await self._scripts.call("take", keys.waiting(agent), count)
        return [keys.parse_reference(item.decode()) for item in answer]

    async def claim(
        self, ref: RunRef, worker_id: str, *, restartable: bool = False
    ) -> Claim | None:
        """Makes the run ours, or None when it is over, cancelled or another's."""
        answer = await self._call(
            "claim",
            ref,
            worker_id,
            self._lease_ms,
            int(self._limits.run_timeout_s * 1000),
            self._encoded_limits,
            int(restartable),
        )
        if not answer:
            return None
        attempt, claim_id, user, agent, run_input, state, metadata, task = answer[:8]
        traceparent, deadline_ms, now_ms, cancelled, messages = answer[8:]
        return Claim(
            ref=ref,
            agent=agent.decode(),
            user=user.decode(),
            attempt=int(attempt),
            claim_id=claim_id.decode(),
            messages=messages,
            run_input=run_input,
            state=state or None,
            metadata=msgspec.json.decode(metadata or b"{}", type=dict[str, Any]),
            task_type=task.decode(),
            traceparent=traceparent.decode(),
            deadline_ms=int(deadline_ms),
            now_ms=int(now_ms),
            cancelled=bool(cancelled),
        )

    async def renew(self, held: Sequence[tuple[RunRef, str]]) -> list[Lease]:
        """Extends the leases of (run, claim id) pairs; one answer each, in order."""
        answers = await asyncio.gather(
            *(self._call("renew", ref, claim_id, self._lease_ms) for ref, claim_id in held)
        )
        return [Lease(held=answer[0] > 0, cancelled=answer[0] == 2) for answer in answers]

    async def append(
        self, ref: RunRef, claim_id: str, ordinal: int, events: Sequence[AgentEvent]
    ) -> None:
        """Appends events; `ordinal` numbers the first of them within the claim, from 0."""
        pairs: list[Argument] = []
        for event in events:
            pairs += (event.tokens, event.json)
        await self._call(
            "append",
            ref,
            claim_id,
            ordinal,
            self._limits.run_events,
            self._limits.run_bytes,
            *pairs,
        )

    async def finish(
        self, ref: RunRef, claim_id: str, ordinal: int, ending: Ending
    ) -> tuple[RunRef, str] | None:
        """Ends the run. Answers the session's next run and its agent, to be dispatched."""
        answer = await self._call(
            "finish",
            ref,
            claim_id,
            ordinal,
            "worker",
            *finish_arguments(ending, self._encoded_limits),
        )
        next_id, agent = (item.decode() for item in answer)
        return (RunRef(ref.tenant, ref.session_id, next_id), agent) if next_id else None

    async def hand_back(self, ref: RunRef, claim_id: str) -> bool:
        """Gives back a run without agent events, for another worker."""
        queued, agent = await self._call("hand_back", ref, claim_id, self._encoded_limits)
        if queued:
            await self.dispatch(ref, agent.decode())
        return bool(queued)


def finish_arguments(ending: Ending, limits: bytes) -> list[Argument]:
    """What `finish.lua` takes after the fence."""
    pending_tools = msgspec.json.encode(ending.pending_tools) if ending.pending_tools else b""
    return [
        ending.kind,
        ending.event,
        "" if ending.output_tokens is None else ending.output_tokens,
        "" if ending.input_tokens is None else ending.input_tokens,
        ending.interrupts,
        pending_tools,
        ending.state or b"",
        ending.code,
        limits,
        uuid7(time.time_ns() // 1_000_000),
        "assistant" if any(map(_by_assistant, ending.messages)) else "-",
        *ending.messages,
    ]


class _Said(msgspec.Struct):
    role: Any = None


_said = msgspec.json.Decoder(_Said)


def _by_assistant(message: bytes) -> bool:
    """Not in the script: a message may be large, and nobody is served while it is read there."""
    return _said.decode(message).role == "assistant"
