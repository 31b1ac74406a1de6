"""`holdfast token`: make and read signed scope tokens. No server is asked."""

from __future__ import annotations

import re
import sys
from typing import Any, Final

import click
import msgspec

from edge.auth import Grant, PublishLimits
from edge.cli.exits import Exit
from edge.cli.options import read_config
from edge.cli.output import emit, json_option
from edge.tokens import TOKEN_CHARS_MAX, TokenKey, inspect, mint
from infra.clock import now_ms
from infra.errors import ConfigError

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_KEYS_HELP: Final = "File of token keys, id:secret per line.  [env: HOLDFAST_TOKEN_KEYS(_FILE)]"
_CONFIG_HELP: Final = "TOML file with token_keys.  [env: HOLDFAST_CONFIG]"


@click.group("token")
def command() -> None:
    """Make and inspect signed scope tokens."""


@command.command("new")
@click.option("--subject", "-s", default="user", show_default=True, help="Who it is for (sub).")
@click.option("--read", "-r", multiple=True, metavar="PATTERN", help="Scopes it may read.")
@click.option(
    "--write", "-w", multiple=True, metavar="PATTERN", help="Scopes it may write and read."
)
@click.option("--admin", is_flag=True, help="May do everything, the console included.")
@click.option("--tenant", default="default", show_default=True, help="Tenant of those scopes.")
@click.option(
    "--ttl", default="1h", show_default=True, metavar="TIME", help="Life: 90s 15m 8h 30d."
)
@click.option("--publish-rate", metavar="N|unlimited", help="Envelopes/s, over the server's own.")
@click.option("--publish-bytes", type=click.IntRange(0), metavar="N", help="Bytes/s; 0 no limit.")
@click.option("--key", "key_id", metavar="ID", help="Key that signs.  [default: the first]")
@click.option("--config", "config_path", metavar="PATH", help=_CONFIG_HELP)
@click.option("--token-keys-file", metavar="PATH", help=_KEYS_HELP)
@json_option
def new(
    subject: str,
    read: tuple[str, ...],
    write: tuple[str, ...],
    admin: bool,
    tenant: str,
    ttl: str,
    publish_rate: str | None,
    publish_bytes: int | None,
    key_id: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Print a new token. `*` in a PATTERN stands for any characters: 'run:*', '*'."""
    if not (read or write or admin):
        raise click.UsageError("the token would allow nothing: give --read, --write or --admin")
    grants = [Grant(pattern, "read") for pattern in read]
    grants += [Grant(pattern, "write") for pattern in write]
    now, ttl_s = now_ms(), _seconds(ttl)
    token = mint(
        _key(read_config(flags).token_keys, key_id),
        subject=subject,
        now_ms=now,
        ttl_s=ttl_s,
        scopes=grants,
        tenant=tenant,
        admin=admin,
        publish=_limits(publish_rate, publish_bytes),
    )
    emit({"token": token, "expires_at_ms": (now // 1000 + ttl_s) * 1000}, token, as_json=as_json)


@command.command("inspect")
@click.argument("token", required=False)
@click.option("--config", "config_path", metavar="PATH", help=_CONFIG_HELP)
@click.option("--token-keys-file", metavar="PATH", help=_KEYS_HELP)
@json_option
def inspect_token(token: str | None, as_json: bool, **flags: Any) -> Exit:
    """Print what TOKEN (or standard input) says, and whether it would be accepted.

    Exits with 5 where keys are configured and refuse it.
    """
    text = token if token is not None else sys.stdin.read(TOKEN_CHARS_MAX + 2).strip()
    found = inspect(text, read_config(flags).token_keys, now_ms=now_ms())
    claims = msgspec.json.format(msgspec.json.encode(found.claims), indent=2).decode()
    head = f"verdict  {found.verdict}: {found.message}\nkey      {found.key_id}\n"
    emit(found, f"{head}claims   {claims}", as_json=as_json)
    return Exit.OK if found.verdict in ("valid", "unchecked") else Exit.AUTH


def _key(keys: tuple[TokenKey, ...], key_id: str | None) -> TokenKey:
    if not keys:
        raise ConfigError("no token_keys are configured; set HOLDFAST_TOKEN_KEYS='id:secret'")
    if key_id is None:
        return keys[0]
    for key in keys:
        if key.id == key_id:
            return key
    raise ConfigError(f"no token key {key_id!r}; there are {', '.join(key.id for key in keys)}")


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,9})([smhd])", text)
    if found is None:
        raise click.BadParameter(f"{text!r} is not a time like 90s, 15m, 8h or 30d")
    return int(found[1]) * _UNITS_S[found[2]]


def _limits(rate: str | None, bytes_per_s: int | None) -> Any:
    if rate == "unlimited":
        return "unlimited"
    if rate is not None and not rate.isdecimal():
        raise click.BadParameter(f"--publish-rate must be a number or unlimited, not {rate!r}")
    if rate is None and bytes_per_s is None:
        return None
    return PublishLimits(int(rate or 0), bytes_per_s or 0)
