"""Every line has the documented ten keys, whatever is logged and by whom; nothing blocks."""

import asyncio
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

import gateway
from gateway.archive.database import Database
from gateway.bus.connection import create_client
from gateway.bus.scripts import Scripts
from gateway.session.breaker import BreakerState
from gateway.session.context import current_ids, log_context, process_named
from gateway.session.errors import Unavailable
from gateway.telemetry.logs import Logs, configure_logging

KEYS = [
    "timestamp",
    "level",
    "service",
    "trace_id",
    "span_id",
    "tenant_id",
    "session_id",
    "request_id",
    "message",
    "context",
]
IDS = KEYS[3:8]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def logging_to(stream: Any, **options: Any) -> Iterator[Logs]:
    logs = configure_logging(**({"level": "DEBUG", "style": "json"} | options), stream=stream)
    try:
        yield logs
    finally:
        logs.close()


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    """Each line, held against the document's example."""
    *lines, end = stream.getvalue().split("\n")
    assert end == ""
    return [checked(line) for line in lines]


def checked(line: str) -> dict[str, Any]:
    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found = json.loads(line, parse_constant=no_constant)
    assert list(found) == KEYS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["timestamp"])
    assert found["level"] in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    assert found["service"] == "agent-orchestrator"
    assert all(found[name] is None or isinstance(found[name], str) for name in IDS)
    assert isinstance(found["message"], str)
    assert isinstance(found["context"], dict)
    return found


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def test_the_documents_example(stream: io.StringIO):
    ids = {
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "span_id": "b7ad6b7169203331",
        "tenant_id": "acme-corp",
        "session_id": "550e8400-e29b-41d4-a716-446655440000",
        "request_id": "cc7a93c1-074f-48b9-8ea7-56001d0bb453",
    }
    extra = {"agent_id": "customer-support-agent", "user_id": "user-123"}
    with logging_to(stream), log_context(**ids):
        logger.bind(**extra).info("Sesión inicializada correctamente")
    [line] = lines_of(stream)
    assert {name: line[name] for name in IDS} == ids
    assert line["level"] == "INFO"
    assert line["message"] == "Sesión inicializada correctamente"
    assert line["context"] == extra


def test_what_is_unknown_is_null_and_context_is_an_object(stream: io.StringIO):
    with logging_to(stream):
        logger.info("started")
    [line] = lines_of(stream)
    assert [line[name] for name in IDS] == [None] * 5
    assert line["context"] == {}


def test_levels_are_the_five_of_the_document(stream: io.StringIO):
    with logging_to(stream):
        for level in ("debug", "info", "success", "warning", "error", "critical"):
            getattr(logger, level)(level)
        logger.log(45, "between")
    assert [(line["message"], line["level"]) for line in lines_of(stream)] == [
        ("debug", "DEBUG"),
        ("info", "INFO"),
        ("success", "INFO"),
        ("warning", "WARNING"),
        ("error", "ERROR"),
        ("critical", "CRITICAL"),
        ("between", "ERROR"),
    ]


def test_lines_below_the_level_are_not_written(stream: io.StringIO):
    with logging_to(stream, level="WARNING"):
        logger.info("no")
        logger.warning("yes")
        logging.getLogger("redis").info("no")
        logging.getLogger("redis").warning("yes")
    assert [line["message"] for line in lines_of(stream)] == ["yes", "yes"]


# --- ids ------------------------------------------------------------------------------------------


async def test_ids_follow_their_task_and_end_with_their_context(stream: io.StringIO):
    async def work(session: str) -> None:
        with log_context(session_id=session):
            for _ in range(3):
                await asyncio.sleep(0)
                logger.info(session)

    with logging_to(stream), log_context(tenant_id="acme"):
        async with asyncio.TaskGroup() as group:
            for session in "abc":
                group.create_task(work(session))
        logger.info("after")
    *lines, after = lines_of(stream)
    assert len(lines) == 9
    assert all(line["session_id"] == line["message"] for line in lines)
    assert {line["tenant_id"] for line in [*lines, after]} == {"acme"}
    assert after["session_id"] is None
    assert current_ids().tenant_id is None


def test_a_bound_id_stands_under_its_own_key_and_wins(stream: io.StringIO):
    with logging_to(stream), log_context(session_id="outer", tenant_id="acme"):
        logger.bind(session_id="bound", run_id="r").info("swept")
    [line] = lines_of(stream)
    assert (line["session_id"], line["tenant_id"]) == ("bound", "acme")
    assert line["context"] == {"run_id": "r"}


async def test_that_a_dependency_is_away_is_no_matter_of_the_request_that_found_it(
    stream: io.StringIO,
):
    """Two processes say it side by side: each names itself, and no tenant that happened to ask."""
    redis = Scripts(create_client("unix:///nonexistent/valkey.sock"))
    database = Database("postgresql://ann@127.0.0.1:1/history")
    ids = dict.fromkeys(IDS, "somebody's")
    with logging_to(stream), process_named("node:n1"), log_context(**ids):
        while redis.breaker.state is BreakerState.CLOSED:
            redis.breaker.fail()
        redis.breaker.succeed()
        while database.breaker.state is BreakerState.CLOSED:
            with pytest.raises(Unavailable):
                async with database.reading():
                    pass
        logger.info("asked")
    await redis.client.aclose()
    await database.close()
    *lines, asked = [line for line in lines_of(stream) if line["context"].get("logger") is None]
    assert [line["message"].partition(";")[0] for line in lines] == [
        "Redis does not answer",
        "Redis answers again",
        "the database does not answer",
    ]
    assert not [line for line in lines if any(line[name] for name in IDS)]
    assert {name: asked[name] for name in IDS} == ids
    assert {line["context"]["process"] for line in [*lines, asked]} == {"node:n1"}


def test_on_a_terminal_the_process_is_named_by_its_kind(stream: io.StringIO):
    with logging_to(stream, style="text"), process_named("worker:w1"):
        logger.info("here")
    assert stream.getvalue().endswith(" here process=worker\n")


def test_an_id_that_does_not_exist_is_an_error():
    with pytest.raises(TypeError), log_context(tenant="acme"):
        pass


# --- hostile text ---------------------------------------------------------------------------------

HOSTILE = ["{} {0} {name!r} {{", "<red>x</red> </> \\<", "a\nb\r\nc", "%s %d %", "\x1b[31m\x00"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_message_is_text_and_one_line(stream: io.StringIO, text: str):
    with logging_to(stream):
        logger.info(text)
        logger.bind(content=text).info("bound")
        logging.getLogger("redis").warning(text)
    first, second, third = lines_of(stream)
    assert first["message"] == third["message"] == text
    assert second["context"] == {"content": text}


@given(st.text(), st.dictionaries(st.text(), st.text() | st.integers() | st.floats()))
def test_any_text_and_any_values_make_one_valid_line(text: str, extra: dict[str, Any]):
    stream = io.StringIO()
    with logging_to(stream):
        logger.bind(**{f"x{name}": value for name, value in extra.items()}).info(text)
    [line] = lines_of(stream)
    assert line["message"] == text
    assert set(line["context"]) == {f"x{name}" for name in extra}


def test_values_that_json_cannot_hold_cost_no_line(stream: io.StringIO):
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    cycle: list[Any] = []
    cycle.append(cycle)
    values: list[Any] = [
        Broken(),
        object(),
        cycle,
        {("a", 1): 2},
        {"deep": {"er": Broken()}},
        2**80,
        float("nan"),
        "\ud800",
        {1, 2},
        b"\xff",
        ValueError("x"),
    ]
    with logging_to(stream):
        for value in values:
            logger.bind(value=value, session_id=value).info("odd \ud800")
    lines = lines_of(stream)
    assert len(lines) == len(values)
    assert all(line["message"] == "odd \\ud800" for line in lines)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_gets_one_line_without_control_characters(text: str):
    stream = Terminal()
    with logging_to(stream, style="text", level="INFO"), log_context(tenant_id=text):
        logger.bind(value=text).info(text)
    line = re.sub(r"\x1b\[(\d+;?)*m", "", stream.getvalue(), count=4)  # our own colours
    assert line.count("\n") == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", line)


# --- exceptions -----------------------------------------------------------------------------------


def fail(secret: str) -> None:
    raise ValueError("bad {thing} <red>\nvalue" if secret else "")


def test_an_exception_is_type_message_and_stack_without_local_values(stream: io.StringIO):
    password = "hunter2"
    with logging_to(stream):
        try:
            fail(password)
        except ValueError:
            logger.bind(agent_id="demo").exception("the agent failed")
    [line] = lines_of(stream)
    failed = line["context"].pop("exception")
    assert line["context"] == {"agent_id": "demo"}
    assert line["level"] == "ERROR"
    assert sorted(failed) == ["message", "stack", "type"]
    assert failed["type"] == "ValueError"
    assert failed["message"] == "bad {thing} <red>\nvalue"
    assert failed["stack"].startswith("Traceback (most recent call last):")
    assert "in fail" in failed["stack"]
    assert "fail(password)" in failed["stack"]
    assert "hunter2" not in failed["stack"]


def test_on_a_terminal_the_stack_follows_the_line():
    stream = Terminal()
    with logging_to(stream, style="auto"):
        try:
            fail("x")
        except ValueError:
            logger.exception("it failed")
    first, second, *_ = stream.getvalue().split("\n")
    assert first.endswith("it failed")
    assert second == "Traceback (most recent call last):"


# --- style ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "kind", "is_json", "coloured"),
    [
        ("auto", Terminal, False, True),
        ("auto", io.StringIO, True, False),
        ("json", Terminal, True, False),
        ("text", io.StringIO, False, False),
    ],
)
def test_style(style: str, kind: type[io.StringIO], is_json: bool, coloured: bool):
    stream = kind()
    with logging_to(stream, style=style):
        logger.bind(agent_id="demo").warning("look")
    text = stream.getvalue()
    assert text.startswith("{") is is_json
    assert ("\x1b[" in text) is coloured
    if not is_json:
        assert "WARNING" in text
        assert "look" in text
        assert "agent_id=demo" in text


# --- the standard library -------------------------------------------------------------------------


def test_the_standard_librarys_lines_come_with_level_name_and_exception(stream: io.StringIO):
    with logging_to(stream):
        uvicorn.Config(lambda: None, log_config=None)
        logging.getLogger("uvicorn.error").info("listening on %s", "x:1")
        logging.getLogger("redis").critical("gone")
        try:
            fail("x")
        except ValueError:
            logging.getLogger("asyncio").exception("never retrieved")
        logging.getLogger("asyncio").error("no exception", exc_info=True)
    first, second, third, fourth = lines_of(stream)
    assert (first["level"], first["message"]) == ("INFO", "listening on x:1")
    assert first["context"] == {"logger": "uvicorn.error"}
    assert (second["level"], second["context"]) == ("CRITICAL", {"logger": "redis"})
    assert third["level"] == "ERROR"
    assert third["context"]["exception"]["type"] == "ValueError"
    assert fourth["context"] == {"logger": "asyncio"}


def test_libraries_debug_lines_stay_out_at_any_level(stream: io.StringIO):
    """websockets prints whole frames at DEBUG: bodies and tokens."""
    chatty = logging.getLogger("uvicorn.error")
    former = chatty.level
    chatty.setLevel(logging.DEBUG)
    try:
        with logging_to(stream, level="DEBUG"):
            chatty.debug("< TEXT '{\"token\": ...}'")
            logger.debug("ours")
    finally:
        chatty.setLevel(former)
    assert [line["message"] for line in lines_of(stream)] == ["ours"]


def test_arguments_that_do_not_fit_cost_no_line(stream: io.StringIO):
    with logging_to(stream):
        logging.getLogger("x").warning("%d of %s", *["many"])
    [line] = lines_of(stream)
    assert line["message"] == "%d of %s ('many',)"


def test_what_python_itself_would_print_is_a_line(stream: io.StringIO):
    class Broken:
        def __del__(self) -> None:
            raise ValueError("in {vain}")

    with logging_to(stream):
        Broken()
        thread = threading.Thread(target=lambda: fail("x"))
        thread.start()
        thread.join()
        with warnings.catch_warnings(action="always"):
            warnings.warn("old {thing}", DeprecationWarning, stacklevel=1)
    first, second, third = lines_of(stream)
    assert (first["level"], first["context"]["exception"]["message"]) == ("ERROR", "in {vain}")
    assert (second["message"], second["level"]) == ("a thread failed", "ERROR")
    assert (third["level"], third["message"]) == ("WARNING", "old {thing}")
    assert third["context"] == {"logger": "warnings", "category": "DeprecationWarning"}


def test_secrets_that_libraries_say_are_masked_in_any_style():
    for style in ("json", "text"):
        stream = io.StringIO()
        with logging_to(stream, style=style):
            logger.bind(url="redis://ann:hunter2@host").warning(
                "Bearer hunter2hunter2 ?key=hunter2"
            )
        assert "hunter2" not in stream.getvalue()
        assert "redis://ann:***@host" in stream.getvalue()


def test_after_close_the_standard_library_is_as_before(stream: io.StringIO):
    root = logging.getLogger()
    before = root.handlers[:], root.level
    hooks = warnings.showwarning, threading.excepthook, sys.unraisablehook
    with logging_to(stream) as logs:
        assert root.handlers != before[0]
    assert (root.handlers, root.level) == before
    assert (warnings.showwarning, threading.excepthook, sys.unraisablehook) == hooks
    logger.info("too late")
    logs.close()  # safe to repeat
    assert stream.getvalue() == ""


# --- the bound ------------------------------------------------------------------------------------


def test_a_stream_that_blocks_never_blocks_who_logs_and_drops_are_counted():
    read, write = os.pipe()  # holds some 64 KiB; nobody reads yet
    reader, got = os.fdopen(read), io.StringIO()
    with os.fdopen(write, "w") as stream, reader:
        logs = configure_logging(
            level="INFO", style="json", stream=stream, max_pending_bytes=200_000
        )
        for number in range(2000):
            logger.bind(pad="x" * 500).info(f"line {number}")
        dropped = logs.logs_dropped
        assert dropped > 1000
        thread = threading.Thread(target=lambda: got.write(reader.read()))
        thread.start()
        logs.close()
        stream.close()
        thread.join()
    lines = lines_of(got)
    assert logs.logs_dropped == dropped
    assert len(lines) + dropped == 2000
    assert [line["message"] for line in lines] == [f"line {n}" for n in range(len(lines))]


def test_close_gives_up_on_a_stream_that_stays_blocked_and_counts_what_was_left():
    read, write = os.pipe()
    with os.fdopen(read) as reader, os.fdopen(write, "w") as stream:
        logs = configure_logging(level="INFO", style="json", stream=stream)
        for _ in range(2000):
            logger.bind(pad="x" * 500).info("line")
        logs.close(timeout_s=0.05)
        # What its thread holds may yet be written; the rest is counted, and no line is both.
        left = logs.logs_dropped
        got = io.StringIO()
        thread = threading.Thread(target=lambda: got.write(reader.read()))
        thread.start()
        logs.close()
        stream.close()
        thread.join()
    assert logs.logs_dropped == left
    assert len(lines_of(got)) + left == 2000


def test_a_broken_stream_is_survived_and_counted():
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w")
    with logging_to(stream) as logs:
        logger.info("nobody reads this")
    assert logs.logs_dropped == 1
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_what_is_written_makes_room_again():
    read, write = os.pipe()
    with os.fdopen(read) as reader, os.fdopen(write, "w") as stream:
        with logging_to(stream, max_pending_bytes=10_000) as logs:
            for number in range(100):  # some 25 KB
                logger.info(str(number))
                assert checked(reader.readline())["message"] == str(number)
        assert logs.logs_dropped == 0


def test_close_writes_all_that_was_logged(stream: io.StringIO):
    with logging_to(stream) as logs:
        for number in range(500):
            logger.info(str(number))
    assert [line["message"] for line in lines_of(stream)] == [str(n) for n in range(500)]
    assert logs.logs_dropped == 0


def test_a_normal_exit_loses_no_line_whatever_the_locale():
    script = """
from gateway.telemetry.logs import configure_logging
from loguru import logger
configure_logging(level="INFO", style="auto")
for number in range(300):
    logger.info(f"línea {number}")
logger.critical("the last line")
raise SystemExit(3)
"""
    root = str(Path(gateway.__path__[0]).parent)
    env = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONPATH": root}
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, env=env, check=False)
    assert (run.returncode, run.stderr) == (3, b"")
    lines = lines_of(io.StringIO(run.stdout.decode()))
    assert [line["message"] for line in lines[:300]] == [f"línea {n}" for n in range(300)]
    assert (lines[300]["level"], lines[300]["message"]) == ("CRITICAL", "the last line")
