"""Running a server to its end: logging, memory, the loop, signals."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from edge.access import Mode
from edge.application import Application
from edge.config import Config
from edge.loop import run_loop
from edge.server import Server, ServerInfo
from infra.errors import Fenced
from infra.notify import Notifier
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.server")

STOP_SLACK_S = 15.0  # what the end may take beside drain_timeout_s


def run(
    config: Config,
    application: Application,
    *,
    mode: Mode,
    announce: Callable[[ServerInfo], None],
) -> None:
    """Serve until SIGTERM or SIGINT, then stop in order. Raises ConfigError before it listens."""
    run_loop(config, lambda: _serve(config, application, mode, announce))


def run_supervisor(
    config: Config, target: str | None, *, mode: Mode, announce: Callable[[ServerInfo], None]
) -> None:
    """The same with several processes."""
    from edge.processes.supervisor import supervise

    run_loop(config, lambda: supervise(config, target, mode, announce))


async def _serve(
    config: Config, application: Application, mode: Mode, announce: Callable[[ServerInfo], None]
) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with make_server(config, application, mode) as server:
        assert server.info is not None
        announce(server.info)
        hosts = server.hosts
        if hosts is None:
            await told_until(ended, server.info.url, config.drain_timeout_s)
            return
        hosts.when_superseded(ended.set)
        await told_until(ended, server.info.url, config.drain_timeout_s)
        await hosts.drain(config.drain_timeout_s)
    if hosts.superseded:
        raise Fenced(f"another process runs as host {config.host_name}")


def make_server(config: Config, application: Application, mode: Mode) -> Server:
    """The whole server in this process, alone or as one of several hosts."""
    if config.hosts == "none":
        return Server(config, application, mode)
    from edge.processes.hosts import make_host

    return make_host(config, application, mode)


async def told_until(ended: asyncio.Event, url: str, drain_s: float) -> None:
    """Serve until `ended`, and have the service manager know of it."""
    notifier = Notifier.of_this_process()
    async with TaskOwner() as tasks:
        notifier.ready(f"listening on {url}")
        tasks.spawn(notifier.watch(), name="watchdog")
        await ended.wait()
    log.info("stopping")
    notifier.stopping(drain_s + STOP_SLACK_S)
