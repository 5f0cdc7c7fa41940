"""WebSockets and HTTP requests: every fact once, and label values that no peer can invent."""

from typing import Any, get_args

from support.books import read, series

from gateway.session.probe import Disconnect, Handshake, SocketProbe
from gateway.telemetry.metrics import Telemetry


def found(telemetry: Telemetry, *names: str) -> dict[Any, float]:
    """The series of these names that are not zero."""
    every = read(telemetry.render()[0].decode())
    return {key: value for key, value in every.items() if key[0] in names and value}


def test_a_websocket_is_counted_from_its_handshake_to_its_end():
    telemetry = Telemetry(version="1")
    probe: SocketProbe = telemetry.sockets
    for result in get_args(Handshake):
        probe.handshake(result)
    probe.socket_opened()
    probe.socket_opened()
    probe.socket_closed()
    probe.frame_received(10)
    probe.frames_sent(3, 100)
    probe.rate_limited()
    names = "websocket_open_sockets", "websocket_frames_total", "websocket_bytes_total"
    assert found(telemetry, *names, "rate_limited_total") == {
        series("websocket_open_sockets"): 1,
        series("websocket_frames_total", direction="in"): 1,
        series("websocket_frames_total", direction="out"): 3,
        series("websocket_bytes_total", direction="in"): 10,
        series("websocket_bytes_total", direction="out"): 100,
        series("rate_limited_total", scope="connection"): 1,
    }
    handshakes = found(telemetry, "websocket_handshakes_total")
    assert set(handshakes.values()) == {1}
    assert len(handshakes) == len(get_args(Handshake))


def test_close_codes_that_a_peer_invents_share_one_value():
    telemetry = Telemetry(version="1")
    for code in range(1000, 5000):
        telemetry.sockets.disconnected(code, "client")
    ends = found(telemetry, "websocket_disconnects_total")
    assert sum(ends.values()) == 4000
    assert len(ends) == 12 + 8 + 1
    for reason in get_args(Disconnect):
        telemetry.sockets.disconnected(4503, reason)
    assert len(found(telemetry, "websocket_disconnects_total")) == 20 + len(get_args(Disconnect))


def test_a_request_is_counted_by_route_and_status_and_timed_by_route():
    telemetry = Telemetry(version="1")
    telemetry.http.served("GET", "/a/{b}", 200, 0.25)
    telemetry.http.served("GET", "/a/{b}", 404, 0.25)
    telemetry.http.served("BREW", "/a/{b}", 405, 0.5)
    telemetry.http.served("SMOKE", "/a/{b}", 405, 0.5)
    names = "http_requests_total", "http_request_duration_seconds_sum"
    get, other = {"method": "GET", "endpoint": "/a/{b}"}, {"method": "other", "endpoint": "/a/{b}"}
    assert found(telemetry, *names) == {
        series("http_requests_total", status="200", **get): 1,
        series("http_requests_total", status="404", **get): 1,
        series("http_requests_total", status="405", **other): 2,
        series("http_request_duration_seconds_sum", **get): 0.5,
        series("http_request_duration_seconds_sum", **other): 1.0,
    }
