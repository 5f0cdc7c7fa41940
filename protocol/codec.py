"""Bytes to frames and back. Whatever the bytes are, the outcome is a frame or a `ProtocolError`."""

from typing import Any, cast

import msgspec

from protocol.codes import ErrorCode
from protocol.frames import ClientFrame, ServerFrame

MAX_CLIENT_FRAME_BYTES = 64 * 1024
"""Default bound of a client frame; a larger one closes the connection with 1009."""

MAX_DEPTH = 128
"""How deep objects and arrays may nest in a client frame. What is decoded here is encoded again
deeper in the call stack, so Python's own recursion limit cannot be the bound."""


class ProtocolError(Exception):
    """The peer sent something that is not a frame of this protocol.

    Attributes:
        code: `BAD_FRAME`, `UNKNOWN_TYPE` or `TOO_LARGE`.
        message: what is wrong, for a person.
        re: the `id` of the offending frame, when it could be read.
        param: the offending field, such as `after.seq`, when one is to blame.
        fatal: True when nothing that follows can be trusted (no JSON object at all, or a frame that
            is illegal in this state); a frame that is merely wrong leaves the connection usable.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        re: str | None = None,
        param: str | None = None,
        fatal: bool = False,
    ) -> None:
        """See the attributes."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.re = re
        self.param = param
        self.fatal = fatal


_client_decoder = msgspec.json.Decoder(ClientFrame)
_server_decoder = msgspec.json.Decoder(ServerFrame)
_loose_decoder = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


def encode(frame: ClientFrame | ServerFrame) -> bytes:
    """The frame as compact JSON."""
    return _encoder.encode(frame)


def decode_client(data: bytes, *, max_bytes: int = MAX_CLIENT_FRAME_BYTES) -> ClientFrame:
    """A frame that a client sent.

    Raises:
        ProtocolError: for anything that is not one.
    """
    if len(data) > max_bytes:
        raise ProtocolError(ErrorCode.TOO_LARGE, f"a frame may have {max_bytes} bytes", fatal=True)
    try:
        frame = _client_decoder.decode(data)
        check_depth(data)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise _explain(data, error) from None
    return frame


def decode_server(data: bytes | str) -> ServerFrame:
    """A frame that a server sent.

    Raises:
        ProtocolError: for anything that is not one; with `UNKNOWN_TYPE` for a type that a later
            server may send and that a client ignores.
    """
    try:
        return _server_decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise _explain(data, error) from None


def check_depth(data: bytes) -> None:
    """Bounds the depth of JSON, `MAX_DEPTH`, for what is going to be encoded again.

    Raises:
        ProtocolError: it nests deeper.
        msgspec.DecodeError, RecursionError, UnicodeError: perhaps, when it is not JSON.
    """
    # Only what has that many brackets can be that deep.
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    level: list[Any] = [_loose_decoder.decode(data)]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(cast(dict[str, Any], item).values())
            elif isinstance(item, list):
                below.extend(cast(list[Any], item))
        level = below
    if level:
        raise _too_deep()


def _too_deep() -> ProtocolError:
    return ProtocolError(
        ErrorCode.BAD_FRAME, f"nested too deeply (at most {MAX_DEPTH} levels)", fatal=True
    )


def _explain(data: bytes | str, error: Exception) -> ProtocolError:
    """Finds out what is wrong; only a faulty frame pays for this second look."""
    try:
        loose: Any = _loose_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError):
        return ProtocolError(ErrorCode.BAD_FRAME, "not JSON", fatal=True)
    except RecursionError:
        return _too_deep()
    if not isinstance(loose, dict):
        return ProtocolError(ErrorCode.BAD_FRAME, "not a JSON object", fatal=True)
    fields = cast(dict[str, Any], loose)
    frame_id: Any = fields.get("id")
    re = frame_id if isinstance(frame_id, str) and 0 < len(frame_id) <= 128 else None
    kind: Any = fields.get("type")
    if not isinstance(kind, str):
        return ProtocolError(
            ErrorCode.BAD_FRAME, "`type` is missing or no string", re=re, param="type"
        )
    message, _, path = str(error).partition(" - at `")
    if path.startswith("$.type"):
        return ProtocolError(
            ErrorCode.UNKNOWN_TYPE, f"unknown frame type {kind[:64]!r}", re=re, param="type"
        )
    steps = [path.removeprefix("$").removeprefix(".").rstrip("`"), _missing(message)]
    param = ".".join(step for step in steps if step)
    return ProtocolError(ErrorCode.BAD_FRAME, message, re=re, param=param or None)


def _missing(message: str) -> str:
    """The field in msgspec's "Object missing required field `x`", or nothing."""
    return message.partition("missing required field `")[2].rstrip("`")
