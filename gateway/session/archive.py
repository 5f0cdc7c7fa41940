"""The way of history: what the journals carry to the archive, what it answers, and the ports.

Times are milliseconds since the epoch, by Redis. JSON stays bytes: nobody on this way reads it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

from gateway.session.model import Closed, RunRef, SessionKey
from protocol.frames import OnDetach

# --- from the journals ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionBegun:
    """A session was created, or made live again from the archive."""

    key: SessionKey
    user: str
    agent: str
    metadata: bytes
    on_detach: OnDetach
    at_ms: int


@dataclass(frozen=True, slots=True)
class RunEnded:
    """A run is over.

    Attributes:
        kind: as in `Ending`; `code` is the error code for `X`.
        task: `run` or `resume`.
        claimed_ms: the first time; 0 when no worker ever got it.
        ended_ms: grows strictly within a session: the order of its runs, and of their messages.
        asked: the messages that it answers, and `said` what it says; each an AG-UI message. A run
            that restarts another asks nothing: the lost one did.
        event: the terminal AG-UI event, with `usage` as the agent reported it.
        state: the session's shared state after it, when it has one.
    """

    ref: RunRef
    user: str
    agent: str
    task: str
    kind: Literal["F", "I", "C", "X"]
    code: str
    created_ms: int
    claimed_ms: int
    ended_ms: int
    asked: list[bytes]
    said: list[bytes]
    event: bytes
    state: bytes | None


@dataclass(frozen=True, slots=True)
class SessionOver:
    """A session was closed for good, or expired (and may be made live again)."""

    key: SessionKey
    user: str
    status: Literal["completed", "expired"]
    at_ms: int


Record = SessionBegun | RunEnded | SessionOver


class EntryId(NamedTuple):
    """Where an entry stands: its partition's journal, and its id there."""

    partition: int
    id: str


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """An entry as it was read.

    Attributes:
        record: None when it cannot be understood.
        owner: whose it is then, session and user, as far as that can be read.
        known: False when it is of a kind that only a newer version knows.
    """

    id: EntryId
    record: Record | None
    owner: tuple[SessionKey, str] | None = None
    known: bool = True


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry that the archive refuses, set aside for an operator.

    Attributes:
        id: among the dead letters of its partition.
        fields: the entry as it was.
        why: the database's words.
        at_ms: when it was set aside.
    """

    id: EntryId
    fields: dict[str, str]
    why: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class JournalState:
    """All journals together.

    Attributes:
        entries: how many wait for the archive.
        oldest_ms: when the oldest was written; 0 when none waits.
        fill: the fullest partition's bytes, as a part of what it may have; from 1 on it takes no
            new messages.
        dead: how many dead letters there are.
    """

    entries: int = 0
    oldest_ms: int = 0
    fill: float = 0.0
    dead: int = 0


# --- from the archive -----------------------------------------------------------------------------

SessionStatus = Literal["active", "expired", "completed"]
"""`active` lives in Redis; an `expired` one is made live again by an `open`."""


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session as the archive has it. `ended_ms` is 0 unless it is completed."""

    key: SessionKey
    user: str
    agent: str
    status: SessionStatus
    metadata: bytes
    on_detach: OnDetach
    created_ms: int
    active_ms: int
    ended_ms: int
    runs: int
    messages: int


class SessionPosition(NamedTuple):
    """Where a page of sessions ends; the next begins behind it."""

    at_ms: int
    session_id: str


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions of a user are wanted.

    Attributes:
        order: newest first by creation (a list that does not move), or by last activity.
        created_from_ms, created_to_ms: a half-open interval of creation times.
    """

    agent: str | None = None
    status: SessionStatus | None = None
    created_from_ms: int | None = None
    created_to_ms: int | None = None
    order: Literal["created", "active"] = "created"


class MessagePosition(NamedTuple):
    """Where a message stands in its session: by the end of its run, and its place in it."""

    at_ms: int
    nth: int


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """A message of the transcript, with the run that asked or said it, and how that run ended.

    Attributes:
        json: the AG-UI message.
        kind, code: as in `RunEnded`; `kind` is empty while the run goes on.
    """

    position: MessagePosition
    run_id: str
    json: bytes
    kind: Literal["F", "I", "C", "X", ""]
    code: str


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the archive knows of a session that is made live again.

    Attributes:
        messages: the newest of the transcript, oldest first, as many as live sessions keep, each
            with its run id.
        state: the shared state, when there is one.
        begun_ms: when it was created, at first.
        last_end_ms: when its newest run ended; those to come end later, by whatever clock.
    """

    agent: str
    metadata: bytes
    on_detach: OnDetach
    messages: list[tuple[str, bytes]] = field(default_factory=list[tuple[str, bytes]])
    state: bytes | None = None
    begun_ms: int = 0
    last_end_ms: int = 0


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """What was used on one day (UTC, `YYYY-MM-DD`) of one agent and model.

    `model` is empty where the agent named none. Token counts are None where no run reported any.
    """

    day: str
    agent: str
    model: str
    runs: int
    input_tokens: int | None
    output_tokens: int | None


# --- ports ----------------------------------------------------------------------------------------


class Erasure(Protocol):
    """Removes what lives of a session, at once and for good.

    Raises (all): `Unavailable`.
    """

    async def sessions_of(self, tenant: str, user: str) -> list[SessionKey]:
        """Every session of a user that lives, ended ones that are still remembered too."""
        ...

    async def now_ms(self) -> int:
        """The time by the clock that sessions have theirs from; of several the earliest."""
        ...

    async def erase(self, key: SessionKey, user: str, *, call_id: str) -> Closed:
        """Ends the session and removes all that it has; its worker is told to stop.

        A tombstone stays, so that neither a node that follows it nor a late worker makes it again.
        Idempotent; `completed` as for `Sessions.close`.
        """
        ...

    async def settle(self, sessions: Sequence[SessionKey], user: str) -> None:
        """Returns when Redis has on its disk what was erased, is slow, or cannot tell."""
        ...


NOWHERE: Mapping[int, str] = MappingProxyType({})


class Journal(Protocol):
    """The outbox between live state and archive: one stream per partition, at least once, in order.

    An entry stays until it is forgotten or buried. Any node may read any partition.

    Raises (all): `Unavailable`.
    """

    async def read(
        self, partitions: Sequence[int], count: int, *, after: Mapping[int, str] = NOWHERE
    ) -> list[JournalEntry]:
        """At most `count` of the oldest entries of each partition, oldest first within each.

        `after`: partitions of which only what stands behind an entry is wanted.
        """
        ...

    async def sizes(self, partitions: Sequence[int]) -> list[int]:
        """About how many bytes wait in each of the partitions."""
        ...

    async def forget(self, entries: Sequence[EntryId]) -> None:
        """They are archived."""
        ...

    async def bury(self, entry: EntryId, why: str) -> None:
        """Sets an entry aside, since the archive will never take it: it becomes a dead letter."""
        ...

    async def state(self) -> JournalState:
        """How much waits, and for how long."""
        ...

    async def dead(self, count: int) -> list[DeadLetter]:
        """At most `count` dead letters, oldest first."""
        ...

    async def replay(self, letters: Sequence[EntryId]) -> int:
        """Puts dead letters back at the end of their journals. Answers how many."""
        ...

    async def drop_dead(self, tenant: str, user: str, session_id: str = "") -> int:
        """Removes the dead letters of a user, or of one session of theirs. Answers how many."""
        ...


class History(Protocol):
    """The archive, as others read it: what the journals brought there, for good.

    Raises (all): `Unavailable` when the database does not answer.
    """

    async def recall(
        self, key: SessionKey, user: str, *, creating: bool = False
    ) -> Recalled | None:
        """What an expired or lost session is made live again from.

        None when the archive does not know it, it is another user's, or it was erased. Raises
        `Refused` with `session_ended` when it was completed; who is `creating` it is told so of one
        that was erased, too, since nothing of it would ever be archived.
        """
        ...

    async def is_erased(self, key: SessionKey, user: str, begun_ms: int) -> bool:
        """Whether a tombstone names the session, or all of the user that was begun so early."""
        ...

    async def session(self, key: SessionKey, user: str) -> SessionRecord | None:
        """One session of the user; None as for `recall`."""
        ...

    async def sessions(
        self,
        tenant: str,
        user: str,
        chosen: SessionFilter,
        *,
        after: SessionPosition | None,
        limit: int,
    ) -> list[SessionRecord]:
        """At most `limit` sessions of the user behind a position, newest first."""
        ...

    async def messages(
        self, key: SessionKey, *, before: MessagePosition | None, limit: int
    ) -> list[MessageRecord]:
        """At most `limit` messages before a position (the newest by default), oldest first."""
        ...

    async def archived(self, key: SessionKey, run_ids: Sequence[str]) -> set[str]:
        """Those of the runs that are in the archive."""
        ...

    async def usage(
        self,
        tenant: str,
        *,
        first_day: str,
        last_day: str,
        agent: str | None = None,
        model: str | None = None,
    ) -> list[UsageRecord]:
        """Usage of a tenant from one day to another, both included, by day, agent and model."""
        ...

    async def erase(
        self, tenant: str, user: str, session_id: str = "", *, at_ms: int | None = None
    ) -> int:
        """Removes all of a user, or one session of theirs. Answers how many sessions.

        All of a user is what was begun up to `at_ms`, by the clock of the live sessions.
        A tombstone stays: what the journals bring later of it is dropped.
        """
        ...


class ArchiveProbe(Protocol):
    """Telemetry of the way to the archive, as one node sees it."""

    def journal(self, state: JournalState) -> None:
        """How much waits in all journals, as of now."""
        ...

    def archived(self, seconds: float) -> None:
        """A batch was brought to the archive in so many seconds."""
        ...
