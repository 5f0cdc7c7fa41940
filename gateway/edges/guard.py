"""Refuses requests that another site makes a browser send.

A page from anywhere may open a WebSocket to this gateway (no same-origin rule holds for them), and
may make its own name resolve to 127.0.0.1 (DNS rebinding), after which it *is* the same origin. The
first is told by `Origin`, the second by `Host`. Programs send no `Origin` and are not concerned.
"""

import ipaddress
import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.edges.problem import problem
from gateway.session.errors import Refused
from protocol.codes import ErrorCode

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""The names that this machine has for itself."""

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:/?#@\s\[\]]+)(?::(\d{1,5}))?")
_PORTS = {"http": 80, "https": 443}
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """ASGI middleware: 403 for a foreign `Origin` (WebSockets, and all that changes something), for
    a `Host` that is not allowed, and for several, of which a proxy may have checked another.
    """

    def __init__(self, app: ASGIApp, *, allowed_hosts: frozenset[str] | None) -> None:
        """`allowed_hosts` are names without a port; None allows any. Loopback addresses always are:
        no name resolves to what a browser calls by its address.
        """
        self._app = app
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] in ("http", "websocket"):
            complaint = self._complaint(scope)
            if complaint is not None:
                refusal = problem(Refused(ErrorCode.FORBIDDEN, complaint))
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _complaint(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) > 1:
            return "a request has one Host header"
        host = _HOST.fullmatch("".join(hosts).lower())
        if self._allowed_hosts is not None and (
            host is None or not (host[1] in self._allowed_hosts or _is_loopback(host[1]))
        ):
            names = ", ".join(sorted(self._allowed_hosts))
            return f"this gateway answers to the following names only: {names}"
        origin = headers.get("origin")
        if origin is None or (scope["type"] == "http" and scope["method"] in _SAFE):
            return None
        if host is None or not _same(origin, host[1], host[2]):
            return "requests from other sites are not allowed"
        return None


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _same(origin: str, name: str, port: str | None) -> bool:
    """Host and port are compared, the scheme is not: TLS may end at a proxy."""
    try:
        url = urlsplit(origin.lower())
        default = _PORTS[url.scheme]
        # `url.hostname` drops the brackets of IPv6, `name` has them.
        return (url.hostname, url.port or default) == (name.strip("[]"), int(port or default))
    except (ValueError, KeyError):
        return False
