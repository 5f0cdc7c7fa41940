"""What a client was told, against what it should have been told: all of it, once, in order.

The gateway's own client core drops duplicates and asks again for what is missing, so that a program
need not care. Here they are what is looked for: this keeps books of its own, over plain frames.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Fault = Literal["lost", "doubled", "out of order", "wrong text"]


@dataclass
class Account:
    """The events of one session as one client saw them, over all its connections.

    Attributes:
        epoch, seq: the cursor, to resume from.
        begun: runs of which something came.
        texts: what each run's agent has said so far.
        ends: the terminal event of each run that is over.
        faults: what must not be, in the order in which it was found.
    """

    epoch: str = ""
    seq: int = 0
    begun: set[str] = field(default_factory=set[str])
    texts: dict[str, str] = field(default_factory=dict[str, str])
    ends: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    faults: list[Fault] = field(default_factory=list[Fault])
    _missing: set[int] = field(default_factory=set[int])

    @property
    def cursor(self) -> dict[str, Any] | None:
        """For `open`; None before anything was read."""
        return {"epoch": self.epoch, "seq": self.seq} if self.epoch else None

    def snapshot(self, frame: Mapping[str, Any]) -> None:
        """All before it is void, and the count begins there."""
        self.settle()
        self.epoch, self.seq = frame["cursor"]["epoch"], frame["cursor"]["seq"]

    def event(self, frame: Mapping[str, Any]) -> None:
        """One frame, of one event or of a range."""
        last: int = frame["seq"]
        numbers = range(frame.get("from", last), last + 1)
        if numbers[0] > self.seq + 1:
            self._missing.update(range(self.seq + 1, numbers[0]))
        if numbers[0] <= self.seq:
            late = self._missing.intersection(numbers)
            self._missing -= late
            self.faults.append("out of order" if late else "doubled")
        self.seq = max(self.seq, last)
        self._apply(frame["run_id"], frame["event"])

    def expect(self, run_id: str, text: str) -> None:
        """A run that is over should have said exactly that."""
        if self.texts.get(run_id, "") != text:
            self.faults.append("wrong text")

    def settle(self) -> None:
        """What is missing now does not come any more."""
        self.faults += ["lost"] * len(self._missing)
        self._missing.clear()

    def _apply(self, run_id: str, event: Mapping[str, Any]) -> None:
        self.begun.add(run_id)
        match event["type"]:
            case "TEXT_MESSAGE_CONTENT":
                self.texts[run_id] = self.texts.get(run_id, "") + event["delta"]
            case "RUN_FINISHED" | "RUN_ERROR":
                self.ends[run_id] = dict(event)
            case _:
                pass
