"""`holdfast store`: the process of a supervised server that speaks to the bucket."""

from __future__ import annotations

import click

from edge.cli.output import json_option
from edge.processes.boot import read_boot
from edge.processes.running import announce, until_stopped


@click.command("store")
@json_option
def command(as_json: bool) -> None:
    """Speak to the bucket for the actor processes of a server; started by `holdfast serve`.

    Says on one line of JSON when it is ready, and ends with its supervisor.
    """
    from edge.loop import run_loop
    from edge.processes.store import serve_store

    boot = read_boot()
    run_loop(
        boot.config,
        lambda: until_stopped(
            lambda stop: serve_store(boot, stop, lambda place: announce(event="ready", place=place))
        ),
    )
