"""A node that is told to stop sends its clients away in order: guarantee 7."""

import asyncio
import socket as sockets
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from support.agents import expected
from support.net import HTTP
from support.socket import TERMINAL, socket
from support.stack import COUNTING, Stack
from websockets.exceptions import InvalidStatus


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a state of a process that nothing tells of."""
    async with asyncio.timeout(45):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def readiness(stack: Stack) -> httpx.Response:
    return HTTP.get(stack.url + "/health/readiness")


async def test_clients_are_told_when_to_come_back_before_a_node_stops(folder: Path) -> None:
    """`goaway` first, with a delay that spreads the clients, then 1012."""
    with Stack.running(folder, GATEWAY_DRAIN_S="2") as stack:
        async with socket(stack.ws_of()) as behind, socket(stack.ws_of()) as client:
            await client.open(agent="demo")
            stack.nodes[0].terminate()
            for one in (client, behind):  # one that has not opened its session yet, too
                away = await one.until("goaway")
                assert away["reason"] == "stopping"
                assert 0 <= away["reconnect_in_ms"] <= 500
                assert await one.closed() == 1012
        assert stack.nodes[0].stop() == 0


async def test_a_draining_node_lets_an_answer_end_and_takes_nobody_new(folder: Path) -> None:
    with Stack.running(folder, agent=COUNTING) as stack:
        async with socket(stack.ws_of()) as client:
            await client.open(agent="counting")
            await client.ask("message", content="count 200 10")
            await client.until_event("TEXT_MESSAGE_CONTENT")
            assert stack.metrics()["nooble_orchestrator_draining"] == 0
            stack.nodes[0].terminate()
            await until(lambda: readiness(stack).status_code == 503)
            assert readiness(stack).json() == {
                "status": "error",
                "checks": {"redis": "ok", "database": "ok"},
            }
            assert stack.metrics()["nooble_orchestrator_draining"] == 1
            with pytest.raises(InvalidStatus) as refused:
                async with socket(stack.ws_of()):
                    pass
            assert refused.value.response.status_code == 503
            assert 1 <= int(refused.value.response.headers["Retry-After"]) <= 5
            assert (await client.until_event(*TERMINAL))["event"]["type"] == "RUN_FINISHED"
            assert client.text() == expected(200)
            assert (await client.receive())["type"] == "goaway"
            assert await client.closed() == 1012
        assert stack.nodes[0].popen.wait(30) == 0, "nobody is waited for any more"


async def test_a_drain_ends_when_its_window_is_over(folder: Path) -> None:
    with Stack.running(folder, agent=COUNTING, GATEWAY_DRAIN_S="1") as stack:
        async with socket(stack.ws_of()) as client:
            await client.open(agent="counting")
            await client.ask("message", content="silent")
            await client.until_event("RUN_STARTED")
            told_at = time.monotonic()
            stack.nodes[0].terminate()
            away = await client.until("goaway")
            assert time.monotonic() - told_at >= 0.9
            assert 0 <= away["reconnect_in_ms"] <= 5000
            assert await client.closed() == 1012
        assert stack.nodes[0].popen.wait(30) == 0


async def test_a_second_signal_ends_the_drain(folder: Path) -> None:
    with Stack.running(folder, agent=COUNTING) as stack:
        async with socket(stack.ws_of()) as client:
            await client.open(agent="counting")
            await client.ask("message", content="silent")
            await client.until_event("RUN_STARTED")
            stack.nodes[0].terminate()
            await until(lambda: readiness(stack).status_code == 503)
            stack.nodes[0].terminate()
            await client.until("goaway")
            assert await client.closed() == 1012
        assert stack.nodes[0].popen.wait(30) == 0


async def test_a_request_under_way_is_answered(folder: Path) -> None:
    with Stack.running(folder) as stack:
        address = urlsplit(stack.url)
        body = b'{"agent_id":"demo"}'
        head = f"POST /api/v1/sessions HTTP/1.1\r\nHost: {address.netloc}\r\n"
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:5])
        await writer.drain()
        stack.get("/api/v1/agents")  # so the request before has been read
        stack.nodes[0].terminate()
        await until(lambda: not listens(stack))
        writer.write(body[5:])
        assert (await reader.readline()).startswith(b"HTTP/1.1 201 ")
        writer.close()
        assert stack.nodes[0].popen.wait(30) == 0


def listens(stack: Stack) -> bool:
    address = urlsplit(stack.url)
    try:
        sockets.create_connection((str(address.hostname), address.port or 0)).close()
    except ConnectionRefusedError:
        return False
    return True
