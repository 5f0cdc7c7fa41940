"""The fleet at a glance in a terminal: `gateway top`, which shows what `/console` shows."""

import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import msgspec
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gateway.client.link import is_loopback
from gateway.session.errors import CannotStart
from gateway.telemetry.overview import ILL, SHOWN, AgentRow, NodeRow, Overview, Service

EVERY_S = 2.0
_TIMEOUT_S = 5.0
_MAX_BYTES = 8 * 1024 * 1024
_NOT_FOUND = 404
_BARS = " ▁▂▃▄▅▆▇█"
_BAR_COUNT = 30
_NUMBERS = (
    *("connections", "sockets", "active", "capacity"),
    *("messages_per_minute", "tokens_per_second", "failures_per_minute", "silent_s"),
)
_BREAKERS = ("well", "being tried", "left alone")


class NoAnswer(CannotStart):
    """The gateway does not say; the message is one line for a person."""


def run_top(url: str, *, once: bool) -> None:
    """Shows it until Ctrl-C or SIGTERM; `once`, or without a terminal, prints one plain table.

    Raises:
        NoAnswer: there is nothing to begin with.
    """
    seen = _ask(url)
    if once or not sys.stdout.isatty():
        _print(_plain(seen))
        return
    with suppress(KeyboardInterrupt):
        # What a shell without job control starts in the background ignores SIGINT, if it is let.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        _watch(seen, url)


def _watch(seen: Overview, url: str) -> None:
    live = Live(_view(seen, url), screen=True, auto_refresh=False)
    try:  # as a context manager it keeps the screen when its first drawing is interrupted
        live.start(refresh=True)
        while True:
            time.sleep(EVERY_S)
            complaint = ""
            try:
                seen = _ask(url)
            except NoAnswer as error:
                complaint = str(error)
            live.update(_view(seen, url, complaint), refresh=True)
    finally:
        live.stop()


def _ask(url: str) -> Overview:
    where = f"{url.rstrip('/')}/console/state"
    # No proxy stands between a machine and itself, whatever the environment says.
    proxies = ProxyHandler({}) if is_loopback(url) else ProxyHandler()
    try:
        if urlsplit(url).scheme not in ("http", "https"):
            raise NoAnswer(f"{url}: not the http:// address of a gateway")
        with build_opener(proxies).open(where, timeout=_TIMEOUT_S) as response:
            return msgspec.json.decode(response.read(_MAX_BYTES), type=Overview)
    except HTTPError as error:
        error.close()
        hint = "; with GATEWAY_ADMIN_PORT it is on that port" if error.code == _NOT_FOUND else ""
        raise NoAnswer(f"{where}: the gateway answers {error.code}{hint}") from None
    except (OSError, HTTPException, ValueError, msgspec.MsgspecError) as error:
        reason = getattr(error, "reason", error)
        raise NoAnswer(f"{where}: no answer ({reason}); --url names the gateway") from None


# --- for scripts ----------------------------------------------------------------------------------


def _print(rows: Iterable[tuple[str, float | str]]) -> None:
    lines = [
        (name, f"{value:.6g}" if isinstance(value, float) else str(value)) for name, value in rows
    ]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        sys.stdout.write(f"{name:<{width}}  {value}\n")


def _plain(seen: Overview) -> Iterator[tuple[str, float | str]]:
    for name in _NUMBERS:
        yield name, getattr(seen, name)
    for name, it in seen.latencies.items():
        yield f"latency.{name}.count", it.count
        for percentile, value in (("p50", it.p50), ("p95", it.p95), ("p99", it.p99)):
            yield f"latency.{name}.{percentile}", "-" if value is None else value
    for name, service in seen.services.items():
        yield f"service.{name}", _service_state(service)
    for agent in seen.agents:
        name = f"agent.{agent.agent}"
        yield f"{name}.workers", agent.workers
        yield from ((f"{name}.busy", agent.busy), (f"{name}.free", agent.free))
        yield from ((f"{name}.waiting", agent.waiting), (f"{name}.state", _agent_state(agent)))
    for queue in seen.queues:
        yield f"queue.{queue.queue}.{queue.tenant}", queue.depth
    for tenant, count in seen.sessions.items():
        yield f"sessions.{tenant}", count
    for node in seen.nodes:
        yield f"node.{node.node}", f"{node.url} {_node_state(node)}"


# --- for people -----------------------------------------------------------------------------------


def _view(seen: Overview, url: str, complaint: str = "") -> RenderableType:
    head = Text.assemble(("gateway top", "bold"), f"  {url}  {len(seen.nodes)} nodes")
    if complaint:
        head.append(f"\n{complaint}", "red")
    elif seen.silent_s:
        head.append(f"\nRedis does not answer: others as of {_time(seen.silent_s)} ago", "red")
    rates = seen.plots
    numbers = [
        ("Connections", f"{seen.connections}", rates["connections"]),
        ("Sessions", f"{seen.active} of {seen.capacity}", rates["sessions"]),
        ("Messages / min", f"{seen.messages_per_minute}", rates["messages"]),
        ("Tokens / s", f"{seen.tokens_per_second:.1f}", rates["tokens"]),
        ("Failures / min", f"{seen.failures_per_minute}", rates["failures"]),
    ]
    cards = [
        Panel(Text(f"{value}\n{_sparkline(plot)}"), title=label, width=_BAR_COUNT + 4)
        for label, value, plot in numbers
    ]
    return Group(
        head,
        Columns(cards),
        Columns([_latencies(seen), _agents(seen), _queues(seen), _tenants(seen)], padding=(0, 4)),
        _nodes(seen),
    )


def _table(title: str, *heads: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        min_width=len(title),  # an empty table does not break its title into lines
        box=None,
        padding=(0, 2, 0, 0),
    )
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left")
    return table


def _row(table: Table, *cells: object) -> None:
    """Cells as they are: no markup, and no control character from elsewhere."""
    table.add_row(
        *(Text("".join(c if c.isprintable() else "?" for c in str(cell))) for cell in cells)
    )


def _latencies(seen: Overview) -> Table:
    table = _table("Latency", "", "p50", "p95", "p99", "count")
    for name, it in seen.latencies.items():
        _row(table, name, _time(it.p50), _time(it.p95), _time(it.p99), it.count)
    return table


def _agents(seen: Overview) -> Table:
    table = _table("Agents", "", "workers", "busy", "free", "waiting", "state")
    for it in seen.agents:
        _row(table, it.agent, it.workers, it.busy, it.free, it.waiting, _agent_state(it))
    return table


def _queues(seen: Overview) -> Table:
    table = _table("Queues", "", "tenant", "waiting", "oldest")
    for it in seen.queues[:10]:
        _row(table, it.queue, it.tenant, it.depth, _time(it.lag_s))
    return table


def _tenants(seen: Overview) -> Table:
    table = _table("Sessions by tenant", "", "sessions")
    for tenant, count in list(seen.sessions.items())[:10]:
        _row(table, tenant, count)
    return table


def _nodes(seen: Overview) -> Table:
    heads = ("address", "state", "connections", "sessions", "CPU", "MiB", "up", "version")
    table = _table("Nodes", "", *heads)
    for it in seen.nodes:
        size = (it.connections, it.active, f"{it.cpu:.0%}", it.memory_bytes // 2**20)
        _row(table, it.node[-8:], it.url, _node_state(it), *size, _time(it.up_s), it.version)
    return table


def _service_state(service: Service) -> str:
    """One whose reading works may be ill with a closed breaker: no write has succeeded since."""
    ill = not service.breaker and service.failures >= ILL
    return "ill" if ill else _BREAKERS[service.breaker]


def _agent_state(agent: AgentRow) -> str:
    return _BREAKERS[agent.breaker] if agent.workers else "no worker"


def _node_state(node: NodeRow) -> str:
    if node.draining:
        return "draining"
    ill = [name for name, state in node.checks.items() if state != "ok"]
    return f"no {', no '.join(ill)}" if ill else "ready"


def _sparkline(numbers: Sequence[int]) -> str:
    """The slots that are shown, several to a character."""
    shown = numbers[-SHOWN:]
    several = SHOWN // _BAR_COUNT
    sums = [sum(shown[at : at + several]) for at in range(0, len(shown), several)]
    most = max(*sums, 1)
    return "".join(_BARS[-(-each * (len(_BARS) - 1) // most)] for each in sums)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
