"""`holdfast import`: a scope out of an export, or out of any ledger file."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import click

from actors.identity import copy_closed
from actors.line_files import is_sqlite
from edge.cli.bucket import tenant_option
from edge.cli.output import Moved, byte_progress, emit, json_option
from edge.cli.remote import post_json, remote_options, scope_path

TYPE: Final = "application/octet-stream"


class _Counted:
    """A file that tells how far it was read."""

    def __init__(self, file: BinaryIO, size: int, moved: Moved) -> None:
        self._file = file
        self._size = size
        self._moved = moved
        self._done = 0

    def read(self, count: int = -1) -> bytes:
        data = self._file.read(count)
        self._done += len(data)
        self._moved(self._done, self._size)
        return data


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("scope")
@click.option(
    "--keep-epoch", is_flag=True,
    help="The history goes on nowhere else: clients need not begin anew.",
)  # fmt: skip
@tenant_option
@remote_options
@json_option
def command(
    file: Path, scope: str, keep_epoch: bool, tenant: str, url: str, token: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Have the server make SCOPE out of FILE: NDJSON of `holdfast export`, or a ledger's SQLite
    file, such as one that `litestream restore` or `holdfast restore` has written.

    Everything in it is checked first; exits with 6 where it is not sound, and with 4 where SCOPE
    exists. SCOPE may have another name than the one that was exported.
    """
    with ExitStack() as stack:
        opened: BinaryIO = stack.enter_context(file.open("rb"))
        if is_sqlite(opened.read(16)):
            # What stands in a log beside the file belongs to it.
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "ledger.db"
            copy_closed(file, scratch)
            opened = stack.enter_context(scratch.open("rb"))
            size = scratch.stat().st_size
        else:
            size = file.stat().st_size
        opened.seek(0)
        with byte_progress("importing") as moved:
            counted = cast("BinaryIO", _Counted(opened, size, moved))
            made: dict[str, Any] = post_json(
                url, scope_path(tenant, scope, "import"), counted, token=token, size=size,
                query={"keep_epoch": int(keep_epoch)}, content_type=TYPE,
            )  # fmt: skip
    text = f"{scope} begins at seq {made['head']}, epoch {made['epoch']}"
    emit(made, text, as_json=as_json)
