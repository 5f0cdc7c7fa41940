"""Whose fault a code is: in one table, and with as few label values as there are codes."""

import pytest

from gateway.session.model import Role
from gateway.telemetry.failures import CALL_CODES, call_failure_of, failure_of
from protocol.codes import ErrorCode

OURS = {
    "no_worker",
    "circuit_open",
    "worker_lost",
    "timeout",
    "unavailable",
    "internal",
}


def classes(role: Role) -> dict[str, set[str]]:
    """The codes of each class."""
    found: dict[str, set[str]] = {"client": set(), "server": set()}
    for code in ErrorCode:
        error_class, label = failure_of(role, code)
        assert label == code
        found[error_class].add(code)
    return found


@pytest.mark.parametrize("role", ["user", "tool", "system"])
def test_every_code_of_a_refusal_is_the_clients_or_ours(role: Role):
    assert classes(role)["server"] == OURS
    assert "too_large" in classes(role)["client"]


def test_a_run_that_its_agent_made_too_large_is_not_the_fault_of_who_asked():
    assert classes("assistant")["server"] == {*OURS, "too_large"}
    assert {"cancelled", "interrupt_expired"} <= classes("assistant")["client"]


@pytest.mark.parametrize("code", ["no_such_customer", "", 'a"} 1', "x" * 1000])
def test_what_an_agent_invents_is_its_answer_and_no_new_label(code: str):
    assert failure_of("assistant", code) == ("client", "other")
    assert call_failure_of(code) == "rejected"


def test_a_call_fails_in_few_ways_and_not_by_a_cancel():
    found = {call_failure_of(code) for code in ErrorCode}
    assert found == {None, *CALL_CODES} - {"circuit_open"}, "which is no end of a run"
    assert call_failure_of(ErrorCode.CANCELLED) is None
