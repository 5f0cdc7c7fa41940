"""The tools that `gateway chat` runs for the agent."""

from datetime import datetime

from protocol.frames import JsonObject

TOOLS: list[JsonObject] = [
    {
        "name": "get_local_time",
        "description": "The date and time where the user is.",
        "parameters": {"type": "object", "properties": {}},
    }
]


def run_tool(messages: list[JsonObject], call_id: str) -> tuple[str, str | None]:
    """Runs the tool that was called by `call_id` in the transcript; its content, or an error."""
    name = _called(messages, call_id)
    if name == "get_local_time":
        return datetime.now().astimezone().isoformat(timespec="seconds"), None
    return "", f"this client has no tool {name!r}"


def _called(messages: list[JsonObject], call_id: str) -> str:
    for message in reversed(messages):
        for call in message.get("toolCalls") or ():
            match call:
                case {"id": str(known), "function": {"name": str(name)}} if known == call_id:
                    return name
                case _:
                    pass
    return "?"
