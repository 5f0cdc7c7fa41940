"""`/metrics`: Prometheus text."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def routes(render: Callable[[], Awaitable[tuple[bytes, str]]]) -> list[Route]:
    """`render` answers the exposition and its content type; it does no I/O."""

    async def metrics(_request: Request) -> Response:
        body, content_type = await render()
        return Response(body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

    return [Route("/metrics", metrics)]
