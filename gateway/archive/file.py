"""An SQLite file that is removed or replaced while it is open: SQLite goes on writing into what no
path leads to, and all of it is gone with the process.
"""

from pathlib import Path


class MovedFile(OSError):
    """Another file is where it was, or none."""


class OpenFile:
    """A database's file as this process found it."""

    def __init__(self, path: Path) -> None:
        """It may not be there yet."""
        self._path = path
        self._found: tuple[int, int] | None = None

    def check(self) -> None:
        """To be called before it is used: SQLite would make a new one.

        Raises:
            MovedFile: it is not the one that was used before.
        """
        if self._found is not None and self._found != self._look():
            raise MovedFile(
                f"{self._path} was removed or replaced while it was open:"
                " put it back, or restart the gateway"
            )

    def used(self) -> None:
        """To be called before it is believed that something was written. Raises as `check`."""
        self.check()
        self._found = self._found or self._look()

    def _look(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino
