"""What every test shares: the event loop that the gateway runs on in production."""

from typing import Any

import pytest
from hypothesis import settings

# Two shared cores make a deadline per example a source of chance.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Asynchronous tests and fixtures run on asyncio with uvloop."""
    return "asyncio", {"use_uvloop": True}
