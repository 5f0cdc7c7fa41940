"""`/openapi.json` is true: a running gateway does what it says, asked rightly and wrongly."""

from collections import Counter
from datetime import date, timedelta

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.schemas import APIOperation
from support.net import HTTP
from support.stack import Stack

# Seeded by the function, so that a run on one commit is like the next.
EXAMPLES = settings(
    max_examples=12,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def operations(stack: Stack) -> list[APIOperation]:
    schema = schemathesis.openapi.from_url(f"{stack.url}/openapi.json")
    schema.validate()
    return [found.ok() for found in schema.get_all_operations()]


def with_known_things(case: Case, url: str) -> None:
    """What the schema cannot say: ids that exist, and cursors that the gateway made."""
    case.headers.pop("X-Tenant-ID", None)
    if isinstance(case.body, dict) and "agent_id" in case.body:
        case.body = {**case.body, "agent_id": "demo", "user_id": "anonymous"}
    if "session_id" in case.path_parameters:
        session = HTTP.post(f"{url}/api/v1/sessions", json={"agent_id": "demo"}).json()
        case.path_parameters["session_id"] = session["session_id"]
        if "run_id" in case.path_parameters:
            path = f"{url}/api/v1/sessions/{session['session_id']}/messages"
            run = HTTP.post(path, json={"content": "hi"}).json()
            case.path_parameters["run_id"] = run["run_id"]
    if "user_id" in case.path_parameters:
        case.path_parameters["user_id"] = "anonymous"


def within_reason(case: Case) -> None:
    """What holds between parameters, which no schema says."""
    query = case.query
    query.pop("cursor", None)
    if "from" in query and "to" in query:
        first = date.fromisoformat(query["from"])
        query["to"] = min(first, date.max - timedelta(365)) + timedelta(7)
        query["from"] = query["to"] - timedelta(7)
    else:
        query.pop("from", None)  # to today are more days than may be asked for


def test_every_operation_does_what_it_says(stack, operations):
    """Well-formed requests are accepted, and answered in the documented form."""
    for operation in operations:
        seen = ask_rightly(operation, stack.url)
        assert any(status < 300 for status in seen), f"{operation.label}: only {seen}"


def ask_rightly(operation: APIOperation, url: str) -> Counter[int]:
    """Answers which statuses came."""
    seen: Counter[int] = Counter()

    @given(case=operation.as_strategy(), known=st.booleans())
    @EXAMPLES
    def ask(case: Case, known: bool) -> None:
        within_reason(case)
        if known:
            with_known_things(case, url)
        seen[case.call_and_validate().status_code] += 1

    ask()
    return seen


def test_what_is_not_as_the_document_says_is_refused(operations):
    for operation in operations:

        @given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
        @EXAMPLES
        def ask(case: Case) -> None:
            assert 400 <= case.call_and_validate().status_code < 500

        ask()
