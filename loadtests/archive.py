"""A million messages in the archive: what a page costs as it grows.

    python loadtests/archive.py                          an SQLite file in a temporary folder
    python loadtests/archive.py --database postgresql://...   an empty database of yours

One user has a tenth of all sessions, and one session a tenth of all messages. Pages are read at the
top of the list and in the middle of it, by what the HTTP API calls.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from uuid import UUID

from loguru import logger

from gateway.archive.database import Database
from gateway.archive.migrate import migrate
from gateway.archive.reader import Reader
from gateway.archive.writer import Writer
from gateway.session.archive import (
    MessagePosition,
    Record,
    RunEnded,
    SessionBegun,
    SessionFilter,
    SessionPosition,
)
from gateway.session.model import RunRef, SessionKey

TENANT, USER = "acme", "ann"
T0 = 1_750_000_000_000
RUNS_PER_SESSION = 10
MESSAGES_PER_RUN = 4
BATCH = 500
PAGES = 100


def some_id() -> str:
    return str(UUID(bytes=os.urandom(16)))


BUSY = SessionKey(TENANT, some_id())
"""The session that has a tenth of all messages."""


def history(messages: int) -> Iterator[Record]:
    """Sessions as they come: ten runs of four messages, and between them runs of the busy one."""
    yield SessionBegun(BUSY, USER, "helper", b"{}", "continue", T0)
    at_ms = T0
    left = messages // MESSAGES_PER_RUN
    number = 0
    while left > 0:
        key, user = SessionKey(TENANT, some_id()), USER if number % 10 == 0 else some_id()
        yield SessionBegun(key, user, "helper", b'{"topic":"tea"}', "continue", at_ms)
        for nth in range(min(left, RUNS_PER_SESSION)):
            at_ms += 7
            mine = nth == 0
            yield run(BUSY if mine else key, USER if mine else user, at_ms)
        left -= RUNS_PER_SESSION
        number += 1


def run(key: SessionKey, user: str, at_ms: int) -> RunEnded:
    run_id = some_id()
    usage = [{"model": "large", "inputTokens": 900, "outputTokens": 120}]
    event = {"type": "RUN_FINISHED", "threadId": key.session_id, "runId": run_id, "usage": usage}
    said = [message("assistant", "Certainly. " * 20) for _ in range(MESSAGES_PER_RUN - 1)]
    return RunEnded(
        ref=RunRef(*key, run_id),
        user=user,
        agent="helper",
        task="run",
        kind="F",
        code="",
        created_ms=at_ms,
        claimed_ms=at_ms,
        ended_ms=at_ms,
        asked=[message("user", "Could you tell me more about that?")],
        said=said,
        event=json.dumps(event).encode(),
        state=None,
    )


def message(role: str, content: str) -> bytes:
    return json.dumps({"id": some_id(), "role": role, "content": content}).encode()


async def measure(reader: Reader, upto_ms: int) -> list[str]:
    """Milliseconds of each kind of page, median and 95th percentile."""
    middle = (T0 + upto_ms) // 2
    by_activity = SessionFilter(order="active")

    def sessions(chosen: SessionFilter, after: SessionPosition | None) -> Awaitable[object]:
        return reader.sessions(TENANT, USER, chosen, after=after, limit=50)

    def pages(before: MessagePosition | None) -> Awaitable[object]:
        return reader.messages(BUSY, before=before, limit=50)

    asked: list[Callable[[], Awaitable[object]]] = [
        lambda: sessions(SessionFilter(), None),
        lambda: sessions(SessionFilter(), SessionPosition(middle, "x")),
        lambda: sessions(by_activity, SessionPosition(middle, "x")),
        lambda: pages(None),
        lambda: pages(MessagePosition(middle, 0)),
        lambda: reader.recall(BUSY, USER),
    ]
    cells: list[str] = []
    for ask in asked:
        took: list[float] = []
        for _ in range(PAGES):
            began = time.perf_counter()
            assert await ask()
            took.append((time.perf_counter() - began) * 1000)
        cells.append(f"{statistics.median(took):.1f} / {statistics.quantiles(took, n=20)[-1]:.1f}")
    return cells


async def fill(database: Database, messages: int) -> None:
    writer = Writer(database)
    reader = Reader(
        database, now_ms=lambda: T0, transcript_messages=200, transcript_bytes=1024 * 1024
    )
    print(
        "| messages | written a second | newest sessions | sessions in the middle | by activity"
        " | newest messages | messages in the middle | recall |\n|---|---|---|---|---|---|---|---|"
    )
    marks = [messages // 100, messages // 10, messages]
    batch: list[Record] = []
    written = counted = 0
    spent = 0.0
    for record in history(messages):
        batch.append(record)
        written += MESSAGES_PER_RUN if isinstance(record, RunEnded) else 0
        reached = written >= marks[0]
        if len(batch) < BATCH and not reached:
            continue
        began = time.perf_counter()
        await writer.write(batch)
        spent += time.perf_counter() - began
        batch.clear()
        if reached:
            rate = (written - counted) / spent
            at_ms = record.ended_ms if isinstance(record, RunEnded) else record.at_ms
            cells = " | ".join(await measure(reader, at_ms))
            print(f"| {written:,} | {rate:,.0f} | {cells} |", flush=True)
            counted, spent = written, 0.0
            marks.pop(0)
            if not marks:
                return


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--database", help="DATABASE_URL of an empty database")
    options = parser.parse_args()
    logger.remove()
    with tempfile.TemporaryDirectory(prefix="nooble-archive-") as folder:
        database = Database(options.database or Path(folder) / "history.db")
        try:
            await migrate(database)
            await fill(database, options.messages)
        finally:
            await database.close()


if __name__ == "__main__":
    asyncio.run(main())
