"""`holdfast scope`: what a running server holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

import click

from edge.cli.output import emit, json_option, table
from edge.cli.remote import get_json, remote_options

PAGE: Final = 500
_COLUMNS: Final = ("scope", "open", "head", "floor", "subscribers", "file_bytes")


@click.group("scope")
def command() -> None:
    """List and describe scopes of a running server."""


@command.command("ls")
@click.option("--tenant", metavar="NAME", help="Only this tenant.")
@click.option("--prefix", metavar="TEXT", help="Only scopes that begin so.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True)
@remote_options
@json_option
def list_scopes(
    tenant: str | None, prefix: str | None, limit: int, url: str, token: str | None, as_json: bool
) -> None:
    """List scopes, those asleep included."""
    found: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        query = {
            "tenant": tenant,
            "prefix": prefix,
            "limit": min(PAGE, limit - len(found)),
            "after": after,
        }
        page = get_json(url, "/v1/scopes", token=token, query=query)
        found += page["scopes"]
        after = page["next"]
        if after is None or len(found) >= limit or not page["scopes"]:
            break
    rows = [[_cell(item.get(column)) for column in _COLUMNS] for item in found]
    emit({"scopes": found, "next": after}, table(_COLUMNS, rows), as_json=as_json)
    if after is not None and not as_json:
        click.echo(f"there are more than {limit}; see --limit and --prefix", err=True)


@command.command("show")
@click.argument("scope")
@click.option("--tenant", metavar="NAME", default="default", show_default=True)
@remote_options
@json_option
def show(scope: str, tenant: str, url: str, token: str | None, as_json: bool) -> None:
    """Describe one scope; exits with 3 where it does not exist."""
    path = f"/v1/scopes/{quote(tenant, safe='')}/{quote(scope, safe='')}"
    found: dict[str, Any] = get_json(url, path, token=token)
    emit(found, table(("field", "value"), list(_fields(found))), as_json=as_json)


def _fields(found: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """One line a value; members of objects as `replica.txid`."""
    for name, value in found.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, _cell(value)


@command.command("gc")
@click.argument("scope")
@click.option("--tenant", metavar="NAME", default="default", show_default=True)
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
@click.option(
    "--grace", type=click.IntRange(0, 10**8), default=86_400, show_default=True,
    help="Seconds for which nothing must have referred to it.",
)  # fmt: skip
@remote_options
@json_option
def collect(
    scope: str, tenant: str, dry_run: bool, grace: int, url: str, token: str | None, as_json: bool
) -> None:
    """Delete files of a Starkeep space that nothing refers to.

    A file goes to the server before its record does, so only what has had no record for the grace
    period is taken.
    """
    path = f"/v1/gc/{quote(tenant, safe='')}/{quote(scope, safe='')}"
    query = {"dry_run": int(dry_run), "grace_s": grace}
    found: dict[str, Any] = get_json(url, path, token=token, query=query, method="POST")
    rows = [
        ("keys", len(found["keys"])), ("contents", len(found["contents"])),
        ("bytes", found["bytes"]), ("deleted", _cell(found["deleted"])),
    ]  # fmt: skip
    emit(found, table(("field", "value"), rows), as_json=as_json)


def _cell(value: Any) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else value
