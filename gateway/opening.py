"""Opens what a process stands on, as the settings say: Redis, and the archive's database."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from gateway.app import now_ms, report
from gateway.bus.bus import Bus
from gateway.bus.connection import Reconnects, check_server, create_client
from gateway.bus.embedded import embedded_server
from gateway.session.errors import CannotStart
from gateway.session.model import Limits
from gateway.session.tracing import UNTRACED, CallTracer
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.archive.archive import Archive


@asynccontextmanager
async def redis_url(settings: Settings) -> AsyncGenerator[str]:
    """The server to use: the configured one, or the embedded one for as long as we live.

    Raises:
        UnusableRedis: with one line for a person.
    """
    if settings.redis_url is not None:
        yield settings.redis_url
        return
    async with embedded_server(settings.data_dir) as url:
        # A worker in another directory would have a server of its own, and talk to nobody.
        place = str(settings.data_dir.resolve())
        logger.bind(GATEWAY_DATA_DIR=place).info("uses the embedded server of its data directory")
        yield url


@asynccontextmanager
async def open_bus(
    url: str, limits: Limits, *, ack_replicas: int = 0, tracer: CallTracer = UNTRACED
) -> AsyncGenerator[Bus]:
    """A bus on a server that has been checked.

    Raises:
        UnusableRedis: with one line for a person.
    """
    reconnects = Reconnects()
    client = create_client(url, reconnects)
    try:
        replicas = await check_server(client, url)
        if replicas < ack_replicas:
            logger.bind(GATEWAY_ACK_REPLICAS=ack_replicas, replicas=replicas).warning(
                "Redis has fewer replicas than must confirm a message: all will be unavailable"
            )
        yield Bus(client, limits, ack_replicas=ack_replicas, reconnects=reconnects, tracer=tracer)
    finally:
        await client.aclose()


HISTORY_FILE = "history.db"
"""In the data directory, where no `DATABASE_URL` is set."""


def history_place(settings: Settings) -> str | Path:
    """The archive's database: a URL, or a file of ours.

    Raises:
        CannotStart: with one line for a person.
    """
    if settings.database_url is not None:
        return settings.database_url
    folder = settings.data_dir.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"GATEWAY_DATA_DIR={folder}: {error.strerror}") from None
    return folder / HISTORY_FILE


@asynccontextmanager
async def open_archive(
    settings: Settings, limits: Limits, *, tracer: CallTracer = UNTRACED
) -> "AsyncGenerator[Archive]":
    """The archive on its database, with the schema that is needed if it answers.

    Our own file is brought up to date, a configured database only when that is asked for, since
    gateways of several versions may use it.

    Raises:
        CannotStart: with one line for a person.
    """
    from gateway.archive import archive  # and SQLAlchemy with it: a worker starts without

    async with archive.open_archive(
        history_place(settings),
        limits,
        migrates=settings.database_url is None or settings.database_migrate,
        now_ms=now_ms,
        retention_days=settings.retention_days,
        retention_tenants=settings.retention_tenants,
        report=report,
        tracer=tracer,
    ) as opened:
        yield opened
