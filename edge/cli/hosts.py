"""`holdfast hosts`: who is there, and that one of them leaves without anybody noticing."""

from __future__ import annotations

import time
from typing import Any, Final
from urllib.parse import quote

import click

from edge.cli.output import emit, json_option, table
from edge.cli.remote import get_json, remote_options
from infra.clock import monotonic
from infra.errors import HoldfastError

_COLUMNS: Final = ("name", "state", "link", "weight", "scopes_open", "linked", "may_claim")
LOOK_S: Final = 0.25


@click.group("hosts")
def command() -> None:
    """See the hosts of a deployment, and drain one."""


@command.command("ls")
@remote_options
@json_option
def list_hosts(url: str, token: str | None, as_json: bool) -> None:
    """List the live hosts, as the one that is asked sees them."""
    found = get_json(url, "/v1/hosts", token=token)
    rows = [[_cell(host.get(column)) for column in _COLUMNS] for host in found["hosts"]]
    emit(found, table(_COLUMNS, rows), as_json=as_json)


@command.command("drain")
@click.argument("name")
@click.option("--wait", is_flag=True, help="Return once it has no scope open.")
@click.option(
    "--within", type=click.IntRange(1, 86_400), default=60, show_default=True,
    help="Seconds to wait; beyond it the command fails and the host goes on draining.",
)  # fmt: skip
@remote_options
@json_option
def drain(name: str, wait: bool, within: int, url: str, token: str | None, as_json: bool) -> None:
    """Have the host NAME hand over all scopes; afterwards its process may be stopped.

    Nobody is disconnected: it serves its clients from the other hosts until it is stopped.
    """
    get_json(url, f"/v1/hosts/{quote(name, safe='')}/drain", token=token, method="POST")
    state: dict[str, Any] = {"name": name, "state": "draining"}
    end = monotonic() + within
    while wait:
        hosts = get_json(url, "/v1/hosts", token=token)["hosts"]
        found = next((host for host in hosts if host["name"] == name), None)
        if found is None:
            state = {"name": name, "state": "gone"}
            break
        state = found
        if found["state"] == "draining" and found["scopes_open"] == 0:
            break
        if monotonic() > end:
            raise HoldfastError(
                f"{name} still has {found['scopes_open']} scopes open", code="try_later"
            )
        time.sleep(LOOK_S)
    left = state.get("scopes_open")
    text = f"{name}: {state['state']}" + ("" if left is None else f", {left} scopes open")
    emit(state, text, as_json=as_json)


def _cell(value: Any) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else value
