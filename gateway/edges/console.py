"""`/console`: the fleet at a glance, for a person; `/console/state` is what the page reads."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.edges.pages import page
from gateway.edges.principal import for_administrators


def routes(state: Callable[[], Awaitable[bytes]]) -> list[Route]:
    """`state` answers JSON, however often it is asked."""

    async def overview(_request: Request) -> Response:
        return Response(
            await state(), media_type="application/json", headers={"Cache-Control": "no-store"}
        )

    return [
        Route("/console", for_administrators(page("console.html"))),
        Route("/console/state", for_administrators(overview)),
    ]
