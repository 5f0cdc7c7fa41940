"""The agent side: what an agent author sees, and the process that serves agents.

An agent in a module of your own, started with `gateway worker my_module:agent`:

    from gateway.agents import Agent, Run

    agent = Agent("echo", description="Says it back")

    @agent.run
    async def answer(run: Run) -> None:
        async with run.message() as message:
            for word in run.text.split():
                await message.write(word + " ")

==========  =======================================================================================
sdk         `Agent` and `Run`: the whole surface for an author
emitted     which events an agent may send as they are
stream      a run's events on their way to Redis: gathered, numbered, bounded
unfinished  what a run has opened and not closed
leash       how an agent that does not stop is let go of
execution   one attempt at one run, from its claim to its ending
worker      slots, leases, presence: the process that claims runs
patch       JSON Patch (RFC 6902) on the shared state
backoff     how a call is repeated while Redis does not answer
loading     `module:attribute` to an `Agent`
demo        the demo agent
==========  =======================================================================================
"""

from gateway.agents.sdk import Agent, AgentError, Message, Run, ToolCall

__all__ = ["Agent", "AgentError", "Message", "Run", "ToolCall"]
