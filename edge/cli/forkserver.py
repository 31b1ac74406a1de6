"""`holdfast forkserver`: what tenants' processes of a supervised server are forked from."""

from __future__ import annotations

import click

from edge.cli.output import json_option
from edge.processes.boot import read_boot


@click.command("forkserver")
@json_option
def command(as_json: bool) -> None:
    """Have everything imported that a tenant's process needs; started by `holdfast serve` with
    `--placement tenant`.

    Ends with its supervisor.
    """
    from edge.cli.program import run
    from edge.processes.forkserver import serve_forks

    serve_forks(read_boot(), lambda: run(["actor"]))
