"""One process's event loop, with its logging and memory settings. Loads no web server."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from edge.config import Config
from infra.errors import ConfigError
from infra.sqlite import save_memory


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
