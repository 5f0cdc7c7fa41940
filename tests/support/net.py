"""Loopback ports."""

import socket
from random import SystemRandom

_FIRST, _BEHIND = 15_000, 32_000
_random = SystemRandom()


def free_port() -> int:
    """A TCP port that nobody listens on right now, nor is likely to take soon.

    It lies below those that the kernel gives to the near ends of connections: tests that run side
    by side make thousands, and one of them may be given a port before it is listened on, or while
    its node is being started again.
    """
    while True:
        port = _random.randrange(_FIRST, _BEHIND)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
