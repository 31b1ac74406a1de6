"""What `dev` and `serve` share: the application they load and how they hand over to the server."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge.access import Mode, choose_access
from edge.application import Application, load_application
from edge.config import Config
from infra.clock import now_ms

if TYPE_CHECKING:
    from edge.server import ServerInfo


def start(
    config: Config, target: str | None, mode: Mode, announce: Callable[[ServerInfo], None]
) -> None:
    """Load the application, refuse an unguarded `serve`, and run until a signal ends it.

    Raises ConfigError before anything is opened.
    """
    directory = Path.cwd()
    application = load_application(target, directory=directory) if target else Application()
    access = choose_access(config, application, mode, now_ms)
    if mode == "serve" and access.open_to_all:
        print("holdfast: --insecure: everyone who can connect is admin", file=sys.stderr)
    if config.edges or config.actors or config.placement == "tenant":
        from edge.serving import run_supervisor

        actors = 0 if config.placement == "tenant" else max(1, config.actors)
        several = msgspec.structs.replace(config, edges=max(1, config.edges), actors=actors)
        run_supervisor(several, target, mode=mode, announce=announce)
        return
    from edge.serving import run

    run(config, application, mode=mode, announce=announce)
