"""Whether one ledger file's history continues another's. Blocking; for files nobody has open."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from infra.errors import HoldfastError
from infra.sqlite import open_reader


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
