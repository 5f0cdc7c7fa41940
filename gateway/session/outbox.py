"""What waits for one socket, bounded in bytes.

Two ways in. *Live*, events are pushed as they happen. *Pulling*, pushes are refused, and the hub
fills from the log whenever the socket has taken everything: that is how an attachment joins, and
how it lives on when its reader is slow. It holds at most its bound, or one frame larger than that.
"""

from collections.abc import Callable

LIMIT_BYTES = 1024 * 1024


class Outbox:
    """Frames for one socket. All calls return at once; `wake` tells the connection to look.

    Attributes:
        size_bytes: what the socket has not taken yet.
        pulling: True while events are refused; set when one did not fit.
        lagging: pulling for that reason, and not since it joined.
        close_code: set by `finish`: the socket is to be closed once everything was sent.
    """

    __slots__ = (
        "_frames",
        "_limit_bytes",
        "close_code",
        "lagging",
        "pulling",
        "size_bytes",
        "wake",
    )

    def __init__(self, wake: Callable[[], None], limit_bytes: int = LIMIT_BYTES) -> None:
        self.wake = wake
        self.size_bytes = 0
        self.pulling = True
        self.lagging = False
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
        self.pulling = self.lagging = True
        return False

    def go_live(self) -> None:
        """Events may be pushed from now on."""
        self.pulling = self.lagging = False

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

    def take(self, limit_bytes: int) -> list[bytes]:
        """The first frames, to be written: so many bytes, or a single larger frame."""
        if self.size_bytes <= limit_bytes:
            taken, self._frames = self._frames, []
            self.size_bytes = 0
            return taken
        size_bytes = count = 0
        for frame in self._frames:
            if count and size_bytes + len(frame) > limit_bytes:
                break
            size_bytes += len(frame)
            count += 1
        taken = self._frames[:count]
        del self._frames[:count]
        self.size_bytes -= size_bytes
        return taken
