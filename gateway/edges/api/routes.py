"""The table of operations as Starlette's routes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.edges.api.messages import MessageCalls
from gateway.edges.api.openapi import document
from gateway.edges.api.operation import Operation
from gateway.edges.api.reports import ReportCalls
from gateway.edges.api.sessions import SessionCalls
from gateway.edges.principal import Authenticate, anonymous
from gateway.edges.problem import answering_problems
from gateway.session.archive import History
from gateway.session.history import SessionHistory
from gateway.session.ports import Clock, Directory, Sessions
from gateway.session.probe import Probe
from gateway.session.service import SessionService


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the API stands on."""

    service: SessionService
    sessions: Sessions
    archive: History
    directory: Directory
    probe: Probe
    clock: Clock
    now_ms: Callable[[], int]


def table(parts: Parts) -> list[Operation[Any, Any]]:
    """Every operation."""
    history = SessionHistory(parts.archive, parts.sessions)
    return [
        *SessionCalls(parts.service, history, parts.probe, parts.clock).operations(),
        *MessageCalls(parts.service, history, parts.probe, parts.clock).operations(),
        *ReportCalls(parts.service, parts.directory, parts.archive, parts.now_ms).operations(),
    ]


def routes(parts: Parts, *, version: str, authenticate: Authenticate = anonymous) -> list[Route]:
    """The API, and its description."""
    operations = table(parts)
    by_path: dict[str, dict[str, Operation[Any, Any]]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    description = msgspec.json.encode(document(operations, version))

    async def describe(_request: Request) -> Response:
        return Response(description, media_type="application/json")

    return [
        Route("/openapi.json", describe),
        *(_route(path, methods, authenticate) for path, methods in by_path.items()),
    ]


def _route(path: str, methods: dict[str, Operation[Any, Any]], authenticate: Authenticate) -> Route:
    """One route for all methods of a path, so that a 405 names them all."""

    async def serve(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await methods[method].serve(request, authenticate)

    return Route(path, answering_problems(serve), methods=list(methods))
