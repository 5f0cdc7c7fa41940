"""nooble-gateway: a WebSocket-first realtime gateway for AI agents."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("nooble-gateway")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.0.0"
