"""Looks into ledger files that nobody has open: what one says, whether it continues another.
Blocking.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from actors.header import Header, read_header
from actors.types import Address
from infra.errors import HoldfastError
from infra.sqlite import open_reader, storage_error


def peek(path: Path, address: Address) -> Header:
    """The header of a whole file, as it was restored. Raises StorageError or FileRefused."""
    db = open_reader(path, immutable=True)
    try:
        return read_header(db, path, address)
    except sqlite3.Error as error:
        raise storage_error(error, path) from error
    finally:
        db.close()


def level_of(path: Path) -> str | None:
    """The durability level the file was last written at; None where it cannot be read."""
    try:
        db = open_reader(path)
    except HoldfastError:
        return None
    try:
        row = db.execute("SELECT level FROM scope").fetchone()
    except sqlite3.Error:
        return None
    finally:
        db.close()
    return None if row is None else str(row[0])


def is_prefix(older: Path, newer: Path) -> bool:
    """True only if everything acknowledged in `older` is certainly in `newer`.

    The same epoch, and the newest entry of the one stands in the other: sequences are written by
    one writer at a time, so what precedes it is the same too. In doubt, False.
    """
    try:
        head, epoch, entry = _tip(older, None)
        newer_head, newer_epoch, found = _tip(newer, head)
    except (HoldfastError, sqlite3.Error, TypeError):
        return False
    return epoch == newer_epoch and newer_head >= head and entry is not None and entry == found


def _tip(path: Path, seq: int | None) -> tuple[int, str, tuple[object, ...] | None]:
    db = open_reader(path)
    try:
        head, epoch = db.execute("SELECT head, epoch FROM scope").fetchone()
        entry = db.execute(
            "SELECT seq, at, kind, cause, body FROM entries WHERE seq=?",
            (head if seq is None else seq,),
        ).fetchone()
        return head, epoch, entry
    finally:
        db.close()
