"""What a session's home counts as an entry of the log passes, from its header alone."""

from collections.abc import Callable

from gateway.session.entry import TERMINAL_KINDS, Entry
from gateway.session.probe import SessionProbe


def count(entry: Entry, probe: SessionProbe, now_ms: Callable[[], int] | None) -> None:
    """Tells the probe what the entry says; without a clock, of one that did not pass just now."""
    if entry.output_tokens or entry.input_tokens:
        probe.tokens(entry.output_tokens, entry.input_tokens)
    if entry.kind in TERMINAL_KINDS:
        probe.run_ended(
            entry.kind,
            entry.role,
            entry.code,
            entry.task_type,
            entry.took_s if entry.since_ms else None,
            max(0, now_ms() - entry.ts_ms) / 1000 if now_ms is not None else None,
        )
    elif entry.since_ms:
        if entry.kind == "E":
            probe.first_event(entry.took_s)
        else:
            probe.run_claimed(entry.took_s)
