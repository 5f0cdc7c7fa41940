"""The books that users of the load test keep: each fault that they look for is seen."""

from typing import Any

import pytest

from loadtests.account import Account


def frame(seq: int, text: str = "", **fields: Any) -> dict[str, Any]:
    event = {"type": "TEXT_MESSAGE_CONTENT", "delta": text} if text else {"type": "STEP"}
    return {"type": "event", "seq": seq, "run_id": "r", "event": event, **fields}


def account(*frames: dict[str, Any]) -> Account:
    made = Account()
    made.snapshot({"cursor": {"epoch": "e", "seq": 2}})
    for each in frames:
        made.event(each)
    made.settle()
    return made


def test_events_in_order_are_no_fault_and_move_the_cursor():
    made = account(frame(3), frame(6, **{"from": 4}), frame(7))
    assert made.faults == []
    assert made.cursor == {"epoch": "e", "seq": 7}


@pytest.mark.parametrize(
    ("numbers", "faults"),
    [
        ([3, 6], ["lost", "lost"]),
        ([4], ["lost"]),
        ([3, 3], ["doubled"]),
        ([3, 2], ["doubled"]),
        ([3, 5, 4, 6], ["out of order"]),
        ([3, 5, 4, 4], ["out of order", "doubled"]),
    ],
)
def test_each_fault_is_seen_and_counted_once(numbers: list[int], faults: list[str]):
    assert account(*map(frame, numbers)).faults == faults


def test_a_range_that_begins_again_before_the_cursor_is_doubled():
    assert account(frame(4, **{"from": 3}), frame(5, **{"from": 4})).faults == ["doubled"]


def test_a_text_that_differs_is_a_fault_though_the_numbers_are_right():
    made = account(frame(3, "t0 "), frame(4, "t1 "))
    made.expect("r", "t0 t1 ")
    assert made.faults == []
    made.expect("r", "t0 t1 t2 ")
    assert made.faults == ["wrong text"]


def test_the_end_of_a_run_is_kept():
    end = {"type": "RUN_FINISHED"}
    assert account({"seq": 3, "run_id": "r", "event": end}).ends == {"r": end}
