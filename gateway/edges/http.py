"""`/api/v1`: sessions and agents, for programs without a socket."""

from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any

import msgspec
from loguru import logger
from msgspec import Meta
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.edges.principal import Authenticate, anonymous
from gateway.edges.problem import answering_problems
from gateway.session.context import log_context
from gateway.session.errors import Refused
from gateway.session.ids import derived
from gateway.session.model import Principal, SessionView
from gateway.session.ports import Directory
from gateway.session.service import SessionService
from protocol.codec import ProtocolError, check_depth
from protocol.codes import ErrorCode
from protocol.frames import AgentName, JsonObject, OnDetach

MAX_BODY_BYTES = 64 * 1024
MAX_KEY_LENGTH = 255


class SessionCreate(msgspec.Struct, frozen=True):
    """The body of `POST /api/v1/sessions`."""

    agent_id: AgentName
    user_id: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    metadata: JsonObject | None = None
    on_detach: OnDetach = "continue"


_decode = msgspec.json.Decoder(SessionCreate).decode
_canonical = msgspec.json.Encoder(order="sorted").encode


def routes(
    service: SessionService, directory: Directory, authenticate: Authenticate = anonymous
) -> list[Route]:
    """The HTTP API."""

    async def create_session(request: Request) -> Response:
        who = authenticate(request.headers, None)
        body = parse(await read_body(request))
        if body.user_id not in (None, who.user):
            # Else the session would belong to somebody whom no socket could prove to be.
            raise Refused(ErrorCode.FORBIDDEN, f"you are user {who.user!r} here", param="user_id")
        with log_context(
            tenant_id=who.tenant, request_id=request.headers.get("x-request-id", "")[:128] or None
        ):
            try:
                view = await service.create(
                    who,
                    body.agent_id,
                    body.metadata,
                    session_id=idempotent_id(who, request.headers),
                    on_detach=body.on_detach,
                    digest=digest(body),
                )
            except Refused as refused:
                if refused.param == "agent":
                    refused.param = "agent_id"
                elif refused.code == ErrorCode.ID_CONFLICT:
                    refused.param = "Idempotency-Key"
                raise
            with log_context(session_id=view.key.session_id):
                logger.bind(agent_id=view.agent, user_id=view.user).info("session created")
        location = f"/api/v1/sessions/{view.key.session_id}"
        return JSONResponse(_as_json(view), 201, {"Location": location})

    async def list_agents(request: Request) -> Response:
        who = authenticate(request.headers, None)
        agents = [
            {
                "agent_id": agent.info.name,
                "description": agent.info.description,
                "workers": agent.workers,
                "slots": agent.slots,
                "busy": agent.busy,
                "queue_depth": agent.queued,
                "breaker": service.agent_state(who, agent.info.name).name.lower(),
            }
            for agent in await directory.agents()
        ]
        return JSONResponse({"agents": agents})

    return [
        Route("/api/v1/sessions", answering_problems(create_session), methods=["POST"]),
        Route("/api/v1/agents", answering_problems(list_agents), methods=["GET"]),
    ]


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


def parse(body: bytes) -> SessionCreate:
    """The body as the object that it must be.

    Raises:
        Refused: it is not; `param` names the field to blame.
    """
    try:
        decoded = _decode(body)
        check_depth(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        missing = message.partition("missing required field `")[2].rstrip("`")
        param = path.removeprefix("$").removeprefix(".").rstrip("`") or missing or None
        raise Refused(ErrorCode.BAD_FRAME, message, param=param) from None
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise Refused(ErrorCode.BAD_FRAME, "the body is not JSON") from None
    except ProtocolError as error:
        raise Refused(error.code, error.message) from None
    return decoded


def digest(body: SessionCreate) -> str:
    """What the body asks for: equal for equal content, however it was spelled."""
    content = msgspec.structs.replace(body, user_id=None)  # which can only be the caller
    return sha256(_canonical(content)).hexdigest()[:32]


def idempotent_id(who: Principal, headers: Headers) -> str | None:
    """The session id that an `Idempotency-Key` stands for: its repetition finds the same session.

    Raises:
        Refused: the key is empty or too long.
    """
    key = headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= MAX_KEY_LENGTH:
        raise Refused(
            ErrorCode.BAD_FRAME,
            f"the key has 1 to {MAX_KEY_LENGTH} characters",
            param="Idempotency-Key",
        )
    return derived(who.tenant, who.user, key)


def _as_json(view: SessionView) -> dict[str, Any]:
    created = datetime.fromtimestamp(view.created_ms / 1000, UTC)
    return {
        "session_id": view.key.session_id,
        "agent_id": view.agent,
        "tenant_id": view.key.tenant,
        "user_id": view.user,
        "state": view.state,
        "created_at": created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "cursor": {"epoch": view.cursor.epoch, "seq": view.cursor.seq},
    }
