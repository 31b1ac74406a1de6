"""What commands that read a bucket by themselves share: where it is, and which state is meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Final, TypeVar

import click

from actors.moment import At, parse_at
from edge.cli.options import read_config
from edge.config import Config
from infra.clock import now_ms
from infra.errors import ConfigError
from infra.objects import ObjectStore, open_store, store_prefix

F = TypeVar("F", bound=Callable[..., Any])

AT_HELP: Final = (
    "State: seq:N (or N; the first that holds it), txid:N, a time like 2026-11-24T12:00:00Z, an"
    " age like -10m.  [default: the latest]"
)


def bucket_options(command: F) -> F:
    """Add `--bucket` and `--config`; the environment counts as for a server."""
    command = click.option(
        "--config",
        "config_path",
        metavar="PATH",
        help="TOML file with bucket.  [env: HOLDFAST_CONFIG]",
    )(command)
    return click.option(
        "--bucket",
        metavar="URL",
        help="file:PATH or s3://BUCKET/PREFIX?endpoint=URL.  [env: HOLDFAST_BUCKET]",
    )(command)


def tenant_option(command: F) -> F:
    """Add `--tenant`."""
    return click.option("--tenant", metavar="NAME", default="default", show_default=True)(command)


def configured(bucket: str | None, config_path: str | None, **flags: Any) -> Config:
    """The configuration, of which only what concerns the bucket and the disk is used."""
    return read_config({"bucket": bucket, "config_path": config_path, **flags})


@contextmanager
def opened(url: str) -> Iterator[tuple[ObjectStore, str]]:
    """(the store, the key prefix). Raises ConfigError where there is no bucket."""
    if not url:
        raise ConfigError("there is no bucket: give --bucket, HOLDFAST_BUCKET or bucket in TOML")
    with closing(open_store(url)) as store:
        yield store, store_prefix(url)


def at_of(text: str | None) -> At:
    """The state that `--at` names; the latest for none."""
    return At() if text is None else parse_at(text, now_ms=now_ms())
