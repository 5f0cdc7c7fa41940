"""What the journals bring is written once, whatever comes again and in whatever order."""

import asyncio
import itertools
import json
import random
from typing import Any

import pytest
from support.history import T0, begun, ended, everything, message, over, rows, some_session

from gateway.archive.database import Database
from gateway.archive.errors import BadRecord
from gateway.archive.rows import reported_usage
from gateway.archive.schema import messages, runs, sessions, usage_daily
from gateway.archive.writer import Writer
from gateway.session.archive import Record


async def session_of(database: Database) -> dict[str, Any]:
    [row] = await rows(database, sessions)
    return row


async def test_a_conversation_is_kept_as_it_was(database: Database) -> None:
    key = some_session()
    asked = [b'{"id":"m1","role":"user","content":"\\u0000 \xc3\xa9 \\ud83d\\ude00"}']
    said = [message("assistant", "one"), message("tool", "two")]
    run = ended(key, asked=asked, said=said, state=b'{"n":1}', code="", kind="F")
    await Writer(database).write([begun(key), run])

    row = await session_of(database)
    assert (row["tenant_id"], row["session_id"]) == key
    assert row["user_id"] == "ann"
    assert row["agent_id"] == "helper"
    assert row["status"] == "active"
    assert row["metadata"] == '{"topic":"tea"}'
    assert row["on_detach"] == "continue"
    assert (row["created_ms"], row["active_ms"], row["ended_ms"]) == (T0, run.ended_ms, 0)
    assert (row["runs"], row["messages"], row["state"]) == (1, 3, '{"n":1}')
    [archived] = await rows(database, runs)
    assert archived["event"].encode() == run.event
    found = await rows(database, messages)
    assert [row["json"].encode() for row in found] == [*asked, *said]
    assert [row["nth"] for row in found] == [0, 1, 2]


async def test_a_batch_that_comes_again_changes_nothing(database: Database) -> None:
    """Guarantee 8: a node that dies between commit and forget doubles nothing."""
    key, other = some_session(), some_session()
    usage = [{"model": "m", "inputTokens": 3, "outputTokens": 5}]
    batch: list[Record] = [
        begun(key),
        ended(key, T0 + 1, usage=usage),
        ended(key, T0 + 2, usage=usage, state=b"2"),
        over(key, "completed", T0 + 3),
        begun(other),
        ended(other, T0 + 1),
    ]
    writer = Writer(database)
    await writer.write(batch)
    once = await everything(database)
    await writer.write(batch)
    await writer.write(batch[1:3] + batch[1:2])  # twice within one batch, too
    await writer.write([batch[5]])
    assert await everything(database) == once
    assert once["sessions"][0]["runs"] + once["sessions"][1]["runs"] == 3


async def test_the_order_of_batches_does_not_matter(database: Database) -> None:
    """Dead letters are put back at the end, and two nodes may read one journal."""
    writer = Writer(database)
    expected: dict[str, Any] = {}
    orders = list(itertools.permutations(range(5)))
    for order in [orders[0], orders[-1], *random.Random(1).sample(orders, 10)]:
        key = some_session()
        records: list[Record] = [
            begun(key, T0),
            ended(key, T0 + 10, state=b"1"),
            over(key, "expired", T0 + 20),
            begun(key, T0 + 30, metadata=b'{"topic":"tea"}'),
            ended(key, T0 + 40, state=b"2"),
        ]
        for index in order:
            await writer.write([records[index]])
        async with database.reading() as connection:
            where = sessions.c.session_id == key.session_id
            row = (await connection.execute(sessions.select().where(where))).one()
        seen = {name: value for name, value in row._mapping.items() if name != "session_id"}
        expected = expected or seen
        assert seen == expected, order
    assert expected["status"] == "active"
    assert expected["created_ms"] == T0
    assert expected["state"] == "2"
    assert expected["runs"] == 2


@pytest.mark.parametrize("last", ["completed", "expired", "active"])
async def test_the_last_word_on_a_session_holds(database: Database, last: str) -> None:
    key = some_session()
    batch: list[Record] = [begun(key, T0), over(key, "expired", T0 + 1)]
    if last == "active":
        batch.append(begun(key, T0 + 2))
    elif last == "completed":
        # An end that comes late is the end all the same: nothing lives after it.
        batch.insert(0, over(key, "completed", T0 - 1))
    await Writer(database).write(batch)
    row = await session_of(database)
    assert row["status"] == last
    assert row["ended_ms"] == (T0 - 1 if last == "completed" else 0)


async def test_writers_that_get_the_same_entries_count_each_once(database: Database) -> None:
    """While nodes disagree who has which partition, both write it."""
    keys = [some_session() for _ in range(5)]
    usage = [{"model": "m", "inputTokens": 1, "outputTokens": 1}]
    batch: list[Record] = [begun(key) for key in keys]
    batch += [ended(key, T0 + n, usage=usage) for key in keys for n in range(10)]

    async def write(seed: int) -> None:
        mine = batch.copy()
        random.Random(seed).shuffle(mine)
        writer = Writer(database)
        for start in range(0, len(mine), 11):
            await writer.write(mine[start : start + 11])

    async with asyncio.TaskGroup() as group:
        for seed in range(4):
            group.create_task(write(seed))
    found = await everything(database)
    assert [row["runs"] for row in found["sessions"]] == [10] * 5
    assert [row["messages"] for row in found["sessions"]] == [20] * 5
    assert len(found["messages"]) == 100
    [day] = found["usage_daily"]
    assert (day["runs"], day["input_tokens"], day["output_tokens"]) == (50, 50, 50)


async def test_usage_is_counted_by_day_agent_and_model(database: Database) -> None:
    key = some_session()
    midnight = T0 - T0 % 86_400_000 + 86_400_000
    await Writer(database).write(
        [
            ended(key, T0, usage=[{"model": "big", "inputTokens": 10, "outputTokens": 1}]),
            ended(
                key,
                T0 + 1,
                usage=[
                    {"model": "big", "inputTokens": 5},
                    {"model": "small", "outputTokens": 7},
                    {"model": "big", "inputTokens": 5},
                ],
            ),
            ended(key, T0 + 2),
            ended(key, midnight, agent="other", usage=[{"model": "big", "inputTokens": 0}]),
        ]
    )
    found = [tuple(row.values()) for row in await rows(database, usage_daily)]
    assert found == [
        ("acme", "2025-06-15", "helper", "", 1, None, None),
        ("acme", "2025-06-15", "helper", "big", 2, 20, 1),
        ("acme", "2025-06-15", "helper", "small", 1, None, 7),
        ("acme", "2025-06-16", "other", "big", 1, 0, None),
    ]
    by_end = sorted(await rows(database, runs), key=lambda row: row["ended_ms"])
    assert [(row["input_tokens"], row["output_tokens"]) for row in by_end] == [
        (10, 1),
        (10, 7),
        (None, None),
        (0, None),
    ]


async def test_usage_that_comes_later_is_added_to_what_was_unknown(database: Database) -> None:
    key, writer = some_session(), Writer(database)
    await writer.write([ended(key, T0, usage=[{"model": "m"}])])
    await writer.write([ended(key, T0 + 1, usage=[{"model": "m", "outputTokens": 4}])])
    await writer.write([ended(key, T0 + 2, usage=[{"model": "m"}])])
    [day] = await rows(database, usage_daily)
    assert (day["runs"], day["input_tokens"], day["output_tokens"]) == (3, None, 4)


@pytest.mark.parametrize(
    "usage", ["many", [1], [{"inputTokens": "three"}], {"inputTokens": 3}, [{"model": 5}]]
)
def test_usage_that_cannot_be_read_is_absent(usage: Any) -> None:
    """Guarantee 9: usage that an agent did not report is absent, never zero."""
    assert reported_usage(json.dumps({"type": "RUN_FINISHED", "usage": usage}).encode()) == []
    assert reported_usage(b"{") == []


async def test_one_bad_record_refuses_the_batch_and_nothing_of_it_is_written(
    database: Database,
) -> None:
    """So that the archiver can find it by halves."""
    good, bad = some_session(), some_session()
    writer = Writer(database)
    spoiled = ended(bad, said=[b'{"role":"assistant","content":"\xff"}'])
    with pytest.raises(BadRecord):
        await writer.write([begun(good), ended(good), spoiled])
    huge = ended(bad, ended_ms=2**70, usage=[])
    with pytest.raises(BadRecord):
        await writer.write([begun(good), ended(good), huge])
    assert not any((await everything(database)).values())
    await writer.write([begun(good), ended(good)])
    assert len(await rows(database, runs)) == 1


async def test_what_only_one_database_refuses_is_bad_there(
    database: Database, database_url: str
) -> None:
    """PostgreSQL has no NUL in texts; it must be told from a database that is away."""
    writer = Writer(database)
    record = begun(some_session(), user="a\0b")
    if database_url.startswith("sqlite"):
        await writer.write([record])
    else:
        with pytest.raises(BadRecord):
            await writer.write([record])


async def test_tokens_beyond_reason_are_cut_not_refused(database: Database) -> None:
    key = some_session()
    usage = [{"inputTokens": 2**62, "outputTokens": -5, "model": "a\0b" * 200}]
    await Writer(database).write([ended(key, usage=usage)])
    [day] = await rows(database, usage_daily)
    assert (day["input_tokens"], day["output_tokens"]) == (2**53 - 1, 0)
    assert day["model"] == ("ab" * 200)[:200]


async def test_a_large_batch_is_one_transaction(database: Database) -> None:
    """More rows than a statement may have parameters."""
    keys = [some_session() for _ in range(20)]
    batch: list[Record] = [ended(key, T0 + n) for key in keys for n in range(150)]
    await Writer(database).write(batch)
    assert len(await rows(database, runs)) == 3000
    assert {row["messages"] for row in await rows(database, sessions)} == {300}
    await Writer(database).write([])
