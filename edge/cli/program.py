"""The root of the command line: which commands there are, and how an error ends the program.

Commands are imported when they are called, so `serve` starts without what only others need.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from edge.cli.exits import Exit, exit_for
from infra.errors import HoldfastError

COMMANDS: Final = (
    "dev",
    "serve",
    "edge",
    "actor",
    "forkserver",
    "store",
    "publish",
    "events",
    "scope",
    "actors",
    "hosts",
    "restore",
    "fork",
    "verify",
    "export",
    "import",
    "config",
    "token",
    "doctor",
    "version",
)


class LazyGroup(click.Group):
    """Command `x` is the object `command` of the module `edge.cli.x`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"edge.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def program() -> None:
    """Holdfast: a self-hosted edge sync server.

    Results go to standard output, progress and errors to standard error; --json makes both
    machine-readable.
    """


def run(argv: Sequence[str]) -> Exit:
    """Run one command line (without the program's name) and return its exit code."""
    as_json = "--json" in argv
    try:
        result: Any = program.main(list(argv), prog_name="holdfast", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return Exit.USAGE
    except click.UsageError as error:
        if not as_json:
            error.show()
        return _fail(Exit.USAGE, "usage", error.format_message(), as_json, shown=not as_json)
    except click.ClickException as error:
        return _fail(Exit.FAILURE, "failure", error.format_message(), as_json)
    except (KeyboardInterrupt, click.Abort):
        return _fail(Exit.INTERRUPTED, "interrupted", "interrupted", as_json)
    except BrokenPipeError:
        # The reader of our output (`head`, say) has had enough. What Python would still flush at
        # its end must go nowhere, or it complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except HoldfastError as error:
        return _fail(exit_for(error), error.code, str(error), as_json)
    except OSError as error:
        return _fail(Exit.FAILURE, "os_error", str(error), as_json)
    return Exit(result) if isinstance(result, int) else Exit.OK


def main() -> None:
    """The console script: run the arguments of this process and exit."""
    sys.exit(run(sys.argv[1:]))


def _fail(exit_code: Exit, code: str, message: str, as_json: bool, *, shown: bool = False) -> Exit:
    if as_json:
        from edge.cli.output import to_json

        click.echo(to_json({"error": {"code": code, "message": message}}), err=True)
    elif not shown:
        click.echo(f"holdfast: {message}", err=True)
    return exit_code
