"""`holdfast serve`: the whole server in this process, for production."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edge.cli.options import config_options, read_config
from edge.cli.output import emit, json_option
from edge.cli.starting import start

if TYPE_CHECKING:
    from edge.server import ServerInfo


@click.command("serve")
@click.argument("application", required=False, metavar="[MODULE:APP]")
@config_options()
@json_option
def command(application: str | None, as_json: bool, **flags: Any) -> None:
    """Serve scopes, with the hooks of MODULE:APP where given.

    Refuses to start without authentication: token keys, an authenticate hook, or --insecure.
    Stops at SIGTERM and SIGINT, having saved everything that was acknowledged.
    """

    def announce(info: ServerInfo) -> None:
        emit({"event": "ready", "url": info.url}, f"listening on {info.url}", as_json=as_json)

    start(read_config(flags), application, "serve", announce)
