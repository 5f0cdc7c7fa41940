"""A leash is the coroutine itself, until it is let go of."""

import asyncio
from contextvars import ContextVar

import pytest

from gateway.agents.leash import Leash

context: ContextVar[str] = ContextVar("context", default="nobody's")


async def on_a_leash(leash: Leash) -> None:
    await leash


async def test_it_runs_in_the_task_and_context_of_who_awaits_it() -> None:
    seen: list[object] = []

    async def look() -> None:
        seen.append(asyncio.current_task())
        seen.append(context.get())
        await asyncio.sleep(0)
        context.set("the coroutine's")

    context.set("mine")
    await Leash(look())
    assert seen == [asyncio.current_task(), "mine"]
    assert context.get() == "the coroutine's"


async def test_what_it_raises_is_raised() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("as it was told")

    with pytest.raises(ValueError, match="as it was told"):
        await Leash(fail())


async def test_what_it_awaits_answers_and_fails_as_ever() -> None:
    """Time-outs and task groups within are those of the task."""
    answers: list[object] = []

    async def work() -> None:
        answers.append(await asyncio.to_thread(lambda: 42))
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            answers.append("timeout")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                await asyncio.Event().wait()
        except ExceptionGroup as group:
            answers.append(str(group.exceptions[0]))

    async def fail() -> None:
        raise ValueError("no")

    await Leash(work())
    assert answers == [42, "timeout", "no"]


async def test_a_cancellation_is_handed_on() -> None:
    steps: list[str] = []

    async def tidy() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("tidied")

    async with asyncio.TaskGroup() as group:
        task = group.create_task(on_a_leash(Leash(tidy())))
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()
    assert steps == ["tidied"]


async def test_once_released_a_cancellation_ends_it_where_it_is() -> None:
    steps: list[str] = []

    async def hold() -> None:
        try:
            while True:
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    steps.append("no")
        finally:
            steps.append("closed")

    leash = Leash(hold())
    async with asyncio.TaskGroup() as group:
        task = group.create_task(on_a_leash(leash))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert steps == ["no"]
        assert not task.done()
        leash.release()
        task.cancel()
    assert task.cancelled()
    assert steps == ["no", "closed"]


async def test_an_error_in_its_last_words_changes_nothing() -> None:
    async def fail() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("last words")

    leash = Leash(fail())
    async with asyncio.TaskGroup() as group:
        task = group.create_task(on_a_leash(leash))
        await asyncio.sleep(0)
        leash.release()
        task.cancel()
    assert task.cancelled()
