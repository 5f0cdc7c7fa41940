"""`/openapi.json`: OpenAPI 3.1, made from the table of operations and the structs of `bodies`."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, cast

import msgspec

from gateway.edges.api.bodies import Problem
from gateway.edges.api.operation import MAX_BODY_BYTES, MAX_KEY_LENGTH, PATH_PARAMETERS, Operation
from gateway.edges.principal import TENANT, TENANT_HEADER
from gateway.edges.problem import status_of
from protocol.codes import ErrorCode

Json = dict[str, Any]

_COMPONENTS = "#/components/schemas/{name}"
_PROBLEM = "application/problem+json"
_ABOUT = (
    "Sessions of users with agents, their messages and usage. Without authentication the caller is "
    "user `anonymous` of the tenant that `X-Tenant-ID` names, or of `default`. Errors are problem "
    "documents (RFC 9457) whose `code` is that of the WebSocket protocol."
)
_WAIT = frozenset({HTTPStatus.SERVICE_UNAVAILABLE})


def document(operations: Iterable[Operation[Any, Any]], version: str) -> Json:
    """The OpenAPI document of these operations."""
    rows = list(operations)
    structs = {kind for row in rows for kind in (row.body, row.answers) if kind is not None}
    named = sorted([*structs, Problem], key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(named, ref_template=_COMPONENTS)
    paths: dict[str, Json] = {}
    for row in rows:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nooble-gateway",
            "version": version,
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(row: Operation[Any, Any]) -> Json:
    described: Json = {
        "operationId": row.name,
        "summary": row.summary,
        "parameters": [*_path(row), *_query(row), *_headers(row)],
        "responses": {str(row.status.value): _success(row), **_refusals(row)},
    }
    if row.body is not None:
        described["requestBody"] = {
            "required": True,
            "description": f"At most {MAX_BODY_BYTES} bytes.",
            "content": {"application/json": {"schema": _ref(row.body)}},
        }
    return described


def _path(row: Operation[Any, Any]) -> list[Json]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": msgspec.json.schema(PATH_PARAMETERS[name][0]),
        }
        for name in row.path_parameters
    ]


def _query(row: Operation[Any, Any]) -> list[Json]:
    if row.query is None:
        return []
    _, components = msgspec.json.schema_components([row.query], ref_template=_COMPONENTS)
    parameters: list[Json] = []
    for name, schema in cast(Json, components[row.query.__name__]["properties"]).items():
        parameter: Json = {"name": name, "in": "query", "required": False, "schema": schema}
        if "description" in schema:
            parameter["description"] = schema.pop("description")
        parameters.append(parameter)
    return parameters


def _headers(row: Operation[Any, Any]) -> list[Json]:
    headers: list[Json] = [
        {
            "name": TENANT_HEADER,
            "in": "header",
            "required": False,
            "description": "The tenant; `default` when it is missing.",
            "schema": {"type": "string", "pattern": rf"^{TENANT.pattern}$(?!\n)"},
        }
    ]
    if row.keyed:
        headers.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "With the same key the same is done once.",
                "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH},
            }
        )
    return headers


def _success(row: Operation[Any, Any]) -> Json:
    response: Json = {"description": row.status.phrase}
    if row.answers is not None:
        response["content"] = {"application/json": {"schema": _ref(row.answers)}}
    if row.status == HTTPStatus.CREATED:
        response["headers"] = {
            "Location": {
                "required": True,
                "description": "Where it is read.",
                "schema": {"type": "string"},
            }
        }
    return response


def _refusals(row: Operation[Any, Any]) -> Json:
    by_status: dict[HTTPStatus, list[ErrorCode]] = {}
    for code in row.codes:
        by_status.setdefault(status_of(code), []).append(code)
    return {
        str(status.value): _refusal(status, codes) for status, codes in sorted(by_status.items())
    }


def _refusal(status: HTTPStatus, codes: list[ErrorCode]) -> Json:
    response: Json = {
        "description": f"{status.phrase}: " + ", ".join(f"`{code}`" for code in codes),
        "content": {_PROBLEM: {"schema": _ref(Problem)}},
    }
    if status in _WAIT:
        response["headers"] = {
            "Retry-After": {
                "required": True,
                "description": "Seconds to wait.",
                "schema": {"type": "integer", "minimum": 1},
            }
        }
    return response


def _ref(kind: type[msgspec.Struct]) -> Json:
    return {"$ref": _COMPONENTS.format(name=kind.__name__)}
