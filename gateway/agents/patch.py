"""JSON Patch (RFC 6902) on plain JSON values. The given value is never changed."""

import copy
from collections.abc import Sequence
from typing import Any, cast

JsonObject = dict[str, Any]


class PatchError(ValueError):
    """The patch cannot be applied to this value; nothing of it was."""


def apply_patch(value: Any, operations: Sequence[JsonObject]) -> Any:
    """The value after all operations.

    Raises:
        PatchError: when one is malformed, points at nothing, or is a `test` that fails.
    """
    value = copy.deepcopy(value)
    for operation in operations:
        value = _apply(value, operation)
    return value


def _apply(root: Any, operation: JsonObject) -> Any:
    path = _pointer(operation, "path")
    match operation.get("op"):
        case "add":
            return _add(root, path, copy.deepcopy(_value(operation)))
        case "remove":
            return _remove(root, path)
        case "replace":
            return _replace(root, path, copy.deepcopy(_value(operation)))
        case "move":
            source = _pointer(operation, "from")
            if source == path:
                _get(root, source)
                return root
            if path[: len(source)] == source:
                raise PatchError("`move` cannot put a value into itself")
            moved = _get(root, source)
            return _add(_remove(root, source), path, moved)
        case "copy":
            return _add(root, path, copy.deepcopy(_get(root, _pointer(operation, "from"))))
        case "test":
            if not _equal(_get(root, path), _value(operation)):
                raise PatchError(f"`test` failed at {operation['path']!r}")
            return root
        case other:
            raise PatchError(f"unknown op {other!r}")


def _value(operation: JsonObject) -> Any:
    if "value" not in operation:
        raise PatchError(f"`{operation['op']}` needs a `value`")
    return operation["value"]


def _pointer(operation: JsonObject, field: str) -> list[str]:
    """The tokens of a JSON Pointer (RFC 6901)."""
    pointer = operation.get(field)
    if not isinstance(pointer, str) or (pointer and not pointer.startswith("/")):
        raise PatchError(f"`{field}` is no JSON Pointer: {pointer!r}")
    return [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]


def _index(items: list[Any], token: str, *, end: int) -> int:
    """An index of at most `end`, without sign or leading zeros."""
    if not (token.isascii() and token.isdigit()) or (len(token) > 1 and token[0] == "0"):
        raise PatchError(f"{token!r} is no array index")
    if int(token) > end:
        raise PatchError(f"index {token} is past the end of an array of {len(items)}")
    return int(token)


def _get(root: Any, path: list[str]) -> Any:
    for token in path:
        if isinstance(root, list):
            items = cast("list[Any]", root)
            root = items[_index(items, token, end=len(items) - 1)]
        elif isinstance(root, dict) and token in root:
            root = cast("JsonObject", root)[token]
        else:
            raise PatchError(f"nothing at {token!r}")
    return root


def _add(root: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent, token = _get(root, path[:-1]), path[-1]
    if isinstance(parent, list):
        items = cast("list[Any]", parent)
        items.insert(len(items) if token == "-" else _index(items, token, end=len(items)), value)
    elif isinstance(parent, dict):
        parent[token] = value
    else:
        raise PatchError(f"{token!r} has no object or array around it")
    return root


def _remove(root: Any, path: list[str]) -> Any:
    _get(root, path)
    if not path:
        return None
    parent, token = _get(root, path[:-1]), path[-1]
    del parent[int(token) if isinstance(parent, list) else token]
    return root


def _replace(root: Any, path: list[str], value: Any) -> Any:
    _get(root, path)
    if not path:
        return value
    parent, token = _get(root, path[:-1]), path[-1]
    parent[int(token) if isinstance(parent, list) else token] = value
    return root


def _equal(left: Any, right: Any) -> bool:
    """Equal as JSON: unlike Python's, `true` is not 1, at any depth."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        ours, theirs = cast("list[Any]", left), cast("list[Any]", right)
        return len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    if isinstance(left, dict) and isinstance(right, dict):
        mine, other = cast("JsonObject", left), cast("JsonObject", right)
        return mine.keys() == other.keys() and all(_equal(mine[key], other[key]) for key in mine)
    return bool(left == right)
