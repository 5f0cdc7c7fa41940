"""`gateway top --once` says in words how what it is shown does."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import msgspec
import pytest

from gateway.telemetry.overview import Service, Summary, merge
from gateway.top import run_top

SERVICES = {
    "database": Service(0, 4),
    "redis": Service(0, 1),
    "away": Service(2, 9),
}


class Console(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = msgspec.json.encode(merge(Summary("n1", services=SERVICES), (), 0.0))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Console) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_database_that_is_only_read_is_ill(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its breaker is closed, since reads succeed; its writes fail in a row."""
    run_top(url, once=True)
    found = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert found["service.database"] == "ill"
    assert found["service.redis"] == "well"
    assert found["service.away"] == "left alone"
