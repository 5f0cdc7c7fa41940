"""`make loadtest`: a gateway of its own under chatting users, and an HTML report of it.

python loadtests/run.py [--users N] [--spawn-rate N] [--run-time 30s] [--report FILE] [--host URL]

With `--host` (one node, or several with commas between them) nothing is started: that is loaded.
Exit code 1 when any request failed or any event was lost, doubled or out of order.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_READY = re.compile(r"chat at (\S+)")


@contextmanager
def running_gateway(folder: Path) -> Iterator[str]:
    """`gateway run` with its data in that folder; yields its URL."""
    log = folder / "gateway.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "run", "--port", "0"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(_ROOT), "GATEWAY_DATA_DIR": str(folder)},
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := _READY.search(line):
                wait_for_agent(found[1])
                yield found[1]
                return
        raise SystemExit(f"the gateway did not start:\n{log.read_text()}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def wait_for_agent(url: str) -> None:
    """Waits until a worker serves: it starts beside the node."""
    while not any(
        agent["workers"]
        for agent in json.load(urllib.request.urlopen(f"{url}/api/v1/agents"))["agents"]
    ):
        time.sleep(0.05)


def load(host: str, options: argparse.Namespace) -> int:
    """Runs locust; answers its exit code."""
    command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--host", host]
    command += ["--headless", "--only-summary", "--stop-timeout", "30", "--html", options.report]
    command += ["--users", str(options.users), "--spawn-rate", str(options.spawn_rate)]
    command += ["--run-time", options.run_time]
    return subprocess.run(command, cwd=_ROOT, check=False).returncode


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--spawn-rate", type=float, default=25)
    parser.add_argument("--run-time", default="30s")
    parser.add_argument("--report", default=str(Path("loadtest.html").absolute()))
    parser.add_argument("--host", help="nodes that run already, with commas between them")
    options = parser.parse_args()
    if options.host:
        code = load(options.host, options)
    else:
        with (
            tempfile.TemporaryDirectory(prefix="nooble-loadtest-") as folder,
            running_gateway(Path(folder)) as host,
        ):
            code = load(host, options)
    print(f"report: {options.report}")
    return code


if __name__ == "__main__":
    sys.exit(main())
