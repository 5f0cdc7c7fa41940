"""What all connections of a node share."""

from dataclasses import dataclass

from gateway.edges.principal import Authenticate
from gateway.session.hub import Hub
from gateway.session.outbox import LIMIT_BYTES
from gateway.session.ports import Clock
from gateway.session.probe import Probe, SocketProbe
from gateway.session.service import SessionService
from gateway.session.tracing import Tracer
from gateway.session.wheel import Wheel
from protocol.codec import MAX_CLIENT_FRAME_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one connection may do; the defaults are the documented ones."""

    frame_bytes: int = MAX_CLIENT_FRAME_BYTES
    outbox_bytes: int = LIMIT_BYTES
    open_timeout_s: float = 10.0
    stall_timeout_s: float = 30.0
    messages_per_s: int = 10
    message_burst: int = 20
    flood: int = 100
    heartbeat_s: float = 25.0
    resume_ttl_s: float = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """The parts of the node that a connection stands on."""

    service: SessionService
    hub: Hub
    probe: Probe
    sockets: SocketProbe
    wheel: Wheel
    clock: Clock
    limits: ConnectionLimits
    authenticate: Authenticate
    tracer: Tracer
