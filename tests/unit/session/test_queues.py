"""The look at the queues: what is over does not wait, and Redis that is away changes nothing."""

from collections.abc import Callable

import pytest

from gateway.session.errors import Unavailable
from gateway.session.model import RunRef
from gateway.session.queues import SLICE, AgentLoad, Queues, Waiting


class Backend:
    """Both sides of `Queues`: a bus with queues, and a probe."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[RunRef]] = {}
        self.down = False
        self.withdrawn: list[int] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.seen: list[object] = []
        self.queues = Queues(dispatch=self.dispatch, queues=self, probe=self, report=self.report)

    async def dispatch(self, ref: RunRef, agent: str) -> Waiting:
        queue = self.waiting.setdefault(agent, [])
        queue.append(ref)
        return Waiting(len(queue), 1)

    async def survey(self) -> list[AgentLoad]:
        if self.down:
            raise Unavailable
        return [
            AgentLoad(agent, 1, 8, 0, {"acme": Waiting(len(refs), 1)})
            for agent, refs in self.waiting.items()
        ]

    async def withdraw(self, agent: str, runs: list[RunRef]) -> None:
        self.meanwhile()
        if self.down:
            raise Unavailable
        self.withdrawn.append(len(runs))
        self.waiting[agent] = [ref for ref in self.waiting[agent] if ref not in runs]

    def queue_seen(self, tenant: str, agent: str, waiting: Waiting) -> None:
        self.seen.append((tenant, agent, waiting.depth))

    def agents_seen(self, loads: list[AgentLoad]) -> None:
        self.seen.append([(load.agent, load.waiting["acme"].depth) for load in loads])

    def report(self, what: str, error: Exception) -> None:
        raise AssertionError(what) from error


def ref(number: int) -> RunRef:
    return RunRef("acme", "session", f"run-{number}")


async def test_what_it_dispatches_is_shown_at_once():
    backend = Backend()
    await backend.queues.dispatch(ref(1), "demo")
    await backend.queues.dispatch(ref(2), "demo")
    assert backend.seen == [("acme", "demo", 1), ("acme", "demo", 2)]


async def test_a_run_that_ended_while_it_waited_is_taken_out_ahead_of_the_look():
    backend = Backend()
    await backend.queues.dispatch(ref(1), "demo")
    await backend.queues.dispatch(ref(2), "demo")
    backend.queues.over(ref(1), "demo")
    await backend.queues.look()
    assert backend.seen[-1] == [("demo", 1)]
    assert backend.waiting == {"demo": [ref(2)]}


async def test_what_could_not_be_taken_out_is_at_the_next_look():
    backend = Backend()
    await backend.queues.dispatch(ref(1), "demo")
    backend.queues.over(ref(1), "demo")
    backend.down = True
    with pytest.raises(Unavailable):
        await backend.queues.look()
    assert backend.seen == [("acme", "demo", 1)], "what was seen last stands"
    backend.down = False
    await backend.queues.look()
    assert backend.seen[-1] == [("demo", 0)]


async def test_what_ended_with_many_others_is_taken_out_in_parts_and_each_part_once():
    """One call for all would hold up everybody whom Redis serves."""
    backend = Backend()
    many = [ref(number) for number in range(2 * SLICE + 1)]
    backend.waiting["demo"] = [*many, ref(-1)]
    for each in many:
        backend.queues.over(each, "demo")

    def fail_at_the_second() -> None:
        backend.down = len(backend.withdrawn) == 1

    backend.meanwhile = fail_at_the_second
    with pytest.raises(Unavailable):
        await backend.queues.look()
    backend.down, backend.meanwhile = False, lambda: None
    await backend.queues.look()
    assert backend.withdrawn == [SLICE, SLICE, 1]
    assert backend.waiting == {"demo": [ref(-1)]}


async def test_what_ends_while_others_are_taken_out_is_at_the_next_look():
    backend = Backend()
    backend.waiting["demo"] = [ref(1), ref(2)]
    backend.queues.over(ref(1), "demo")
    backend.meanwhile = lambda: backend.queues.over(ref(2), "demo")
    await backend.queues.look()
    backend.meanwhile = lambda: None
    await backend.queues.look()
    assert backend.waiting == {"demo": []}
