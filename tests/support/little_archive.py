"""An archive for one process: what the port `History` promises, on lists.

It is filled by hand (`begin`, `end_run`). Faults are switched on by attributes: `down`, and
`on_read`, which is called after a read, to let something happen in between.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from gateway.session.archive import (
    MessagePosition,
    MessageRecord,
    Recalled,
    SessionFilter,
    SessionPosition,
    SessionRecord,
    UsageRecord,
)
from gateway.session.errors import Refused, Unavailable
from gateway.session.model import SessionKey
from protocol.codes import ErrorCode
from support.little_bus import KEY


class LittleArchive:
    """See `gateway.session.archive.History`."""

    def __init__(self) -> None:
        self.records: dict[SessionKey, SessionRecord] = {}
        self.said: dict[SessionKey, list[MessageRecord]] = {}
        self.runs: dict[SessionKey, set[str]] = {}
        self.used: list[tuple[str, UsageRecord]] = []
        self.erased: list[tuple[str, str, str]] = []
        self.erased_upto_ms: int | None = None
        self.calls: Counter[str] = Counter()
        self.down = False
        self.on_read: Callable[[str], None] = lambda _name: None

    # --- what the journals brought ----------------------------------------------------------------

    def begin(
        self,
        key: SessionKey = KEY,
        *,
        user: str = "anonymous",
        at_ms: int = 1000,
        agent: str = "demo",
    ) -> SessionRecord:
        self.records[key] = SessionRecord(
            key, user, agent, "active", b'{"a":1}', "continue", at_ms, at_ms, 0, 0, 0
        )
        return self.records[key]

    def change(self, key: SessionKey = KEY, **fields: object) -> None:
        self.records[key] = replace(self.records[key], **fields)  # type: ignore[arg-type]

    def end_run(
        self,
        run_id: str,
        *texts: str,
        key: SessionKey = KEY,
        at_ms: int = 0,
        kind: str = "F",
        code: str = "",
    ) -> None:
        said = self.said.setdefault(key, [])
        self.runs.setdefault(key, set()).add(run_id)
        at_ms = at_ms or (said[-1].position.at_ms if said else 1000) + 1
        for nth, text in enumerate(texts):
            json = msgspec.json.encode({"id": text, "role": "user", "content": text})
            position = MessagePosition(at_ms, nth)
            said.append(MessageRecord(position, run_id, json, kind, code))  # type: ignore[arg-type]
        record = self.records[key]
        self.change(
            key, active_ms=at_ms, runs=record.runs + 1, messages=record.messages + len(texts)
        )

    # --- History ----------------------------------------------------------------------------------

    def _read(self, name: str) -> None:
        self.calls[name] += 1
        if self.down:
            raise Unavailable("the history does not answer")

    async def recall(
        self, key: SessionKey, user: str, *, creating: bool = False
    ) -> Recalled | None:
        self._read("recall")
        if creating and (key.tenant, user, key.session_id) in self.erased:
            raise Refused(ErrorCode.SESSION_ENDED, "the session that this key made was erased")
        record = await self.session(key, user)
        if record is None:
            return None
        if record.status == "completed":
            raise Refused(ErrorCode.SESSION_ENDED, "this session is over")
        said = [(one.run_id, one.json) for one in self.said.get(key, [])]
        return Recalled(
            record.agent, record.metadata, record.on_detach, said[-200:], begun_ms=record.created_ms
        )

    async def is_erased(self, key: SessionKey, user: str, begun_ms: int) -> bool:
        self._read("is_erased")
        return any((key.tenant, user, name) in self.erased for name in ("", key.session_id))

    async def session(self, key: SessionKey, user: str) -> SessionRecord | None:
        self._read("session")
        record = self.records.get(key)
        return record if record is not None and record.user == user else None

    async def sessions(
        self,
        tenant: str,
        user: str,
        chosen: SessionFilter,
        *,
        after: SessionPosition | None,
        limit: int,
    ) -> list[SessionRecord]:
        self._read("sessions")

        def place(record: SessionRecord) -> SessionPosition:
            at_ms = record.created_ms if chosen.order == "created" else record.active_ms
            return SessionPosition(at_ms, record.key.session_id)

        found = [
            record
            for record in self.records.values()
            if (record.key.tenant, record.user) == (tenant, user)
            and chosen.agent in (None, record.agent)
            and chosen.status in (None, record.status)
            and (chosen.created_from_ms is None or record.created_ms >= chosen.created_from_ms)
            and (chosen.created_to_ms is None or record.created_ms < chosen.created_to_ms)
            and (after is None or place(record) < after)
        ]
        return sorted(found, key=place, reverse=True)[:limit]

    async def messages(
        self, key: SessionKey, *, before: MessagePosition | None, limit: int
    ) -> list[MessageRecord]:
        self._read("messages")
        said = self.said.get(key, [])
        found = [one for one in said if before is None or one.position < before][-limit:]
        self.on_read("messages")
        return found

    async def archived(self, key: SessionKey, run_ids: Sequence[str]) -> set[str]:
        self._read("archived")
        found = self.runs.get(key, set()).intersection(run_ids)
        self.on_read("archived")
        return found

    async def usage(
        self,
        tenant: str,
        *,
        first_day: str,
        last_day: str,
        agent: str | None = None,
        model: str | None = None,
    ) -> list[UsageRecord]:
        self._read("usage")
        return [
            one
            for owner, one in self.used
            if owner == tenant
            and first_day <= one.day <= last_day
            and agent in (None, one.agent)
            and model in (None, one.model)
        ]

    async def erase(
        self, tenant: str, user: str, session_id: str = "", *, at_ms: int | None = None
    ) -> int:
        self._read("erase")
        self.erased_upto_ms = at_ms
        self.erased.append((tenant, user, session_id))
        mine = [
            key
            for key, record in self.records.items()
            if (key.tenant, record.user) == (tenant, user) and session_id in ("", key.session_id)
        ]
        for key in mine:
            del self.records[key]
            self.said.pop(key, None)
        return len(mine)
