"""All parts of the bus on one client."""

from gateway.bus.connection import Client
from gateway.bus.deadlines import RedisDeadlines
from gateway.bus.directory import RedisDirectory
from gateway.bus.notices import RedisNotices
from gateway.bus.runs import RedisRuns
from gateway.bus.sessions import RedisSessions
from gateway.session.model import Limits


class Bus:
    """The ports of the domain, implemented on one client. `notices.run` must be running."""

    def __init__(self, client: Client, limits: Limits) -> None:
        """`client` comes from `connection.create_client`; the caller closes it."""
        self.client = client
        self.limits = limits
        self.sessions = RedisSessions(client, limits)
        self.runs = RedisRuns(client, limits)
        self.directory = RedisDirectory(client)
        self.deadlines = RedisDeadlines(client, self.directory, limits)
        self.notices = RedisNotices(client)
