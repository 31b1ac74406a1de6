"""`holdfast config`: see the configuration, check it, and print its reference."""

from __future__ import annotations

from typing import Any

import click

from edge.cli.options import config_options, read_with_sources
from edge.cli.output import emit, json_option, table, to_json
from edge.cli.reference import configuration_document
from edge.config import redacted


@click.group("config")
def command() -> None:
    """Show, check and document the configuration."""


@command.command("show")
@config_options()
@json_option
def show(as_json: bool, **flags: Any) -> None:
    """Print every key with its value and where that comes from; secrets are not shown."""
    config, sources = read_with_sources(flags)
    values = redacted(config)
    found = {name: {"value": values[name], "source": sources[name]} for name in sources}
    rows = [(name, to_json(values[name]), sources[name]) for name in sources]
    emit(found, table(("key", "value", "source"), rows), as_json=as_json)


@command.command("check")
@config_options()
@json_option
def check(as_json: bool, **flags: Any) -> None:
    """Check the configuration and start nothing; exits with 2 where it is wrong."""
    _, sources = read_with_sources(flags)
    changed = sorted(name for name, source in sources.items() if source != "default")
    text = f"good: {len(changed)} of {len(sources)} keys are set"
    emit({"ok": True, "set": changed}, text, as_json=as_json)


@command.command("docs")
@json_option
def docs(as_json: bool) -> None:
    """Print the reference of all keys in Markdown."""
    document = configuration_document()
    emit({"markdown": document}, document.rstrip("\n"), as_json=as_json)
