"""Agents, and what was used of them."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any, Literal, cast

from msgspec import UNSET

from gateway.edges.api.bodies import Agent, AgentList, Usage, UsageList, UsageQuery
from gateway.edges.api.operation import Call, Operation
from gateway.session.archive import History, UsageRecord
from gateway.session.errors import Refused
from gateway.session.ports import Directory
from gateway.session.service import SessionService
from protocol.codes import ErrorCode

MOST_DAYS = 366
_USUAL_DAYS = 30


class ReportCalls:
    """What is, and what was used."""

    def __init__(
        self,
        service: SessionService,
        directory: Directory,
        archive: History,
        now_ms: Callable[[], int],
    ) -> None:
        self._service = service
        self._directory = directory
        self._archive = archive
        self._now_ms = now_ms

    def operations(self) -> list[Operation[Any, Any]]:
        """Their rows of the table."""
        return [
            Operation(
                "GET",
                "/api/v1/agents",
                "listAgents",
                "Lists agents: workers, slots, queue, and the breaker of this node",
                self._agents,
                answers=AgentList,
            ),
            Operation(
                "GET",
                "/api/v1/usage",
                "readUsage",
                f"Reads the tenant's usage by day, agent and model, of at most {MOST_DAYS} days",
                self._usage,
                answers=UsageList,
                query=UsageQuery,
            ),
        ]

    async def _agents(self, call: Call[None, None]) -> AgentList:
        return AgentList(
            [
                Agent(
                    agent_id=agent.info.name,
                    description=agent.info.description,
                    workers=agent.workers,
                    slots=agent.slots,
                    busy=agent.busy,
                    queue_depth=agent.queued,
                    breaker=cast(
                        Literal["closed", "half_open", "open"],
                        self._service.agent_state(call.who, agent.info.name).name.lower(),
                    ),
                )
                for agent in await self._directory.agents()
            ]
        )

    async def _usage(self, call: Call[None, UsageQuery]) -> UsageList:
        query = call.query
        first, last = _days(query, datetime.fromtimestamp(self._now_ms() / 1000, UTC).date())
        records = await self._archive.usage(
            call.who.tenant,
            first_day=first.isoformat(),
            last_day=last.isoformat(),
            agent=query.agent_id or None,
            model=None if query.model is UNSET else query.model,
        )
        return UsageList(
            call.who.tenant, first.isoformat(), last.isoformat(), [_usage(one) for one in records]
        )


def _days(query: UsageQuery, today: date) -> tuple[date, date]:
    last = today if query.last is UNSET else query.last
    first = query.first
    if first is UNSET:
        first = date.fromordinal(max(1, last.toordinal() - _USUAL_DAYS + 1))
    if not 0 <= (last - first).days < MOST_DAYS:
        raise Refused(
            ErrorCode.BAD_FRAME, f"`from` to `to` are 1 to {MOST_DAYS} days", param="from"
        )
    return first, last


def _usage(record: UsageRecord) -> Usage:
    return Usage(
        day=record.day,
        agent_id=record.agent,
        runs=record.runs,
        model=record.model or UNSET,
        input_tokens=UNSET if record.input_tokens is None else record.input_tokens,
        output_tokens=UNSET if record.output_tokens is None else record.output_tokens,
    )
