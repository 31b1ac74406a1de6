"""`holdfast verify`: what is stored can be read back, and is as it must be."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from actors.check import Checked, check_ledger
from actors.identity import copy_closed
from actors.types import Address
from edge.cli.bucket import bucket_options, configured, opened
from edge.cli.exits import Exit
from edge.cli.output import Moved, byte_progress, emit, json_option
from infra.errors import ConfigError, FileRefused, HoldfastError, StorageError
from infra.layout import NoBackup, scope_prefix
from infra.objects import ObjectStore
from infra.paths import ledger_path
from infra.restore import restore_to
from infra.walk import walk_replicas


class Verdict(msgspec.Struct):
    """Of one scope. `problems` is empty where it is sound; `place` is its key prefix or file."""

    place: str
    tenant: str | None = None
    scope: str | None = None
    ok: bool = False
    head: int | None = None
    floor: int | None = None
    entries: int | None = None
    rows: int | None = None
    refolded: bool | None = None
    txid: int | None = None
    bytes: int | None = None
    problems: list[str] = []


class _Scope(NamedTuple):
    """What is to be verified. `address` is None where only the file will tell."""

    place: str
    address: Address | None


@click.command("verify")
@click.argument("scope", required=False)
@click.option("--all", "every", is_flag=True, help="Every scope there is.")
@click.option("--tenant", metavar="NAME", help="[default: default; with --all: all of them]")
@click.option("--data-dir", metavar="PATH", help="Where the files are, if there is no bucket.")
@bucket_options
@json_option
def command(
    scope: str | None,
    every: bool,
    tenant: str | None,
    data_dir: str | None,
    bucket: str | None,
    config_path: str | None,
    as_json: bool,
) -> Exit:
    """Restore SCOPE from the bucket to a scratch file and check it; exits with 6 where it fails.

    Checked are the checksums of the replica, SQLite's own integrity check, and what every ledger
    promises: no seq missing, no cause twice, entities equal to the fold of the entries. Without a
    bucket a copy of the file on this disk is checked. A running server is not disturbed.
    """
    if (scope is None) == (not every):
        raise click.UsageError("give a SCOPE, or --all")
    config = configured(bucket, config_path, data_dir=data_dir)
    one = None if scope is None else Address(tenant or "default", scope)
    verdicts: list[Verdict] = []

    def note(verdict: Verdict) -> None:
        verdicts.append(verdict)
        if not as_json:
            click.echo(_line(verdict))

    with tempfile.TemporaryDirectory(prefix="holdfast-verify-") as scratch:
        target = Path(scratch) / "scope.db"
        if config.bucket:
            with opened(config.bucket) as (store, base):
                for found in _in_bucket(store, base, one, tenant):
                    note(_from_bucket(store, found, target))
        else:
            for found in _on_disk(Path(config.data_dir), one):
                verdict = _from_disk(found, target)
                if tenant is None or verdict.tenant in (tenant, None):
                    note(verdict)
    failed = sum(not verdict.ok for verdict in verdicts)
    summary = f"{len(verdicts)} checked, {failed} failed"
    told: dict[str, Any] = {"checked": len(verdicts), "failed": failed, "scopes": verdicts}
    emit(told, summary, as_json=as_json)
    return Exit.VERIFICATION if failed else Exit.OK


def _in_bucket(
    store: ObjectStore, base: str, one: Address | None, tenant: str | None
) -> Iterator[_Scope]:
    if one is not None:
        yield _Scope(scope_prefix(base, *one), one)
        return
    for place in walk_replicas(store, base, tenant):
        yield _Scope(place, None)


def _on_disk(data_dir: Path, one: Address | None) -> Iterator[_Scope]:
    if not data_dir.is_dir():
        raise ConfigError(f"{data_dir} is no directory: give --data-dir, or a --bucket")
    if one is not None:
        path = ledger_path(data_dir, *one)
        if not path.exists():
            raise HoldfastError(f"no scope {one.scope!r} in {data_dir}", code="not_found")
        yield _Scope(str(path), one)
        return
    for path in sorted(data_dir.glob("*/??/*.db")):
        yield _Scope(str(path), None)


def _from_bucket(store: ObjectStore, found: _Scope, target: Path) -> Verdict:
    verdict = _named(found)
    try:
        with byte_progress(f"restoring {found.place}") as moved:
            restored = restore_to(store, found.place, target, progress=moved)
        verdict.txid = restored.txid
        with byte_progress(f"checking {found.place}") as moved:
            checked = _checked(verdict, found, target, moved)
        base = found.place.rsplit("/", 2)[0] if found.place.count("/") > 1 else ""
        if found.place != scope_prefix(base, checked.tenant, checked.scope):
            verdict.problems.append(
                f"it holds {checked.tenant}/{checked.scope}: objects were moved"
            )
    except NoBackup as error:
        if found.address is not None:
            raise HoldfastError(str(error), code="not_found") from error
        verdict.problems.append(str(error))
    except StorageError as error:
        if error.retryable or error.code == "store_refused":
            raise  # of the bucket, not of the scope
        verdict.problems.append(str(error))
    finally:
        target.unlink(missing_ok=True)
    verdict.ok = not verdict.problems
    return verdict


def _from_disk(found: _Scope, target: Path) -> Verdict:
    verdict = _named(found)
    try:
        copy_closed(Path(found.place), target)
        with byte_progress(f"checking {Path(found.place).name}") as moved:
            _checked(verdict, found, target, moved)
    except FileRefused as error:
        verdict.problems.append(str(error))
    finally:
        target.unlink(missing_ok=True)
    verdict.ok = not verdict.problems
    return verdict


def _named(found: _Scope) -> Verdict:
    if found.address is None:
        return Verdict(found.place, problems=[])
    return Verdict(found.place, *found.address, problems=[])


def _checked(verdict: Verdict, found: _Scope, target: Path, moved: Moved) -> Checked:
    checked = check_ledger(target, progress=moved)
    verdict.tenant, verdict.scope = checked.tenant, checked.scope
    verdict.head, verdict.floor, verdict.entries = checked.head, checked.floor, checked.entries
    verdict.rows, verdict.refolded, verdict.bytes = checked.rows, checked.refolded, checked.db_bytes
    verdict.problems += checked.problems
    if found.address is not None and found.address != (checked.tenant, checked.scope):
        verdict.problems.append(f"it holds {checked.tenant}/{checked.scope}")
    return checked


def _line(verdict: Verdict) -> str:
    name = verdict.place if verdict.scope is None else f"{verdict.tenant}/{verdict.scope}"
    if not verdict.ok:
        return "\n".join(f"FAILED  {name}: {problem}" for problem in verdict.problems)
    txid = "" if verdict.txid is None else f", txid {verdict.txid}"
    rows = f"{verdict.rows} rows{', the fold of all entries' if verdict.refolded else ''}"
    return f"ok      {name}: seq {verdict.head}, {verdict.entries} entries, {rows}{txid}"
