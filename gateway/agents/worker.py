"""The process that serves one agent: it claims runs, keeps their leases, and stops in order.

Nothing here dies of Redis: what does not answer is tried again, with jitter, and each change of
state is one log line.
"""

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress

from loguru import logger

from gateway.agents.backoff import Backoff, persist
from gateway.agents.execution import Execution, Following
from gateway.agents.sdk import Agent
from gateway.session.context import OF_NOBODY, log_context
from gateway.session.errors import Fenced, Unavailable
from gateway.session.model import Claim, RunRef, WorkerInfo
from gateway.session.ports import Directory, Notices, RunQueue
from gateway.session.tracing import UNTRACED, AgentTracer


class _Link:
    """Whether something answers, with one log line per change."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._up = True

    def up(self) -> None:
        if not self._up:
            self._up = True
            logger.bind(what=self._name, **OF_NOBODY).info("answers again")

    def down(self) -> None:
        if self._up:
            self._up = False
            logger.bind(what=self._name, **OF_NOBODY).warning("no answer; trying again")


class Worker:
    """Serves one agent until `stop`.

    Args:
        agent: what answers.
        queue, directory, notices: the bus.
        worker_id: names this worker; unique.
        slots: how many runs at a time.
        lease_s: how long a run is ours without a renewal; renewed at a third of it.
        poll_s: how often to look for runs although nothing rang.
        presence_s: how often to say that this worker lives.
        window_s: how long the SDK gathers deltas.
        patience_s: how long an agent may go on after the end of its run.
        tracer: traces its runs.
    """

    def __init__(
        self,
        agent: Agent,
        queue: RunQueue,
        directory: Directory,
        notices: Notices,
        *,
        worker_id: str,
        slots: int = 8,
        lease_s: float = 30.0,
        poll_s: float = 1.0,
        presence_s: float = 5.0,
        window_s: float = 0.04,
        patience_s: float = 5.0,
        tracer: AgentTracer = UNTRACED,
    ) -> None:
        self._agent = agent
        self._queue = queue
        self._directory = directory
        self._notices = notices
        self._worker_id = worker_id
        self._slots = slots
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._presence_s = presence_s
        self._window_s = window_s
        self._patience_s = patience_s
        self._tracer = tracer
        # What is ours: from `take` to the end, the claim included.
        self._refs: set[RunRef] = set()
        self._executions: set[Execution] = set()
        self._grace_s: float | None = None
        # Something happened that the main loop should look at: a ring, a free slot, `stop`.
        self._wake = asyncio.Event()
        self._log = logger.bind(worker_id=worker_id, agent_id=agent.name)
        self._redis = _Link("Redis")
        self._ring = _Link("Redis pub/sub")

    async def run(self) -> None:
        """Serves until `stop`; returns when the last run is over or handed back."""
        async with asyncio.TaskGroup() as group:
            listener = group.create_task(self._listen())
            announcer = group.create_task(self._announce())
            renewer = group.create_task(self._renew())
            await self._take_runs(group)
            listener.cancel()
            announcer.cancel()
            await self._drain()
            renewer.cancel()
        self._log.info("worker has stopped")

    def stop(self, grace_s: float = 30.0) -> None:
        """Takes nothing new, hands back what has not begun, and lets the rest finish.

        What is not done after the grace ends with `worker_lost`. May be called again, with a
        shorter grace.
        """
        self._grace_s = grace_s
        self._wake.set()

    # --- taking runs ----------------------------------------------------------------------------

    async def _take_runs(self, group: asyncio.TaskGroup) -> None:
        backoff = Backoff()
        while self._grace_s is None:
            self._wake.clear()
            wait_s = self._poll_s
            free = self._slots - len(self._refs)
            if free > 0:
                try:
                    taken = await self._queue.take(self._agent.name, free)
                except Unavailable:
                    self._redis.down()
                    wait_s = backoff.next_s()
                else:
                    self._redis.up()
                    backoff.reset()
                    # One that was dispatched twice is ours already: claiming it again would answer
                    # with the same claim, and two executions would hold it.
                    for ref in taken:
                        if ref not in self._refs:
                            self._refs.add(ref)
                            group.create_task(self._work(ref))
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def _listen(self) -> None:
        """Follows the agent's ring."""
        backoff = Backoff()
        while True:
            try:
                async with self._notices.agent_ring(self._agent.name, self._wake.set):
                    self._ring.up()
                    backoff.reset()
                    await _for_ever()
            except Unavailable:
                self._ring.down()
            await asyncio.sleep(backoff.next_s())

    # --- one run --------------------------------------------------------------------------------

    async def _work(self, ref: RunRef) -> None:
        with log_context(tenant_id=ref.tenant, session_id=ref.session_id, request_id=ref.run_id):
            try:
                following = await self._claim_and_run(ref)
                if following is not None:
                    await self._dispatch(*following)
            except (Unavailable, Fenced):
                # Its deadlines are in Redis: it comes to another worker, or to this one again.
                logger.warning("run left: Redis did not answer")
            except Exception:  # noqa: BLE001 (one run that breaks us must not end the others)
                logger.exception("run left: the worker failed")
            finally:
                self._refs.discard(ref)
                self._wake.set()

    async def _claim_and_run(self, ref: RunRef) -> Following:
        lease_until = self._now() + self._lease_s
        claim = await persist(
            lambda: self._queue.claim(ref, self._worker_id, restartable=self._agent.restartable),
            lambda: lease_until if self._grace_s is None else -math.inf,
        )
        if claim is None:
            return None
        with self._tracer.processing(claim) as span:
            execution, following = await self._run(claim)
            if execution.failure:
                span.fail(execution.failure)
        return following

    async def _run(self, claim: Claim) -> tuple[Execution, Following]:
        execution = self._begin(claim)
        try:
            async with asyncio.TaskGroup() as group:
                follower = group.create_task(self._follow(execution))
                following = await execution.run()
                follower.cancel()
            return execution, following
        finally:
            self._executions.discard(execution)

    def _begin(self, claim: Claim) -> Execution:
        execution = Execution(
            self._agent,
            claim,
            self._queue,
            window_s=self._window_s,
            patience_s=self._patience_s,
            tracer=self._tracer,
        )
        self._executions.add(execution)
        if self._grace_s is not None:
            execution.hand_back()
        return execution

    async def _follow(self, execution: Execution) -> None:
        """Hears cancellations while the run runs; the renewals bring them, too, only later."""

        def on_cancel(run_id: str) -> None:
            if run_id == execution.ref.run_id:
                execution.cancel()

        backoff = Backoff()
        while True:
            with suppress(Unavailable):
                async with self._notices.session_control(execution.ref.session, on_cancel):
                    # A cancel between the claim and the subscription would be heard by nobody.
                    await self._renew_leases([execution])
                    await _for_ever()
            await asyncio.sleep(backoff.next_s())

    async def _dispatch(self, ref: RunRef, agent: str) -> None:
        # Not for ever: the run's dispatch deadline is in Redis, and any node acts on it.
        until = self._now() + self._poll_s
        await persist(lambda: self._queue.dispatch(ref, agent), lambda: until)

    # --- leases and presence --------------------------------------------------------------------

    async def _renew(self) -> None:
        backoff = Backoff()
        while True:
            await asyncio.sleep(self._lease_s / 3)
            held = list(self._executions)
            while held:
                try:
                    await self._renew_leases(held)
                except Unavailable:
                    self._redis.down()
                    await asyncio.sleep(min(backoff.next_s(), self._lease_s / 3))
                    held = list(self._executions)
                else:
                    self._redis.up()
                    backoff.reset()
                    break

    async def _renew_leases(self, held: Sequence[Execution]) -> None:
        leases = await self._queue.renew([(each.ref, each.claim_id) for each in held])
        for execution, lease in zip(held, leases, strict=True):
            if not lease.held:
                execution.fence()
            elif lease.cancelled:
                execution.cancel()

    async def _announce(self) -> None:
        known = False
        while True:
            try:
                await self._directory.announce(self._presence())
            except Unavailable:
                self._redis.down()
            else:
                self._redis.up()
                if not known:  # from now on a client can open a session with it
                    known = True
                    self._log.bind(slots=self._slots).info("worker serves")
            await asyncio.sleep(self._presence_s)

    def _presence(self) -> WorkerInfo:
        return WorkerInfo(self._worker_id, self._agent.info, self._slots, len(self._refs))

    # --- stopping -------------------------------------------------------------------------------

    async def _drain(self) -> None:
        stopped_at = self._now()
        for execution in self._executions:
            execution.hand_back()
        with suppress(Unavailable):
            await self._directory.retire(self._presence())
        self._log.bind(busy=len(self._refs)).info("worker stops; its runs finish")
        while self._refs and self._now() < stopped_at + (self._grace_s or 0):
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(stopped_at + (self._grace_s or 0)):
                    await self._wake.wait()
        for execution in self._executions:
            execution.abandon()
        while self._refs:
            self._wake.clear()
            await self._wake.wait()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()
