"""The subscriber: found when it is silent, restored in batches, and known to readiness."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from loguru import logger
from support.bus import connected_bus, cut_subscribers, running_server
from support.deaf import deafening
from support.following import Client, following, until
from support.server import RedisServer
from support.talk import Talk

from gateway.app import Node, now_ms, report
from gateway.archive.archive import open_archive
from gateway.bus import connection, notices
from gateway.bus.bus import Bus
from gateway.session.context import LogIds, current_ids, log_context
from gateway.session.hub import HubTimes
from gateway.session.model import Limits, LogPage, Seen, SessionKey
from protocol.frames import Cursor

UNCHECKED = HubTimes(check_running_s=1000, check_idle_s=1000)
"""No position checks: what is found must be found otherwise."""


ECHO_TIMEOUT_S = 4.0
"""Longer than a busy machine keeps a process waiting: a healthy one must not count as silent."""


@pytest.fixture(scope="module")
def single_url() -> Iterator[str]:
    with running_server() as url:
        yield url


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_PROBE_S", 0.1)
    monkeypatch.setattr(notices, "_ECHO_TIMEOUT_S", ECHO_TIMEOUT_S)
    monkeypatch.setattr(notices, "_CONFIRM_TIMEOUT_S", ECHO_TIMEOUT_S)


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The channels that were probed. Each but the first is probed when the one before was heard."""
    probed: list[str] = []
    publish = notices.RedisNotices._publish

    async def noted(self: notices.RedisNotices, channel: str) -> None:
        probed.append(channel)
        await publish(self, channel)

    monkeypatch.setattr(notices.RedisNotices, "_publish", noted)
    return probed


async def test_lost_pushes_show_as_a_gap_and_are_read_from_the_log(
    single_url: str, tmp_path: Path
) -> None:
    async with (
        deafening(single_url, tmp_path) as (way, url),
        connected_bus(url) as bus,
        following(bus, times=UNCHECKED) as node,
    ):
        talk = Talk(bus)
        await talk.open()
        client = await node.join(talk.key)
        claim = await talk.running()
        await until(lambda: client.seqs == [1])
        for ordinal in (0, 3):
            way.mute()
            way.dropped.clear()
            await talk.append(claim, ordinal, "A", "B")
            await until(lambda: b'"B"' in way.dropped)
            way.unmute()
            await talk.append(claim, ordinal + 2, "C")
            await until(lambda last=ordinal + 4: client.seqs == list(range(1, last + 1)))
        assert node.probe.facts["gaps"] == 2
        assert node.probe.facts["repaired"] in range(4, 7)


async def test_a_lost_last_event_is_found_by_the_position_check(
    single_url: str, tmp_path: Path
) -> None:
    async with (
        deafening(single_url, tmp_path) as (way, url),
        connected_bus(url) as bus,
        following(bus, times=HubTimes(check_running_s=0.3, check_idle_s=1000)) as node,
    ):
        talk = Talk(bus)
        await talk.open()
        client = await node.join(talk.key)
        claim = await talk.running()
        await until(lambda: client.seqs == [1])
        way.mute()
        await talk.finish(claim)
        await until(lambda: client.seqs == [1, 2])
        assert (node.probe.facts["gaps"], node.probe.facts["repaired"]) == (0, 1)


@pytest.mark.usefixtures("impatient")
async def test_a_silent_subscriber_is_probed_and_made_anew(single_url: str, tmp_path: Path) -> None:
    async with deafening(single_url, tmp_path) as (way, url), connected_bus(url) as bus:
        async with following(bus, times=UNCHECKED) as node:
            talk = Talk(bus)
            await talk.open()
            client = await node.join(talk.key)
            claim = await talk.running()
            await until(lambda: client.seqs == [1])
            way.mute()
            await talk.append(claim, 0, "A", "B")
            await until(lambda: client.seqs == [1, 2, 3])
            await talk.append(claim, 2, "C")
            await until(lambda: client.seqs == [1, 2, 3, 4])
        assert way.subscribers == 2
        assert bus.notices.reconnects == 1
        assert node.probe.facts["repaired"] == 2


@pytest.mark.usefixtures("impatient")
async def test_a_subscriber_that_hears_is_left_alone(probes: list[str], bus: Bus) -> None:
    """On a cluster, too, where the probe must come back from the server of its channel."""
    async with following(bus, times=UNCHECKED) as node:
        talk = Talk(bus)
        await talk.open()
        client = await node.join(talk.key)
        reads_before = node.probe.facts["repaired"]
        await until(lambda: probes and probes.count(probes[-1]) >= 3)
        await talk.running()
        await until(lambda: client.seqs == [1])
        assert node.probe.facts["repaired"] == reads_before, "it was restored, and so not silent"
        assert bus.notices.reconnects == 0
        assert bus.notices.up


@pytest.mark.usefixtures("impatient")
async def test_a_subscriber_of_a_server_that_hangs_is_not_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection stands, and nothing comes over it: that the probe fails must not hide it."""
    server = RedisServer(tmp_path)
    server.start()
    try:
        async with connected_bus(f"unix://{server.socket}") as bus:
            await until(lambda: bus.notices.up)
            monkeypatch.setattr(connection, "_ANSWER_TIMEOUT_S", 0.2)
            server.pause()
            await until(lambda: not bus.notices.up, 20)
            monkeypatch.setattr(connection, "_ANSWER_TIMEOUT_S", 10.0)
            server.resume()
            await until(lambda: bus.notices.up)
    finally:
        server.kill()


@pytest.mark.usefixtures("impatient")
async def test_a_node_without_its_subscriber_is_not_ready(single_url: str, tmp_path: Path) -> None:
    async with (
        deafening(single_url, tmp_path) as (way, url),
        connected_bus(url) as bus,
        open_archive(
            f"sqlite:///{tmp_path / 'history.db'}",
            Limits(),
            migrates=True,
            now_ms=now_ms,
            report=report,
        ) as archive,
        asyncio.TaskGroup() as tasks,
    ):
        node = Node(bus, archive, Limits())
        parts = node.background()
        parts.pop(0).close()  # the subscriber runs already
        running = [tasks.create_task(part) for part in parts]
        transport = httpx.ASGITransport(app=node.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:

            async def answers(code: int, word: str) -> None:
                wanted = {"status": word, "checks": {"redis": word, "database": "ok"}}
                async with asyncio.timeout(45):
                    while True:
                        got = await http.get("/health/readiness")
                        if (got.status_code, got.json()) == (code, wanted):
                            return
                        await asyncio.sleep(0.05)

            await answers(200, "ok")
            way.deaf = True
            await answers(503, "error")
            way.deaf = False
            await answers(200, "ok")
        for task in running:
            task.cancel()


async def test_what_a_subscriber_tells_is_of_no_session(bus: Bus) -> None:
    """It lives as long as the process, and began perhaps for somebody: on a cluster it does."""
    told: list[LogIds] = []
    handler = logger.add(lambda _: told.append(current_ids()), level="WARNING")
    try:
        with log_context(tenant_id="acme", session_id="somebody", trace_id="f" * 32):
            joining = bus.notices.session_control(SessionKey("acme", "somebody"), lambda _: None)
            await joining.__aenter__()
        await cut_subscribers(bus.client)
        await until(lambda: bus.notices.reconnects)
        await joining.__aexit__(None, None, None)
    finally:
        logger.remove(handler)
    assert told
    assert set(told) == {LogIds()}


class Stalls:
    """For how long the event loop let nobody else have a turn, in time that it had itself."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def watch(self) -> None:
        while True:
            before = time.process_time()
            await asyncio.sleep(0)
            self.longest_s = max(self.longest_s, time.process_time() - before)


async def test_two_thousand_sessions_are_read_again_without_stalling_the_loop(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an interruption of the subscriber each may have missed something."""
    read_again: set[SessionKey] = set()
    read = bus.sessions.read

    async def noted(
        key: SessionKey, after: Cursor, count: int, *, seen: Seen | None = None
    ) -> LogPage:
        read_again.add(key)
        return await read(key, after, count, seen=seen)

    talks = [Talk(bus) for _ in range(2000)]
    async with following(bus, times=UNCHECKED) as node:
        limit = asyncio.Semaphore(32)

        async def join(talk: Talk) -> tuple[Talk, Client]:
            async with limit:
                await talk.open()
                return talk, await node.join(talk.key)

        joined = await asyncio.gather(*map(join, talks))
        spoken = joined[::20]
        monkeypatch.setattr(bus.sessions, "read", noted)
        stalls = Stalls()
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(stalls.watch())
            await cut_subscribers(bus.client)
            for talk, _ in spoken:
                await talk.running()
            await until(lambda: all(client.seqs == [1] for _, client in spoken))
            await until(lambda: len(read_again) == len(talks))
            watching.cancel()
        print(f"longest stall {stalls.longest_s * 1000:.0f} ms")  # with `pytest -s`
        assert stalls.longest_s < 1.0
