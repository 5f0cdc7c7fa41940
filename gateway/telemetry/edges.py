"""The series of the node's WebSockets, whoever they belong to, and of its HTTP requests."""

from gateway.session.probe import Disconnect, Handshake
from gateway.telemetry import catalogue
from gateway.telemetry.handles import BoundCounter, BoundCounterPair, BoundHistogram, Series

OTHER = "other"

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class SocketMetrics:
    """Implements `SocketProbe`."""

    def __init__(self, series: Series) -> None:
        self._series = series
        self._open = series.gauge(catalogue.WEBSOCKET_OPEN_SOCKETS)
        self._handshakes = {
            result: series.counter(catalogue.WEBSOCKET_HANDSHAKES_TOTAL, result)
            for result in catalogue.HANDSHAKES
        }
        self._disconnects: dict[tuple[str, str], BoundCounter] = {}
        self._received, self._sent = (
            BoundCounterPair(
                series.counter(catalogue.WEBSOCKET_FRAMES_TOTAL, way),
                series.counter(catalogue.WEBSOCKET_BYTES_TOTAL, way),
            )
            for way in ("in", "out")
        )
        self._limited = series.counter(catalogue.RATE_LIMITED_TOTAL, "connection")

    def socket_opened(self) -> None:
        """A peer asks for a WebSocket."""
        self._open.add(1)

    def socket_closed(self) -> None:
        """Its transport is gone."""
        self._open.add(-1)

    def handshake(self, result: Handshake) -> None:
        """It was accepted, or why not."""
        self._handshakes[result].inc()

    def disconnected(self, code: int, reason: Disconnect) -> None:
        """An accepted WebSocket ended."""
        label = str(code) if code in catalogue.CLOSE_CODES else OTHER
        found = self._disconnects.get((label, reason))
        if found is None:
            found = self._series.counter(catalogue.WEBSOCKET_DISCONNECTS_TOTAL, label, reason)
            self._disconnects[label, reason] = found
        found.inc()

    def frame_received(self, size_bytes: int) -> None:
        """A data frame came."""
        self._received.inc(1, size_bytes)

    def frames_sent(self, count: int, size_bytes: int) -> None:
        """So many data frames were handed to a socket."""
        self._sent.inc(count, size_bytes)

    def rate_limited(self) -> None:
        """A frame came too early."""
        self._limited.inc()


class HttpMetrics:
    """The series of HTTP requests: as many as there are routes, methods and statuses."""

    def __init__(self, series: Series) -> None:
        self._series = series
        self._requests: dict[tuple[str, str, int], tuple[BoundCounter, BoundHistogram]] = {}

    def served(self, method: str, endpoint: str, status: int, seconds: float) -> None:
        """A request was answered; `endpoint` is the route's template."""
        method = method if method in METHODS else OTHER
        found = self._requests.get((method, endpoint, status))
        if found is None:
            found = (
                self._series.counter(catalogue.HTTP_REQUESTS_TOTAL, method, endpoint, str(status)),
                self._series.histogram(catalogue.HTTP_REQUEST_DURATION_SECONDS, method, endpoint),
            )
            self._requests[method, endpoint, status] = found
        requests, took = found
        requests.inc()
        took.observe(seconds)
