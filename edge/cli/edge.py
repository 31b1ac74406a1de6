"""`holdfast edge`: one edge process of a supervised server."""

from __future__ import annotations

import click

from edge.cli.output import json_option
from edge.processes.boot import read_boot
from edge.processes.running import announce, until_stopped


@click.command("edge")
@json_option
def command(as_json: bool) -> None:
    """Take clients of a server; started by `holdfast serve --edges`.

    Says on one line of JSON when it is ready, and ends with its supervisor.
    """
    from edge.loop import run_loop
    from edge.processes.edge import serve_clients

    boot = read_boot()
    application = boot.application()

    def ready(info: object) -> None:
        announce(event="ready", info=info)

    def leaving() -> None:
        announce(event="leaving")

    run_loop(
        boot.config,
        lambda: until_stopped(lambda stop: serve_clients(boot, application, stop, ready, leaving)),
    )
