"""docs/configuration.md and docs/cli.md, made from the code. `python -m edge.cli.reference` writes
both; a test compares them, so neither can fall behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from edge.cli.exits import MEANINGS
from edge.cli.options import choices, default_text
from edge.config import Key, keys

_WIDTH: Final = 92
_CONFIGURATION_HEAD: Final = """\
# Configuration

Written by `python -m edge.cli.reference` from `edge/config.py`; do not edit.

For each key the first of these wins: a flag, the environment, the TOML file, the default. The file
is the one named by `--config` or `HOLDFAST_CONFIG`, else `holdfast.toml` in the working directory.
An unknown key is an error in every source. `holdfast config show` prints each value and where it
comes from, `holdfast config check` starts nothing.

In the environment a key is `HOLDFAST_` and its name in upper case; `PORT` and `HOST` count where
the longer name is absent, `NO_COLOR` turns `color` off. Lists are separated by commas, tables are
JSON, and `token_keys` is `id:secret` (several between commas or on lines of their own). A secret
can also be read from a file: `token_keys_file` in TOML, `HOLDFAST_TOKEN_KEYS_FILE`,
`--token-keys-file`.

```toml
# holdfast.toml
port = 8420
data_dir = "/var/lib/holdfast"
token_keys_file = "/run/secrets/token_keys"

[scopes."log:*"]        # `*` is any run of characters; all matching tables apply, a later one wins
retain = 100000
materialize = false
```
"""
_CLI_HEAD: Final = """\
# Command line

Written by `python -m edge.cli.reference` from `--help`; do not edit.

Results go to standard output, progress and errors to standard error. With `--json` results are one
line of JSON each, and an error is `{"error": {"code": …, "message": …}}`.

| exit code | meaning |
|---|---|
"""


def configuration_document() -> str:
    """The text of docs/configuration.md."""
    lines = [
        _CONFIGURATION_HEAD,
        "| key | default | unit or values | meaning |",
        "|---|---|---|---|",
    ]
    lines += [_row(key) for key in keys()]
    return "\n".join(lines) + "\n"


def cli_document() -> str:
    """The text of docs/cli.md."""
    from edge.cli.program import program

    exits = "".join(f"| {exit.value} | {meaning} |\n" for exit, meaning in MEANINGS.items())
    parts = [_CLI_HEAD + exits]
    for path, command in _commands(program, ("holdfast",)):
        parts.append(f"## {' '.join(path)}\n\n```text\n{_help(path, command)}\n```\n")
    return "\n".join(parts)


def _commands(
    command: click.Command, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _commands(child, (*path, name))


def _help(path: tuple[str, ...], command: click.Command) -> str:
    settings: dict[str, Any] = {"terminal_width": _WIDTH, "max_content_width": _WIDTH}
    context = click.Context(
        command, info_name=" ".join(path), help_option_names=["-h", "--help"], **settings
    )
    return command.get_help(context).rstrip()


def _row(key: Key) -> str:
    words = choices(key)
    unit = " ".join(f"`{word}`" for word in words) if words else f"{key.unit}{_bounds(key)}"
    default = default_text(key)
    return f"| `{key.name}` | {f'`{default}`' if default else 'none'} | {unit} | {key.doc} |"


def _bounds(key: Key) -> str:
    """The bounds a reader may run into; the widest an integer goes is none."""
    schema = msgspec.json.schema(key.type)
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None or high is None:
        return ""
    return f", {low} to {high}" if high < 2**40 else f", at least {low}"


def _write() -> None:
    docs = Path(__file__).parents[2] / "docs"
    (docs / "configuration.md").write_text(configuration_document())
    (docs / "cli.md").write_text(cli_document())


if __name__ == "__main__":
    _write()
