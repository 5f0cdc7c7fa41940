"""`gateway migrate` and the archive's settings, as an operator meets them."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.databases import PostgresServer, postgres_server
from support.forked import run

from gateway.archive.schema import VERSION


def gateway(*arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return run(*arguments, cwd=cwd, GATEWAY_LOG_LEVEL="ERROR", **environment)


def complaint(result: "subprocess.CompletedProcess[str]") -> str:
    """The one line with which a command failed."""
    assert result.returncode == 1, result.stderr
    [line] = result.stderr.splitlines()
    assert line.startswith("gateway: ")
    return line


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["ours", "postgresql"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """The default file, a configured server."""
    if request.param == "ours":
        return {}
    server: PostgresServer = request.getfixturevalue("postgres")
    return {"DATABASE_URL": server.create("migrated", patience_s=30)}


def test_up_and_down(tmp_path: Path, environment: dict[str, str]) -> None:
    for arguments, said in (
        ([], f"from nothing to {VERSION}"),
        (["--to", "base"], f"from {VERSION} to nothing"),
    ):
        result = gateway("migrate", *arguments, cwd=tmp_path, **environment)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip().endswith(said)
        assert not result.stderr
    if not environment:
        assert (tmp_path / ".nooble" / "history.db").is_file()


def test_a_server_that_is_not_there_is_one_line_without_its_password(tmp_path: Path) -> None:
    url = "postgresql://ann:secret@127.0.0.1:1/history"
    line = complaint(gateway("migrate", cwd=tmp_path, DATABASE_URL=url))
    assert "DATABASE_URL=postgresql://ann:***@127.0.0.1:1/history" in line
    assert "secret" not in line


def test_config_shows_what_holds(tmp_path: Path) -> None:
    result = gateway(
        "config",
        cwd=tmp_path,
        DATABASE_URL="postgresql://ann:secret@db/history",
        GATEWAY_RETENTION_DAYS="90",
        GATEWAY_RETENTION_TENANTS="acme=30, other=365",
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "DATABASE_URL=postgresql://ann:***@db/history" in lines
    assert "GATEWAY_RETENTION_DAYS=90" in lines
    assert "GATEWAY_RETENTION_TENANTS=acme=30,other=365" in lines
    assert "GATEWAY_DATABASE_MIGRATE=False" in lines
