"""The asyncio client of nooble-gateway.

    from gateway.client import connect

    async with connect("ws://127.0.0.1:8000/ws", agent="demo") as session:
        run = await session.send("hello")
        async for event in run:
            if event["type"] == "TEXT_MESSAGE_CONTENT":
                print(event["delta"], end="", flush=True)

A lost connection is made again by itself: with full jitter, resumed from the cursor, unanswered
commands sent again under their old id. So events arrive in order and each once, and a command
happens once. What cannot be repaired is an exception, never a silence:

==============  ================================================================================
`Refusal`       the server refused a command
`HistoryReset`  a run cannot be continued event by event; `session.messages` has what is known
`Disconnected`  the session is out of reach for good: the code and policy say why
==============  ================================================================================

============  ==================================================================================
session       `connect`, `follow`, and the session: commands, messages
keeper        keeps the session attached: the shell around `protocol.cursor.ClientCore`
streams       bounded buffers between the socket and who reads
link          one WebSocket: how it is opened and why it ended
errors        the exceptions
============  ==================================================================================
"""

from gateway.client.errors import Disconnected, HistoryReset, Refusal
from gateway.client.keeper import Lost, SessionEvent
from gateway.client.session import Session, connect, follow
from gateway.client.streams import Run
from protocol.cursor import Attached, Deliver, Notice, Replace

__all__ = [
    "Attached",
    "Deliver",
    "Disconnected",
    "HistoryReset",
    "Lost",
    "Notice",
    "Refusal",
    "Replace",
    "Run",
    "Session",
    "SessionEvent",
    "connect",
    "follow",
]
