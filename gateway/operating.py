"""What an operator asks about the way to the archive; each answer is lines for a terminal."""

import json
import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from gateway.archive.errors import HistoryAway
from gateway.bus import keys
from gateway.opening import history_place, open_archive, open_bus, redis_url
from gateway.session.archive import DeadLetter, EntryId, Journal
from gateway.session.errors import CannotStart, Unavailable
from gateway.session.model import Limits
from gateway.settings import Settings

_PAGE = 100
_LONG_S = 10.0
"""What waits longer is not fetched: the archive takes half a second."""
_NAME = re.compile(r"[0-9]{1,3}/[0-9]{1,19}-[0-9]{1,19}")


class Answer(NamedTuple):
    """The lines, and whether all is well and was done."""

    lines: list[str]
    well: bool = True


async def status(settings: Settings, limits: Limits) -> Answer:
    """How much history waits, for how long, and whether the archive is well."""
    async with _journal(settings, limits) as journal:
        state = await journal.state()
    waited_s = max(0.0, time.time() - state.oldest_ms / 1000) if state.oldest_ms else 0.0
    ill = await _ill(settings, limits)
    if not ill and waited_s > _LONG_S:
        ill = f"nobody fetches what waits for more than {_LONG_S:.0f} s"
    lines = [
        f"waiting: {state.entries} entries, the oldest for {waited_s:.1f} s",
        f"fullest journal: {state.fill:.1%}",
        f"dead letters: {state.dead}",
        f"archive: {f'ill: {ill}' if ill else 'well'}",
    ]
    return Answer(lines, not ill)


async def _ill(settings: Settings, limits: Limits) -> str:
    """Why the archive takes nothing; empty when it does."""
    try:
        async with open_archive(settings, limits) as archive:
            await archive.database.check(writing=True)
    except HistoryAway as error:
        return error.why
    except CannotStart as error:  # its URL, or its schema
        return str(error)
    return ""


async def dead(settings: Settings, limits: Limits, count: int, *, fields: bool) -> Answer:
    """At most `count` dead letters, oldest first, each a JSON object; `fields` is all of it."""
    async with _journal(settings, limits) as journal:
        return Answer([_shown(letter, fields=fields) for letter in await journal.dead(count)])


async def replay(settings: Settings, limits: Limits, names: Sequence[str]) -> Answer:
    """Puts dead letters back into their journals: those that are named, or all."""
    chosen = {name: _parse(name) for name in names}
    async with _journal(settings, limits) as journal:
        if chosen:
            missing = [
                name for name, letter in chosen.items() if not await journal.replay([letter])
            ]
            lines = [f"put back: {len(chosen) - len(missing)}"]
            return Answer([*lines, *(f"not found: {name}" for name in missing)], not missing)
        # Once through: what is refused again meanwhile is not put back again.
        count, left = 0, (await journal.state()).dead
        while left > 0 and (found := await journal.dead(min(left, _PAGE))):
            count += await journal.replay([letter.id for letter in found])
            left -= len(found)
        return Answer([f"put back: {count}"])


async def migrate(settings: Settings, to: str) -> Answer:
    """Brings the archive's database to a version, by default the one that is needed."""
    # SQLAlchemy and Alembic: the other answers may do without.
    from gateway.archive.database import Database
    from gateway.archive.migrate import migrate
    from gateway.archive.schema import VERSION

    database = Database(history_place(settings))
    try:
        before, after = await migrate(database, to or VERSION)
    finally:
        await database.close()
    return Answer([f"{database.where}: from {before or 'nothing'} to {after or 'nothing'}"])


@asynccontextmanager
async def _journal(settings: Settings, limits: Limits) -> AsyncGenerator[Journal]:
    async with redis_url(settings) as url, open_bus(url, limits) as bus:
        try:
            yield bus.journal
        except Unavailable as error:
            raise CannotStart(error.message) from None


def _shown(letter: DeadLetter, *, fields: bool) -> str:
    shown: dict[str, Any] = {
        "id": f"{letter.id.partition}/{letter.id.id}",
        "at_ms": letter.at_ms,
        "session": letter.fields.get("session"),
        "run": letter.fields.get("run"),
        "why": letter.why,
    }
    if fields:
        shown["fields"] = letter.fields
    return json.dumps(shown)


def _parse(name: str) -> EntryId:
    number, _, entry_id = name.partition("/")
    if not _NAME.fullmatch(name) or int(number) >= keys.PARTITIONS:
        raise CannotStart(f"{name}: no id of a dead letter, as `gateway archive dead` lists them")
    return EntryId(int(number), entry_id)
