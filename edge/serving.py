"""Running a server to its end: logging, memory, the loop, signals."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from edge.access import Mode
from edge.application import Application
from edge.config import Config
from edge.server import Server, ServerInfo
from infra.errors import ConfigError
from infra.notify import Notifier
from infra.sqlite import save_memory
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


def run_loop(config: Config, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """One process's loop, to the end of the work."""
    logging.basicConfig(
        level=config.log_level.upper(), stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )  # fmt: skip
    logging.getLogger("botocore").setLevel(logging.WARNING)  # it tells where credentials came from
    # Most of what a server holds lives long: fewer, larger collections.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    save_memory()
    with asyncio.Runner(loop_factory=_loop_factory(config)) as runner:
        runner.run(work())


async def _serve(
    config: Config, application: Application, mode: Mode, announce: Callable[[ServerInfo], None]
) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with Server(config, application, mode) as server:
        assert server.info is not None
        announce(server.info)
        await told_until(ended, server.info.url, config.drain_timeout_s)


async def told_until(ended: asyncio.Event, url: str, drain_s: float) -> None:
    """Serve until `ended`, and have the service manager know of it."""
    notifier = Notifier.of_this_process()
    async with TaskOwner() as tasks:
        notifier.ready(f"listening on {url}")
        tasks.spawn(notifier.watch(), name="watchdog")
        await ended.wait()
    log.info("stopping")
    notifier.stopping(drain_s + STOP_SLACK_S)


def _loop_factory(config: Config) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if config.uvloop == "off":
        return None
    try:
        import uvloop
    except ImportError as error:
        if config.uvloop == "on":
            raise ConfigError("uvloop is not installed; set uvloop = 'auto'") from error
        return None
    return uvloop.new_event_loop
