"""Books of what really happened, kept by the client, to be compared with `/metrics`."""

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from support.socket import TERMINAL, Socket

PREFIX = "nooble_orchestrator_"

Series = tuple[str, tuple[tuple[str, str], ...]]


def series(name: str, **labels: str) -> Series:
    """A series, of which the name goes without the prefix."""
    return name, tuple(sorted(labels.items()))


def read(text: str) -> dict[Series, float]:
    """Every series of an exposition; of a histogram the count and the sum."""
    return {
        series(sample.name.removeprefix(PREFIX), **sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


class Books:
    """What one tenant's clients of one agent did and were told."""

    def __init__(self, tenant: str, agent: str) -> None:
        self.tenant = tenant
        self.agent = agent
        self.series: Counter[Series] = Counter()

    def note(self, name: str, amount: float = 1, **labels: str) -> None:
        """Something happened."""
        self.series[series(name, **labels)] += amount

    def note_tenant(self, name: str, amount: float = 1, **labels: str) -> None:
        """To the tenant."""
        self.note(name, amount, tenant_id=self.tenant, **labels)

    def note_agent(self, name: str, amount: float = 1, **labels: str) -> None:
        """To the tenant's sessions with the agent."""
        self.note_tenant(name, amount, agent_id=self.agent, **labels)

    def note_failure(self, role: str, error_class: str, code: str, tenant: str = "") -> None:
        """A message failed."""
        labels = {"role": role, "error_class": error_class, "error_code": code}
        self.note("message_failures_total", tenant_id=tenant or self.tenant, **labels)

    def accepted(self, role: str) -> None:
        """A message was."""
        self.note_tenant("messages_processed_total", role=role)
        self.note_tenant("message_processing_seconds_count", role=role)

    def note_run(self, events: list[dict[str, Any]], task: str) -> None:
        """What a follower saw of a run, from its start to its end."""
        kinds = [each["event"]["type"] for each in events]
        end = events[-1]["event"]
        assert kinds[0] == "RUN_STARTED"
        assert kinds[-1] in TERMINAL
        outcome = end.get("outcome", {"type": "error"})
        asks = outcome.get("pendingToolCallIds")
        status = "interrupt" if asks else outcome["type"]
        self.note_agent("queue_wait_seconds_count")
        self.note_agent("run_duration_seconds_count", status=status)
        self.note_tenant("task_processing_seconds_count", task_type=task)
        self.note_tenant("message_processing_seconds_count", role="assistant")
        call = {"service": f"agent:{self.agent}", "operation": "run"}
        self.note_tenant("service_call_total", **call)
        self.note_tenant("service_call_seconds_count", **call)
        if len(kinds) > 2:
            self.note_agent("time_to_first_event_seconds_count")
        if "TEXT_MESSAGE_CONTENT" in kinds:
            self.note_tenant("messages_processed_total", role="assistant")
        if status == "error":
            self.note_failure("assistant", "server", end["code"])
            self.note_tenant("service_call_failures_total", **call, error_code=end["code"])
        words = sum(each["event"].get("delta", "").count(" ") for each in events)
        for usage in end.get("usage", []):
            # Who is cancelled may have said a word more than it had counted.
            output = max(usage["outputTokens"], words if status == "cancelled" else 0)
            self.note_agent("tokens_total", output, type="output")
            self.note_agent("tokens_total", usage["inputTokens"], type="input")

    def note_http(self, method: str, endpoint: str, response: httpx.Response) -> httpx.Response:
        """A request was answered; `endpoint` is the template of its route."""
        labels = {"method": method, "endpoint": endpoint}
        self.note("http_requests_total", status=str(response.status_code), **labels)
        self.note("http_request_duration_seconds_count", **labels)
        return response

    @asynccontextmanager
    async def socket(self, url: str, **options: Any) -> "AsyncGenerator[CountedSocket]":
        """A connection of which every frame is counted, also what nobody read before its end."""
        options = {"subprotocols": ["nooble.v1"], **options}
        async with connect(url, **options) as connection:
            self.note("websocket_handshakes_total", result="accepted")
            counted = CountedSocket(connection, self)
            yield counted
            if connection.close_code is None:
                self.note("websocket_disconnects_total", code="1000", reason="client")
                await connection.close()
            with suppress(ConnectionClosed):
                while True:
                    await counted.receive()


class CountedSocket(Socket):
    """A client that counts its frames."""

    def __init__(self, connection: Any, books: Books) -> None:
        """`connection` is open."""
        connection.recv, self._recv = self._count_in, connection.recv
        connection.send, self._send = self._count_out, connection.send
        super().__init__(connection)
        self.books = books
        self.refused: Counter[str] = Counter()
        self.pongs = 0

    async def receive(self) -> dict[str, Any]:
        """The next frame."""
        frame = await super().receive()
        if frame["type"] == "error":
            self.refused[frame["code"]] += 1
        self.pongs += frame["type"] == "pong"
        return frame

    async def _count_in(self) -> str:
        return self._count(await self._recv(), "out")

    async def _count_out(self, text: str) -> None:
        await self._send(self._count(text, "in"))

    def _count(self, text: str, direction: str) -> str:
        self.books.note("websocket_frames_total", direction=direction)
        self.books.note("websocket_bytes_total", len(text.encode()), direction=direction)
        return text

    async def came(self, outcome: str, **fields: Any) -> "CountedSocket":
        """Opens a session; the outcome is `created`, or how it was resumed."""
        await self.open(**fields)
        self.books.note_agent("session_init_seconds_count")
        if outcome == "created":
            self.books.note_agent("sessions_created_total")
        else:
            self.books.note_tenant("sessions_resumed_total", outcome=outcome)
        return self

    async def run(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        """Says something, and answers the whole run that comes of it."""
        ack = await self.ask(kind, **fields)
        assert ack["status"] == "accepted", ack
        return await self.ran(ack["run_id"], kind)

    async def ran(self, run_id: str, kind: str) -> list[dict[str, Any]]:
        """The whole run; it was accepted."""
        self.books.accepted("tool" if kind == "tool_result" else "user")
        while True:
            events = [each for each in self.events if each["run_id"] == run_id]
            if events and events[-1]["event"]["type"] in TERMINAL:
                self.books.note_run(events, "run" if kind == "message" else "resume")
                return events
            await self.receive()
