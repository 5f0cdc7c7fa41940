"""Whose fault a code is: in one table, and with as few label values as there are codes."""

import pytest

from gateway.telemetry.failures import CALL_CODES, SERVERS, call_failure_of, failure_of
from protocol.codes import ErrorCode


def test_every_code_is_the_clients_or_ours():
    ours = {code for code in ErrorCode if failure_of(code)[0] == "server"}
    assert (
        ours
        == SERVERS
        == {
            "no_worker",
            "circuit_open",
            "worker_lost",
            "timeout",
            "unavailable",
            "internal",
        }
    )
    assert {failure_of(code)[0] for code in ErrorCode} == {"client", "server"}
    assert all(failure_of(code)[1] == code for code in ErrorCode)


@pytest.mark.parametrize("code", ["no_such_customer", "", 'a"} 1', "x" * 1000])
def test_what_an_agent_invents_is_its_answer_and_no_new_label(code):
    assert failure_of(code) == ("client", "other")
    assert call_failure_of(code) == "rejected"


def test_a_call_fails_in_few_ways_and_not_by_a_cancel():
    found = {call_failure_of(code) for code in ErrorCode}
    assert found == {None, *CALL_CODES} - {"circuit_open"}, "which is no end of a run"
    assert call_failure_of(ErrorCode.CANCELLED) is None
