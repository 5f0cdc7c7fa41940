"""A node that is told to stop sends its clients away in order."""

from pathlib import Path

from support.socket import socket
from support.stack import Stack


async def test_clients_are_told_when_to_come_back_before_a_node_stops(folder: Path) -> None:
    """Guarantee 7: `goaway` first, with a delay that spreads the clients, then 1012."""
    with Stack.running(folder) as stack:
        async with socket(stack.ws_of()) as behind, socket(stack.ws_of()) as client:
            await client.open(agent="demo")
            stack.nodes[0].popen.terminate()
            for one in (client, behind):  # one that has not opened its session yet, too
                away = await one.until("goaway")
                assert away["reason"] == "stopping"
                assert 0 <= away["reconnect_in_ms"] <= 5000
                assert await one.closed() == 1012
        assert stack.nodes[0].stop() == 0
