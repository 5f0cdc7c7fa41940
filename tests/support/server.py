"""One Redis that can be stopped, killed, started again, and made to lose what it confirmed."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from gateway.bus.embedded import server_arguments, server_binary
from support.bus import IN_NO_HURRY

_START_TIMEOUT_S = 45.0
_STOP_TIMEOUT_S = 30.0


class RedisServer:
    """A server with an append-only file, on a unix socket in its folder.

    Attributes:
        socket: where it listens, whether it runs or not.
    """

    def __init__(self, folder: Path) -> None:
        """Starts nothing yet."""
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = folder / "valkey.sock"

    def start(self) -> None:
        """Starts it with what its file holds, and waits until it serves."""
        binary = server_binary()
        assert binary is not None, "install nooble-gateway[embedded]"
        self._process = subprocess.Popen(
            [binary, *server_arguments(self._folder, self.socket), *IN_NO_HURRY],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _START_TIMEOUT_S
        with self.client() as client:
            while True:
                try:
                    client.ping()
                except (OSError, RedisError) as error:
                    if self._process.poll() is not None or time.monotonic() > deadline:
                        raise AssertionError("the server does not come up") from error
                    time.sleep(0.01)
                else:
                    return

    def client(self) -> Redis:
        """A client past every proxy."""
        return Redis(unix_socket_path=str(self.socket), socket_timeout=10)

    def stop(self) -> None:
        """Ends it in order: everything is in its file."""
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        self._wait()

    def kill(self) -> None:
        """kill -9: what the kernel had not been given is lost."""
        self._signal(signal.SIGKILL)
        self._wait()

    def pause(self) -> None:
        """Lets it hang (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        self._signal(signal.SIGCONT)

    def written(self) -> dict[Path, int]:
        """How long its files are now; for `lose_since`."""
        return {path: path.stat().st_size for path in self._files()}

    def lose_since(self, before: dict[Path, int]) -> None:
        """Cuts its files back, as a power failure does; to be called when it is down."""
        for path in self._files():
            if path in before and path.suffix == ".aof":
                with path.open("r+b") as file:
                    file.truncate(before[path])

    def lose_all(self) -> None:
        """Removes its files; to be called when it is down."""
        shutil.rmtree(self._folder / "appendonlydir")

    def _files(self) -> list[Path]:
        return sorted((self._folder / "appendonlydir").iterdir())

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _wait(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError("the server did not stop") from None
