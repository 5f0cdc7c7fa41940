"""Refusals as RFC 9457 problem documents, with the codes of the wire."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from math import ceil
from typing import Any, cast

from loguru import logger
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from gateway.session.errors import Refused
from protocol.codes import ErrorCode

_STATUS = {
    ErrorCode.BAD_FRAME: 400,
    ErrorCode.UNKNOWN_TYPE: 400,
    ErrorCode.UNAUTHENTICATED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.SESSION_NOT_FOUND: 404,
    ErrorCode.AGENT_NOT_FOUND: 404,
    ErrorCode.RUN_NOT_FOUND: 404,
    ErrorCode.BUSY: 409,
    ErrorCode.ID_CONFLICT: 409,
    ErrorCode.INTERRUPT_PENDING: 409,
    ErrorCode.CANCELLED: 409,
    ErrorCode.SESSION_ENDED: 410,
    ErrorCode.INTERRUPT_EXPIRED: 410,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.UNSUPPORTED: 415,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.QUOTA_EXCEEDED: 429,
    ErrorCode.NO_WORKER: 503,
    ErrorCode.CIRCUIT_OPEN: 503,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.TIMEOUT: 504,
}

_CLIENT_IS_GONE = 499  # nginx's number for it; HTTP has none

Handler = Callable[[Request], Awaitable[Response]]


def status_of(code: ErrorCode) -> HTTPStatus:
    """The HTTP status of a code."""
    return HTTPStatus(_STATUS.get(code, 500))


def problem(refused: Refused, *, status: int | None = None) -> Response:
    """The refusal as a response."""
    status = status or status_of(refused.code)
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": refused.message,
        "code": refused.code.value,
    }
    headers: dict[str, str] = {}
    if refused.param is not None:
        body["param"] = refused.param
    if refused.retry_after_ms is not None:
        headers["Retry-After"] = str(ceil(refused.retry_after_ms / 1000))
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def answering_problems(handler: Handler) -> Handler:
    """The handler, with every failure answered by a problem document."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except Refused as refused:
            return problem(refused)
        except HTTPException:
            raise
        except ClientDisconnect:
            return Response(status_code=_CLIENT_IS_GONE)  # which nobody will read
        except Exception:  # noqa: BLE001 - logged; its text is not the client's business
            logger.exception("an HTTP request failed")
            return problem(Refused(ErrorCode.INTERNAL, "something went wrong here"))

    return handle


async def on_http_exception(_request: Request, error: Exception) -> Response:
    """Starlette's own refusals (404, 405, ...) as problem documents, for `exception_handlers`."""
    failure = cast(HTTPException, error)
    status = failure.status_code
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": failure.detail,
    }
    return JSONResponse(body, status, failure.headers, media_type="application/problem+json")
