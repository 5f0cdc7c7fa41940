"""The system's Chromium, for tests that drive the page."""

import os
import shutil
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium_or_skip() -> Path:
    """Where Chromium is; without one the test skips, or fails where `REQUIRE_BROWSER=1` (CI)."""
    for name in NAMES:
        if found := shutil.which(name):
            return Path(found)
    reason = "needs Chromium (Debian: apt-get install chromium)"
    if os.environ.get("REQUIRE_BROWSER", "0") not in ("", "0"):
        pytest.fail(f"REQUIRE_BROWSER is set, and this test {reason}")
    pytest.skip(reason)
