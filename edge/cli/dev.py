"""`holdfast dev`: a server to try things on, with nothing to configure and nobody locked out."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import click

from edge.cli.options import config_options, read_config
from edge.cli.output import emit, json_option, to_json
from edge.cli.starting import start
from edge.version import VERSION
from infra.errors import ConfigError
from infra.ids import new_id

if TYPE_CHECKING:
    from edge.server import ServerInfo


@click.command("dev")
@click.argument("application", required=False, metavar="[MODULE:APP]")
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", help="A loopback address.")
@config_options(without=frozenset({"host", "insecure"}))
@json_option
def command(application: str | None, as_json: bool, host: str, **flags: Any) -> None:
    """Run a development server on loopback: no token needed, everyone is admin.

    Prints its address, a line to publish with, and the console. A token that is sent all the same
    is checked where token keys are configured.
    """
    # HOST of the environment is not asked: it is often set, and rarely to loopback.
    config = read_config({**flags, "host": _loopback(host)})

    def announce(info: ServerInfo) -> None:
        emit(_links(info.url), _welcome(info.url), as_json=as_json)

    start(config, application, "dev", announce)


def _loopback(host: str) -> str:
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ConfigError(f"dev listens on loopback only, not on {host}; use `holdfast serve`")
    return host


def _links(url: str) -> dict[str, str]:
    return {
        "event": "ready",
        "url": url,
        "console": f"{url}/console",
        "socket": "ws" + url.removeprefix("http") + "/api/sync/socket",
        "publish": f"{url}/api/sync/publish",
    }


def _sample() -> dict[str, Any]:
    """One publish to try; its eventId is new at every start, so that it never is a duplicate."""
    patch = {"op": "appendText", "path": "/text", "delta": "hello "}
    return {
        "scope": "run:demo",
        "envelope": {
            "eventId": new_id(),
            "kind": "patch",
            "entities": [{"key": "message:m1", "patches": [patch]}],
        },
    }


def _welcome(url: str) -> str:
    links = _links(url)
    return "\n".join(
        (
            f"Holdfast {VERSION}, development server: loopback only, everyone is admin",
            f"  url      {links['url']}",
            f"  console  {links['console']}",
            f"  try      curl -s {links['publish']} -d '{to_json(_sample())}'",
        )
    )
