"""Loopback ports."""

import socket


def free_port() -> int:
    """A TCP port that nobody listens on right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
