"""Redis loses everything under a running answer: all are told, and the session goes on."""

import json
from pathlib import Path

from redis import Redis
from support.agents import expected
from support.socket import TERMINAL, Socket, socket
from support.stack import COUNTING, Stack


async def reset(client: Socket) -> None:
    """Waits until the client has been told, and begins anew."""
    told = await client.until("reset")
    assert told["reason"] == "writes_lost"
    client.snapshot = await client.until("snapshot")
    client.forget()


async def test_followers_are_told_and_go_on(folder: Path) -> None:
    with Stack.running(folder, nodes=2, workers=1, agent=COUNTING) as stack:
        async with socket(stack.ws_of(0)) as first, socket(stack.ws_of(1)) as second:
            await first.open(agent="counting")
            await second.open(session_id=first.session_id)
            ack = await first.ask("message", content="count 1000 10")
            for client in (first, second):
                while len(client.events) < 10:
                    await client.receive()
            with Redis.from_url(stack.redis_url) as redis:
                redis.flushall()
            for client in (first, second):
                await reset(client)
                assert client.snapshot is not None
                assert ack["run_id"] not in json.dumps(client.snapshot)
            stack.wait_for_agents(workers=1)
            assert (await second.ask("message", content="count 20 1"))["status"] == "accepted"
            for client in (first, second):
                await client.until_event(*TERMINAL)
                assert client.text() == expected(20)
                assert {event["run_id"] for event in client.events} != {ack["run_id"]}
        async with socket(stack.ws_of(0)) as third:
            await third.open(session_id=first.session_id, after=second.cursor)
            assert third.opened["resumed"] is True
