"""The commands. Exit codes: 0, 1 (failed, with one line that says why), 2 (wrong usage)."""

import asyncio
import gc
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Annotated, Any, NoReturn, cast

import typer

from gateway import __version__
from gateway.session.errors import CannotStart
from gateway.session.model import Limits
from gateway.settings import Settings, load_settings

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
)

archive = typer.Typer(
    no_args_is_help=True, help="The way to the archive: what waits, what was refused."
)
app.add_typer(archive, name="archive")

_Main = Callable[[], Coroutine[Any, Any, None]]
Host = Annotated[str | None, typer.Option(help="Address to serve.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(help="Port to serve.", show_default="8000")]
AdminPort = Annotated[
    int | None,
    typer.Option(help="Port for metrics and console alone.", show_default="the same"),
]


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A WebSocket-first realtime gateway for AI agents."""
    if version:
        typer.echo(f"nooble-gateway {__version__}")
        raise typer.Exit


@app.command()
def run(host: Host = None, port: Port = None, admin_port: AdminPort = None) -> None:
    """All in one process tree, for development: Redis, the demo agent, the gateway, its page."""
    settings, limits = _settings(host=host, port=port, admin_port=admin_port)
    _start(settings, lambda: _node(settings, limits, with_demo=True))


@app.command()
def serve(host: Host = None, port: Port = None, admin_port: AdminPort = None) -> None:
    """One gateway node. Agents are served by `gateway worker`."""
    settings, limits = _settings(host=host, port=port, admin_port=admin_port)
    _start(settings, lambda: _node(settings, limits, with_demo=False))


@app.command()
def worker(
    agent: Annotated[str, typer.Argument(metavar="MODULE:AGENT", help="Where the agent is.")],
    slots: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 8,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that runs may take to finish when it stops.")
    ] = 30.0,
    with_parent: Annotated[
        bool, typer.Option(hidden=True, help="Stop when standard input ends.")
    ] = False,
) -> None:
    """A worker: a process that serves one agent."""
    settings, limits = _settings()
    _start(
        settings, lambda: _worker(settings, limits, agent, slots, grace, with_parent=with_parent)
    )


@app.command()
def chat(
    url: Annotated[
        str, typer.Option(help="The gateway.", show_default="http://127.0.0.1:8000")
    ] = "",
    agent: Annotated[str, typer.Option(help="Whom to talk with.")] = "demo",
    session: Annotated[
        str | None, typer.Option(help="An existing session, with whomever it is.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="The tenant, without authentication.")] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="List earlier conversations, and do no more.")
    ] = False,
) -> None:
    """Chats with an agent in the terminal."""
    from gateway.chat import list_conversations, run_chat

    settings, _ = _settings()
    where = url or f"ws://{settings.address(settings.port)}/ws"
    if listing:
        raise typer.Exit(list_conversations(where, tenant=tenant))
    again = [sys.argv[0], "chat"]
    for option, value in (("--url", url), ("--tenant", tenant)):
        if value:
            again += [option, value]
    code = run_chat(
        where,
        agent=agent,
        session_id=session,
        tenant=tenant,
        command=shlex.join(again),
    )
    raise typer.Exit(code)


@app.command()
def top(
    url: Annotated[
        str, typer.Option(help="The gateway; its admin port, if it has one.", show_default="ours")
    ] = "",
    once: Annotated[bool, typer.Option("--once", help="One plain table, for scripts.")] = False,
) -> None:
    """Shows in the terminal how the fleet does."""
    from gateway.top import run_top

    settings, _ = _settings()
    port = settings.admin_port or settings.port
    try:
        run_top(url or f"http://{settings.address(port)}", once=once)
    except CannotStart as error:
        _fail(str(error))


@app.command()
def migrate(
    to: Annotated[
        str, typer.Option(help="A version to go up or down to; `base` removes all history.")
    ] = "",
) -> None:
    """Brings the history's database to the version that this gateway needs."""
    from gateway import operating

    settings, _ = _settings()
    _start(settings, lambda: _say(operating.migrate(settings, to)), answers=True)


@app.command()
def config() -> None:
    """Prints the effective settings, and checks them. Secrets are masked."""
    from gateway.archive.database import Database
    from gateway.bus.connection import create_client
    from gateway.server import resolve
    from gateway.session.masking import mask

    settings, limits = _settings()
    try:
        resolve(settings.host, settings.port)
        if settings.redis_url is not None:
            create_client(settings.redis_url)
        if settings.database_url is not None:
            Database(settings.database_url)
    except CannotStart as error:
        _fail(str(error))
    for name, value in settings.model_dump().items():
        alias = str(Settings.model_fields[name].validation_alias)
        if isinstance(value, dict):
            days = cast("dict[str, int]", value)
            value = ",".join(f"{tenant}={count}" for tenant, count in days.items())
        elif isinstance(value, frozenset):
            value = ",".join(sorted(cast("frozenset[str]", value)))
        elif name.endswith("_url") and value:
            value = mask(value)
        typer.echo(f"{alias}={'' if value is None else value}")
    for name in Limits.__dataclass_fields__:
        typer.echo(f"GATEWAY_LIMIT_{name.upper()}={getattr(limits, name)}")


@archive.command()
def status() -> None:
    """How much history waits for the archive, for how long, and whether the archive is well."""
    from gateway import operating

    settings, limits = _settings()
    _start(settings, lambda: _say(operating.status(settings, limits)), answers=True)


@archive.command()
def dead(
    count: Annotated[int, typer.Option(min=1, help="At most so many, the oldest first.")] = 20,
    fields: Annotated[
        bool, typer.Option("--fields", help="All that is in them: what people said, too.")
    ] = False,
) -> None:
    """Lists what the archive refused: one JSON object a line."""
    from gateway import operating

    settings, limits = _settings()
    _start(
        settings, lambda: _say(operating.dead(settings, limits, count, fields=fields)), answers=True
    )


@archive.command()
def replay(
    letters: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="As `dead` lists them.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that there are.")] = False,
) -> None:
    """Puts dead letters back into their journals, when what was wrong is mended."""
    from gateway import operating

    if bool(letters) == every:
        raise typer.BadParameter("name dead letters, or --all")
    settings, limits = _settings()
    _start(settings, lambda: _say(operating.replay(settings, limits, letters or [])), answers=True)


async def _say(asked: Coroutine[Any, Any, tuple[list[str], bool]]) -> None:
    lines, well = await asked
    for line in lines:
        typer.echo(line)
    if not well:
        raise typer.Exit(1)


def main() -> None:
    """The `gateway` command."""
    try:
        app()
    finally:
        gc.freeze()  # else Python looks through all that was imported, for 0.3 s, before it ends


# --- processes ------------------------------------------------------------------------------------


class _Stopper:
    """Runs what stops the process when a signal comes, or at once if it came before."""

    def __init__(self) -> None:
        self._stop: Callable[[], None] | None = None
        self._asked = False

    def on_stop(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        if self._asked:
            stop()

    def ask(self) -> None:
        self._asked = True
        if self._stop is not None:
            self._stop()

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.ask)


async def _node(settings: Settings, limits: Limits, *, with_demo: bool) -> None:
    from gateway.demo_worker import DemoWorker
    from gateway.opening import open_archive, open_bus, redis_url
    from gateway.server import bind, serve_node, url_of
    from gateway.telemetry.tracing import open_tracer

    stopper = _Stopper()
    stopper.install()
    with (
        ExitStack() as sockets,
        open_tracer(settings.otlp_endpoint, version=__version__) as tracer,
    ):
        listener = sockets.enter_context(bind(settings.host, settings.port))
        admin = None
        if settings.admin_port is not None:
            admin = bind(settings.host, settings.admin_port, variable="GATEWAY_ADMIN_PORT")
            sockets.enter_context(admin)
        async with (
            redis_url(settings) as url,
            open_bus(url, limits, ack_replicas=settings.ack_replicas, tracer=tracer) as bus,
            open_archive(settings, limits, tracer=tracer) as history,
        ):

            def serving(drain_s: float) -> Coroutine[Any, Any, None]:
                return serve_node(
                    bus,
                    history,
                    limits,
                    listener,
                    stopper.on_stop,
                    drain_s=drain_s,
                    requires=settings.readiness_requires,
                    tracer=tracer,
                    admin=admin,
                )

            if not with_demo:
                await serving(settings.drain_s)
                return
            demo = DemoWorker(url)
            demo.start()
            try:
                async with asyncio.TaskGroup() as group:
                    watching = group.create_task(demo.watch())
                    chat_at, console_at = url_of(listener), f"{url_of(admin or listener)}/console"
                    typer.echo(
                        f"chat at {chat_at}, console at {console_at} - Ctrl-C ends everything",
                        err=True,
                    )
                    # There is no other node to go to.
                    await serving(0)
                    watching.cancel()
            finally:
                await demo.stop()


async def _worker(
    settings: Settings,
    limits: Limits,
    place: str,
    slots: int,
    grace_s: float,
    *,
    with_parent: bool,
) -> None:
    from gateway.agents.loading import load_agent
    from gateway.app import serve_agent
    from gateway.opening import open_bus, redis_url
    from gateway.telemetry.tracing import open_tracer

    stopper = _Stopper()
    stopper.install()
    agent = load_agent(place)
    if with_parent:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _parent_is_gone, stopper)
    with open_tracer(settings.otlp_endpoint, version=__version__) as tracer:
        async with redis_url(settings) as url, open_bus(url, limits, tracer=tracer) as bus:
            await serve_agent(
                bus,
                limits,
                agent,
                slots=slots,
                grace_s=grace_s,
                on_stop=stopper.on_stop,
                tracer=tracer,
            )


def _parent_is_gone(stopper: _Stopper) -> None:
    asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
    stopper.ask()


def _settings(**overrides: Any) -> tuple[Settings, Limits]:
    try:
        return load_settings(**overrides)
    except CannotStart as error:
        _fail(str(error))


def _start(settings: Settings, main_task: _Main, *, answers: bool = False) -> None:
    """Runs a process to its end. A foreseen fault is one line and exit code 1."""
    import uvloop
    from loguru import logger

    from gateway.telemetry.logs import configure_logging

    # Among answers stands no log line.
    level, stream = ("WARNING", sys.stderr) if answers else (settings.log_level, sys.stdout)
    logs = configure_logging(level=level, style=settings.log_format, stream=stream)
    failure = ""
    try:
        uvloop.run(main_task())
    except CannotStart as error:
        failure = str(error)
    except (typer.Exit, KeyboardInterrupt):
        raise
    except Exception as error:  # noqa: BLE001 - a log line like all others, not a stack on stderr
        logger.opt(exception=error).critical("the process failed")
        raise typer.Exit(1) from None
    finally:
        logs.close()
    if failure:
        _fail(failure)


def _fail(message: str) -> NoReturn:
    for line in message.splitlines():
        typer.echo(f"gateway: {line}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    main()
