"""The commands as people meet them: one tree, one clear line for what is wrong, a clean end."""

import os
import pty
import re
import signal
import socket as sockets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from support.bus import running_server
from support.forked import run as gateway
from support.leaks import lives
from support.net import HTTP, free_port
from support.socket import TERMINAL, socket
from support.stack import Process


def complaint(result: "subprocess.CompletedProcess[str]") -> str:
    """The one line with which a command failed."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    [line] = result.stderr.splitlines()
    return line


def descendants(process_id: int) -> list[int]:
    """All living processes below one, the embedded server included."""
    table = subprocess.run(
        ["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    children: dict[int, list[int]] = {}
    for line in table.splitlines():
        pid, parent = map(int, line.split())
        children.setdefault(parent, []).append(pid)
    found, queue = [], [process_id]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


@contextmanager
def running(
    folder: Path, *arguments: str, **environment: str
) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """`gateway run` in a terminal of its own, ready; yields its port."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    port = free_port()
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", *arguments, "--port", str(port)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdin=end,
        stdout=end,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    os.close(end)
    os.set_blocking(terminal, False)
    process.terminal = terminal  # type: ignore[attr-defined]
    try:
        wait_until_agent(port, process)
        yield port, process
    finally:
        if process.poll() is None:
            process.terminate()  # in order, so that its children go as well
        process.wait(30)
        os.close(terminal)


def wait_until_agent(port: int, process: "subprocess.Popen[str]", agent: str = "demo") -> None:
    deadline = time.monotonic() + 45
    while True:
        assert process.poll() is None, screen(process)
        assert time.monotonic() < deadline, screen(process)
        try:
            agents = HTTP.get(f"http://127.0.0.1:{port}/api/v1/agents").json()["agents"]
        except httpx.TransportError:
            agents = []
        if any(a["agent_id"] == agent and a["workers"] for a in agents):
            return
        time.sleep(0.02)


def screen(process: "subprocess.Popen[str]") -> str:
    """What the terminal shows that was not read yet."""
    shown = b""
    try:
        while chunk := os.read(process.terminal, 65536):  # type: ignore[attr-defined]
            shown += chunk
    except OSError:
        pass
    return shown.decode(errors="replace")


async def test_run_serves_page_and_agent_and_ctrl_c_ends_everything(tmp_path: Path) -> None:
    with running(tmp_path, "run") as (port, process):
        page = HTTP.get(f"http://127.0.0.1:{port}/")
        assert "text/html" in page.headers["content-type"]
        async with socket(f"ws://127.0.0.1:{port}/ws") as client:
            await client.open(agent="demo")
            await client.ask("message", content="/help")
            assert (await client.until_event(*TERMINAL))["event"]["type"] == "RUN_FINISHED"
        family = descendants(process.pid)
        assert len(family) >= 2, "a server and a worker"
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does: to all of the foreground group
        assert process.wait(30) == 0
        shown = screen(process)
        assert "Traceback" not in shown
        assert "gateway has stopped" in shown
        for pid in family:
            assert not lives(pid)


async def test_ctrl_c_does_not_wait_for_an_answer_that_nobody_can_see(tmp_path: Path) -> None:
    with running(tmp_path, "run") as (port, process):
        async with socket(f"ws://127.0.0.1:{port}/ws") as client:
            await client.open(agent="demo")
            await client.ask("message", content="/slow 60")
            await client.until_event("TEXT_MESSAGE_CONTENT")
            os.killpg(process.pid, signal.SIGINT)
            assert await client.closed() == 1012
        assert process.wait(30) == 0


async def test_what_was_acknowledged_survives_a_restart_of_everything(tmp_path: Path) -> None:
    with running(tmp_path, "run") as (port, process):
        async with socket(f"ws://127.0.0.1:{port}/ws") as client:
            await client.open(agent="demo")
            await client.ask("message", content="/help")
            await client.until_event(*TERMINAL)
        process.terminate()
        assert process.wait(30) == 0
    with running(tmp_path, "run") as (port, process):
        async with socket(f"ws://127.0.0.1:{port}/ws") as back:
            await back.open(session_id=client.session_id, after={**client.cursor, "seq": 0})
            await back.until_event(*TERMINAL)
            assert back.events == client.events


def test_the_children_of_a_killed_gateway_do_not_stay(tmp_path: Path) -> None:
    with running(tmp_path, "run") as (_, process):
        family = descendants(process.pid)
        process.kill()
        process.wait()
    with running(tmp_path, "run") as (_, process):
        process.terminate()
        assert process.wait(30) == 0
    deadline = time.monotonic() + 45
    while any(map(lives, family)):
        assert time.monotonic() < deadline, family
        time.sleep(0.02)


async def test_a_worker_in_another_terminal_joins_the_running_server(tmp_path: Path) -> None:
    (tmp_path / "my_module.py").write_text(
        "from gateway.agents import Agent, Run\n"
        "agent = Agent('echo', description='Says it back')\n"
        "@agent.run\n"
        "async def answer(run: Run) -> None:\n"
        "    async with run.message() as message:\n"
        "        for word in run.text.split():\n"
        "            await message.write(word + ' ')\n"
    )
    with running(tmp_path, "run") as (port, gateway_process):
        worker = Process("echo", tmp_path / "echo.log", "worker", "my_module:agent", cwd=tmp_path)
        wait_until_agent(port, gateway_process, "echo")
        async with socket(f"ws://127.0.0.1:{port}/ws") as client:
            await client.open(agent="echo")
            await client.ask("message", content="ten lines are enough")
            await client.until_event(*TERMINAL)
            assert client.text() == "ten lines are enough "
        assert worker.stop() == 0
        agents = HTTP.get(f"http://127.0.0.1:{port}/api/v1/agents").json()["agents"]
        assert {a["agent_id"]: a["workers"] for a in agents} == {"demo": 1, "echo": 0}


@pytest.mark.parametrize("host", ["127.0.0.2", "::1", "localhost"])
def test_what_a_node_says_of_where_it_is_leads_there(tmp_path: Path, host: str) -> None:
    """Its log, what Prometheus is told, the console; and the commands of the same settings."""
    try:
        sockets.create_server((host, 0), family=sockets.getaddrinfo(host, 0)[0][0]).close()
    except OSError:
        pytest.skip(f"this machine has no {host}")
    arguments = "serve", "--host", host, "--port", "0", "--admin-port", "0"
    with running_server() as redis_url:
        environment = {"REDIS_URL": redis_url, "GATEWAY_DATA_DIR": str(tmp_path)}
        node = Process("node", tmp_path / "node.log", *arguments, cwd=tmp_path, **environment)
        try:
            node.wait_for_line('/console"')
            found = re.search(r'"url":"([^"]+)","console":"([^"]+)"', node.output())
            assert found is not None, node.output()
            url, console = found.groups()
            assert [HTTP.get(where).status_code for where in (url, console)] == [200, 200]
            admin = console.removesuffix("/console")
            [told] = HTTP.get(f"{admin}/metrics/targets").json()
            [target] = told["targets"]
            assert HTTP.get(f"http://{target}/metrics").status_code == 200
            [shown] = HTTP.get(f"{admin}/console/state").json()["nodes"]
            assert HTTP.get(shown["url"]).status_code == 200
            same = {
                "GATEWAY_HOST": host,
                "GATEWAY_PORT": url.rpartition(":")[2],
                "GATEWAY_ADMIN_PORT": admin.rpartition(":")[2],
            }
            for command in (("top", "--once"), ("chat", "--list")):
                result = gateway(*command, cwd=tmp_path, **same)
                assert result.returncode == 0, result.stderr
        finally:
            assert node.stop() == 0


def test_a_busy_port(tmp_path: Path) -> None:
    with sockets.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = complaint(gateway("run", "--port", port, cwd=tmp_path))
    assert f"GATEWAY_PORT={port}" in line
    assert "in use" in line


def test_an_address_that_is_not_loopback(tmp_path: Path) -> None:
    line = complaint(gateway("serve", "--host", "0.0.0.0", cwd=tmp_path))
    assert "GATEWAY_HOST=0.0.0.0" in line
    assert "loopback" in line


def test_a_directory_without_permission(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")  # root may do anything in a directory, but this is none
    line = complaint(
        gateway("run", "--port", "0", cwd=tmp_path, GATEWAY_DATA_DIR=str(tmp_path / "file"))
    )
    assert "GATEWAY_DATA_DIR" in line


def test_an_unreachable_redis(tmp_path: Path) -> None:
    url = f"redis://user:secret@127.0.0.1:{free_port()}"
    line = complaint(gateway("serve", "--port", "0", cwd=tmp_path, REDIS_URL=url))
    assert "REDIS_URL=redis://user:***@127.0.0.1" in line
    assert "secret" not in line


def test_a_redis_that_evicts(tmp_path: Path) -> None:
    import redis

    with running_server() as url:
        with redis.Redis.from_url(url) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        line = complaint(gateway("serve", "--port", "0", cwd=tmp_path, REDIS_URL=url))
    assert "maxmemory-policy is allkeys-lru" in line
    assert "noeviction" in line


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("GATEWAY_PORT", "eighty", "integer"),
        ("GATEWAY_PORT", "70000", "65535"),
        ("GATEWAY_LOG_LEVEL", "loud", "'DEBUG', 'INFO'"),
        ("GATEWAY_LIMIT_LEASE_S", "-1", "greater than 0"),
    ],
)
def test_a_wrong_setting(tmp_path: Path, variable: str, value: str, allowed: str) -> None:
    line = complaint(gateway("serve", cwd=tmp_path, **{variable: value}))
    assert f"{variable}={value}" in line
    assert allowed in line


@pytest.mark.parametrize("url", ["http://127.0.0.1", "redis://127.0.0.1:port"])
def test_a_redis_url_that_is_none(tmp_path: Path, url: str) -> None:
    assert f"REDIS_URL={url}" in complaint(gateway("serve", cwd=tmp_path, REDIS_URL=url))


def test_an_agent_that_is_not_there(tmp_path: Path) -> None:
    assert "no_such_module" in complaint(gateway("worker", "no_such_module:agent", cwd=tmp_path))


def test_wrong_usage_is_exit_code_2(tmp_path: Path) -> None:
    assert gateway("serve", "--no-such-option", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GATEWAY_HOST", "0.0.0.0"),
        ("REDIS_URL", "http://127.0.0.1"),
        ("DATABASE_URL", "postgresql://db/h?sslmode=banana"),
    ],
)
def test_config_checks_what_serve_would(tmp_path: Path, variable: str, value: str) -> None:
    assert f"{variable}={value}" in complaint(gateway("config", cwd=tmp_path, **{variable: value}))


def test_config_masks_secrets(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "REDIS_URL=redis://:secret@host\nGATEWAY_PORT=9000\n"
        "DATABASE_URL=postgresql://host/h?password=secret\n"
    )
    result = gateway("config", cwd=tmp_path)
    assert result.returncode == 0
    assert "GATEWAY_PORT=9000" in result.stdout
    assert re.search(r"REDIS_URL=redis://:\*\*\*@host", result.stdout)
    assert "DATABASE_URL=postgresql://host/h?password=***" in result.stdout
