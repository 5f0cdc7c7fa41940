"""An agent that fails again and again is left alone, and everybody can see it."""

import anyio
from support.following import until
from support.socket import TERMINAL, socket
from support.stack import Stack

P = "nooble_orchestrator_"
SERVICE = '{service="agent:demo"}'


async def test_a_streak_of_failed_runs_opens_the_breaker_of_that_tenant(stack: Stack) -> None:
    headers = {"X-Tenant-ID": "unlucky"}
    async with (
        socket(stack.ws_of(), additional_headers=headers) as client,
        socket(stack.ws_of()) as other,
    ):
        await client.open(agent="demo")
        await other.open(agent="demo")
        # More than five, over more than three seconds: one cause may fail many at once.
        with anyio.fail_after(60):
            while True:
                answer = await client.ask("message", content="/fail")
                if answer["type"] == "error":
                    break
                end = await client.until_event(*TERMINAL)
                assert end["event"]["code"] == "internal"
                await anyio.sleep(0.4)
        assert (answer["code"], answer["retryable"]) == ("circuit_open", True)
        assert 0 < answer["retry_after_ms"] <= 6251
        metrics = stack.metrics()
        # Open, or, when its pause was over before we looked, open to one who tries.
        assert metrics[f"{P}circuit_breaker_state{SERVICE}"] in (1, 2)
        assert metrics[f"{P}service_consecutive_failures{SERVICE}"] >= 5
        assert metrics[f"{P}service_failure_streaks_total{SERVICE}"] == 1
        # Redis may have been slow for a moment on a busy machine; its breaker is not of this.
        await until(lambda: stack.metrics()[f'{P}circuit_breaker_state{{service="redis"}}'] == 0)
        await other.ask("message", content="hello")
        assert (await other.until_event(*TERMINAL))["event"]["type"] == "RUN_FINISHED"
    [agent] = stack.get("/api/v1/agents")["agents"]
    assert agent["breaker"] == "closed", "to this tenant"
