"""A test that leaves a process behind is found out."""

import subprocess
import sys

from support.leaks import left_behind

FORGETS = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=sys.stdin)
print(child.pid, flush=True)
"""


def test_a_forgotten_process_is_named_also_when_its_parent_is_gone() -> None:
    command = [sys.executable, "-c", FORGETS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = parent.stdout.readline().decode().strip()
        parent.wait()
        assert any(line.startswith(f"{pid} ") for line in left_behind(0))
    # Its standard input has ended now.
