"""All parts of the bus on one client."""

from gateway.bus.connection import Client, Reconnects
from gateway.bus.deadlines import RedisDeadlines
from gateway.bus.directory import RedisDirectory
from gateway.bus.erasure import RedisErasure
from gateway.bus.fleet import RedisAnnouncements
from gateway.bus.journal import RedisJournal
from gateway.bus.notices import RedisNotices
from gateway.bus.queues import RedisQueues
from gateway.bus.runs import RedisRuns
from gateway.bus.scripts import Scripts
from gateway.bus.sessions import RedisSessions
from gateway.session.model import Limits
from gateway.session.tracing import UNTRACED, CallTracer


class Bus:
    """The ports of the domain, implemented on one client. `notices.run` must be running."""

    def __init__(
        self,
        client: Client,
        limits: Limits,
        *,
        ack_replicas: int = 0,
        reconnects: Reconnects | None = None,
        tracer: CallTracer = UNTRACED,
    ) -> None:
        """`client` comes from `connection.create_client`, with `reconnects`; the caller closes it.

        What clients are told to be accepted, `ack_replicas` replicas have confirmed.
        """
        self.client = client
        self.reconnects = reconnects or Reconnects()
        self.limits = limits
        self.scripts = Scripts(client, tracer)
        self.sessions = RedisSessions(self.scripts, limits, ack_replicas=ack_replicas)
        self.runs = RedisRuns(self.scripts, limits)
        self.directory = RedisDirectory(self.scripts)
        self.queues = RedisQueues(self.scripts, self.directory)
        self.deadlines = RedisDeadlines(self.scripts, self.directory, limits)
        self.announcements = RedisAnnouncements(self.scripts, limits)
        self.journal = RedisJournal(self.scripts, limits)
        self.erasure = RedisErasure(self.scripts, ack_replicas=ack_replicas)
        self.notices = RedisNotices(client)
