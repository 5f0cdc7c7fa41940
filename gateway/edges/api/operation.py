"""One operation of the API: a row of the table that the routes and `/openapi.json` are made from.

A row says what is read and answered; `Operation.serve` reads it, checks it, and hands it to the
handler. So what is documented is what is done.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import Any, Generic, Literal, TypeVar, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.edges.api.bodies import MAX_LIMIT
from gateway.edges.principal import Authenticate
from gateway.session.context import log_context
from gateway.session.errors import Refused
from gateway.session.model import Principal
from gateway.session.tracing import valid_traceparent
from protocol.codec import ProtocolError, check_depth
from protocol.codes import ErrorCode
from protocol.frames import RunId, SessionId

MAX_BODY_BYTES = 64 * 1024
MAX_KEY_LENGTH = 128

BodyT = TypeVar("BodyT", bound=msgspec.Struct | None)
QueryT = TypeVar("QueryT", bound=msgspec.Struct | None)

PATH_PARAMETERS: dict[str, tuple[Any, ErrorCode]] = {
    "session_id": (SessionId, ErrorCode.SESSION_NOT_FOUND),
    "run_id": (RunId, ErrorCode.RUN_NOT_FOUND),
    "user_id": (str, ErrorCode.FORBIDDEN),
}
"""What each must be, and what it answers otherwise."""


@dataclass(frozen=True, slots=True)
class Call(Generic[BodyT, QueryT]):
    """A request that was read and is well formed.

    Attributes:
        key: the `Idempotency-Key`, where the operation takes one and the client sent it.
        path: the path parameters by name.
        headers: those of the response.
    """

    who: Principal
    body: BodyT
    query: QueryT
    key: str | None
    path: dict[str, str]
    traceparent: str | None
    headers: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Operation(Generic[BodyT, QueryT]):
    """A row of the table.

    Attributes:
        name: the `operationId`.
        answers: what the body of the response is; None for an empty one.
        refuses: the codes of its own; those that its parts bring with them are in `codes`.
        keyed: it takes an `Idempotency-Key`.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    name: str
    summary: str
    handler: Callable[[Call[BodyT, QueryT]], Awaitable[msgspec.Struct | None]]
    answers: type[msgspec.Struct] | None = None
    status: HTTPStatus = HTTPStatus.OK
    refuses: tuple[ErrorCode, ...] = ()
    body: type[BodyT] | None = None
    query: type[QueryT] | None = None
    keyed: bool = False

    @property
    def codes(self) -> list[ErrorCode]:
        """Every code that it may refuse with."""
        codes = {
            ErrorCode.BAD_FRAME,
            ErrorCode.FORBIDDEN,
            ErrorCode.UNAVAILABLE,
            ErrorCode.INTERNAL,
            *self.refuses,
        }
        if self.body:
            codes |= {ErrorCode.TOO_LARGE, ErrorCode.UNSUPPORTED}
        codes.update(PATH_PARAMETERS[name][1] for name in self.path_parameters)
        return sorted(codes)

    @cached_property
    def path_parameters(self) -> list[str]:
        """The names in its path."""
        return [name for name in PATH_PARAMETERS if f"{{{name}}}" in self.path]

    @cached_property
    def _decode(self) -> Callable[[bytes], Any]:
        return msgspec.json.Decoder(self.body or dict[str, Any]).decode

    @cached_property
    def _integers(self) -> set[str]:
        """The query parameters that are numbers: all of them come as text."""
        if self.query is None:
            return set()
        fields = msgspec.structs.fields(cast(Any, self.query))
        return {
            field.encode_name
            for field in fields
            if isinstance(msgspec.inspect.type_info(field.type), msgspec.inspect.IntType)
        }

    async def serve(self, request: Request, authenticate: Authenticate) -> Response:
        """Reads the request, calls the handler, and answers.

        Raises:
            Refused: as in `codes`.
        """
        who = request.scope["user"] = authenticate(request.headers, None)
        with log_context(tenant_id=who.tenant, session_id=request.path_params.get("session_id")):
            call = Call(
                who=who,
                path=self._read_path(request),
                query=cast(QueryT, self._read_query(request)),
                key=read_key(request) if self.keyed else None,
                body=cast(BodyT, await self._read_body(request) if self.body else None),
                traceparent=valid_traceparent(request.headers.get("traceparent", "")) or None,
            )
            answer = await self.handler(call)
        if answer is None:
            return Response(status_code=self.status, headers=call.headers)
        content = msgspec.json.encode(answer)
        return Response(content, self.status, call.headers, "application/json")

    def _read_path(self, request: Request) -> dict[str, str]:
        for name in self.path_parameters:
            kind, code = PATH_PARAMETERS[name]
            try:
                msgspec.convert(request.path_params[name], kind)
            except msgspec.ValidationError:
                raise Refused(code, "there is none of that id", param=name) from None
        return request.path_params

    def _read_query(self, request: Request) -> Any:
        values: dict[str, str | int] = {}
        for name, text in request.query_params.multi_items():
            if name in values:
                raise Refused(ErrorCode.BAD_FRAME, "it is given more than once", param=name)
            is_number = name in self._integers and text.isascii() and text.isdigit()
            values[name] = int(text[:20]) if is_number else text
        if self.query is None:
            for name in values:
                raise Refused(ErrorCode.BAD_FRAME, "there is no such parameter", param=name)
            return None
        try:
            return msgspec.convert(values, self.query)
        except msgspec.ValidationError as error:
            raise _refusal(error) from None

    async def _read_body(self, request: Request) -> Any:
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(ErrorCode.UNSUPPORTED, "a body comes as it is, without an encoding")
        body = await read_body(request)
        try:
            decoded = self._decode(body)
            check_depth(body)
        except msgspec.ValidationError as error:
            raise _refusal(error) from None
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            raise Refused(ErrorCode.BAD_FRAME, "the body is not JSON") from None
        except ProtocolError as error:
            raise Refused(error.code, error.message) from None
        return decoded


async def read_body(request: Request) -> bytes:
    """The body, at most `MAX_BODY_BYTES` of it.

    Raises:
        Refused: it is larger.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Refused(ErrorCode.TOO_LARGE, f"a body may have {MAX_BODY_BYTES} bytes")
    return bytes(body)


def read_key(request: Request) -> str | None:
    """The `Idempotency-Key`.

    Raises:
        Refused: it is empty or too long, or there are two.
    """
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1:
        raise Refused(ErrorCode.BAD_FRAME, "there is more than one", param="Idempotency-Key")
    key = keys[0] if keys else None
    if key is not None and not 0 < len(key) <= MAX_KEY_LENGTH:
        raise Refused(
            ErrorCode.BAD_FRAME,
            f"the key has 1 to {MAX_KEY_LENGTH} characters",
            param="Idempotency-Key",
        )
    return key


def _refusal(error: msgspec.ValidationError) -> Refused:
    """Names the member to blame, as msgspec's message does."""
    message, _, path = str(error).partition(" - at `")
    param = path.removeprefix("$").removeprefix(".").rstrip("`")
    for named in ("missing required field `", "unknown field `"):
        param = param or message.partition(named)[2].rstrip("`")
    if param == "limit":
        message = f"limit is 1 to {MAX_LIMIT}"
    elif "matching regex" in message:
        message = "it has not the form that is documented"
    return Refused(ErrorCode.BAD_FRAME, message, param=param or None)
