"""The ASGI applications of a node, made of the edges' routes: for clients, and for operators."""

from collections.abc import Sequence
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from gateway.edges import pages
from gateway.edges.guard import LOOPBACK, Guard
from gateway.edges.problem import on_http_exception


class Applications(NamedTuple):
    """Without an admin port, `public` has all and `admin` is None."""

    public: Starlette
    admin: Starlette | None


def compose(
    *,
    clients: Sequence[BaseRoute],
    operators: Sequence[BaseRoute],
    probes: Sequence[BaseRoute],
    admin_port: bool,
    middleware: Sequence[Middleware],
) -> Applications:
    """`probes` are on both ports, and so is what the pages load."""

    def application(routes: Sequence[BaseRoute]) -> Starlette:
        return Starlette(
            routes=routes,
            middleware=[*middleware, Middleware(Guard, allowed_hosts=LOOPBACK)],
            exception_handlers={HTTPException: on_http_exception},
        )

    public = [*clients, *probes, *pages.files()]
    if not admin_port:
        return Applications(application([*public, *operators]), None)
    return Applications(application(public), application([*operators, *probes, *pages.files()]))
