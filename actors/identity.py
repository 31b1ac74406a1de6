"""Files that nobody serves become a scope's: a copy of a live ledger, and whose it is from then on.

A file gets a new identity before it is put in place (actors/installing.py): its address, an epoch,
no owner, no replica. Seqs, causes and rows stay; bodies that repeat the scope's name are rewritten.
Everything here blocks and is for threads.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import NamedTuple

from actors.dialects import KeepsContents, NamedBodies, dialect_named
from actors.dialects.kinds import dialect_name_of
from actors.header import Header, read_header
from actors.schema import VERSION
from actors.types import Address
from infra.errors import FileRefused, ScopeError
from infra.sqlite import Handle, open_reader, open_writer, storage_error, transaction

_PAGE = 1000


class Owned(NamedTuple):
    """A ledger file's scope row, with the address it names."""

    address: Address
    header: Header


def address_of(db: Handle, path: Path) -> Address:
    """The address that a ledger names. Raises FileRefused for what is no ledger of this release."""
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        found = db.execute("SELECT tenant, scope FROM scope WHERE one=1").fetchone()
    except sqlite3.OperationalError as error:
        raise FileRefused(f"{path.name}: no ledger of Holdfast: {error}") from error
    except sqlite3.DatabaseError as error:
        raise storage_error(error, path) from error
    if version > VERSION:
        raise FileRefused(
            f"{path.name}: has schema {version}, this Holdfast knows {VERSION}; use the newer one"
        )
    if found is None or version == 0:
        raise FileRefused(f"{path.name}: not a finished ledger (no scope row)")
    return Address(*found)


def whose(path: Path) -> Owned:
    """Of a whole file that nobody has open. Raises FileRefused or StorageError."""
    with contextlib.closing(open_reader(path, immutable=True)) as db:
        address = address_of(db, path)
        return Owned(address, read_header(db, path, address))


def copy_database(source: Path, target: Path) -> None:
    """The database as of its last commit, in one file, beside whoever writes it.

    Its read transaction lasts as long as the copy, at disk speed. `target` must not exist.
    """
    with contextlib.closing(open_reader(source)) as db:
        try:
            with contextlib.closing(sqlite3.connect(target)) as copy:
                db.backup(copy)
        except sqlite3.Error as error:
            raise storage_error(error, source) from error


def copy_closed(source: Path, target: Path, *, attempts: int = 3) -> None:
    """`copy_database` of a file that may be closed, leaving nothing beside it.

    A plain reader would leave a log and shared memory beside every closed ledger. Without a log the
    file is whole and read as it stands; had a server opened it meanwhile, it is copied again.
    """
    wal = source.with_name(source.name + "-wal")
    for _ in range(attempts):
        if wal.exists() and wal.stat().st_size > 0:
            break
        before = source.stat()
        with contextlib.closing(open_reader(source, immutable=True)) as db:
            try:
                with contextlib.closing(sqlite3.connect(target)) as copy:
                    db.backup(copy)
            except sqlite3.Error as error:
                raise storage_error(error, source) from error
        after = source.stat()
        same = (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
        if same and not (wal.exists() and wal.stat().st_size > 0):
            return
        target.unlink()
    copy_database(source, target)


def take_identity(
    path: Path, address: Address, *, epoch: str | None, level: str, forked_at: int | None = None
) -> Header:
    """Make the file this scope's. `epoch` None keeps the one it has.

    `forked_at`: the file is a second life of a history that goes on elsewhere, begun then; alarms
    stay with the first. Raises ScopeError `bad_scope` where the name belongs to another dialect, or
    where a scope would be renamed whose files lie apart, under its old name.
    """
    owned = whose(path)
    dialect = check_dialect(owned, address)
    db = open_writer(path)
    try:
        if owned.address != address and isinstance(dialect, KeepsContents):
            _check_no_contents(db, dialect.contents, owned.address)
        with transaction(db):
            db.execute("DROP TABLE IF EXISTS owners")
            db.execute(
                "UPDATE scope SET tenant=?, scope=?, epoch=coalesce(?, epoch), owner=0, nonce=0,"
                " txid=0, level=?, created_at=coalesce(?, created_at),"
                " updated_at=coalesce(?, updated_at)",
                (*address, epoch, level, forked_at, forked_at),
            )
            if forked_at is not None:
                db.execute("DELETE FROM alarms")
            if isinstance(dialect, NamedBodies) and owned.address.scope != address.scope:
                _rename_bodies(db, dialect, address.scope)
        return read_header(db, path, address)
    except sqlite3.Error as error:
        raise storage_error(error, path) from error
    finally:
        db.close()


def check_dialect(owned: Owned, address: Address) -> object:
    """The dialect of the file. Raises ScopeError where the name belongs to another one."""
    dialect = dialect_named(owned.header.dialect)
    wanted = dialect_name_of(address.scope)
    if owned.header.dialect != wanted:
        raise ScopeError(
            f"a scope named {address.scope!r} speaks {wanted}, this history {dialect.name}:"
            " choose a name of the same kind",
            code="bad_scope",
        )
    return dialect


def _check_no_contents(db: Handle, coll: str, address: Address) -> None:
    (count,) = db.execute(
        "SELECT count(*) FROM rows WHERE coll=? AND deleted=0", (coll,)
    ).fetchone()
    if count:
        raise ScopeError(
            f"{address.scope!r} has {count} files, which lie beside its ledger under its name: they"
            " would be missing under another one",
            code="bad_scope",
        )


def _rename_bodies(db: Handle, dialect: NamedBodies, scope: str) -> None:
    after = 0
    while True:
        page = db.execute(
            "SELECT seq, body FROM entries WHERE seq>? ORDER BY seq LIMIT ?", (after, _PAGE)
        ).fetchall()
        if not page:
            break
        db.executemany(
            "UPDATE entries SET body=? WHERE seq=?",
            [(dialect.rename(body, scope), seq) for seq, body in page],
        )
        after = page[-1][0]
    db.execute(
        "UPDATE scope SET (bytes, body_max) = (SELECT coalesce(sum(size), 0),"
        " max(scope.body_max, coalesce(max(size), 0))"
        " FROM (SELECT length(CAST(body AS BLOB)) AS size FROM entries))"
    )
