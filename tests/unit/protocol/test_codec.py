"""Whatever the bytes are, the outcome is a frame or a `ProtocolError`, and a frame survives."""

import json
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.frames import (
    any_client_frame,
    any_server_frame,
    client_frames,
    json_values,
    server_frames,
)

from protocol.codec import (
    MAX_CLIENT_FRAME_BYTES,
    MAX_DEPTH,
    ProtocolError,
    decode_client,
    decode_server,
    encode,
)
from protocol.codes import ErrorCode
from protocol.frames import ClientFrame, Open, ServerFrame

# Things that a JSON parser, a typed decoder or an encoder may stumble over.
HOSTILE = [
    b'"\\ud800"',
    b'"\\udfff\\ud800"',
    b'"\xff"',
    b'"\xed\xa0\x80"',
    b'"\x00"',
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 400,
    b"9" * 5000,
    b"-0",
    b"[" * 5000,
    b"[" * 400 + b"]" * 400,
    b'{"a":' * 400 + b"1" + b"}" * 400,
    b'{"a":1,"a":{"a":2,"a":3}}',
    b"",
    b"nul",
    b"\xef\xbb\xbf1",
]


def frame_or_error(data: bytes) -> ClientFrame | ProtocolError:
    try:
        frame = decode_client(data)
    except ProtocolError as error:
        check_error(error)
        return error
    assert decode_client(encode(frame), max_bytes=1 << 30) == frame
    return frame


def server_frame_or_error(data: bytes) -> ServerFrame | ProtocolError:
    try:
        frame = decode_server(data)
    except ProtocolError as error:
        return error
    again = encode(frame)
    assert encode(decode_server(again)) == again
    return frame


def check_error(error: ProtocolError) -> None:
    assert error.code in (ErrorCode.BAD_FRAME, ErrorCode.UNKNOWN_TYPE, ErrorCode.TOO_LARGE)
    assert error.message
    assert error.re is None or 0 < len(error.re) <= 128
    msgspec.json.encode([error.message, error.re, error.param])  # it must fit on the wire itself


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    frame_or_error(data)
    server_frame_or_error(data)


@given(json_values)
def test_any_json(value: Any) -> None:
    data = json.dumps(value).encode()
    frame_or_error(data)
    server_frame_or_error(data)


@given(st.text())
def test_any_text_for_a_server_frame(text: str) -> None:
    with pytest.raises(ProtocolError):
        decode_server(text)  # such texts are never a whole frame


@given(any_client_frame | any_server_frame, st.data())
def test_mutated_frames(frame: Any, data: st.DataObject) -> None:
    """Bytes cut out, doubled or replaced by something hostile anywhere in a valid frame."""
    whole = encode(frame)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, min(len(whole), start + 20)))
    patch = data.draw(st.sampled_from(HOSTILE) | st.binary(max_size=5) | st.just(whole))
    mutant = whole[:start] + patch + whole[stop:]
    frame_or_error(mutant)
    server_frame_or_error(mutant)


@given(any_client_frame | any_server_frame, st.data())
def test_frames_with_one_field_replaced(frame: Any, data: st.DataObject) -> None:
    """Valid JSON of the wrong shape: another value, or a hostile literal, in one field."""
    fields = json.loads(encode(frame))
    name = data.draw(st.sampled_from(sorted(fields)))
    literal = data.draw(
        st.sampled_from(HOSTILE) | json_values.map(lambda value: json.dumps(value).encode())
    )
    others = [
        json.dumps(key).encode() + b":" + json.dumps(value).encode()
        for key, value in fields.items()
        if key != name
    ]
    mutant = b"{" + b",".join([*others, json.dumps(name).encode() + b":" + literal]) + b"}"
    frame_or_error(mutant)
    server_frame_or_error(mutant)


def test_strategies_cover_every_frame_type() -> None:
    assert set(client_frames) == set(get_args(ClientFrame))
    assert set(server_frames) == set(get_args(ServerFrame))


@pytest.mark.parametrize("kind", list(client_frames), ids=lambda kind: kind.__name__)
def test_client_frames_round_trip(kind: type) -> None:
    @given(client_frames[kind])
    def check(frame: ClientFrame) -> None:
        data = encode(frame)
        assert b"\n" not in data
        assert decode_client(data) == frame

    check()


@pytest.mark.parametrize("kind", list(server_frames), ids=lambda kind: kind.__name__)
def test_server_frames_round_trip(kind: type) -> None:
    @given(server_frames[kind])
    def check(frame: ServerFrame) -> None:
        data = encode(frame)
        assert type(decode_server(data)) is kind
        assert encode(decode_server(data.decode())) == data

    check()


def test_unknown_fields_are_ignored() -> None:
    assert decode_client(b'{"type":"open","id":"1","agent":"demo","later":[1]}') == Open(
        id="1", agent="demo"
    )


@pytest.mark.parametrize(
    ("data", "code", "re", "param", "fatal"),
    [
        pytest.param(b"{", "bad_frame", None, None, True, id="no JSON"),
        pytest.param(b"\xff", "bad_frame", None, None, True, id="no UTF-8"),
        pytest.param(b"[]", "bad_frame", None, None, True, id="no object"),
        pytest.param(b'{"id":"1"}', "bad_frame", "1", "type", False, id="no type"),
        pytest.param(b'{"type":1,"id":"1"}', "bad_frame", "1", "type", False, id="wrong type"),
        pytest.param(b'{"type":"zz","id":"1"}', "unknown_type", "1", "type", False, id="unknown"),
        pytest.param(
            b'{"type":"opened","id":"1"}', "unknown_type", "1", "type", False, id="a server's type"
        ),
        pytest.param(
            b'{"type":"message","id":"1"}', "bad_frame", "1", "content", False, id="missing field"
        ),
        pytest.param(
            b'{"type":"open","id":"1","after":{"epoch":"e"}}',
            "bad_frame",
            "1",
            "after.seq",
            False,
            id="missing field within",
        ),
        pytest.param(
            b'{"type":"open","id":"1","after":{"epoch":"e","seq":9007199254740992}}',
            "bad_frame",
            "1",
            "after.seq",
            False,
            id="a number that a double cannot hold",
        ),
        pytest.param(
            b'{"type":"open","id":"1","session_id":"a\\n"}',
            "bad_frame",
            "1",
            "session_id",
            False,
            id="a line break after a name",
        ),
        pytest.param(b'{"type":"close","id":""}', "bad_frame", None, "id", False, id="empty id"),
        pytest.param(
            b'{"type":"close","id":"' + b"x" * 129 + b'"}',
            "bad_frame",
            None,
            "id",
            False,
            id="an id that is too long is not echoed",
        ),
    ],
)
def test_what_an_error_says(
    data: bytes, code: str, re: str | None, param: str | None, fatal: bool
) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_client(data)
    error = caught.value
    assert (error.code, error.re, error.param, error.fatal) == (code, re, param, fatal)


def test_size_limit() -> None:
    frame = b'{"type":"ping","t":1}'
    padded = frame + b" " * (MAX_CLIENT_FRAME_BYTES - len(frame))
    decode_client(padded)
    with pytest.raises(ProtocolError) as caught:
        decode_client(padded + b" ")
    assert (caught.value.code, caught.value.fatal) == (ErrorCode.TOO_LARGE, True)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_depth_limit_leaves_room_to_encode_again(opening: bytes, closing: bytes) -> None:
    """A frame is encoded deeper in the stack than it was decoded; that must not overflow."""

    def frame(depth: int) -> bytes:
        nest = opening * depth + b"0" + closing * depth
        return b'{"type":"message","id":"1","content":"x","state":' + nest + b"}"

    def deeper(levels: int) -> bytes:
        return deeper(levels - 1) if levels else encode(decoded)

    decoded = decode_client(frame(MAX_DEPTH - 1))  # the frame is one level itself
    assert deeper(200) == frame(MAX_DEPTH - 1)
    for depth in (MAX_DEPTH, 900, 10_000):
        with pytest.raises(ProtocolError, match="nested too deeply"):
            decode_client(frame(depth), max_bytes=1 << 20)


def test_many_brackets_need_not_be_deep() -> None:
    decode_client(b'{"type":"message","id":"1","content":"' + b"[" * 500 + b'"}')
    decode_client(b'{"type":"message","id":"1","content":"x","state":[' + b"[]," * 500 + b"1]}")


def test_many_brackets_beside_bad_utf8_in_an_ignored_field() -> None:
    frame_or_error(b'{"type":"ping","t":1,"x":"\xff","y":[' + b"[]," * 200 + b"1]}")
