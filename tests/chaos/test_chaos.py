"""The short form of `make chaos`: a few faults of each family, and the same checker."""

from pathlib import Path

import pytest

from chaos.run import Plan, chaos, table

SHORT = Plan(
    seed=1,
    clients=16,
    only=[
        "worker_kill",
        "node_kill",
        "redis_pause",
        "worker_cut",
        "archive_lock",
        "redis_power_failure",
    ],
    lease_s=3.0,
    recovery_s=2.0,
    burst=200,
)


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_nothing_is_lost_in_a_short_run(tmp_path: Path) -> None:
    """Guarantees 1 to 5, 7 and 8, under processes, a Redis and an archive that fail and recover."""
    outcome = await chaos(SHORT, tmp_path, print)
    print(table(SHORT, outcome))
    assert [*outcome.troubles, *map(str, outcome.verdict.wrong)] == []
    assert outcome.verdict.totals["events"] > 1000
    assert outcome.verdict.totals["resumes"] > 5
    assert outcome.verdict.totals["archived"] > 50
    assert len(outcome.faults) == len(SHORT.only)
