"""Around each HTTP request: its span, and the id that its log lines carry."""

from uuid import uuid4

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.session.context import log_context
from gateway.session.tracing import Tracer

_LONGEST_ID = 128


def request_id(headers: Headers) -> str:
    """The `X-Request-ID` that came with a request, or a new one."""
    return headers.get("x-request-id", "")[:_LONGEST_ID] or str(uuid4())


class Traced:
    """ASGI middleware, ahead of all others: what they refuse is traced, too.

    A WebSocket is none of its business: a span for as long as a socket is open says nothing.
    """

    def __init__(self, app: ASGIApp, *, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with (
            log_context(request_id=request_id(Headers(scope=scope))),
            self._tracer.request(scope) as span,
        ):

            async def answer(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.tell(status=message["status"])
                await send(message)

            await self._app(scope, receive, answer)
