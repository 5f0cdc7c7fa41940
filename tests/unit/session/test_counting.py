"""What the home counts of an entry: from its header, and of most events nothing."""

from support.little_bus import CountingProbe

from gateway.session.counting import count
from gateway.session.entry import Entry, parse_entry


def entry(
    kind: str, *, since_ms: int = 0, out: int = 0, code: str = "-", ts_ms: int = 5000
) -> Entry:
    header = f"7 e1 r1 {kind} {ts_ms} {out} 0 - resume {since_ms} {code}"
    return parse_entry(header.encode(), b"{}")


def told(*entries: Entry) -> CountingProbe:
    probe = CountingProbe()
    for each in entries:
        count(each, probe, lambda: 5000)
    return probe


def test_a_wait_is_counted_where_it_ends():
    probe = told(
        entry("S", since_ms=4000),
        entry("E", since_ms=3000),
        entry("X", since_ms=1000, code="timeout"),
    )
    assert probe.waits == [("claimed", 1.0), ("first event", 2.0), ("X resume timeout", 4.0)]


def test_what_says_nothing_is_not_counted():
    """A later event of a run, the start of a run that no worker had, a notice."""
    probe = told(entry("E"), entry("S"), entry("N"))
    assert (probe.waits, probe.facts) == ([], {})


def test_a_run_that_no_worker_had_ends_without_a_duration():
    probe = told(entry("C"))
    assert (probe.waits, probe.facts["runs ended"]) == ([], 1)


def test_a_clock_that_was_set_back_makes_no_time_negative():
    assert told(entry("S", since_ms=9000)).waits == [("claimed", 0.0)]
