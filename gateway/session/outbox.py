"""What waits for one socket, bounded in bytes.

Two ways in. *Live*, events are pushed as they happen. *Pulling*, pushes are refused, and the hub
fills from the log whenever the socket has taken everything: that is how an attachment joins, and
how it lives on when its reader is slow. It holds at most its bound, or one frame larger than that.
"""

from collections.abc import Callable

LIMIT_BYTES = 1024 * 1024


class Outbox:
    """Frames for one socket. All calls return at once; `wake` tells the writer to look.

    Attributes:
        size_bytes: what the socket has not taken yet, a batch in the writer's hand included.
        pulling: True while events are refused; set when one did not fit.
        close_code: set by `finish`: the socket is to be closed once everything was sent.
    """

    __slots__ = ("_frames", "_limit_bytes", "close_code", "pulling", "size_bytes", "wake")

    def __init__(self, wake: Callable[[], None], limit_bytes: int = LIMIT_BYTES) -> None:
        self.wake = wake
        self.size_bytes = 0
        self.pulling = True
        self.close_code: int | None = None
        self._limit_bytes = limit_bytes
        self._frames: list[bytes] = []

    @property
    def full(self) -> bool:
        """True when whoever asks for answers should wait until the socket has taken some."""
        return self.size_bytes > self._limit_bytes

    def push(self, frame: bytes) -> bool:
        """A live event. False, and pulling from now on, when it does not fit."""
        if self.pulling:
            return False
        if self.fill(frame):
            return True
        self.pulling = True
        return False

    def fill(self, frame: bytes) -> bool:
        """An event from the log. False when it must wait for the socket."""
        if self.size_bytes and self.size_bytes + len(frame) > self._limit_bytes:
            return False
        self.put(frame)
        return True

    def put(self, frame: bytes) -> None:
        """An answer or a snapshot: always taken, so the caller sees to the bound (see `full`)."""
        if self.close_code is not None:
            return
        if not self._frames:
            self.wake()
        self._frames.append(frame)
        self.size_bytes += len(frame)

    def finish(self, code: int) -> None:
        """Closes the socket after what is queued; nothing more is taken. The first code wins."""
        if self.close_code is None:
            self.close_code = code
            self.wake()

    def drain(self) -> list[bytes]:
        """Everything that is queued, for one write; `sent` tells when the socket has taken it."""
        frames, self._frames = self._frames, []
        return frames

    def sent(self, size_bytes: int) -> None:
        """The socket has taken so many bytes."""
        self.size_bytes -= size_bytes
