"""The conversations before this one, as the HTTP API lists them."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException
from typing import Any, TypeVar, cast
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import ProxyHandler, Request, build_opener

import msgspec

from gateway.client.link import is_loopback

MOST = 15
TITLE_CHARS = 60
_TIMEOUT_S = 10.0
_MAX_BYTES = 8 * 1024 * 1024
_MESSAGES = 50
"""A title is looked for in so many messages."""

_Body = TypeVar("_Body")


class Unlisted(Exception):
    """They cannot be listed; the message is for a person."""


class _Session(msgspec.Struct):
    session_id: str
    agent_id: str
    status: str
    created_at: datetime
    active_at: datetime | None = None


class _Sessions(msgspec.Struct):
    sessions: list[_Session]


class _Message(msgspec.Struct):
    message: dict[str, Any]


class _Messages(msgspec.Struct):
    messages: list[_Message]
    next_cursor: str | None = None


class _Problem(msgspec.Struct):
    title: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One conversation, as a line shows it; `title` is what the user said first."""

    session_id: str
    agent: str
    title: str
    active_at: datetime
    over: bool

    def __str__(self) -> str:
        when = self.active_at.astimezone().strftime("%Y-%m-%d %H:%M")
        return f"{when}  {self.agent}  {self.title}{' (ended)' if self.over else ''}"


class Earlier:
    """Lists a user's conversations.

    Attributes:
        listed: what was listed last; the user counts from 1.
    """

    def __init__(self, url: str, *, tenant: str | None = None, token: str | None = None) -> None:
        """`url` is the gateway's WebSocket address."""
        scheme, _, rest = url.partition("://")
        web = {"ws": "http", "wss": "https"}.get(scheme, scheme)
        self._base = f"{web}://{rest.removesuffix('/ws')}/api/v1/sessions"
        self._headers = {"Accept": "application/json"}
        if tenant is not None:
            self._headers["X-Tenant-ID"] = tenant
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self.listed: list[Entry] = []

    async def entries(self) -> list[Entry]:
        """The newest conversations, the one of the last message first.

        Raises:
            Unlisted: the gateway does not say.
        """
        found = await self._get(f"?order=active&limit={MOST}", _Sessions)
        async with asyncio.TaskGroup() as group:
            titles = [group.create_task(self._title(each.session_id)) for each in found.sessions]
        self.listed = [
            Entry(
                each.session_id,
                each.agent_id,
                title.result(),
                each.active_at or each.created_at,
                each.status == "completed",
            )
            for each, title in zip(found.sessions, titles, strict=True)
        ]
        return self.listed

    async def _title(self, session_id: str) -> str:
        path = f"/{quote(session_id, safe='')}/messages?limit={_MESSAGES}"
        try:
            page = await self._get(path, _Messages)
        except Unlisted:
            return "?"
        said = [m.message.get("content") for m in page.messages if m.message.get("role") == "user"]
        words = " ".join(text_of(said[0]).split()) if said else ""
        if len(words) > TITLE_CHARS:
            words = words[: TITLE_CHARS - 1] + "…"
        return f"… {words}" if page.next_cursor else words or "(nothing said)"

    async def _get(self, path: str, kind: type[_Body]) -> _Body:
        try:
            return await asyncio.to_thread(self._read, self._base + path, kind)
        except HTTPError as error:
            raise Unlisted(_problem(error)) from None
        except (OSError, HTTPException, ValueError, msgspec.MsgspecError) as error:
            raise Unlisted(f"no list from {self._base}: {error}") from None

    def _read(self, url: str, kind: type[_Body]) -> _Body:
        # No proxy stands between a machine and itself, whatever the environment says.
        proxies = ProxyHandler({}) if is_loopback(url) else ProxyHandler()
        request = Request(url, headers=self._headers)
        with build_opener(proxies).open(request, timeout=_TIMEOUT_S) as response:
            return msgspec.json.decode(response.read(_MAX_BYTES), type=kind)


def _problem(error: HTTPError) -> str:
    with error:
        try:
            problem = msgspec.json.decode(error.read(_MAX_BYTES), type=_Problem)
        except (OSError, msgspec.MsgspecError):
            return f"the gateway answers {error.code}"
    return problem.detail or problem.title


def text_of(content: Any) -> str:
    """A message's text, be it a string or parts."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for part in cast("list[Any]", content) if isinstance(content, list) else ():
        match part:
            case {"text": str(text)}:
                texts.append(text)
            case _:
                pass
    return " ".join(texts)
