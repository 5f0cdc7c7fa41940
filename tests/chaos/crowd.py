"""The clients: each in a seat, alone or in twos, one session after another, and never at rest."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random

from chaos.checker import LOOK
from chaos.follower import Follower
from chaos.tape import Tape
from protocol.cursor import ClientCore, Command
from protocol.frames import Ack, Answer, AnswerEntry, Cancel, Close, Error, Message

AGENT = "witness"
TENANTS = ("acme", "umbrella")
PATIENCE_S = 45.0
"""A user who got no answer for so long says something else. (The checker is less forgiving.)"""
ATTACH_PATIENCE_S = 60.0
RETRY_S = 0.3


class Session:
    """A conversation of one or two clients.

    Attributes:
        id: empty until it stands.
        closed: a client closed it.
    """

    def __init__(self, crowd: "Crowd", name: str, tenant: str, random: Random) -> None:
        self.name = name
        self.id = ""
        self.closed = False
        self.followers: list[Follower] = []
        self._crowd = crowd
        self._tenant = tenant
        self._random = random
        self._tasks: dict[Follower, asyncio.Task[None]] = {}
        self._frames = 0

    @property
    def present(self) -> list[Follower]:
        """The clients that follow it now, or are coming back."""
        return [each for each in self.followers if each in self._tasks and each.gone is None]

    @property
    def reached(self) -> bool:
        """The client that only looks has found it."""
        return any(each.gone is None and each.looked for each in self.followers)

    @property
    def lost(self) -> bool:
        """A client cannot reach it any more."""
        return any(follower.gone is not None for follower in self.followers)

    def join(self, name: str) -> Follower:
        """One more client, its tape beside those of the others."""
        core = (
            ClientCore(session_id=self.id) if self.followers or self.id else ClientCore(agent=AGENT)
        )
        folder = self._crowd.folder / self.name
        folder.mkdir(parents=True, exist_ok=True)
        follower = Follower(
            core,
            Tape(folder / f"{name}.tape"),
            self._crowd.urls,
            tenant=self._tenant,
            random=Random(self._random.random()),
            on_event=self._crowd.count,
        )
        self.followers.append(follower)
        self._tasks[follower] = self._crowd.group.create_task(follower.run())
        return follower

    async def begin(self, clients: int) -> bool:
        """The first client makes it, the second joins."""
        first = self.join("a")
        if not await first.until(lambda: first.attached, ATTACH_PATIENCE_S):
            return False
        self.id = first.core.session_id or ""
        if clients > 1:
            await asyncio.sleep(self._random.random())
            self.join("b")
        return not self.lost

    async def leave(self, follower: Follower) -> None:
        """That client goes and does not come back."""
        task = self._tasks.pop(follower, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def leave_all(self) -> None:
        """All clients go."""
        for follower in self.followers:
            await self.leave(follower)

    # --- turns ------------------------------------------------------------------------------------

    async def converse(self, turns: int) -> None:
        """Talks, while connections come and go."""
        mischief = self._crowd.group.create_task(self._mischief())
        try:
            for _ in range(turns):
                if self._crowd.finishing or self.lost or self.closed:
                    return
                await self._turn()
                await asyncio.sleep(self._random.random())
        finally:
            mischief.cancel()

    async def _turn(self) -> None:
        follower = self._random.choice(self.followers)
        turn = self._random.choices(
            [self._burst, self._words, self._several, self._cancel, self._interrupt, self._ask],
            [50, 20, 8, 8, 4, 8],
        )[0]
        await turn(follower)
        await follower.until(lambda: follower.quiet or bool(follower.questions), PATIENCE_S)
        if follower.questions:
            await self._answer()
            await follower.until(lambda: follower.quiet, PATIENCE_S)

    async def _burst(self, follower: Follower) -> None:
        verb = self._random.choice(["burst", "flow"])
        await self.say(follower, verb, self._random.randint(20, self._crowd.burst))

    async def _words(self, follower: Follower) -> None:
        verb = self._random.choice(["words", "words", "late", "fail"])
        await self.say(follower, verb, self._random.randint(2, 600))

    async def _several(self, follower: Follower) -> None:
        for _ in range(self._random.randint(2, 4)):
            await self._burst(follower)

    async def _cancel(self, follower: Follower) -> None:
        await self.say(follower, self._random.choice(["flow", "words", "late"]), 500)
        await asyncio.sleep(self._random.random() / 2)
        await self._send(follower, Cancel(self._next_id()))

    async def _interrupt(self, follower: Follower) -> None:
        await self.say(follower, "words", 500)
        await asyncio.sleep(self._random.random() / 2)
        await self.say(self._random.choice(self.followers), "burst", 100, interrupt=True)

    async def _ask(self, follower: Follower) -> None:
        await self.say(follower, "ask", 0)

    async def _answer(self) -> None:
        """Whoever knows the question answers it; the first one wins."""
        async with asyncio.TaskGroup() as group:
            for follower in self.followers:
                if follower.questions:
                    name = self._next_id()
                    entries = [
                        AnswerEntry(question, "resolved", f"burst 50 {name}")
                        for question in follower.questions
                    ]
                    group.create_task(self._send(follower, Answer(name, entries)))

    async def say(
        self, follower: Follower, verb: str, count: int, *, interrupt: bool = False
    ) -> None:
        """A message, until it is taken or refused for good."""
        name = self._next_id()
        when_busy = "interrupt" if interrupt else "enqueue"
        await self._send(follower, Message(name, f"{verb} {count} {name}", when_busy))

    async def _send(self, follower: Follower, command: Command) -> Ack | None:
        """The same id until it is clear what became of it: that is what makes it safe."""
        while True:
            answer = await follower.ask(command)
            if not isinstance(answer, Error):
                return answer
            if not answer.retryable or answer.code == "busy":
                return None
            await asyncio.sleep((answer.retry_after_ms or 0) / 1000 + RETRY_S)

    async def close(self) -> None:
        """Ends the session."""
        self.closed = True
        follower = self._random.choice(self.followers)
        await self._send(follower, Close(self._next_id()))
        for each in self.followers:
            await each.until(lambda each=each: each.gone is not None, PATIENCE_S)
        await self.leave_all()

    async def quiet(self, patience_s: float) -> bool:
        """Waits until every client has everything."""
        async with asyncio.TaskGroup() as group:
            waits = [
                group.create_task(each.until(lambda each=each: each.quiet, patience_s))
                for each in self.followers
            ]
        return all(wait.result() for wait in waits)

    async def together(self, patience_s: float) -> bool:
        """Waits until the first client has everything, and the others as much: one of them may not
        have heard yet of a run that the first one asked for.
        """
        first = self.followers[0]
        if not await first.until(lambda: first.quiet, patience_s):
            return False
        async with asyncio.TaskGroup() as group:
            waits = [
                group.create_task(
                    each.until(
                        lambda each=each: each.quiet and each.core.cursor == first.core.cursor,
                        patience_s,
                    )
                )
                for each in self.followers
            ]
        return all(wait.result() for wait in waits)

    async def _mischief(self) -> None:
        while True:
            await asyncio.sleep(self._random.expovariate(0.25))
            follower = self._random.choice(self.followers)
            match self._random.choice(["drop", "drop", "drop", "leave", "dawdle"]):
                case "drop":
                    follower.drop()
                case "leave":
                    await follower.leave()
                case _:
                    follower.dawdle_s = self._random.random() * 3

    def _next_id(self) -> str:
        self._frames += 1
        return f"{self.name}-{self._frames}"


class Crowd:
    """All clients.

    Attributes:
        folder: where the tapes are, a folder for each session.
        urls: the nodes, for WebSockets.
        group: what their tasks belong to.
        events: how many events came in so far.
        finishing: no new session and no new turn.
        burst: how many events an answer has at most.
        sessions: all that there ever were.
        restless: names of those that did not come to rest.
    """

    def __init__(
        self,
        folder: Path,
        urls: Sequence[str],
        group: asyncio.TaskGroup,
        *,
        clients: int,
        seed: int,
        burst: int,
    ) -> None:
        self.folder = folder
        self.urls = urls
        self.group = group
        self.events = 0
        self.finishing = False
        self.burst = burst
        self.sessions: list[Session] = []
        self.restless: list[str] = []
        # A third of the seats has two clients.
        self._seats = [2 if number % 3 == 2 else 1 for number in range(clients * 3 // 4)]
        self._seed = seed
        self._tasks: list[asyncio.Task[None]] = []

    def count(self) -> None:
        """One event came in."""
        self.events += 1

    def start(self) -> None:
        """Everybody begins to talk."""
        self._tasks = [
            self.group.create_task(self._sit(number, clients))
            for number, clients in enumerate(self._seats)
        ]

    async def _sit(self, number: int, clients: int) -> None:
        random = Random(f"{self._seed}/{number}")
        tenant = TENANTS[number % len(TENANTS)]
        round_number = 0
        await asyncio.sleep(random.random() * 2)
        while not self.finishing:
            round_number += 1
            session = Session(self, f"s{number}.{round_number}", tenant, random)
            self.sessions.append(session)
            if await session.begin(clients):
                await session.converse(random.randint(4, 16))
            if self.finishing:
                return
            if session.lost or not session.id:
                await session.leave_all()
                await asyncio.sleep(random.random())
            elif await session.quiet(PATIENCE_S):
                # Closed, or left behind without a client until all is over.
                await (session.close() if random.random() < 0.5 else session.leave_all())

    async def finish(self, patience_s: float) -> None:
        """Says no more, and waits until every client has everything. Then one last word each."""
        self.finishing = True
        if self._tasks:
            await asyncio.wait(self._tasks)
        async with asyncio.TaskGroup() as group:
            for session in self.attached:
                group.create_task(self._last_word(session, patience_s))

    @property
    def lost_opens(self) -> int:
        """How many new sessions may have been made without an answer."""
        firsts = [session.followers[0] for session in self.sessions if session.followers]
        return sum(follower.unanswered_opens for follower in firsts)

    @property
    def attached(self) -> list[Session]:
        """Sessions that somebody still follows."""
        return [each for each in self.sessions if each.present and not each.closed]

    async def _last_word(self, session: Session, patience_s: float) -> None:
        quiet = await session.quiet(patience_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                if not session.followers[0].questions:
                    await session.say(session.followers[0], "words", 5)
                quiet = quiet and await session.together(patience_s)
                if quiet or session.lost:
                    return
        self.restless.append(f"{session.name} {[each.state for each in session.followers]}")

    async def look(self, patience_s: float) -> None:
        """One more client for every session that was not closed, that only looks."""
        limit = asyncio.Semaphore(10)

        async def look_at(session: Session) -> None:
            async with limit:
                follower = session.join(LOOK)
                follower.looked = await follower.until(
                    lambda: follower.core.cursor is not None, patience_s
                )
                if not follower.looked and follower.gone is None:
                    self.restless.append(session.name)
                await session.leave(follower)

        async with asyncio.TaskGroup() as group:
            for session in self.sessions:
                if session.id and not session.closed:
                    group.create_task(look_at(session))

    async def go(self) -> None:
        """Everybody goes."""
        await asyncio.gather(*(session.leave_all() for session in self.sessions))
