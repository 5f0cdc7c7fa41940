"""Guarantee 9 over two nodes: a session and its events are counted once, whoever dies."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from support.agents import expected
from support.socket import TERMINAL, Socket, seqs, socket
from support.stack import COUNTING, Stack

P = "nooble_orchestrator_"
TENANT = "homes"
OPTIONS = {"additional_headers": {"X-Tenant-ID": TENANT}}
QUICK = {"GATEWAY_LIMIT_NODE_LEASE_S": "1", "GATEWAY_LIMIT_RESUME_GRACE_S": "0.5"}


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what metrics say."""
    async with asyncio.timeout(45):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def total(metrics: dict[str, float], name: str) -> float:
    """The sum of this tenant's series of a metric."""
    return sum(
        value
        for series, value in metrics.items()
        if series.startswith(P + name + "{") and f'tenant_id="{TENANT}"' in series
    )


def active(stack: Stack, number: int) -> float:
    return total(stack.metrics(number), "sessions_active")


def output(stack: Stack, number: int) -> float:
    series = f'{P}tokens_total{{agent_id="counting",tenant_id="{TENANT}",type="output"}}'
    return stack.metrics(number).get(series, 0)


async def test_a_node_that_slept_past_its_lease_counts_nothing_twice(folder: Path) -> None:
    """Its homes are another's when it wakes, and pushes wait that the other has counted."""
    times = {**QUICK, "GATEWAY_LIMIT_NODE_LEASE_S": "2.5"}  # a node that is well keeps its homes
    with Stack.running(folder, nodes=2, agent=COUNTING, **times) as stack:
        async with (
            socket(stack.ws_of(0), **OPTIONS) as sleeper,
            socket(stack.ws_of(1), **OPTIONS) as other,
        ):
            await sleeper.open(agent="counting")
            await other.open(session_id=sleeper.session_id)
            await until(lambda: [active(stack, n) for n in (0, 1)] == [1, 0])
            await sleeper.ask("message", content="count 700 15")
            await other.until_event("TEXT_MESSAGE_CONTENT")
            stack.nodes[0].signal(signal.SIGSTOP)
            await until(lambda: active(stack, 1) == 1)
            for _ in range(10):
                await other.until("event")
            stack.nodes[0].signal(signal.SIGCONT)
            for client in (sleeper, other):
                await client.until_event(*TERMINAL)
                assert client.text() == expected(700)
                assert seqs(client.events) == list(range(1, len(client.events) + 1))
            await until(lambda: [active(stack, n) for n in (0, 1)] == [0, 1])
            await until(lambda: output(stack, 0) + output(stack, 1) == 702)
            assert 0 < output(stack, 0) < 702, "both had a part"


async def test_a_run_that_lost_node_and_sockets_is_counted_by_another(folder: Path) -> None:
    with Stack.running(folder, nodes=2, agent=COUNTING, **QUICK) as stack:
        async with socket(stack.ws_of(0), **OPTIONS) as client:
            await client.open(agent="counting")
            await client.ask("message", content="count 400 20")
            await client.until_event("TEXT_MESSAGE_CONTENT")
        stack.kill_node(0)
        await until(lambda: active(stack, 1) == 1)
        # Nobody is attached, so the home is left when the run has ended and the grace is over.
        await until(lambda: active(stack, 1) == 0)
        metrics = stack.metrics(1)
        said = f'{P}messages_processed_total{{role="assistant",tenant_id="{TENANT}"}}'
        assert metrics[said] == 1
        assert 0 < output(stack, 1) < 402, "what passed before was the dead node's"


async def test_sessions_add_up_over_kills_and_moves(folder: Path) -> None:
    """created - completed = active + dormant, and each session ends once."""
    ttl_s = 4
    times = {**QUICK, "GATEWAY_LIMIT_NODE_LEASE_S": "2", "GATEWAY_LIMIT_SESSION_TTL_S": str(ttl_s)}
    with Stack.running(folder, nodes=2, agent=COUNTING, **times) as stack:
        async with AsyncExitStack() as exits:
            kept: list[Socket] = []
            for number in range(8):
                client = await exits.enter_async_context(socket(stack.ws_of(number % 2), **OPTIONS))
                await client.open(agent="counting")
                await client.ask("message", content="count 3 1")
                await client.until_event(*TERMINAL)
                kept.append(client)

            def sums(*lost: dict[str, float]) -> dict[str, float]:
                """What the nodes count, those that were killed included."""
                every = [*lost, stack.metrics(0), stack.metrics(1)]
                return {
                    name: sum(total(metrics, name) for metrics in every)
                    for name in ("sessions_created_total", "sessions_completed_total")
                } | {"sessions_active": active(stack, 0) + active(stack, 1)}

            def agree(created: int, completed: int, live: int, *lost: dict[str, float]) -> bool:
                return list(sums(*lost).values()) == [created, completed, live]

            # One is closed; one by two clients on two nodes at once.
            await kept[0].ask("close")
            twin = await exits.enter_async_context(socket(stack.ws_of(0), **OPTIONS))
            await twin.open(session_id=kept[1].session_id)
            answers: list[dict[str, Any]] = await asyncio.gather(
                *(one.ask("close") for one in (twin, kept[1])), return_exceptions=True
            )
            assert any(isinstance(answer, dict) for answer in answers)
            await until(lambda: agree(8, 2, 6))

            # A node dies with three sessions. Two are resumed elsewhere, one is not; and on the
            # other node one is left. These two are dormant, and then expire.
            last_words = stack.metrics(0)
            stack.kill_node(0)
            for client in (kept[2], kept[4]):
                assert await client.closed() == 1006
                back = await exits.enter_async_context(socket(stack.ws_of(1), **OPTIONS))
                await back.open(session_id=client.session_id, after=client.cursor)
            await kept[3].connection.close()
            stack.start_node(0)
            await until(lambda: agree(8, 4, 4, last_words))
            expired = [
                total({series: value}, "sessions_completed_total")
                for number in (0, 1)
                for series, value in stack.metrics(number).items()
                if 'status="expired"' in series
            ]
            assert sum(expired) == 2
            # And so it stays, while sessions with sockets outlive their time to expire.
            await asyncio.sleep(ttl_s + 1)
            await until(lambda: agree(8, 4, 4, last_words))  # an end that was counted stays so
