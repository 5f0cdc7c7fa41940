"""Standard input, output and error, be they a terminal, a pipe or a file."""

import asyncio
import codecs
import os
import sys
import threading
from typing import TextIO

MAX_LINE_CHARS = 1024 * 1024
"""A longer line is taken in pieces, so that input without any end of line is bounded."""

# C0 and C1 but for line breaks and tabs, and DEL: with them a text could rule the terminal.
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def plain(text: str) -> str:
    """The text without control characters."""
    return text.translate(_CONTROLS)


class Screen:
    """Standard output and standard error, and whether their next character begins a line."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.broken = asyncio.Event()
        """Set when nobody reads the output any more."""
        # On a terminal both have one cursor.
        self._one_cursor = sys.stdout.isatty() and sys.stderr.isatty()
        self._at_start = {"out": True, "err": True}

    def say(self, text: str) -> None:
        """A piece of an answer."""
        self._write(sys.stdout, plain(text))

    def end_line(self) -> None:
        """What is said next begins on a line of its own."""
        if not self._at_start["out"]:
            self._write(sys.stdout, "\n")

    def note(self, text: str, end: str = "\n") -> None:
        """Something about the conversation, on a line of its own."""
        if not self._at_start["err"]:
            self._write(sys.stderr, "\n")
        self.add(text, end)

    def add(self, text: str, end: str = "") -> None:
        """More of a note."""
        self._write(sys.stderr, plain(text) + end)

    def prompt(self) -> None:
        """Asks for a line."""
        if self.interactive:
            self.end_line()
            self._write(sys.stdout, "> ")

    def entered(self) -> None:
        """The user ended a line."""
        if self.interactive:
            self._at_start = {"out": True, "err": True}

    def _write(self, stream: TextIO, text: str) -> None:
        if not text:
            return
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            # Whoever read it has gone. What is still buffered must go somewhere at exit.
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, stream.fileno())
            os.close(sink)
            self.broken.set()
        for name in ("out", "err"):
            if self._one_cursor or stream is (sys.stdout if name == "out" else sys.stderr):
                self._at_start[name] = text.endswith("\n")


class Lines:
    """Lines of a file descriptor, whatever it is: a terminal, a pipe, a file.

    A thread reads, since no event loop waits for all of these; one chunk ahead at most. It reads
    the descriptor itself: a thread within `sys.stdin` would block the interpreter's exit.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._wanted = threading.Semaphore(1)
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._ended = False
        threading.Thread(target=self._pump, name="stdin", daemon=True).start()

    async def next(self) -> str | None:
        """The next line without its end, or None when there is none."""
        while "\n" not in self._rest and len(self._rest) < MAX_LINE_CHARS and not self._ended:
            chunk = await self._chunks.get()
            self._ended = not chunk
            self._rest += self._decoder.decode(chunk, final=self._ended)
            self._wanted.release()
        if self._ended and not self._rest:
            return None
        line, _, self._rest = self._rest.partition("\n")
        return line

    def _pump(self) -> None:
        chunk = b"more"
        while chunk:
            self._wanted.acquire()
            try:
                chunk = os.read(self._fd, 64 * 1024)
            except OSError:
                chunk = b""
            try:
                self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
            except RuntimeError:
                return  # the loop is closed, the chat is over
