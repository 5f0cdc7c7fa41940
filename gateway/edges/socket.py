"""What uvicorn's WebSocket protocol lacks: ending a socket whose peer does not read.

In ASGI, closing waits like any other send until the peer takes what was written before, and uvicorn
closes the transport in order, which waits for the same. A peer that stops reading could hold its
socket for ever.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

EXTENSION = "nooble.close"
"""The extension in the ASGI scope: `scope["extensions"][EXTENSION]["close"](code)` queues a close
frame behind what was written, whether the peer reads or not, and cuts the connection off soon."""

LINGER_S = 5.0
"""How long a peer may take to read what is left, once the connection is to end."""


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol, with the extension above, and never outliving its application for long.

    To be given to uvicorn as `ws=WebSocketProtocol`.
    """

    def __init__(
        self,
        config: "Config",
        server_state: "ServerState",
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """As uvicorn calls it."""
        super().__init__(config, server_state, app_state, _loop)
        self._linger: asyncio.TimerHandle | None = None

    async def run_asgi(self) -> None:
        """Runs the application for this connection."""
        extensions: dict[str, dict[object, object]] = self.scope.get("extensions") or {}
        extensions[EXTENSION] = {"close": self._close_now}
        await super().run_asgi()
        self._cut_off_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio calls it."""
        if self._linger is not None:
            self._linger.cancel()
        super().connection_lost(exc)

    def _close_now(self, code: int) -> None:
        if not self.close_sent and not self.transport.is_closing():
            self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": ""})
            self.conn.send_close(code)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
        self._cut_off_soon()

    def _cut_off_soon(self) -> None:
        if self._linger is None and not self.disconnected:
            self._linger = self.loop.call_later(LINGER_S, self.transport.abort)
