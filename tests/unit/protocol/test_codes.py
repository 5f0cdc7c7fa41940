"""Codes and their policies, as PROTOCOL's tables state them."""

import pytest

from protocol.codes import CloseCode, ErrorCode, Reconnect, reconnect_policy

# close code, meaning, reconnect
CLOSE_CODES = [
    (1000, "done", Reconnect.NO),
    (1009, "frame too big", Reconnect.NO),
    (1012, "node restarts or drains", Reconnect.YES),
    (4400, "bad frame, or illegal in this state", Reconnect.NO),
    (4401, "authentication failed or expired", Reconnect.NEW_TOKEN),
    (4403, "forbidden", Reconnect.NO),
    (4404, "unknown session", Reconnect.NEW_SESSION),
    (4410, "session ended", Reconnect.NEW_SESSION),
    (4408, "no `open` in time, or no pong", Reconnect.YES),
    (4426, "no common subprotocol version", Reconnect.NO),
    (4429, "too many messages or connections", Reconnect.AFTER_DELAY),
    (4503, "overloaded, or this client reads too slowly", Reconnect.YES),
]

ERROR_CODES = {
    "bad_frame",
    "unknown_type",
    "unauthenticated",
    "forbidden",
    "session_not_found",
    "session_ended",
    "agent_not_found",
    "run_not_found",
    "busy",
    "id_conflict",
    "interrupt_pending",
    "interrupt_expired",
    "rate_limited",
    "quota_exceeded",
    "too_large",
    "no_worker",
    "circuit_open",
    "worker_lost",
    "timeout",
    "cancelled",
    "unavailable",
    "unsupported",
    "internal",
}

# The same request, unchanged, may succeed later.
RETRYABLE = {
    "busy",
    "rate_limited",
    "quota_exceeded",
    "no_worker",
    "circuit_open",
    "worker_lost",
    "timeout",
    "unavailable",
    "internal",
}


@pytest.mark.parametrize(("code", "meaning", "policy"), CLOSE_CODES)
def test_close_code_policy(code: int, meaning: str, policy: Reconnect) -> None:
    assert reconnect_policy(code) is policy, meaning
    assert CloseCode(code).reconnect is policy


def test_the_table_is_complete() -> None:
    assert {code for code, _, _ in CLOSE_CODES} == set(CloseCode)
    assert {code.value for code in ErrorCode} == ERROR_CODES


@pytest.mark.parametrize("code", [1001, 1005, 1006, 1011, 1013, 1014, 1015, 3000, 4999])
def test_a_close_that_says_nothing_about_the_session_brings_the_client_back(code: int) -> None:
    assert reconnect_policy(code) is Reconnect.YES


@pytest.mark.parametrize("code", [1002, 1003, 1007])
def test_a_peer_that_cannot_understand_us_is_final(code: int) -> None:
    assert reconnect_policy(code) is Reconnect.NO


@pytest.mark.parametrize("code", ErrorCode)
def test_retryable(code: ErrorCode) -> None:
    assert code.retryable is (code.value in RETRYABLE)
