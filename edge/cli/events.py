"""`holdfast events`: print the envelopes of a scope, one JSON object a line."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import click

from edge.cli.output import json_option, to_json
from edge.cli.remote import check_reachable, remote_options
from edge.client import Cursor, SnapshotInfo, SyncClient, SyncError


@click.command("events")
@click.argument("scope")
@click.option(
    "--since",
    type=click.IntRange(0),
    metavar="SEQ",
    help="Begin after this seq.  [default: the oldest kept]",
)
@click.option(
    "--follow/--no-follow", default=True, help="Stay and print what comes.  [default: follow]"
)
@remote_options
@json_option
def command(
    scope: str, since: int | None, follow: bool, url: str, token: str | None, as_json: bool
) -> None:
    """Print the envelopes of SCOPE as NDJSON (with and without --json), oldest first.

    With --no-follow it ends where the scope stood; else at Ctrl-C.
    """
    check_reachable(url)
    asyncio.run(_print_events(SyncClient(url, token=token), scope, since, follow=follow))


async def _print_events(client: SyncClient, scope: str, since: int | None, *, follow: bool) -> None:
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def show(envelope: Mapping[str, Any]) -> None:
        click.echo(to_json(envelope))

    def caught_up(seq: int) -> None:
        if not follow and not ended.done():
            ended.set_result(None)

    def failed(error: Exception) -> None:
        if not ended.done():
            ended.set_exception(error)

    def too_old(scope: str, info: SnapshotInfo) -> Cursor | None:
        if since is None and info.reason == "below_floor" and info.floor is not None:
            return Cursor(info.floor, info.epoch)
        message = (
            f"cannot begin after {since}: {info.reason} (floor {info.floor}, head {info.head})"
        )
        failed(SyncError(message, code="snapshot_required"))
        return None

    async with client:
        client.subscribe(
            scope,
            show,
            since or 0,
            on_snapshot_required=too_old,
            on_error=failed,
            on_caught_up=caught_up,
        )
        await ended
