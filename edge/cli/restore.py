"""`holdfast restore`: a scope's file out of the bucket alone, as it is or as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from actors.history import restore_state
from actors.identity import Owned, whose
from actors.moment import At, rfc3339
from actors.types import Address
from edge.cli.bucket import AT_HELP, at_of, bucket_options, configured, opened, tenant_option
from edge.cli.output import byte_progress, emit, json_option, table
from infra.errors import FileRefused, HoldfastError
from infra.layout import scope_prefix
from infra.restore import Restored


@click.command("restore")
@click.argument("scope", required=False)
@click.option("--from", "source", metavar="URL", help="Any Litestream 0.5 replica, not a scope.")
@click.option("--at", "at_text", metavar="STATE", help=AT_HELP)
@click.option(
    "-o", "--output", required=True, metavar="FILE", type=click.Path(path_type=Path),
    help="Where to; must not exist.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace FILE; nobody may have it open.")
@tenant_option
@bucket_options
@json_option
def command(
    scope: str | None,
    source: str | None,
    at_text: str | None,
    output: Path,
    force: bool,
    tenant: str,
    bucket: str | None,
    config_path: str | None,
    as_json: bool,
) -> None:
    """Write SCOPE as the bucket has it to FILE: an SQLite database, whole and verified.

    No server is asked and none is disturbed. With --at the state of an earlier moment; a batch may
    have brought several entries at once, so the first state that holds a seq may hold later ones
    too. With --from it restores any SQLite file that the official litestream has replicated.
    """
    if (scope is None) == (source is None):
        raise click.UsageError("give a SCOPE, or --from with the URL of a replica")
    at = at_of(at_text)
    if source is not None and at.seq is not None:
        raise click.UsageError("any SQLite file has no seqs: use --at txid:N or a time")
    if output.exists() and not force:
        raise HoldfastError(f"{output} exists; --force replaces it", code="conflict")
    url = source if source is not None else configured(bucket, config_path).bucket
    with opened(url) as (store, base):
        prefix = base if scope is None else scope_prefix(base, tenant, scope)
        with byte_progress("restoring") as moved:
            restored = restore_state(store, prefix, output, at, progress=moved)
    address = None if scope is None else Address(tenant, scope)
    _report(output, restored, at, _owned(output, address), as_json=as_json)


def _owned(output: Path, address: Address | None) -> Owned | None:
    """Whose ledger it is; None for a database of another kind, which only --from may be."""
    try:
        owned = whose(output)
    except FileRefused:
        if address is not None:
            raise
        return None
    if address is not None and owned.address != address:
        raise HoldfastError(
            f"the replica of {address.scope!r} holds {owned.address.scope!r}: somebody has moved"
            f" objects of the bucket; {output} is what they hold",
            code="verification_failed",
        )
    return owned


def _report(
    output: Path, restored: Restored, at: At, owned: Owned | None, *, as_json: bool
) -> None:
    found: dict[str, Any] = {
        "file": str(output),
        "bytes": output.stat().st_size,
        "txid": restored.txid,
        "at": rfc3339(restored.timestamp_ms),
        "bytes_read": restored.bytes_read,
        "files_read": restored.files_read,
    }
    if owned is not None:
        header = owned.header
        found |= {
            "tenant": owned.address.tenant, "scope": owned.address.scope, "epoch": header.epoch,
            "head": header.head, "floor": header.floor,
        }  # fmt: skip
    text = table(("field", "value"), list(found.items()))
    if owned is not None and at.seq is not None and owned.header.head > at.seq:
        text += f"\nseq {at.seq} came in one batch with those up to {owned.header.head}"
    emit(found, text, as_json=as_json)
