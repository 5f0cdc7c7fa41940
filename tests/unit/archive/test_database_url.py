"""`DATABASE_URL`: what is taken, and what is said about what is not."""

from pathlib import Path
from urllib.parse import quote

import pytest

from gateway.archive.database import Database
from gateway.archive.errors import UnusableDatabase


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////var/lib/history.db", "sqlite:////var/lib/history.db"),
        ("postgresql://ann:secret@db:5433/h", "postgresql://ann:***@db:5433/h"),
        ("postgres://ann@db/h?sslmode=require", "postgresql://ann@db/h?sslmode=require"),
        ("postgresql+asyncpg://db/h", "postgresql://db/h"),
        (
            "postgresql://db/h?user=ann&password=secret&sslpassword=secret",
            "postgresql://db/h?password=***&sslpassword=***&user=ann",
        ),
        (
            f"postgresql://db/h?ssl=verify-ca&sslcrl={__file__}",
            f"postgresql://db/h?ssl=verify-ca&sslcrl={quote(__file__, safe='')}",
        ),
        (Path("/a b?/history.db"), "/a b?/history.db"),
    ],
)
async def test_what_is_taken(url: str | Path, shown: str) -> None:
    database = Database(url)
    assert database.where.removeprefix("DATABASE_URL=") == shown
    await database.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://ann:secret@localhost/history", "must begin with"),
        ("postgresql+psycopg://ann:secret@db/h", "must begin with"),
        ("secret", "must be like"),
        ("postgresql://ann:secret@db:port/h", "must be like"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite://host/history.db", "must name a file"),
        ("sqlite:////history.db?token=secret", "must name a file"),
        ("postgresql://db/h?foo=bar&password=secret", "foo is not known"),
        ("postgresql://db/h?sslmode=banana", "sslmode must be one of disable, allow"),
        ("postgresql://db/h?target_session_attrs=best", "must be one of any"),
        ("postgresql://db/h?connect_timeout=soon", "must be a number of seconds"),
        ("postgresql://db/h?sslrootcert=/nowhere/ca.pem", "must be a file that can be read"),
        ("postgresql://ann:secret@db..internal/h", "db..internal is no name of a host"),
        ("postgresql:///h?host=one:1&host=two", "every host needs its port"),
    ],
)
def test_what_is_not_taken_is_one_line_without_a_secret(url: str, said: str) -> None:
    with pytest.raises(UnusableDatabase) as caught:
        Database(url)
    [line] = str(caught.value).splitlines()
    assert line.startswith("DATABASE_URL")
    assert said in line
    assert "secret" not in line
