"""Nodes that die or are replaced under streaming clients: guarantees 2 and 7."""

import asyncio
import time
from pathlib import Path

from support.agents import expected
from support.balancer import balancing
from support.stack import COUNTING, Stack

from gateway.client import Session, connect
from gateway.client.keeper import Lost
from protocol.cursor import Attached, Deliver, Replace

ACTIVE = 'nooble_orchestrator_sessions_active{tenant_id="default"}'
GONE = 1006
RESTARTS = 1012


class Watcher:
    """What a client was told, from the first moment on.

    Attributes:
        lost: connections that were attached; an attempt that the balancer sent to a node that had
            just begun to drain is none.
    """

    def __init__(self, session: Session) -> None:
        """Before the first `await` in the session's context."""
        assert session.cursor is not None
        self.before = session.cursor.seq
        self.events = session.events()
        self.seqs: list[int] = []
        self.replaced = 0
        self.lost: list[Lost] = []
        self._attached = True

    async def watch(self) -> None:
        """Reads until the session is left."""
        async for happening in self.events:
            match happening:
                case Deliver(seq=seq):
                    self.seqs.append(seq)
                case Replace():
                    self.replaced += 1
                case Attached():
                    self._attached = True
                case Lost() if self._attached:
                    self._attached = False
                    self.lost.append(happening)
                case _:
                    pass

    @property
    def whole(self) -> bool:
        """Nothing was lost, doubled or begun anew."""
        first = self.before + 1
        return not self.replaced and self.seqs == list(range(first, first + len(self.seqs)))


async def test_a_node_killed_in_the_middle_of_many_answers_costs_no_event(folder: Path) -> None:
    clients = 40
    watchers: list[Watcher] = []
    there = asyncio.Barrier(clients)
    streaming = asyncio.Barrier(clients + 1)

    async def talk(url: str) -> None:
        async with connect(url, agent="counting") as session, asyncio.TaskGroup() as group:
            watcher = Watcher(session)
            watchers.append(watcher)
            watching = group.create_task(watcher.watch())
            await there.wait()
            run = await session.send("count 300 10")
            text = ""
            async for event in run:
                if event["type"] == "TEXT_MESSAGE_CONTENT":
                    if not text:
                        await streaming.wait()
                    text += event["delta"]
            assert text == expected(300)
            [answer] = [m["content"] for m in session.messages if m["role"] == "assistant"]
            assert answer == expected(300)
            watching.cancel()

    with Stack.running(folder, nodes=2, slots=clients, agent=COUNTING) as stack:
        urls = [stack.url_of(0), stack.url_of(1)]
        async with balancing(urls) as balancer, asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(talk(balancer.ws))
            await streaming.wait()
            stack.kill_node(0)
    assert len(watchers) == clients
    assert all(watcher.whole for watcher in watchers)
    lost = [[each.code for each in watcher.lost] for watcher in watchers]
    assert lost.count([]) >= 1, "some were on the other node"
    assert sum(codes[:1] == [GONE] for codes in lost) >= clients // 4, "the node was killed late"


async def test_a_rolling_deploy_costs_no_event_and_no_error(folder: Path) -> None:
    """Guarantee 7, also where a run is longer than the drain window."""
    clients, window_s = 12, 2.0
    watchers: list[Watcher] = []
    deployed = asyncio.Event()
    begun = asyncio.Barrier(clients + 1)

    async def talk(url: str, count: int) -> None:
        async with connect(url, agent="counting") as session, asyncio.TaskGroup() as group:
            watcher = Watcher(session)
            watchers.append(watcher)
            watching = group.create_task(watcher.watch())
            await begun.wait()
            while not deployed.is_set():
                run = await session.send(f"count {count} 10")
                deltas = [
                    event["delta"] async for event in run if event["type"] == "TEXT_MESSAGE_CONTENT"
                ]
                assert "".join(deltas) == expected(count)
            watching.cancel()

    with Stack.running(
        folder, nodes=2, slots=clients, agent=COUNTING, GATEWAY_DRAIN_S=str(window_s)
    ) as stack:
        urls = [stack.url_of(0), stack.url_of(1)]
        async with balancing(urls) as balancer, asyncio.TaskGroup() as group:
            for number in range(clients):
                # Most answers take half a second; those of three clients longer than the window.
                group.create_task(talk(balancer.ws, 300 if number % 4 == 0 else 50))
            await begun.wait()
            for number in (0, 1):
                told_at = time.monotonic()
                stack.nodes[number].terminate()
                code = await asyncio.to_thread(stack.nodes[number].popen.wait, 30)
                assert code == 0
                assert time.monotonic() - told_at < window_s + 15
                await asyncio.to_thread(stack.start_node, number)

            def counted() -> float:
                return sum(stack.metrics(number).get(ACTIVE, 0) for number in (0, 1))

            async with asyncio.timeout(25):  # homes were passed on, not only left
                while await asyncio.to_thread(counted) != clients:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            deployed.set()
        assert all(watcher.whole for watcher in watchers)
        lost = [each for watcher in watchers for each in watcher.lost]
        assert {each.code for each in lost} == {RESTARTS}, "every connection ended in order"
        assert len(lost) >= clients, "each client was sent away by one node or the other"
        delays_s = sorted(each.retry_in_s for each in lost)
        quarter = len(lost) // 4
        assert delays_s[-quarter] - delays_s[quarter] > 0.05, "no storm: they were spread"
