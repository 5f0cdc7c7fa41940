"""The embedded server: one per data directory, started by the first user, stopped by the last."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from redis.asyncio import Redis
from redis.exceptions import RedisError
from support.leaks import lives

from gateway.bus import embedded
from gateway.bus.connection import UnusableRedis
from gateway.bus.embedded import embedded_server


async def process_id(url: str) -> int:
    async with Redis.from_url(url) as client:
        info: dict[str, Any] = await client.info()
    return int(info["process_id"])


async def another_than(killed: int, url: str) -> int:
    """The process of the server that is there again."""
    async with asyncio.timeout(45):
        while True:
            with suppress(RedisError):
                if (pid := await process_id(url)) != killed:
                    return pid
            await asyncio.sleep(0.02)


def servers(folder: Path) -> list[int]:
    """All that run on a folder."""
    found = subprocess.run(
        ["pgrep", "-f", str(folder)], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in found.stdout.split()]


async def test_it_is_up_at_once_and_gone_at_the_end(tmp_path: Path) -> None:
    took_s: list[float] = []
    for name in ("one", "other"):
        started = time.monotonic()
        async with embedded_server(tmp_path / name) as url:
            took_s.append(time.monotonic() - started)
            pid = await process_id(url)
        assert not lives(pid)
    assert min(took_s) < 5, "redis-py's own retries would take longer"


async def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    async with embedded_server(tmp_path) as url, Redis.from_url(url) as client:
        await client.set("key", "value")
    async with embedded_server(tmp_path) as url, Redis.from_url(url) as client:
        assert await client.get("key") == b"value"


async def test_users_share_it_and_the_last_one_stops_it(tmp_path: Path) -> None:
    first, second = embedded_server(tmp_path), embedded_server(tmp_path)
    pid = await process_id(await first.__aenter__())
    assert await process_id(await second.__aenter__()) == pid
    await first.__aexit__(None, None, None)
    assert lives(pid), "the one who started it is gone, but not the last one"
    await second.__aexit__(None, None, None)
    assert not lives(pid)


async def test_one_that_is_killed_is_told_of_and_started_again_with_its_data(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    sink = logger.add(said.append, level="ERROR", format="{message} {extra[exit_code]}")
    try:
        async with embedded_server(tmp_path) as url:
            async with Redis.from_url(url) as client:
                await client.set("key", "value")
            killed = await process_id(url)
            os.kill(killed, signal.SIGKILL)

            pid = await another_than(killed, url)
            async with Redis.from_url(url) as client:
                assert await client.get("key") == b"value"
            shown = subprocess.run(["ps", "-p", str(killed)], capture_output=True, check=False)
            assert shown.returncode, "not even a zombie"
    finally:
        logger.remove(sink)
    assert not lives(pid)
    assert said == ["the embedded server has ended; it is started again -9\n"]


async def test_those_who_did_not_start_it_start_it_again_and_one_of_them_does(
    tmp_path: Path,
) -> None:
    starter = embedded_server(tmp_path)
    url = await starter.__aenter__()
    async with AsyncExitStack() as joined:
        for _ in range(3):
            await joined.enter_async_context(embedded_server(tmp_path))
        await starter.__aexit__(None, None, None)
        pid = await process_id(url)
        for _ in range(2):
            async with Redis.from_url(url) as client:
                await client.incr("times")
            killed = pid
            os.kill(killed, signal.SIGKILL)
            pid = await another_than(killed, url)
            assert servers(tmp_path) == [pid]
        async with Redis.from_url(url) as client:
            assert await client.get("times") == b"2"
    assert not lives(pid)


async def test_one_whose_folder_was_removed_is_started_again_empty(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "data") as url:
        killed = await process_id(url)
        shutil.rmtree(tmp_path / "data")
        os.kill(killed, signal.SIGKILL)
        pid = await another_than(killed, url)
        async with embedded_server(tmp_path / "data") as joined:
            assert await process_id(joined) == pid
        assert lives(pid), "it is still used"
    assert not lives(pid)


@pytest.mark.parametrize("removed", ["socket", "folder"])
async def test_a_server_that_cannot_be_reached_is_stopped_all_the_same(
    tmp_path: Path, removed: str
) -> None:
    async with embedded_server(tmp_path / "data") as url:
        pid = await process_id(url)
        if removed == "socket":
            (tmp_path / "data" / "valkey" / "valkey.sock").unlink()
        else:
            shutil.rmtree(tmp_path / "data")
        left = time.monotonic()
    assert time.monotonic() - left < 8, "it waited for an answer"
    assert not lives(pid)


async def test_a_server_that_hangs_is_killed_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_STOP_TIMEOUT_S", 0.2)
    async with embedded_server(tmp_path) as url:
        pid = await process_id(url)
        os.kill(pid, signal.SIGSTOP)
    assert not lives(pid)


async def test_who_finds_the_folder_taken_is_told_by_which_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with embedded_server(tmp_path) as url:
        pid = await process_id(url)
        (tmp_path / "valkey" / "valkey.sock").unlink()
        monkeypatch.setattr(embedded, "_START_TIMEOUT_S", 0.2)
        with pytest.raises(UnusableRedis, match=rf"\(process {pid}\) does not answer"):
            async with embedded_server(tmp_path):
                pass
        assert lives(pid), "another's is left alone"
    assert not lives(pid)


async def test_what_fails_meanwhile_comes_out_as_it_is(tmp_path: Path) -> None:
    """`gateway` shows a foreseen fault as one line, and a group of faults as none of them."""
    with pytest.raises(UnusableRedis, match="told"):
        async with embedded_server(tmp_path):
            raise UnusableRedis("told")

    async def cut_off() -> None:
        async with asyncio.timeout(None) as within, embedded_server(tmp_path):
            within.reschedule(asyncio.get_running_loop().time())
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await cut_off()


async def test_many_starters_at_once_make_one_server(tmp_path: Path) -> None:
    together = asyncio.Barrier(5)

    async def use() -> int:
        async with embedded_server(tmp_path) as url:
            pid = await process_id(url)
            await together.wait()
            return pid

    pids = await asyncio.gather(*(use() for _ in range(5)))
    assert len(set(pids)) == 1
    assert not lives(pids[0])


async def test_a_server_that_hangs_gets_no_twin(tmp_path: Path) -> None:
    async with embedded_server(tmp_path) as url:
        pid = await process_id(url)
        os.kill(pid, signal.SIGSTOP)
        try:
            joining = asyncio.timeout(1.5)
            with pytest.raises(TimeoutError):
                async with joining, embedded_server(tmp_path):
                    pass
            assert servers(tmp_path) == [pid]
        finally:
            os.kill(pid, signal.SIGCONT)
        async with Redis.from_url(url) as client:
            await client.set("still", "one")


async def test_a_stale_socket_is_no_server(tmp_path: Path) -> None:
    async with embedded_server(tmp_path) as url:
        pid = await process_id(url)
        os.kill(pid, signal.SIGKILL)
    async with embedded_server(tmp_path) as url:
        assert await process_id(url) != pid


async def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    appended = tmp_path / "valkey" / "appendonlydir"
    appended.mkdir(parents=True)
    (appended / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(UnusableRedis, match="embedded server ended at once"):
        async with embedded_server(tmp_path):
            pass


async def test_a_deep_directory(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a-rather-long-name"] * 8)
    async with embedded_server(deep) as url, Redis.from_url(url) as client:
        assert await client.ping()
