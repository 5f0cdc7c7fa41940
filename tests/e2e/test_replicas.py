"""A node that waits for replicas before it acknowledges."""

from pathlib import Path
from uuid import uuid4

from support.replicas import primary_and_replica, until
from support.socket import TERMINAL, socket
from support.stack import COUNTING, Stack


async def test_a_client_is_told_what_is_not_confirmed_and_repeats_it(tmp_path: Path) -> None:
    with primary_and_replica(tmp_path) as (primary, replica):
        stack = Stack(primary.url, tmp_path, {"GATEWAY_ACK_REPLICAS": "1"})
        try:
            stack.add_worker(COUNTING)
            stack.add_node()
            stack.wait_until_ready()
            assert "fewer replicas" not in stack.nodes[0].output()
            async with socket(stack.ws_of()) as client:
                await client.open(agent="counting")
                frame = {"id": uuid4().hex, "content": "count 5 1"}
                replica.pause()
                error = await client.ask("message", **frame)
                assert (error["code"], error["retryable"]) == ("unavailable", True)
                replica.go_on()
                until(lambda: replica.in_step_with(primary))
                ack = await client.ask("message", **frame)
                assert ack["status"] == "duplicate"
                await client.until_event(*TERMINAL)
                assert {event["run_id"] for event in client.events} == {ack["run_id"]}
        finally:
            stack.stop()


async def test_a_node_without_enough_replicas_says_so_at_its_start(tmp_path: Path) -> None:
    with Stack.running(tmp_path, agent=COUNTING, GATEWAY_ACK_REPLICAS="1") as stack:
        lines = [line for line in stack.nodes[0].output().splitlines() if "fewer replicas" in line]
        assert len(lines) == 1
        assert '"WARNING"' in lines[0]
        async with socket(stack.ws_of()) as client:
            await client.open(agent="counting")
            error = await client.ask("message", content="count 5 1")
            assert (error["code"], error["retryable"]) == ("unavailable", True)
