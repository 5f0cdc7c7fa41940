"""Guarantee 5: what waits for one socket is bounded, and a slow reader loses nothing silently."""

from gateway.session.outbox import Outbox


class Wakes:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def live(limit_bytes: int = 10) -> tuple[Outbox, Wakes]:
    wakes = Wakes()
    outbox = Outbox(wakes, limit_bytes)
    outbox.pulling = False
    return outbox, wakes


def test_one_batch_of_everything_in_order() -> None:
    outbox, wakes = live(100)
    assert outbox.push(b"one")
    assert outbox.push(b"two")
    assert wakes.count == 1, "one wake for all frames of a turn"
    assert outbox.take(100) == [b"one", b"two"]
    assert outbox.take(100) == []
    outbox.push(b"three")
    assert wakes.count == 2


def test_the_first_frame_that_does_not_fit_ends_pushing() -> None:
    outbox, _ = live()
    assert outbox.push(b"12345678")
    assert not outbox.push(b"123")
    assert outbox.pulling
    assert not outbox.push(b"1"), "a later one that would fit must not overtake it"
    assert outbox.take(100) == [b"12345678"]


def test_what_is_taken_makes_room() -> None:
    outbox, _ = live()
    outbox.push(b"12345678")
    assert not outbox.fill(b"123")
    outbox.take(100)
    assert outbox.size_bytes == 0
    assert outbox.fill(b"123")


def test_it_is_taken_in_pieces_of_so_many_bytes_and_one_larger_frame_alone() -> None:
    outbox, _ = live(100)
    for frame in (b"aaaa", b"bbbb", b"c" * 9, b"dd"):
        outbox.push(frame)
    assert outbox.take(8) == [b"aaaa", b"bbbb"]
    assert outbox.size_bytes == 11
    assert outbox.take(8) == [b"c" * 9]
    assert outbox.take(8) == [b"dd"]
    assert outbox.size_bytes == 0


def test_a_frame_larger_than_the_bound_goes_alone() -> None:
    outbox, _ = live()
    assert outbox.push(b"x" * 50)
    assert not outbox.push(b"1")


def test_answers_are_taken_and_reported_as_full() -> None:
    outbox, _ = live()
    outbox.put(b"x" * 10)
    assert not outbox.full
    outbox.put(b"y")
    assert outbox.full


def test_it_starts_pulling() -> None:
    outbox = Outbox(lambda: None)
    assert not outbox.push(b"event")
    assert outbox.fill(b"event")


def test_nothing_after_the_end_and_the_first_code_stands() -> None:
    outbox, wakes = live()
    outbox.put(b"last")
    outbox.finish(4410)
    outbox.finish(1000)
    outbox.put(b"too late")
    assert not outbox.pulling
    assert outbox.push(b"e") is True
    assert outbox.take(100) == [b"last"]
    assert outbox.close_code == 4410
    assert wakes.count == 2
