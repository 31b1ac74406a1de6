"""Flags made from the configuration's keys, and the configuration made from the flags."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import click

from edge.config import SECRET_KEYS, Config, Key, keys
from edge.config_sources import load_config, load_with_sources

F = TypeVar("F", bound=Callable[..., Any])
FILE_DEFAULT: Final = Path("holdfast.toml")
_NOT_FLAGS: Final = {"scopes", "color"}  # a table; and NO_COLOR is what people have


def config_options(*, without: frozenset[str] = frozenset()) -> Callable[[F], F]:
    """Add `--config` and one flag for every key that fits on a command line.

    Secrets do not: every user of the machine can read them there. They have `--…-file`.
    """

    def add(command: F) -> F:
        for key in reversed(keys()):
            if key.name not in without | _NOT_FLAGS:
                command = _option(key)(command)
        help_text = "TOML file; holdfast.toml where it exists.  [env: HOLDFAST_CONFIG]"
        return click.option("--config", "config_path", metavar="PATH", help=help_text)(command)

    return add


def read_config(flags: Mapping[str, Any]) -> Config:
    """The configuration for a command's keyword arguments. Raises ConfigError."""
    return load_config(*_sources(flags))


def read_with_sources(flags: Mapping[str, Any]) -> tuple[Config, dict[str, str]]:
    """`read_config`, and where each value comes from."""
    return load_with_sources(*_sources(flags))


def _sources(flags: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, str], Path | None]:
    overrides = dict(flags)
    named = overrides.pop("config_path", None) or os.environ.get("HOLDFAST_CONFIG")
    path = Path(named) if named else FILE_DEFAULT if FILE_DEFAULT.exists() else None
    return overrides, os.environ, path


def _option(key: Key) -> Callable[[F], F]:
    flag = "--" + key.name.replace("_", "-")
    if key.name in SECRET_KEYS:
        text = f"File with: {key.doc[0].lower()}{key.doc[1:]}"
        return click.option(f"{flag}-file", f"{key.name}_file", metavar="PATH", help=text)
    if isinstance(key.default, bool):
        text = f"{key.doc}  [default: {str(key.default).lower()}]"
        return click.option(f"{flag}/--no-{flag[2:]}", key.name, default=None, help=text)
    text = f"{key.doc}  [default: {default_text(key) or 'none'}]"
    return click.option(flag, key.name, metavar=_metavar(key), help=text)


def default_text(key: Key) -> str:
    """A key's default as one would type it; empty for an empty list or table."""
    value = key.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ",".join(str(one) for one in value)
    return str(value) if value != {} else ""


def choices(key: Key) -> tuple[str, ...]:
    """The words a key accepts; empty where it is no choice."""
    words = get_args(get_args(key.type)[0])
    return words if words and all(isinstance(word, str) for word in words) else ()


def _metavar(key: Key) -> str:
    if words := choices(key):
        return "|".join(words)
    return key.unit.upper()
