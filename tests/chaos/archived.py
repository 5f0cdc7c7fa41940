"""What came to the archive, read past everything that is under test."""

import json
import sqlite3
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

_OUTCOMES = {"F": "success", "I": "interrupt", "C": "cancelled"}


@dataclass
class Archived:
    """The archive, when all is quiet.

    Attributes:
        ended: how each run ended, as the checker says it.
        asked: the runs that have a user's message, by its id.
        said: what the assistant said in each run.
    """

    ended: dict[str, str] = field(default_factory=dict[str, str])
    asked: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    said: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def read_archive(file: Path) -> Archived:
    """All of a database's runs and messages."""
    found = Archived()
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        for run_id, kind, code in connection.execute("SELECT run_id, kind, code FROM runs"):
            found.ended[run_id] = _OUTCOMES.get(kind, f"error {code}")
        for run_id, raw in connection.execute("SELECT run_id, json FROM messages"):
            message = json.loads(raw)
            if message["role"] == "user":
                found.asked[message["id"]].append(run_id)
            elif message["role"] == "assistant" and message.get("content"):
                found.said[run_id].append(message["content"])
    return found
