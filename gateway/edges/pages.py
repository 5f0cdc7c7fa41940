"""`/` and `/web/...`: pages. Nothing from elsewhere is loaded, and no other page frames them."""

import os
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from gateway.edges.problem import Handler

_DIRECTORY = Path(__file__).parent.parent / "web"

# By suffix, and not by the table of the system, which may say anything.
_CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}

_HEADERS = {
    # `ws:` and `wss:`, since for some browsers 'self' covers no WebSocket of the same origin.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for anew each time; the ETag makes that cheap
}


class _Files(StaticFiles):
    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(_HEADERS)
        content_type = _CONTENT_TYPES.get(Path(full_path).suffix)
        if content_type is not None and isinstance(response, FileResponse):
            response.headers["Content-Type"] = content_type
        return response


def page(name: str) -> Handler:
    """Answers one page."""
    found = _Files(directory=_DIRECTORY)

    async def handle(request: Request) -> Response:
        return await found.get_response(name, request.scope)

    return handle


def routes() -> list[BaseRoute]:
    """The chat page."""
    return [Route("/", page("index.html"))]


def files() -> list[BaseRoute]:
    """What the pages load."""
    return [Mount("/web", _Files(directory=_DIRECTORY))]
