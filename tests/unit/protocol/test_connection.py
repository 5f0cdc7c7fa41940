"""Every pair of state and frame, against what the table means."""

import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import ProtocolError
from protocol.codes import ErrorCode
from protocol.connection import TRANSITIONS, ConnectionState, next_state
from protocol.frames import (
    Answer,
    AnswerEntry,
    Cancel,
    ClientFrame,
    Close,
    Message,
    Open,
    Ping,
    Refresh,
    ToolResult,
)

NEW, OPEN, CLOSING = ConnectionState.NEW, ConnectionState.OPEN, ConnectionState.CLOSING

FRAMES: list[ClientFrame] = [
    Open(id="1"),
    Message(id="1", content="x"),
    Answer(id="1", entries=[AnswerEntry("i", "resolved")]),
    ToolResult(id="1", tool_call_id="t", content="x"),
    Cancel(id="1"),
    Refresh(id="1", token="t"),
    Ping(t=1),
    Close(id="1"),
]


def meant(state: ConnectionState, frame: ClientFrame) -> ConnectionState | None:
    """The rule in words: `open` first and once, then anything, nothing after `close`; a `ping` at
    any time before that."""
    match state:
        case ConnectionState.NEW:
            return OPEN if isinstance(frame, Open) else NEW if isinstance(frame, Ping) else None
        case ConnectionState.OPEN:
            if isinstance(frame, Open):
                return None
            return CLOSING if isinstance(frame, Close) else OPEN
        case ConnectionState.CLOSING:
            return None


@pytest.mark.parametrize(
    ("state", "frame"),
    list(itertools.product(ConnectionState, FRAMES)),
    ids=lambda value: value.name if isinstance(value, ConnectionState) else type(value).__name__,
)
def test_every_pair(state: ConnectionState, frame: ClientFrame) -> None:
    expected = meant(state, frame)
    if expected is None:
        with pytest.raises(ProtocolError) as caught:
            next_state(state, frame)
        assert caught.value.fatal
        assert caught.value.code is ErrorCode.BAD_FRAME
        assert caught.value.re == (None if isinstance(frame, Ping) else "1")
        assert type(frame).__name__.lower().replace("toolresult", "tool_result") in str(
            caught.value
        )
    else:
        assert next_state(state, frame) is expected


def test_every_frame_type_is_in_the_product() -> None:
    assert {type(frame) for frame in FRAMES} == set(get_args(ClientFrame))
    assert {kind for _, kind in TRANSITIONS} == set(get_args(ClientFrame))


def test_the_hint_of_the_first_frame() -> None:
    with pytest.raises(ProtocolError, match="the first frame must be `open`"):
        next_state(NEW, Cancel(id="1"))


@given(st.lists(st.sampled_from(FRAMES), max_size=30))
def test_random_walks(walk: list[ClientFrame]) -> None:
    """A walk that drops illegal frames opens at most once, and never leaves `closing`."""
    state = NEW
    path = [state]
    for frame in walk:
        try:
            state = next_state(state, frame)
        except ProtocolError:
            continue
        if state is not path[-1]:
            path.append(state)
    assert path == [NEW, OPEN, CLOSING][: len(path)]
