"""`/metrics`: Prometheus text. `/metrics/targets`: where all nodes show theirs."""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.edges.principal import for_administrators

_NOT_KEPT = {"Cache-Control": "no-store"}


def routes(
    render: Callable[[], Awaitable[tuple[bytes, str]]], addresses: Callable[[], Mapping[str, str]]
) -> list[Route]:
    """`render` answers the exposition and its content type, `addresses` host and port of each node
    by its id; they do no I/O.
    """

    async def metrics(_request: Request) -> Response:
        body, content_type = await render()
        return Response(body, headers={"Content-Type": content_type, **_NOT_KEPT})

    # https://prometheus.io/docs/prometheus/latest/http_sd/
    async def targets(_request: Request) -> Response:
        found = [
            {"targets": [address], "labels": {"__meta_nooble_node": node}}
            for node, address in sorted(addresses().items(), key=lambda item: item[1])
        ]
        return JSONResponse(found, headers=_NOT_KEPT)

    return [
        Route("/metrics", for_administrators(metrics)),
        Route("/metrics/targets", for_administrators(targets)),
    ]
