"""`holdfast actor`: one actor process of a supervised server."""

from __future__ import annotations

import click

from edge.cli.output import json_option
from edge.processes.boot import read_boot
from edge.processes.running import announce, until_stopped


@click.command("actor")
@json_option
def command(as_json: bool) -> None:
    """Have a share of the scopes of a server; started by `holdfast serve --actors`.

    Says on one line of JSON when it is ready, and ends with its supervisor.
    """
    from edge.loop import run_loop
    from edge.processes.actor import serve_scopes

    boot = read_boot()
    application = boot.application()
    run_loop(
        boot.config,
        lambda: until_stopped(
            lambda stop: serve_scopes(
                boot, application, stop, lambda place: announce(event="ready", place=place)
            )
        ),
    )
