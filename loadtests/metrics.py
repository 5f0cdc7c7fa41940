"""What the metrics cost: per event on the frame path, per call of a service, per scrape.

    python loadtests/metrics.py

Nothing runs but this process. The best of several rounds counts, and of a scrape its CPU time: what
else the machine does is not what is measured.
"""

import asyncio
import time
from collections.abc import Callable

from gateway.app import now_ms
from gateway.session.counting import count
from gateway.session.entry import Entry
from gateway.telemetry.metrics import Telemetry

ROUNDS, EVENTS = 300, 1000
SCRAPES = 7
SCRAPED = (2_000, 20_000, 100_000)


def best_us(move: Callable[[Entry], object]) -> float:
    """Microseconds of one `move`, in the best of the rounds, without the loop around it."""

    def nothing(_entry: Entry) -> None:
        pass

    return max(0.0, _round_us(move) - _round_us(nothing))


def _round_us(move: Callable[[Entry], object]) -> float:
    best = float("inf")
    entry = Entry(7, "e", "r", "E", now_ms(), 1, 0, "-", "run", 0, "-", b"{}")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(EVENTS):
            move(entry)
        best = min(best, time.perf_counter() - began)
    return best / EVENTS * 1e6


def crowd(lines: int) -> Telemetry:
    """Tenants and agents that make about so many lines."""
    telemetry = Telemetry(version="1", max_tenants=lines, max_agents=lines)
    number, made = 0, 0
    while made < lines:
        for _ in range(20):
            tenant, agent = f"tenant-{number}", f"agent-{number % 50}"
            telemetry.connection_opened(tenant)
            telemetry.session(tenant, agent).message_accepted("user", 0.1)
            telemetry.service("redis").called(tenant, "open", 0.001)
            number += 1
        made = telemetry.render()[0].count(b"\n")
    return telemetry


class Watch:
    """How long the loop was held up at most, in CPU time."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.over = False

    async def run(self) -> None:
        """Looks in every turn until it is over."""
        while not self.over:
            before = time.thread_time()
            await asyncio.sleep(0)
            self.longest = max(self.longest, time.thread_time() - before)


async def scrape(telemetry: Telemetry) -> tuple[int, float, float]:
    """Lines, milliseconds of a scrape, and for how many of them the loop was held up at most."""
    best, stall, text = float("inf"), float("inf"), b""
    for _ in range(SCRAPES):
        watch = Watch()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch.run())
            await asyncio.sleep(0)
            began = time.thread_time()
            telemetry.refresh()
            text, _ = await telemetry.render_in_turns()
            best = min(best, time.thread_time() - began)
            watch.over = True
        stall = min(stall, watch.longest)
    return text.count(b"\n"), best * 1000, stall * 1000


def main() -> None:
    """Prints two tables."""
    telemetry = Telemetry(version="1")
    session = telemetry.session("acme", "demo")
    redis, sent = telemetry.service("redis"), telemetry.sockets.frames_sent

    def pushed(entry: Entry) -> None:
        took_ms = now_ms() - entry.ts_ms
        session.pushed(took_ms / 1000 if took_ms > 0 else 0.0)

    def passes(entry: Entry) -> None:
        count(entry, session, now_ms)
        took_ms = now_ms() - entry.ts_ms
        session.pushed(took_ms / 1000 if took_ms > 0 else 0.0)
        sent(1, 300)

    print("| what | microseconds |")
    print("|---|---|")
    for what, move in (
        ("an event with tokens passes: all of the next three", passes),
        ("its home counts it", lambda entry: count(entry, session, now_ms)),
        ("its push is timed", pushed),
        ("its frame is handed to a socket", lambda _: sent(1, 300)),
        ("a call of Redis", lambda _: redis.called("acme", "append", 0.002)),
    ):
        print(f"| {what} | {best_us(move):.2f} |")
    print("\n| lines | a scrape, ms | the loop held up, ms |")
    print("|---|---|---|")
    for lines in SCRAPED:
        shown, took_ms, stall_ms = asyncio.run(scrape(crowd(lines)))
        print(f"| {shown:,} | {took_ms:.1f} | {stall_ms:.1f} |")


if __name__ == "__main__":
    main()
