"""The composition root: builds the parts and wires them through the ports of the domain.

A process is a node (`server.serve_node`) or a worker (`serve_agent`); both stop in order when told
to, and nothing of theirs outlives them.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from loguru import logger
from starlette.middleware import Middleware

from gateway import __version__
from gateway.agents.sdk import Agent
from gateway.agents.worker import Worker
from gateway.archive.archiver import Archiver
from gateway.bus import keys
from gateway.bus.bus import Bus
from gateway.edges import console, health, metrics, pages, websocket
from gateway.edges.api.routes import Parts
from gateway.edges.api.routes import routes as api_routes
from gateway.edges.applications import compose
from gateway.edges.edge import ConnectionLimits
from gateway.edges.http_metrics import HttpMetrics
from gateway.edges.principal import anonymous, counting
from gateway.edges.tracing import Traced
from gateway.session.beat import Beat
from gateway.session.breaker import BreakerState
from gateway.session.context import process_named
from gateway.session.deadlines import Sweep
from gateway.session.endings import Endings
from gateway.session.eraser import Eraser
from gateway.session.errors import Unavailable
from gateway.session.fleet import Fleet
from gateway.session.hub import Hub, HubTimes
from gateway.session.ids import uuid7
from gateway.session.model import Limits
from gateway.session.queues import Queues
from gateway.session.service import SessionService
from gateway.session.tracing import UNTRACED, AgentTracer, Tracer
from gateway.session.wheel import Wheel
from gateway.telemetry.console import Console
from gateway.telemetry.logs import current_logs
from gateway.telemetry.metrics import Telemetry
from gateway.telemetry.recorder import Recorder

if TYPE_CHECKING:
    from gateway.archive.archive import Archive

SPREAD_S = 5.0
"""The clients of a node that stops leave spread over this time, and those who had to leave at one
moment come back so."""


class Node:
    """One gateway node: its parts, and the application that uvicorn serves.

    Attributes:
        node_id: names this process among the nodes of the fleet, anew at each start.
        app: the ASGI application.
        telemetry: what it counts.
        admin_app: that of the admin port, if the node has one: metrics and console are on it alone.
    """

    def __init__(
        self,
        bus: Bus,
        archive: "Archive",
        limits: Limits,
        *,
        requires: Collection[str] = ("redis", "database"),
        tracer: Tracer = UNTRACED,
        url: str = "",
        admin_url: str | None = None,
    ) -> None:
        """`bus` and `archive` stay the caller's.

        The node is ready while what it `requires` is well. It tells the fleet that it serves `url`,
        and `admin_url` where it has an admin port.
        """
        self.node_id = uuid7(now_ms())
        self._bus = bus
        self._archive = archive
        self.telemetry = telemetry = Telemetry(
            version=__version__,
            sessions_capacity=limits.sessions_capacity,
            max_tenants=limits.label_tenants,
            max_agents=limits.label_agents,
            logs=current_logs(),
        )
        telemetry.follow("redis", bus.scripts.breaker)
        archive.database.watch(partial(telemetry.breaker_moved, "database"))
        bus.scripts.calls = telemetry.service("redis")
        archive.database.calls = telemetry.service("database")
        self._wheel = Wheel(time.monotonic, report)
        self._endings = Endings(
            sessions=bus.sessions,
            erasure=bus.erasure,
            probe=telemetry,
            clock=time.monotonic,
            report=report,
        )
        self._queues = Queues(
            dispatch=bus.runs.dispatch, queues=bus.queues, probe=telemetry.queues, report=report
        )
        eraser = Eraser(history=archive.history, journal=bus.journal, endings=self._endings)
        self._hub = Hub(
            sessions=bus.sessions,
            notices=bus.notices,
            recall=archive.history.recall,
            eraser=eraser,
            probe=telemetry,
            node=self.node_id,
            clock=time.monotonic,
            now_ms=now_ms,
            wheel=self._wheel,
            report=report,
            on_run_cut=self._queues.over,
            times=HubTimes(resume_grace_s=limits.resume_grace_s, node_lease_s=limits.node_lease_s),
            tracer=tracer,
        )
        self._archiver = Archiver(
            journal=bus.journal,
            prepare=archive.prepare,
            write=archive.writer.write,
            erased=archive.writer.erased,
            erase=eraser.erase_live,
            probe=telemetry,
            node=self.node_id,
            partitions=keys.PARTITIONS,
            clock=time.monotonic,
            report=report,
        )
        self._beat = Beat(
            deadlines=bus.deadlines,
            node=self.node_id,
            clock=time.monotonic,
            on_nodes=self._heard,
            report=report,
            lease_s=limits.node_lease_s,
            interval_s=min(1.0, limits.node_lease_s / 10),
        )
        self._sweep = Sweep(
            deadlines=bus.deadlines,
            sessions=bus.sessions,
            queue=self._queues,
            probe=telemetry,
            beat=self._beat,
            adopt=self._hub.take_home,
            report=report,
            lease_s=limits.lease_s,
            grace_s=limits.resume_grace_s,
            node_lease_s=limits.node_lease_s,
        )
        service = SessionService(
            sessions=bus.sessions,
            queue=self._queues,
            directory=bus.directory,
            hub=self._hub,
            endings=self._endings,
            history=archive.history,
            eraser=eraser,
            erasure=bus.erasure,
            journal=bus.journal,
            node=self.node_id,
            now_ms=now_ms,
            tracer=tracer,
        )
        authenticate = counting(anonymous, telemetry.auth_failed)
        self._edge = websocket.WebSocketEdge(
            service=service,
            hub=self._hub,
            probe=telemetry,
            sockets=telemetry.sockets,
            wheel=self._wheel,
            clock=time.monotonic,
            limits=ConnectionLimits(
                outbox_bytes=limits.outbox_bytes,
                stall_timeout_s=limits.stall_timeout_s,
                resume_ttl_s=limits.session_ttl_s,
            ),
            authenticate=authenticate,
            tracer=tracer,
        )
        self._readiness = health.Readiness(
            {"redis": self._check_redis, "database": archive.database.check},
            requires=requires,
            on_change=telemetry.readiness,
        )
        self._recorder = recorder = Recorder(
            telemetry.registry,
            node=self.node_id,
            url=url,
            address=urlsplit(admin_url or url).netloc,
            version=__version__,
            checks=lambda: self._readiness.checks,
            refresh=self._refresh_shown,
            now_ms=now_ms,
            report=report,
        )
        self._fleet = Fleet(
            announcements=bus.announcements,
            node=self.node_id,
            address=recorder.address,
            summary=lambda: msgspec.json.encode(recorder.summary()),
            clock=time.monotonic,
            report=report,
        )
        overview = Console(self._fleet, recorder.summary, time.monotonic)
        api = Parts(
            service=service,
            sessions=bus.sessions,
            archive=archive.history,
            directory=bus.directory,
            probe=telemetry,
            clock=time.monotonic,
            now_ms=now_ms,
        )
        self.app, self.admin_app = compose(
            clients=[
                *websocket.routes(self._edge),
                *api_routes(api, version=__version__, authenticate=authenticate),
                *pages.routes(),
            ],
            operators=[
                *metrics.routes(self._render_metrics, lambda: self._fleet.addresses),
                *console.routes(overview.state),
            ],
            probes=health.routes(self._readiness),
            admin_port=admin_url is not None,
            middleware=[
                Middleware(HttpMetrics, served=telemetry.http.served, clock=time.monotonic),
                Middleware(Traced, tracer=tracer),
            ],
        )

    def background(self) -> list[Coroutine[Any, Any, None]]:
        """What must run beside the server."""
        return [
            self._bus.notices.run(),
            self._hub.run(),
            self._beat.run(),
            self._sweep.run(),
            self._queues.run(),
            self._endings.run(),
            self._archiver.run(),
            self._archive.retention.run(),
            self._wheel.run(),
            self._readiness.run(),
            self.telemetry.watch_loop(report),
            self._recorder.run(),
            self._fleet.run(),
        ]

    @property
    def open_sockets(self) -> int:
        """WebSockets that are not gone."""
        return self._edge.open_sockets

    def drain(self, window_s: float) -> None:
        """The node is about to stop: it is not ready any more, takes no new sockets, and sends its
        clients away, spread over time and between runs. After the window comes `evacuate`.
        """
        self._readiness.drain()
        self.telemetry.draining()
        self._hub.drain()
        if window_s:
            self._edge.drain(min(SPREAD_S, window_s / 2))
        else:
            self.evacuate()

    def evacuate(self) -> None:
        """Sends away at once who is still there."""
        self._edge.evacuate(SPREAD_S)

    async def leave(self) -> None:
        """Gives up what this node holds, once its sockets are gone."""
        await self._hub.close()
        with suppress(Unavailable):  # then its lease tells
            await self._bus.deadlines.leave(self.node_id)

    def _heard(self, nodes: dict[str, bool], interrupted: bool, until: float) -> None:
        self._hub.heard(nodes, interrupted, until)
        self._archiver.heard(nodes)

    async def _render_metrics(self) -> tuple[bytes, str]:
        self._refresh()
        return await self.telemetry.render_in_turns()

    def _refresh(self) -> None:
        """Brings up to date what is not moved inline."""
        bus = self._bus
        self.telemetry.outbound(*self._edge.outbound())
        self.telemetry.redis(
            commands_up=bus.scripts.breaker.state is BreakerState.CLOSED,
            pubsub_up=bus.notices.up,
            reconnects=bus.reconnects.count,
            subscriber_reconnects=bus.notices.reconnects,
        )
        self._refresh_shown()

    def _refresh_shown(self) -> None:
        """That part of it which the console shows: it costs no look at every connection."""
        self._hub.breakers.look()
        self.telemetry.refresh()

    async def _check_redis(self) -> None:
        await self._bus.client.ping()  # pyright: ignore[reportUnknownMemberType]
        if not self._bus.notices.up:
            raise Unavailable("the subscriber is not connected")


async def serve_agent(
    bus: Bus,
    limits: Limits,
    agent: Agent,
    *,
    slots: int,
    grace_s: float,
    on_stop: Callable[[Callable[[], None]], None],
    tracer: AgentTracer = UNTRACED,
) -> None:
    """Serves an agent until it is told to stop; `on_stop` is handed the function that does so."""
    worker_id = uuid7(now_ms())
    worker = Worker(
        agent,
        bus.runs,
        bus.directory,
        bus.notices,
        worker_id=worker_id,
        slots=slots,
        lease_s=limits.lease_s,
        tracer=tracer,
    )
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        worker.stop(grace_s if asked == 1 else 0.0)

    on_stop(stop)
    with process_named(f"worker:{worker_id}"):
        async with asyncio.TaskGroup() as group:
            notices = group.create_task(bus.notices.run())
            await worker.run()
            notices.cancel()


def now_ms() -> int:
    """The wall clock, in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def report(what: str, error: Exception) -> None:
    """An unexpected fault that something survived."""
    logger.opt(exception=error).error("{}", what)
