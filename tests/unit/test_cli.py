"""What every command has in common."""

import json

import pytest
import typer

from gateway import cli
from gateway.settings import load_settings


def test_a_process_that_fails_says_so_in_a_log_line_like_all_others(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATEWAY_LOG_FORMAT", "json")

    async def fail() -> None:
        raise RuntimeError("out of {luck}")

    settings, _ = load_settings()
    with pytest.raises(typer.Exit) as ended:
        cli._start(settings, fail)
    out, err = capfd.readouterr()
    assert (ended.value.exit_code, err) == (1, "")
    line = json.loads(out)
    assert (line["level"], line["message"]) == ("CRITICAL", "the process failed")
    assert line["context"]["exception"]["message"] == "out of {luck}"
