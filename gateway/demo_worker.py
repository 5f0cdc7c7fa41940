"""The demo agent's worker beside a node, as `gateway run` has it."""

import asyncio
import os
import subprocess
import sys

from loguru import logger

DEMO_AGENT = "gateway.agents.demo:agent"
_GRACE_S = 1.0  # nobody can see an answer any more when the gateway has stopped
_STOP_TIMEOUT_S = 10.0


class DemoWorker:
    """The demo agent's worker, a child that ends with us however we end."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the process."""
        command = [sys.executable, "-m", "gateway.cli", "worker", DEMO_AGENT, "--with-parent"]
        command += ["--grace", str(_GRACE_S)]
        # A session of its own, so that Ctrl-C reaches us first. Its standard input is a pipe that
        # nobody writes to: when it ends, we are gone.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            env={**os.environ, "REDIS_URL": self._url},
            start_new_session=True,
        )

    async def watch(self) -> None:
        """Starts it again when it dies."""
        while True:
            await asyncio.sleep(0.5)
            if self._process is not None and self._process.poll() is not None:
                logger.bind(exit_code=self._process.returncode).error("the demo worker has ended")
                await asyncio.sleep(1.0)
                self.start()

    async def stop(self) -> None:
        """Lets it finish its runs."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, _STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
