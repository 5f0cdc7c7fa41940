"""What an operator is told of the way to the archive."""

import sqlite3
import time
from pathlib import Path

import pytest
from support.bus import connected_bus, running_server

from gateway.archive import engines
from gateway.archive.database import Database
from gateway.archive.migrate import migrate
from gateway.operating import replay, status
from gateway.session.errors import CannotStart
from gateway.session.model import Limits
from gateway.settings import Settings, load_settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


@pytest.fixture
def settings(file: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    with running_server() as url:
        monkeypatch.setenv("REDIS_URL", url)
        monkeypatch.setenv("DATABASE_URL", f"sqlite:///{file}")
        yield load_settings()[0]


async def make(file: Path) -> None:
    database = Database(file)
    await migrate(database)
    await database.close()


async def journal_entry(settings: Settings, key: str, age_s: float = 0) -> str:
    """An entry of any stream, as old as is wanted; answers its id."""
    assert settings.redis_url
    async with connected_bus(settings.redis_url) as bus:
        entry_id = f"{int((time.time() - age_s) * 1000)}-0"
        return (await bus.client.xadd(key, {"entry": "over", "bytes": "1"}, entry_id)).decode()


async def test_all_is_well(settings: Settings, file: Path) -> None:
    await make(file)
    answer = await status(settings, Limits())
    assert answer.well
    assert answer.lines[-1] == "archive: well"


async def test_an_archive_that_can_only_be_read_is_ill(
    settings: Settings, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has written nothing yet knows it by trying."""
    monkeypatch.setattr(engines, "_LOCK_TIMEOUT_S", 0.5)
    await make(file)
    with sqlite3.connect(file, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = await status(settings, Limits())
        other.execute("ROLLBACK")
    other.close()
    assert not answer.well
    assert answer.lines[-1].startswith("archive: ill: ")
    assert "locked" in answer.lines[-1]


@pytest.mark.parametrize("what", ["schema", "url"])
async def test_what_waits_is_told_when_the_archive_cannot_be_used(
    settings: Settings, what: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await journal_entry(settings, "j:{p3}")
    if what == "url":
        monkeypatch.setenv("DATABASE_URL", "mysql://somewhere/else")
        settings, _ = load_settings()
    answer = await status(settings, Limits())
    assert not answer.well
    assert answer.lines[0].startswith("waiting: 1 entries, ")
    assert ("gateway migrate" if what == "schema" else "DATABASE_URL=mysql:") in answer.lines[-1]


async def test_what_waits_too_long_is_ill(settings: Settings, file: Path) -> None:
    """The archive may be well, and nobody brings it anything."""
    await make(file)
    await journal_entry(settings, "j:{p3}", age_s=60)
    answer = await status(settings, Limits())
    assert not answer.well
    assert answer.lines[-1].startswith("archive: ill: ")


@pytest.mark.parametrize(
    "name", ["3/abc", "3/1", "128/1-1", "x/1-1", "3/1-1-1", "3/1-1\n", "٣/1-1"]
)
async def test_what_is_no_dead_letters_name_is_told(name: str) -> None:
    with pytest.raises(CannotStart, match="no id of a dead letter"):
        await replay(load_settings()[0], Limits(), [name])


async def test_dead_letters_that_are_not_there_are_named(settings: Settings, file: Path) -> None:
    name = f"3/{await journal_entry(settings, 'jd:{p3}')}"
    answer = await replay(settings, Limits(), [name, "127/1-1"])
    assert answer == (["put back: 1", "not found: 127/1-1"], False)
    assert (await replay(settings, Limits(), [name])).lines == ["put back: 0", f"not found: {name}"]
