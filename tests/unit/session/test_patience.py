"""Waiting for somebody else's answer while one's own process may stand still."""

import asyncio
import socket
import time

import pytest

from gateway.session.patience import Patience


async def test_an_answer_that_came_while_we_stood_still_is_read():
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    async with Patience(0.4):
        theirs.send(b"here\n")
        time.sleep(0.8)  # the whole loop, twice as long as the bound
        assert await reader.readline() == b"here\n"
    writer.close()
    theirs.close()


async def test_no_answer_is_waited_for_until_the_bound():
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with Patience(0.2):
            await asyncio.Event().wait()
    assert time.monotonic() - began >= 0.19  # a loop counts in whole milliseconds


async def test_what_has_left_in_time_is_not_disturbed_later():
    async with Patience(0.05):
        pass
    await asyncio.sleep(0.1)  # longer than the bound that was left


async def test_who_is_cancelled_is_cancelled():
    waiting = asyncio.Event()

    async def wait() -> None:
        async with Patience(30):
            waiting.set()
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(wait())
        await waiting.wait()
        task.cancel()
    assert task.cancelled()
