"""Counts and times HTTP requests, by the template of their route.

One that breaks counts as a 500, though its answer may have begun well; of one whose client leaves,
the status that it was sent counts, or else 499. What is refused ahead of the application (400, 431,
and 408 for what does not come, which is not answered) is counted by `HttpProtocol`.
"""

from collections.abc import Callable

from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.session.ports import Clock

Served = Callable[[str, str, int, float], None]
"""Hears the method, the template, the status and the seconds to the end of the answer."""

UNMATCHED = "unmatched"
REFUSED = "nooble.refused"
"""In the ASGI scope: the status with which a request ended in its body, by the protocol."""

_BROKE, _CLIENT_IS_GONE = 500, 499


class HttpMetrics:
    """ASGI middleware, to be put in front of all other that may answer."""

    def __init__(self, app: ASGIApp, *, served: Served, clock: Clock) -> None:
        self._app = app
        self._served = served
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = self._clock(), 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            status = _BROKE
            raise
        finally:
            seconds = self._clock() - started
            if status in (0, _CLIENT_IS_GONE):
                status = scope.get(REFUSED, _CLIENT_IS_GONE)
            self._served(scope["method"], template_of(scope), status, seconds)


def template_of(scope: Scope) -> str:
    """The route that answered the request, as it was declared; its values never show."""
    route = scope.get("route")
    return route.path_format if isinstance(route, Route | Mount) else UNMATCHED
