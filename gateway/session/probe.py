"""Telemetry as the flow sees it: one verb per fact; what that moves, `gateway.telemetry` knows."""

from typing import Literal, Protocol

from gateway.session.model import Role, RunRef

Outcome = Literal["created", "resumed", "snapshot", "reset"]
"""How a client came into a session: into a new one, from its cursor, without one, or with one that
could not be continued."""

SessionEnd = Literal["completed", "expired", "failed"]
"""How a session ends: it was closed by client or API, nobody came for too long, or it broke."""

AuthFailure = Literal["bad_tenant", "unauthenticated", "forbidden"]
"""Why somebody may not be served."""

Handshake = Literal[
    "accepted",
    "bad_request",
    "draining",
    "failed",
    "forbidden",
    "not_found",
    "unsupported_version",
]
"""What becomes of a WebSocket handshake. `forbidden`: another site, or another name than ours;
`failed`: by a fault of ours."""

Disconnect = Literal[
    "bad_frame",
    "client",
    "draining",
    "forbidden",
    "internal",
    "lost",
    "no_open",
    "no_pong",
    "protocol_error",
    "rate_limited",
    "session_closed",
    "session_ended",
    "stalled",
    "too_big",
    "unauthenticated",
    "unavailable",
    "unknown_session",
    "unsupported_version",
]
"""What ended a WebSocket: `client` its close frame, `lost` neither side's; the rest is our reason.
`stalled`: it did not read; `unavailable`: it could not be served now."""

ServiceError = Literal["timeout", "connection", "protocol", "rejected", "circuit_open", "internal"]
"""Why a call of a service failed; `circuit_open`: it was not even asked, `internal`: it is we."""


class ServiceProbe(Protocol):
    """Telemetry of one service's calls. What its caller gives up is none.

    An empty `tenant` is everybody's. An `operation` is one of few names.
    """

    def called(self, tenant: str, operation: str, seconds: float) -> None:
        """It answered, be it with a refusal."""
        ...

    def failed(self, tenant: str, operation: str, seconds: float, error: ServiceError) -> None:
        """It did not."""
        ...


class _Unheard:
    """Implements `ServiceProbe` where nobody wants to know."""

    def called(self, tenant: str, operation: str, seconds: float) -> None: ...

    def failed(self, tenant: str, operation: str, seconds: float, error: ServiceError) -> None: ...


UNHEARD = _Unheard()
"""For a process that counts nothing."""


class SessionProbe(Protocol):
    """Telemetry of one session, bound once to its tenant and agent; each verb is one fact."""

    def created(self) -> None:
        """A new session."""
        ...

    def completed(self, status: SessionEnd, duration_s: float) -> None:
        """It ended."""
        ...

    def home_taken(self) -> None:
        """This node counts it from now on."""
        ...

    def home_left(self) -> None:
        """This node counts it no more."""
        ...

    def message_accepted(self, role: Role, seconds: float) -> None:
        """A message was read, accepted and acknowledged in so many seconds."""
        ...

    def tokens(self, output: int, into: int) -> None:
        """A frame with reported tokens passed."""
        ...

    def pushed(self, delivery_s: float, /) -> None:
        """A push came, so long after it was published."""
        ...

    def opened(self, outcome: Outcome, seconds: float) -> None:
        """Who asked for the session was answered after so many seconds."""
        ...

    def call_spared(self) -> None:
        """A message made no run, since its agent is left alone."""
        ...

    def run_claimed(self, waited_s: float) -> None:
        """A run got its first worker, so long after it was its turn."""
        ...

    def first_event(self, waited_s: float) -> None:
        """The agent's first event passed, so long after the message was accepted."""
        ...

    def run_ended(
        self,
        kind: str,
        role: str,
        code: str,
        task: str,
        took_s: float | None,
        delivery_s: float | None,
    ) -> None:
        """A terminal event passed; `kind`, `role`, `code` and `task` as in its `Entry`.

        `took_s` counts from the first claim; None when no worker ever had the run. `delivery_s`
        counts from the event to now; None when the event passed earlier, and is counted only now.
        """
        ...


class Probe(Protocol):
    """Telemetry, as the flow sees it."""

    def connection_opened(self, tenant: str) -> None:
        """A WebSocket has a principal and is open."""
        ...

    def connection_closed(self, tenant: str) -> None:
        """It is gone."""
        ...

    def writes_lost(self) -> None:
        """Redis lost writes of a session that this node follows; its clients are told."""
        ...

    def pubsub_gap(self) -> None:
        """The numbers of a session's pushes jumped."""
        ...

    def pubsub_repaired(self, events: int) -> None:
        """So many events came from the log, since their push had not come."""
        ...

    def breaker_moved(self, service: str, state: int, failures: int) -> None:
        """A service's breaker (0 closed, 1 half-open, 2 open), or its failures in a row, moved."""
        ...

    def agent_left_alone(self, tenant: str, agent: str) -> None:
        """A tenant's runs of an agent failed in a row: its breaker has opened."""
        ...

    def message_failed(self, tenant: str, role: Role, code: str, agent: str = "") -> None:
        """A frame or request was refused; role `system` where it was no message.

        `agent` is whom it was for, where that is known.
        """
        ...

    def run_forced(self, ref: RunRef, code: str) -> None:
        """This node ended a run whose deadline had passed."""
        ...

    def session(self, tenant: str, agent: str) -> SessionProbe:
        """Handles bound to one tenant and agent; cheap enough to keep one per session."""
        ...


class SocketProbe(Protocol):
    """Telemetry of the node's WebSockets, whoever they belong to."""

    def socket_opened(self) -> None:
        """A peer asks for a WebSocket."""
        ...

    def socket_closed(self) -> None:
        """Its transport is gone."""
        ...

    def handshake(self, result: Handshake) -> None:
        """It was accepted, or why not."""
        ...

    def disconnected(self, code: int, reason: Disconnect) -> None:
        """An accepted WebSocket ended, with a close code (1006: without one)."""
        ...

    def frame_received(self, size_bytes: int) -> None:
        """A data frame came."""
        ...

    def frames_sent(self, count: int, size_bytes: int) -> None:
        """So many data frames were handed to a socket."""
        ...

    def rate_limited(self) -> None:
        """A frame came too early."""
        ...
