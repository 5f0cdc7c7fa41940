"""Each call of Redis and of the database is told once: whose it was, what for, how it went."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from support.bus import connected_bus, running_server
from support.net import free_port
from support.server import RedisServer
from support.talk import Talk

from gateway.archive import database as database_module
from gateway.archive.database import Database
from gateway.archive.errors import HistoryAway
from gateway.bus import connection, scripts
from gateway.bus.bus import Bus
from gateway.session.errors import Refused, Unavailable
from gateway.session.model import Limits


class Heard:
    """A `ServiceProbe` that writes down."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self.seconds: list[float] = []

    def called(self, tenant: str, operation: str, seconds: float) -> None:
        self.failed(tenant, operation, seconds, "")

    def failed(self, tenant: str, operation: str, seconds: float, error: str) -> None:
        self.calls.append((tenant, operation, error))
        self.seconds.append(seconds)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def own_bus(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bus]:
    monkeypatch.setattr(scripts, "_PAUSE_S", 60.0)  # an open breaker stays so
    async with connected_bus(f"unix://{server.socket}") as bus:
        yield bus


def listen(to: Any) -> Heard:
    heard = to.calls = Heard()
    return heard


async def test_a_script_is_called_by_its_name_and_for_the_tenant_of_its_session(bus: Bus) -> None:
    heard, talk = listen(bus.scripts), Talk(bus)
    await talk.open()
    accepted = await talk.message()
    assert accepted.dispatch is not None
    await bus.runs.dispatch(accepted.dispatch, talk.agent)
    await bus.directory.agents()
    await bus.journal.sizes([0, 1])
    assert heard.calls[:3] == [("acme", "open", ""), ("acme", "accept", ""), ("", "dispatch", "")]
    assert ("", "agents", "") in heard.calls
    assert heard.calls[-1] == ("", "journal_sizes", "")
    assert all(0 < seconds < 60 for seconds in heard.seconds)


async def test_a_refusal_is_an_answer(bus: Bus) -> None:
    heard, talk = listen(bus.scripts), Talk(bus)
    with pytest.raises(Refused):
        await talk.message()
    assert heard.calls == [("acme", "accept", "")]


async def test_what_redis_does_not_do_fails_by_its_reason(
    server: RedisServer, own_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, talk = listen(own_bus.scripts), Talk(own_bus)

    async def why(*, opens: bool = False) -> str:
        with pytest.raises(Unavailable):
            await talk.message()
        tenant, operation, error = heard.calls[-1]
        assert (tenant, operation) == ("acme", "accept")
        if opens:
            own_bus.scripts.breaker.succeed()
        return error

    await talk.open()
    await own_bus.client.config_set("maxmemory", "1")
    assert await why() == "rejected"
    server.pause()
    with monkeypatch.context() as bounds:
        bounds.setattr(connection, "_ANSWER_TIMEOUT_S", 0.2)
        assert await why(opens=True) == "timeout"
    server.kill()
    assert await why() == "connection"
    assert await why() == "connection"
    count = len(heard.calls)
    assert await why() == "circuit_open"
    assert len(heard.calls) == count + 1, "a call is told once, however often it was tried"


async def test_who_speaks_another_protocol_is_told_from_who_is_away() -> None:
    async def babble(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):  # it need not wait for all of it
            writer.write(b"HTTP/1.1 400 Bad Request\r\n" * 9)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as web:
        port = web.sockets[0].getsockname()[1]
        client = connection.create_client(f"redis://127.0.0.1:{port}")
        bus = Bus(client, Limits())
        heard = listen(bus.scripts)
        with pytest.raises(Unavailable):
            await bus.runs.take("nobody", 1)
        assert heard.calls == [("", "take", "protocol")]
        await client.aclose()


async def test_what_the_caller_gives_up_is_no_call(server: RedisServer, own_bus: Bus) -> None:
    heard = listen(own_bus.scripts)
    server.pause()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await own_bus.runs.take("nobody", 1)
    server.resume()
    assert heard.calls == []


async def test_the_database_is_read_and_written_for_somebody(database: Database) -> None:
    heard = listen(database)
    async with database.reading("acme") as connected:
        await connected.execute(text("SELECT 1"))
    async with database.writing() as connected:
        await connected.execute(text("SELECT 1"))
    with pytest.raises(HistoryAway):
        async with database.writing("acme") as connected:
            await connected.execute(text("SELECT nothing FROM nowhere"))
    assert heard.calls == [("acme", "read", ""), ("", "write", ""), ("acme", "write", "rejected")]


async def test_a_database_that_is_away_is_told_from_one_that_is_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database_module, "_PAUSE_S", 60.0)
    away = Database(f"postgresql://ann@127.0.0.1:{free_port()}/history")
    heard = listen(away)
    for _ in range(3):
        with pytest.raises(HistoryAway):
            async with away.reading("acme"):
                pass
    errors = [error for _, _, error in heard.calls]
    assert errors == ["connection", "connection", "circuit_open"]
    await away.close()


@pytest.mark.parametrize("cluster", [False, True], ids=["single", "cluster"])
async def test_lost_connections_are_counted_when_they_are_made_anew(cluster: bool) -> None:
    with running_server(cluster=cluster) as url:
        reconnects = connection.Reconnects()
        client = connection.create_client(url, reconnects)
        bus = Bus(client, Limits(), reconnects=reconnects)
        await asyncio.gather(*(bus.runs.take("nobody", 1) for _ in range(5)))
        assert reconnects.count == 0, "new ones are no reconnects"
        everybody = {"target_nodes": client.get_nodes()} if cluster else {}
        await client.execute_command("CLIENT KILL TYPE normal SKIPME yes", **everybody)
        await asyncio.gather(*(bus.runs.take("nobody", 1) for _ in range(5)))
        assert bus.reconnects.count >= 4
        await client.aclose()
