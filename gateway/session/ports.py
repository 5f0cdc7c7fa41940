"""What the domain needs from the outside. Each port's docstring states its guarantee."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from gateway.session.archive import Recalled
from gateway.session.model import (
    Accepted,
    Advanced,
    AgentEvent,
    AgentInfo,
    AgentStatus,
    Claim,
    Closed,
    Due,
    Ending,
    Lease,
    LogPage,
    NewAnswer,
    NewMessage,
    NewToolResult,
    RunRef,
    Seen,
    SessionKey,
    SessionView,
    SnapshotSource,
    WorkerInfo,
)
from gateway.session.queues import Waiting
from protocol.frames import Cursor, OnDetach


class Sessions(Protocol):
    """A session's live state, for the node that serves its clients.

    Every call is one atomic step in the session's partition and is safe to repeat. What it
    confirmed survives whatever dies but Redis itself.

    Raises (all): `Unavailable`, and `Refused` with the code of the table of states.
    """

    async def open(
        self,
        key: SessionKey,
        user: str,
        *,
        node: str,
        agent: str | None = None,
        metadata: dict[str, Any] | None = None,
        dead_home: str = "",
        on_detach: OnDetach = "continue",
        attending: bool = False,
        digest: str = "",
        recalled: Recalled | None = None,
    ) -> SessionView:
        """Creates the session (`agent` given) or finds it; takes its home when it has none.

        With an empty `node` it only looks: no home is taken and no life prolonged. `recalled` is
        what a session begins with that the archive knows; it was created before, and nobody
        creates it anew in between.

        `dead_home` names a node that is known to be dead: its home is taken over. `attending` says
        that the node has clients on the session: a session that was created with `on_detach`
        `cancel` keeps its open run only while some node says so, at least once a resume grace.
        `digest` is of what is to be created: a session that was made of something else is
        `id_conflict`.
        """
        ...

    async def accept(self, new: NewMessage | NewAnswer | NewToolResult) -> Accepted:
        """Makes exactly one run per frame id; the same id again answers `duplicate`."""
        ...

    async def cancel(
        self, key: SessionKey, user: str, run_id: str | None, *, frame_id: str
    ) -> Accepted:
        """Cancels the run (the open one by default), or abandons what awaits input.

        Once per frame id: a repetition answers `duplicate`, and cannot hit the next run.
        """
        ...

    async def close(
        self, key: SessionKey, user: str, *, call_id: str = "", again: bool = False
    ) -> Closed:
        """Ends the session; its open run is cancelled.

        `again` ends nothing, it only tells what became of the call of that id.
        """
        ...

    async def read(
        self, key: SessionKey, after: Cursor, count: int, *, seen: Seen | None = None
    ) -> LogPage:
        """The log after a cursor, at most `count` entries and some 256 KiB.

        A page may be shorter than `count` while more follows: the end is reached when its last
        entry is `last_seq`. Works for an ended session, too. A cursor ahead of the log proves that
        Redis lost writes, and a new epoch begins; so does another event at the cursor than was
        `seen`, or a run that is not known any more.
        """
        ...

    async def snapshot(self, key: SessionKey) -> SnapshotSource | None:
        """All that a newcomer must know, in one consistent read; None when there is no session."""
        ...

    async def leave(self, key: SessionKey, node: str, *, counted_seq: int) -> bool:
        """Gives up the home, which has counted so far. True when `node` held it.

        Followers get the push `home`.
        """
        ...


class Deadlines(Protocol):
    """Due times, on Redis's clock. Any node may act on any; acting is idempotent."""

    async def due(self, limit: int) -> list[Due]:
        """Due times that have passed, over all partitions."""
        ...

    async def advance(self, due: Due) -> Advanced:
        """Acts on one due time if it still holds, else does nothing."""
        ...

    async def end_by_force(
        self, ref: RunRef, claim_id: str, ordinal: int, code: str, ending: Ending
    ) -> RunRef | None:
        """Ends a run whose deadline has passed, fenced by claim and ordinal.

        Returns the session's next run, which wants a worker. Raises `Fenced` when the worker came
        back in the meantime.
        """
        ...

    async def beat(self, node: str) -> dict[str, bool]:
        """Says that this node lives. Answers the nodes known, and whether each is alive."""
        ...


class Dispatcher(Protocol):
    """The way of accepted runs to where workers look for them. Raises `Unavailable`."""

    async def dispatch(self, ref: RunRef, agent: str) -> object:
        """Puts a run into its tenant's queue of the agent, once, and rings."""
        ...


class RunQueue(Protocol):
    """The way from accepted runs to workers, and a run's life in the hands of its worker.

    At most one claim holds a run. Every call may be repeated after a lost answer and is applied
    once. Raises `Unavailable` when Redis does not answer, `Fenced` when the claim is stale.
    """

    async def dispatch(self, ref: RunRef, agent: str) -> Waiting:
        """Puts a run into its tenant's queue of the agent, once, and rings. Answers the queue."""
        ...

    async def take(self, agent: str, count: int) -> list[RunRef]:
        """At most `count` waiting runs, fairly over the tenants; each must be claimed at once."""
        ...

    async def claim(
        self, ref: RunRef, worker_id: str, *, restartable: bool = False
    ) -> Claim | None:
        """Makes the run ours, or None when it is over, cancelled or another's.

        If we are lost after its first event, and it is `restartable`, its end makes a new run.
        """
        ...

    async def renew(self, held: Sequence[tuple[RunRef, str]]) -> list[Lease]:
        """Extends the leases of (run, claim id) pairs; one answer each, in order."""
        ...

    async def append(
        self, ref: RunRef, claim_id: str, ordinal: int, events: Sequence[AgentEvent]
    ) -> None:
        """Appends events; `ordinal` numbers the first of them within the claim, from 0.

        Raises `TooLarge` when the run has reached its bound (nothing of the call is applied).
        """
        ...

    async def finish(
        self, ref: RunRef, claim_id: str, ordinal: int, ending: Ending
    ) -> tuple[RunRef, str] | None:
        """Ends the run. Answers the session's next run and its agent, to be dispatched."""
        ...

    async def hand_back(self, ref: RunRef, claim_id: str) -> bool:
        """Gives back a run without agent events, for another worker. False when not held."""
        ...


class Directory(Protocol):
    """Which agents exist and who serves them. Eventually right: presence lasts 15 s."""

    async def announce(self, worker: WorkerInfo) -> None:
        """Says that a worker lives; to be repeated every 5 s."""
        ...

    async def retire(self, worker: WorkerInfo) -> None:
        """Says that a worker leaves."""
        ...

    async def agents(self) -> list[AgentStatus]:
        """All agents that ever announced themselves, with who serves them now."""
        ...

    async def find(self, name: str) -> AgentInfo | None:
        """One agent, from a short-lived cache."""
        ...


class Announcements(Protocol):
    """What the nodes of the fleet tell of themselves. It is gone when their beat is."""

    async def announce(self, node: str, address: str, summary: bytes) -> dict[str, str]:
        """Says where a node is and how it does; answers the addresses of all that live.

        A node that does not beat is not among them.
        """
        ...

    async def summaries(self) -> dict[str, bytes]:
        """What the nodes that live have said last."""
        ...


class Notices(Protocol):
    """Pub/sub: the fast path, at most once. Callbacks run on the loop and must not block.

    A subscription is confirmed by the server before the context is entered. After an interruption
    of the connection every subscription is made again, and `on_restored` (where given) is called.
    """

    def session_events(
        self,
        key: SessionKey,
        on_push: Callable[[bytes], None],
        on_restored: Callable[[], None],
    ) -> AbstractAsyncContextManager[None]:
        """The pushes of a session's log (`entry.parse_push`)."""
        ...

    def session_control(
        self, key: SessionKey, on_cancel: Callable[[str], None]
    ) -> AbstractAsyncContextManager[None]:
        """Cancellations within a session: the run id."""
        ...

    def agent_ring(
        self, agent: str, on_ring: Callable[[], None]
    ) -> AbstractAsyncContextManager[None]:
        """A ring whenever a run of the agent is waiting."""
        ...


Clock = Callable[[], float]
"""Seconds, monotonic."""
