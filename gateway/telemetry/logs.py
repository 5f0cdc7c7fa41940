"""Logs: one JSON object per line, with the same ten keys always, in one bounded stream.

How the other parts log, without importing this:

    from loguru import logger

    logger.bind(agent_id=agent, seq=seq).warning("the log has a gap")

- What is bound goes to `context`; a bound id (`tenant_id`, `session_id`, ...) goes to its own key.
  The other ids come from `gateway.session.context.log_context`, and `process` is in each context.
- The message is a constant. Values are bound; they are never arguments of the message or part of
  it, so that no user's text is ever a format string. Never log a token, a secret or a message body.
- The standard library's logging arrives here too, from INFO up, whatever the level: below it
  libraries print the frames that they carry.
- Not on the path of a frame: a line costs some ten microseconds.

A line is made by the thread that logs, and written by a thread of its own, so that a stream that
blocks never blocks the event loop. What does not fit into the bound is dropped and counted.
"""

import atexit
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

import msgspec
from loguru import logger

from gateway.session.context import current_ids, current_process
from gateway.session.masking import mask_secrets

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

    from loguru import Message, Record

SERVICE = "agent-orchestrator"

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
LEVELS: tuple[Level, ...] = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
Style = Literal["auto", "json", "text"]

ID_KEYS = ("trace_id", "span_id", "tenant_id", "session_id", "request_id")

_COLOURS: dict[Level, str] = {
    "DEBUG": "\x1b[2m",
    "INFO": "\x1b[32m",
    "WARNING": "\x1b[33m",
    "ERROR": "\x1b[31m",
    "CRITICAL": "\x1b[1;41m",
}
# What a terminal would act on. A line break stays where several lines are meant: in a stack.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_ONE_LINE = str.maketrans({**_CONTROLS, 0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"})
_SEVERAL_LINES = str.maketrans({k: v for k, v in _CONTROLS.items() if k not in (0x09, 0x0A)})


class Logs:
    """The stream of logs; made by `configure_logging`.

    Attributes:
        logs_dropped: lines that did not fit into the bound or could not be written.
        lines_by_level: how many there were, those too.
    """

    def __init__(self, stream: TextIO, max_pending_bytes: int) -> None:
        self.logs_dropped = 0
        self.lines_by_level: dict[Level, int] = dict.fromkeys(LEVELS, 0)
        self._stream = stream
        self._max_pending = max_pending_bytes
        self._pending = 0
        self._lines: list[bytes] = []
        self._closing = False
        self._changed = threading.Condition()
        self._undo: list[Callable[[], object]] = []
        self._thread = threading.Thread(target=self._drain, name="logs", daemon=True)
        self._thread.start()

    def put(self, line: bytes, level: Level) -> None:
        """Queues a line; never blocks."""
        with self._changed:
            self.lines_by_level[level] += 1
            if self._closing or self._pending + len(line) > self._max_pending:
                self.logs_dropped += 1
                return
            self._lines.append(line)
            self._pending += len(line)
            self._changed.notify()

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Ends logging: writes what is queued, for so long at most. Safe to repeat.

        Runs at the exit of the interpreter if nobody calls it before.
        """
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            self._drop_queued()

    def on_close(self, undo: Callable[[], object]) -> None:
        """Has `undo` called ahead of the last write."""
        self._undo.append(undo)

    def _drain(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closing)
                lines, self._lines = self._lines, []
                last = self._closing
            if lines:
                self._write(lines)
            if last:
                return

    def _write(self, lines: list[bytes]) -> None:
        text = b"".join(lines)
        written = True
        try:
            # The bytes of a terminal or a pipe, whatever encoding the locale gave it.
            binary = getattr(self._stream, "buffer", None)
            if binary is None:
                self._stream.write(text.decode())
            else:
                binary.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # a broken pipe, a full disk, a closed stream
            written = False
        with self._changed:
            self._pending -= len(text)
            if not written:
                self.logs_dropped += len(lines)

    def _drop_queued(self) -> None:
        self.logs_dropped += len(self._lines)
        self._lines = []


_current: Logs | None = None


def current_logs() -> Logs | None:
    """The stream that was configured last; None where logging is not ours."""
    return _current


def configure_logging(
    *,
    level: Level,
    style: Style,
    stream: TextIO | None = None,
    max_pending_bytes: int = 4 * 1024 * 1024,
) -> Logs:
    """Sends loguru's lines and the standard library's to one stream, and nowhere else.

    uvicorn must not set up its own: `uvicorn.Config(..., log_config=None)`.

    Args:
        level: the lowest that is shown.
        style: `auto` is `text` on a terminal and `json` elsewhere; `text` has colours on a
            terminal only.
        stream: standard output by default.
        max_pending_bytes: how much may wait for a stream that does not take it.
    """
    out: TextIO = sys.stdout if stream is None else stream
    terminal = out.isatty()
    logs = Logs(out, max_pending_bytes)
    as_text = style == "text" or (style == "auto" and terminal)

    def sink(message: "Message") -> None:
        line = _text_line(message, colour=terminal) if as_text else _json_line(message)
        logs.put(mask_secrets(line), _level(message.record))

    global _current  # noqa: PLW0603 - loguru's logger is the process's, and so is its stream
    _current = logs
    logger.remove()
    # The format is the stack alone: the sink makes the rest of the line from the record.
    handler_id = logger.add(
        sink, level=level, format=lambda _: "{exception}", backtrace=False, diagnose=False
    )
    logs.on_close(lambda: logger.remove(handler_id))
    logs.on_close(_intercept_standard_logging(level))
    logs.on_close(_intercept_hooks())
    atexit.register(logs.close)
    return logs


# --- the standard library -------------------------------------------------------------------------


class _Interceptor(logging.Handler):
    """Hands the standard library's records to loguru."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):  # arguments that do not fit the message
            message = f"{record.msg} {record.args}"
        failed = record.exc_info if record.exc_info and record.exc_info[0] else None
        logger.opt(exception=failed).bind(logger=record.name).log(record.levelno, message)


def _intercept_standard_logging(level: Level) -> Callable[[], None]:
    """Makes loguru the root logger's only handler; answers what puts back the former state."""
    root = logging.getLogger()
    handlers, former_level = root.handlers[:], root.level
    interceptor = _Interceptor(level=max(logging.INFO, getattr(logging, level)))
    root.handlers[:] = [interceptor]
    root.setLevel(interceptor.level)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # what it did, a line of ours says

    def restore() -> None:
        root.handlers[:] = handlers
        root.setLevel(former_level)

    return restore


def _intercept_hooks() -> Callable[[], None]:
    """Likewise what Python would print: warnings, and exceptions that nobody can catch."""
    former = warnings.showwarning, threading.excepthook, sys.unraisablehook

    def warned(message: Warning | str, category: type[Warning], *where: Any) -> None:
        logger.bind(logger="warnings", category=category.__name__).warning(str(message))

    def thread_failed(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_value is not None:
            name = failed.thread.name if failed.thread else None
            logger.opt(exception=failed.exc_value).bind(thread=name).error("a thread failed")

    def unraisable(failed: "UnraisableHookArgs") -> None:
        logger.opt(exception=failed.exc_value).error("an exception was raised to nobody")

    warnings.showwarning = warned
    threading.excepthook, sys.unraisablehook = thread_failed, unraisable

    def restore() -> None:
        warnings.showwarning, threading.excepthook, sys.unraisablehook = former

    return restore


# --- lines ----------------------------------------------------------------------------------------


def _json_line(message: "Message") -> bytes:
    record = message.record
    ids, context = _ids_and_context(record, stack=str(message))
    line = {
        "timestamp": _timestamp(record),
        "level": _level(record),
        "service": SERVICE,
        **ids,
        "message": record["message"],
        "context": context,
    }
    try:
        return _encode(line) + b"\n"
    except (TypeError, ValueError, OverflowError, RecursionError):
        # A key that is no string, a lone surrogate, a huge number, a cycle.
        return _encode(_plain(line)) + b"\n"


def _text_line(message: "Message", *, colour: bool) -> bytes:
    record = message.record
    ids, context = _ids_and_context(record, stack="")
    context.pop("exception", None)
    if process := context.get("process"):  # who sits there has one of each
        context["process"] = _text(process).partition(":")[0]
    level = _level(record)
    known = {name: value for name, value in {**ids, **context}.items() if value is not None}
    pairs = "".join(f" {_plain(name)}={_text(value)}" for name, value in known.items())
    start, dim, end = (_COLOURS[level], "\x1b[2m", "\x1b[0m") if colour else ("", "", "")
    said = record["message"].translate(_ONE_LINE)
    local = record["time"].time().isoformat(timespec="milliseconds")
    text = f"{local} {start}{level:<8}{end} {said}"
    if pairs:
        text += f"{dim}{pairs.translate(_ONE_LINE)}{end}"
    if stack := str(message).translate(_SEVERAL_LINES).rstrip("\n"):
        text += "\n" + stack
    return (text + "\n").encode("utf-8", "backslashreplace")


def _ids_and_context(
    record: "Record", *, stack: str
) -> tuple[dict[str, str | None], dict[Any, Any]]:
    context: dict[Any, Any] = dict(record["extra"])
    known = current_ids()
    ids: dict[str, str | None] = {}
    for name in ID_KEYS:
        bound = context.pop(name, None)
        ids[name] = getattr(known, name) if bound is None else _text(bound) or None
    if process := current_process():
        context["process"] = process
    failed = record["exception"]
    if failed is not None and failed.type is not None:
        context["exception"] = {
            "type": failed.type.__qualname__,
            "message": _text(failed.value),
            "stack": stack,
        }
    return ids, context


def _level(record: "Record") -> Level:
    """The nearest of the five levels at or below the record's: loguru's SUCCESS is INFO."""
    number = record["level"].no
    if number >= logging.CRITICAL:
        return "CRITICAL"
    if number >= logging.ERROR:
        return "ERROR"
    if number >= logging.WARNING:
        return "WARNING"
    return "INFO" if number >= logging.INFO else "DEBUG"


def _timestamp(record: "Record") -> str:
    offset = len("+00:00")
    return record["time"].astimezone(UTC).isoformat(timespec="milliseconds")[:-offset] + "Z"


def _text(value: object) -> str:
    """`str(value)`, whatever it is."""
    try:
        return str(value)
    except Exception as failed:  # noqa: BLE001 - any object may be logged, a broken one as well
        return f"<{type(value).__qualname__}: {type(failed).__qualname__} in __str__>"


_encode = msgspec.json.Encoder(enc_hook=_text).encode


def _plain(value: object, depth: int = 4) -> Any:
    """The value in what JSON surely holds: text, small numbers, and so many levels of nesting."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, dict) and depth:
        pairs = cast("dict[object, object]", value).items()
        return {_plain_text(key): _plain(inner, depth - 1) for key, inner in pairs}
    if isinstance(value, list | tuple) and depth:
        items = cast("Sequence[object]", value)
        return [_plain(inner, depth - 1) for inner in items]
    return _plain_text(cast("object", value))


def _plain_text(value: object) -> str:
    return _text(value).encode("utf-8", "backslashreplace").decode()
