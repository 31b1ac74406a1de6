"""The command `holdfast`: one file a command, joined in edge/cli/program.py."""

from edge.cli.program import main

__all__ = ["main"]
