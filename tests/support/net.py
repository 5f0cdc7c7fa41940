"""Loopback: ports, and plain HTTP."""

import socket
from random import SystemRandom

import httpx

_FIRST, _BEHIND = 15_000, 32_000
_random = SystemRandom()

HTTP = httpx.Client(
    verify=False,
    trust_env=False,
    timeout=60,
    limits=httpx.Limits(max_keepalive_connections=0),
)
"""Asks as `httpx.get` does, over a connection of its own each time, at a hundredth of its cost:
that reads all certificates of the machine anew for each request.
"""


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
