"""`holdfast export`: a whole scope as lines of JSON, or as its SQLite file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from edge.cli.bucket import tenant_option
from edge.cli.output import Moved, byte_progress, emit, json_option
from edge.cli.remote import download, remote_options, scope_path
from infra.errors import HoldfastError

READ_BYTES: Final = 1 << 20


@click.command("export")
@click.argument("scope")
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(path_type=Path),
    help="Where to; must not exist.  [default: standard output]",
)  # fmt: skip
@click.option(
    "--format", "form", type=click.Choice(["ndjson", "sqlite"]), default="ndjson",
    show_default=True, help="Lines that any tool reads, or the SQLite file itself.",
)  # fmt: skip
@tenant_option
@remote_options
@json_option
def command(
    scope: str, output: Path | None, form: str, tenant: str, url: str, token: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Write everything of SCOPE, at one seq, to FILE: `holdfast import` makes it a scope again.

    The server goes on meanwhile. The last line of NDJSON holds counts and a checksum.
    """
    if output is not None and output.exists():
        raise HoldfastError(f"{output} exists", code="conflict")
    if output is None and as_json:
        raise click.UsageError("--json tells about a file: give it with -o")
    path = scope_path(tenant, scope, "export")
    with (
        download(url, path, token=token, query={"format": form}) as (answer, size),
        byte_progress("exporting") as moved,
    ):
        seq = int(answer.headers["X-Holdfast-Seq"])
        if output is None:
            _copy(answer, sys.stdout.buffer, size, moved)
            return
        # Under another name until it is whole: nobody takes a part for the scope.
        part = output.with_name(output.name + ".part")
        try:
            with part.open("wb") as file:
                _copy(answer, file, size, moved)
                file.flush()
                os.fsync(file.fileno())
            part.rename(output)
        finally:
            part.unlink(missing_ok=True)
    told = {"scope": scope, "tenant": tenant, "file": str(output), "bytes": size, "head": seq}
    emit(told, f"{scope} up to seq {seq}: {size} bytes in {output}", as_json=as_json)


def _copy(answer: Any, out: BinaryIO, size: int, moved: Moved) -> None:
    done = 0
    while chunk := answer.read(READ_BYTES):
        out.write(chunk)
        done += len(chunk)
        moved(done, size)
    if done != size:
        raise HoldfastError(f"the server sent {done} of {size} bytes", code="unreachable")
