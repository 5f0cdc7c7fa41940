"""A test that leaves a process behind is found out; one that dies leaves none."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support.leaks import left_behind, lives
from support.replicas import until

from gateway.bus.embedded import server_arguments, server_binary

FORGETS = """
import subprocess, sys
print(subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL).pid, flush=True)
"""
DIES = """
import os, sys
from pathlib import Path
from support.net import free_port
from support.stack import Process
node = Process("node", Path(sys.argv[1]) / "node.log", "serve", "--port", str(free_port()))
node.wait_for_line('"gateway is ready"')
print("serves", flush=True)
input()
os._exit(1)
"""


@pytest.mark.parametrize("what", ["interpreter", "server"])
def test_a_forgotten_process_is_named_also_when_its_parent_is_gone(
    what: str, tmp_path: Path
) -> None:
    """A server overwrites its environment, and lives in a folder of its own."""
    forgotten = [sys.executable, "-c", "import time; time.sleep(1000)"]
    if what == "server":
        binary = server_binary()
        assert binary is not None, "install nooble-gateway[embedded]"
        forgotten = [binary, *server_arguments(tmp_path, tmp_path / "valkey.sock")]
    command = [sys.executable, "-c", FORGETS, *forgotten]
    parent = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    pid = int(parent.stdout)
    try:
        if what == "server":
            until((tmp_path / "valkey.sock").exists)
        assert any(line.startswith(f"{pid} ") for line in left_behind(0))
    finally:
        psutil.Process(pid).kill()
    until(lambda: not lives(pid))
    assert not any(line.startswith(f"{pid} ") for line in left_behind(0))


def of_folder(folder: Path) -> list[psutil.Process]:
    """The living processes that were started with it for their data, or live in it.

    Redis overwrites its environment with its title.
    """
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            named = process.environ().get("GATEWAY_DATA_DIR") == str(folder)
            ours = named or Path(process.cwd()).is_relative_to(folder)
            if ours and lives(process.pid):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_a_process_that_runs_tests_and_dies_takes_all_that_it_started_along(tmp_path: Path) -> None:
    environment = {**os.environ, "GATEWAY_DATA_DIR": str(tmp_path)}
    environment.pop("REDIS_URL", None)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", DIES, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe) as dying:
        assert dying.stdin is not None
        assert dying.stdout is not None
        try:
            assert dying.stdout.readline() == b"serves\n"
            names = sorted(process.name() for process in of_folder(tmp_path))
            assert any(name.endswith("-server") for name in names), "the node's own Redis"
            dying.stdin.write(b"\n")
            dying.stdin.flush()
            assert dying.wait(30) == 1
            until(lambda: not of_folder(tmp_path))
        finally:
            for process in of_folder(tmp_path):
                process.kill()
