"""`holdfast version`: what is installed, as a bug report needs it."""

from __future__ import annotations

import platform
import sqlite3

import click

from edge.cli.output import emit, json_option
from edge.version import VERSION


@click.command("version")
@json_option
def command(as_json: bool) -> None:
    """Print the versions of Holdfast, Python and SQLite."""
    found = {
        "holdfast": VERSION,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "platform": f"{platform.system()} {platform.machine()}",
    }
    emit(found, "\n".join(f"{name} {value}" for name, value in found.items()), as_json=as_json)
