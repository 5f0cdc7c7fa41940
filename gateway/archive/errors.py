"""What the archive cannot do: now (the database's fault), or ever (the record's)."""

from gateway.session.errors import CannotStart, Unavailable


class UnusableDatabase(CannotStart):
    """The database cannot be used as it is; the message is one line for a person."""


class HistoryAway(Unavailable):
    """The database does not answer, or cannot do it now: full, locked, read-only, not migrated.

    Attributes:
        why: the database's words, for the log; clients are not told.
    """

    def __init__(self, why: str) -> None:
        """See the attributes."""
        super().__init__("the history does not answer", retry_after_ms=2000)
        self.why = why

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.why!r})"


class OldSchema(HistoryAway):
    """It has not been migrated."""

    def __init__(self, version: str) -> None:
        """`version` is where it stands; empty where it has no tables."""
        from gateway.archive.schema import VERSION  # and SQLAlchemy with it: workers do without

        found = f"is at version {version}" if version else "has no tables"
        super().__init__(f"the database {found}, {VERSION} is needed: run `gateway migrate`")


class BadRecord(Exception):
    """Something in this batch the database will never take; the message says what it said."""
