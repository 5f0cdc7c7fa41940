"""The fleet as one node knows it, also while Redis is away."""

from support.little_bus import ManualClock

from gateway.session.errors import Unavailable
from gateway.session.fleet import UNASKED_S, Fleet


class Board:
    """What nodes said; `down` while Redis is away."""

    def __init__(self) -> None:
        self.said: dict[str, tuple[str, bytes]] = {}
        self.down = False

    async def announce(self, node: str, address: str, summary: bytes) -> dict[str, str]:
        if self.down:
            raise Unavailable
        self.said[node] = address, summary
        return {name: where for name, (where, _) in self.said.items()}

    async def summaries(self) -> dict[str, bytes]:
        if self.down:
            raise Unavailable
        return {name: summary for name, (_, summary) in self.said.items()}


def fleet(board: Board, node: str, clock: ManualClock) -> Fleet:
    def report(_what: str, error: Exception) -> None:
        raise error

    return Fleet(
        announcements=board,
        node=node,
        address=f"{node}:1",
        summary=node.encode,
        clock=clock,
        report=report,
    )


async def test_while_redis_is_away_the_last_known_stays() -> None:
    """A list of targets that shrinks would make Prometheus forget nodes that live."""
    board, clock = Board(), ManualClock()
    one, two = fleet(board, "one", clock), fleet(board, "two", clock)
    assert one.addresses == {"one": "one:1"}
    await two.announce()
    await one.announce()
    assert one.addresses == {"one": "one:1", "two": "two:1"}
    before = (await one.ask()).summaries
    assert set(before) == {"one", "two"}
    board.down = True
    clock.now += 7
    assert one.addresses == {"one": "one:1", "two": "two:1"}
    assert await one.ask() == (before, 7)
    board.down = False
    del board.said["two"]
    await one.announce()
    assert one.addresses == {"one": "one:1"}
    assert (await one.ask()).silent_s == 0


async def test_who_looks_for_the_first_time_while_redis_is_away_sees_the_fleet() -> None:
    """That is when somebody looks; and what is shown is said to be old."""
    board, clock = Board(), ManualClock()
    one, two = fleet(board, "one", clock), fleet(board, "two", clock)
    await two.announce()
    clock.now += UNASKED_S
    await one.announce()
    board.down = True
    clock.now += 7
    assert await one.ask() == ({"one": b"one", "two": b"two"}, 7)


async def test_a_node_that_cannot_sum_itself_up_can_be_scraped() -> None:
    """A fault there must not take it from the list of targets just when somebody wants to look."""
    board, reported = Board(), list[Exception]()
    fault = OSError(24, "Too many open files")
    words = [b"well", b"better"]

    def summary() -> bytes:
        if not words:
            raise fault
        return words.pop()

    ill = Fleet(
        announcements=board,
        node="ill",
        address="ill:1",
        summary=summary,
        clock=ManualClock(),
        report=lambda _what, error: reported.append(error),
    )
    for said in (b"better", b"well", b"well"):
        board.said.clear()
        await ill.announce()
        assert board.said == {"ill": ("ill:1", said)}
    assert reported == [fault]


async def test_a_node_is_part_of_its_own_fleet() -> None:
    """Redis came back empty, and does not know that it lives: it can be scraped all the same."""
    board = Board()
    alone = fleet(board, "one", ManualClock())
    await alone.announce()
    board.said.clear()
    board.announce = lambda *_: _nobody()  # type: ignore[method-assign]
    await alone.announce()
    assert alone.addresses == {"one": "one:1"}


async def _nobody() -> dict[str, str]:
    return {}
