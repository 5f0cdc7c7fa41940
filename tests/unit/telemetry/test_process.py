"""The process's own series: read when they are rendered, but for the event loop's lag."""

import asyncio
import io
import os
import resource
import time
from typing import Any

import psutil
import pytest
from loguru import logger

from gateway.telemetry.catalogue import PREFIX
from gateway.telemetry.handles import BoundHistogram
from gateway.telemetry.logs import configure_logging
from gateway.telemetry.metrics import Telemetry


def value(telemetry: Telemetry, name: str, **labels: str) -> Any:
    return telemetry.registry.get(name).get(labels)


def test_the_process_is_shown_as_it_is_when_it_is_rendered():
    telemetry = Telemetry(version="1")
    telemetry.render()
    cpu = value(telemetry, "process_cpu_seconds_total")
    fds = value(telemetry, "process_open_fds")
    assert 0 < cpu <= sum(os.times()[:2])
    assert abs(value(telemetry, "process_start_time_seconds") - time.time()) < 24 * 3600
    assert 10_000_000 < value(telemetry, "process_resident_memory_bytes") < 10_000_000_000
    assert 3 <= fds <= value(telemetry, "process_max_fds")
    assert abs(fds - psutil.Process().num_fds()) <= 2
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(10)]
    telemetry.render()
    for number in opened:
        os.close(number)
    assert value(telemetry, "process_open_fds") >= fds + 10
    assert value(telemetry, "process_cpu_seconds_total") >= cpu


def test_without_a_free_file_descriptor_the_metrics_are_shown():
    """That is when they are needed: psutil reads files, and there is none that could be opened."""
    telemetry = Telemetry(version="1")
    telemetry.render()
    memory = value(telemetry, "process_resident_memory_bytes")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)  # descriptors from this one on are free
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
        telemetry.render()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert value(telemetry, "process_open_fds") == lowest
    assert value(telemetry, "process_max_fds") == lowest
    assert value(telemetry, "process_resident_memory_bytes") == memory


def fail(what: str, error: Exception) -> None:
    raise AssertionError(what) from error


async def test_a_look_at_the_loop_that_fails_ends_nothing(monkeypatch: pytest.MonkeyPatch):
    """It is a task of the node's group, which a fault would end; the next look is made."""
    reported = asyncio.Queue[Exception]()
    fault = RuntimeError("a fault of ours")

    def observe(_histogram: BoundHistogram, _value: float) -> None:
        raise fault

    monkeypatch.setattr(BoundHistogram, "observe", observe)
    watch = Telemetry(version="1").watch_loop(lambda _what, error: reported.put_nowait(error))
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch)
        assert [await reported.get(), await reported.get()] == [fault, fault]
        watching.cancel()


async def test_a_loop_that_is_held_up_is_late():
    telemetry = Telemetry(version="1")
    name = PREFIX + "event_loop_lag_seconds"
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(telemetry.watch_loop(fail))
        await asyncio.sleep(0)
        time.sleep(0.65)  # that is the fault
        while not value(telemetry, name)["count"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        watching.cancel()
    late = value(telemetry, name)
    assert late["count"] - late[0.1] >= 4, (
        "it would have been late at each look: 0.5, 0.4, 0.3, 0.2"
    )
    assert late["count"] - late[0.25] >= 3
    assert late["sum"] >= 1.4


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def test_log_lines_are_counted_by_level_from_zero_and_what_is_dropped_too(stream: io.StringIO):
    logs = configure_logging(level="INFO", style="json", stream=stream, max_pending_bytes=100)
    telemetry = Telemetry(version="1", logs=logs)
    telemetry.render()
    assert value(telemetry, PREFIX + "log_messages_total", level="WARNING") == 0
    assert value(telemetry, PREFIX + "logs_dropped_total") == 0
    logger.debug("not shown")
    logger.warning("one")
    logger.warning("two")
    logger.critical("three")
    telemetry.render()
    logs.close()
    shown = {
        level: value(telemetry, PREFIX + "log_messages_total", level=level)
        for level in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    }
    assert shown == {"DEBUG": 0, "INFO": 0, "WARNING": 2, "ERROR": 0, "CRITICAL": 1}
    assert value(telemetry, PREFIX + "logs_dropped_total") == 3, "none fits into 100 bytes"


def test_the_connections_to_redis_are_shown_by_role():
    telemetry = Telemetry(version="1")
    telemetry.redis(commands_up=True, pubsub_up=False, reconnects=2, subscriber_reconnects=0)
    telemetry.redis(commands_up=True, pubsub_up=True, reconnects=2, subscriber_reconnects=1)
    for role, reconnects in (("commands", 2), ("pubsub", 1)):
        assert value(telemetry, PREFIX + "redis_up", role=role) == 1
        assert value(telemetry, PREFIX + "redis_reconnects_total", role=role) == reconnects
