"""Telemetry as the flow sees it: one verb per fact; what that moves, `gateway.telemetry` knows."""

from typing import Literal, Protocol

from gateway.session.model import Role

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


class SessionProbe(Protocol):
    """Telemetry of one session, bound once to its tenant and agent; each verb is one fact."""

    def created(self) -> None:
        """A new session."""
        ...

    def completed(
        self, status: Literal["completed", "expired", "failed"], duration_s: float
    ) -> None:
        """It ended: closed by client or API, expired, or failed."""
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

    def run_ended(self, role: str, delivery_s: float) -> None:
        """A terminal event passed; `role` is `assistant` when the run left a message."""
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

    def session(self, tenant: str, agent: str) -> SessionProbe:
        """Handles bound to one tenant and agent; cheap enough to keep one per session."""
        ...
