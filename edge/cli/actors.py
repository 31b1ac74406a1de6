"""`holdfast actors`: which scopes are awake in a running server, and why."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import click

from edge.cli.bucket import tenant_option
from edge.cli.output import emit, json_option, table
from edge.cli.remote import get_json, remote_options

_COLUMNS: Final = ("tenant", "scope", "process", "woken_by", "awake_since", "kept_by", "sleeps_at")
_PROCESSES: Final = (
    "process", "pid", "scopes_open", "woken_by", "awake_since", "kept_by", "sleeps_at",
)  # fmt: skip
_TIMES: Final = frozenset({"awake_since", "slept_at", "sleeps_at", "alarm_due"})


@click.group("actors")
def command() -> None:
    """Tell which scopes are awake and why, and have them sleep or wake.

    A scope that sleeps has no open file; its clients stay connected, and the next command, read or
    alarm wakes it. Times are UTC; in JSON, milliseconds.
    """


@command.command("ls")
@click.option("--tenant", metavar="NAME", help="Only this tenant.")
@click.option("--prefix", metavar="TEXT", help="Only scopes that begin so.")
@click.option("--limit", type=click.IntRange(1, 5000), default=1000, show_default=True)
@click.option("--processes", is_flag=True, help="The processes instead of the scopes.")
@remote_options
@json_option
def list_awake(
    tenant: str | None, prefix: str | None, limit: int, processes: bool, url: str,
    token: str | None, as_json: bool,
) -> None:  # fmt: skip
    """List the scopes that are awake; nothing is woken by it."""
    query = {"tenant": tenant, "prefix": prefix, "limit": limit}
    found: dict[str, Any] = get_json(url, "/v1/actors", token=token, query=query)
    columns, items = (_COLUMNS, found["scopes"])
    if processes:
        columns, items = _PROCESSES, found["processes"]
    rows = [[_cell(name, item[name]) for name in columns] for item in items]
    emit(found, table(columns, rows), as_json=as_json)
    if found["more"] and not as_json:
        click.echo(f"there are more than {limit}; see --limit and --prefix", err=True)


@command.command("show")
@click.argument("scope")
@tenant_option
@remote_options
@json_option
def show(scope: str, tenant: str, url: str, token: str | None, as_json: bool) -> None:
    """Tell of one scope, awake or asleep; it is not woken. Exits with 3 where there is none."""
    _tell(_ask(url, token, tenant, scope), as_json)


@command.command("sleep")
@click.argument("scope")
@tenant_option
@remote_options
@json_option
def sleep(scope: str, tenant: str, url: str, token: str | None, as_json: bool) -> None:
    """Have SCOPE sleep as soon as nothing is under way in it; its clients stay connected.

    Exits with 7 where it is kept awake for 20 s.
    """
    _tell(_ask(url, token, tenant, scope, "sleep"), as_json)


@command.command("wake")
@click.argument("scope")
@tenant_option
@remote_options
@json_option
def wake(scope: str, tenant: str, url: str, token: str | None, as_json: bool) -> None:
    """Have SCOPE wake, out of the bucket where it is not on the disk."""
    _tell(_ask(url, token, tenant, scope, "wake"), as_json)


@command.command("move")
@click.argument("scope")
@click.argument("process")
@tenant_option
@remote_options
@json_option
def move(scope: str, process: str, tenant: str, url: str, token: str | None, as_json: bool) -> None:
    """Give SCOPE to another actor process of one server, such as actor-1, for good.

    What is under way is finished, clients stay connected and miss nothing. Exits with 3 where there
    is no such scope, and with 7 where it could not be moved now.
    """
    _tell(_ask(url, token, tenant, scope, "move", process=process), as_json)


def _ask(
    url: str, token: str | None, tenant: str, scope: str, verb: str = "", **query: str
) -> dict[str, Any]:
    path = f"/v1/actors/{quote(tenant, safe='')}/{quote(scope, safe='')}"
    if verb:
        path += f"/{verb}"
    found: dict[str, Any] = get_json(
        url, path, token=token, query=query, method="POST" if verb else "GET"
    )
    return found


def _tell(found: dict[str, Any], as_json: bool) -> None:
    rows = [(name, _cell(name, value)) for name, value in found.items()]
    emit(found, table(("field", "value"), rows), as_json=as_json)


def _cell(name: str, value: Any) -> object:
    if value is None:
        return "-"
    if name in _TIMES:
        when = datetime.fromtimestamp(value / 1000, UTC)
        return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return ", ".join(value) or "-" if isinstance(value, list) else value
