"""The composition: what no part shows alone."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from gateway.app import Node, now_ms, report
from gateway.archive.archive import open_archive
from gateway.bus.bus import Bus
from gateway.bus.connection import create_client
from gateway.server import CannotListen, bind
from gateway.session.model import Limits


async def test_unknown_paths_and_methods_are_problem_documents(tmp_path: Path):
    client = create_client("redis://127.0.0.1:1")  # nothing asks it
    try:
        async with open_archive(
            tmp_path / "history.db", Limits(), migrates=True, now_ms=now_ms, report=report
        ) as archive:
            transport = httpx.ASGITransport(app=Node(Bus(client, Limits()), archive, Limits()).app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                for method, path, status in (("GET", "/nope", 404), ("POST", "/metrics", 405)):
                    response = await http.request(method, path)
                    assert response.status_code == status
                    assert response.headers["content-type"] == "application/problem+json"
                    assert response.json()["status"] == status
    finally:
        await client.aclose()


def test_a_worker_starts_without_the_archives_library():
    """It would pay a third of a second for what only nodes use."""
    shown = "import gateway.app, sys; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_busy_admin_port_is_named():
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen) as caught:
            bind("127.0.0.1", port, variable="GATEWAY_ADMIN_PORT")
    assert f"GATEWAY_ADMIN_PORT={port}: cannot be served" in str(caught.value)
    assert str(caught.value).endswith("another port: --admin-port")
