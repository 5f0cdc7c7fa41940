"""Loopback: ports, and plain HTTP."""

import socket
import sys
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
    its node is being started again. And no other process that runs tests is given it while this one
    lives: minutes may pass on a busy machine before somebody listens.
    """
    while True:
        port = _random.randrange(_FIRST, _BEHIND)
        if not _reserve(port):
            continue
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _reserve(port: int) -> bool:
    """Takes a name for it that the kernel gives once, and takes back when this process ends."""
    if sys.platform != "linux":
        return True
    with socket.socket(socket.AF_UNIX) as name:
        try:
            name.bind(f"\0nooble-tests-port-{port}")
        except OSError:
            return False
        name.detach()
    return True
