"""Who speaks. Without authentication: `anonymous`, of the tenant that the request names."""

import ipaddress
import re
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from gateway.edges.problem import Handler, problem
from gateway.session.errors import Refused
from gateway.session.model import Principal
from gateway.session.probe import AuthFailure
from protocol.codes import ErrorCode

TENANT_HEADER = "X-Tenant-ID"
TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")

_OF_PROXIES = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via")

Authenticate = Callable[[Headers, str | None], Principal]
"""From the request's headers, and the token of the `open` frame if there is one, to a principal.

Raises `Refused` with `forbidden` or `unauthenticated`.
"""


def counting(authenticate: Authenticate, failed: Callable[[AuthFailure], None]) -> Authenticate:
    """The same; `failed` hears why somebody may not be served."""

    def ask(headers: Headers, token: str | None) -> Principal:
        try:
            return authenticate(headers, token)
        except Refused as refused:
            if refused.param == TENANT_HEADER:
                failed("bad_tenant")
            elif refused.code == ErrorCode.UNAUTHENTICATED:
                failed("unauthenticated")
            else:
                failed("forbidden")
            raise

    return ask


def anonymous(headers: Headers, token: str | None = None) -> Principal:
    """The principal of a gateway without authentication, which serves loopback only.

    Raises:
        Refused: `X-Tenant-ID` names no tenant, or is there more than once.
    """
    tenants = headers.getlist(TENANT_HEADER)
    if len(tenants) > 1:  # a proxy in front of us may have checked another than we would take
        raise Refused(ErrorCode.FORBIDDEN, "name one tenant", param=TENANT_HEADER)
    tenant = tenants[0] if tenants else "default"
    if not TENANT.fullmatch(tenant):
        raise Refused(
            ErrorCode.FORBIDDEN,
            "a tenant id is 1 to 63 of a-z, 0-9, _ and -, and begins with a letter or digit",
            param=TENANT_HEADER,
        )
    return Principal(tenant, "anonymous")


def for_administrators(handler: Handler) -> Handler:
    """The handler of what concerns all tenants, which only an administrator may see.

    That is decided here and nowhere else: without authentication, whoever comes from this machine,
    and not through a proxy on it, whose clients may be anywhere.
    """

    async def handle(request: Request) -> Response:
        host = request.client.host if request.client is not None else ""
        try:
            known = ipaddress.ip_address(host).is_loopback and not any(
                header in request.headers for header in _OF_PROXIES
            )
        except ValueError:
            known = False
        if not known:
            return problem(Refused(ErrorCode.FORBIDDEN, "for administrators of the gateway only"))
        return await handler(request)

    return handle
