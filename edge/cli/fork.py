"""`holdfast fork`: a new scope that begins with another one's state."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from actors.moment import parse_at
from edge.cli.bucket import AT_HELP, tenant_option
from edge.cli.output import emit, json_option
from edge.cli.remote import post_json, remote_options, scope_path
from infra.clock import now_ms


@click.command("fork")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--at", metavar="STATE", help=AT_HELP)
@tenant_option
@remote_options
@json_option
def command(
    source: str, target: str, at: str | None, tenant: str, url: str, token: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Have the server make the scope DST out of SRC, as it is or, with --at, as it was.

    DST gets an epoch of its own and goes its own way; seqs and entities are those of SRC, alarms
    stay with SRC. Earlier states need a bucket. Exits with 4 where DST exists, here or in the
    bucket.
    """
    if at is not None:
        parse_at(at, now_ms=now_ms())  # the same words, before anybody is asked
    body = msgspec.json.encode({"from": source, "at": at})
    path = scope_path(tenant, target, "fork")
    made: dict[str, Any] = post_json(url, path, body, token=token)
    text = f"{target} begins at seq {made['head']} of {source}, epoch {made['epoch']}"
    emit(made, text, as_json=as_json)
