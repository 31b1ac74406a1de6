"""A scope's rows at one seq, spooled to an unlinked file: for views and export.

The read transaction lasts only as long as the copy (at disk speed, beside the writer), so no reader
holds up a checkpoint; everything slow happens afterwards, from the spool. Slow: for a thread.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import msgspec

from actors.dialects import KeepsBases, dialect_named
from actors.header import Header, read_header
from actors.rows import Key, Overlay, Row, RowCache, wire_value
from actors.scan import Position
from actors.types import Address, Entry
from actors.visible import entry_of
from infra.sqlite import Handle, open_reader, storage_error

MEMORY_BYTES_MAX = 1 << 20  # a smaller spool never touches the disk
_ENTRIES = (
    "SELECT seq, at, kind, cause, body, origin, ref, grp, stamp1, stamp2, flags FROM entries"
    " WHERE seq>? AND seq<=? ORDER BY seq"
)


class Snapshot:
    """Rows of one collection in order of id. `close` it; iterate as often as you like."""

    def __init__(self, header: Position, spool: IO[bytes], count: int) -> None:
        self.epoch = header.epoch
        self.seq = header.head
        self.floor = header.floor
        self.count = count
        self._spool = spool

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """(id, body) of each row."""
        self._spool.seek(0)
        while head := self._spool.read(8):
            id_bytes = int.from_bytes(head[:4], "big")
            body_bytes = int.from_bytes(head[4:], "big")
            yield self._spool.read(id_bytes).decode(), self._spool.read(body_bytes)

    def rewind(self) -> None:
        """Before the first `read`."""
        self._spool.seek(0)

    def read(self, size: int) -> bytes:
        """The next bytes as they are kept, for another process; empty at the end."""
        return self._spool.read(size)

    def close(self) -> None:
        self._spool.close()


def take_snapshot(path: Path, address: Address, coll: str, spool_dir: Path) -> Snapshot:
    """Copy the collection at the file's head. Raises StorageError or FileRefused."""
    db = open_reader(path)
    spool = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES_MAX, dir=str(spool_dir))  # noqa: SIM115
    try:
        db.execute("BEGIN")
        header = read_header(db, path, address)
        tails = fold_tails(db, header)
        count = 0
        rows = db.execute(
            "SELECT id, body FROM rows WHERE coll=? AND deleted=0 ORDER BY id", (coll,)
        )
        for id, body in rows:
            tail = tails.get((coll, id))
            text = body.encode() if tail is None else msgspec.json.encode(tail.value)
            name = id.encode()
            spool.write(len(name).to_bytes(4, "big") + len(text).to_bytes(4, "big") + name + text)
            count += 1
        return Snapshot(header, spool, count)
    except sqlite3.Error as error:
        spool.close()
        raise storage_error(error, path) from error
    except BaseException:
        spool.close()
        raise
    finally:
        db.close()


def fold_tails(db: Handle, header: Header) -> dict[Key, Row]:
    """Rows whose stored copy lags behind, brought to the head.
    Their number and tails are bounded.
    """
    behind = {(coll, id): seq for coll, id, seq in db.execute("SELECT coll, id, seq FROM unfolded")}
    if not behind:
        return {}
    dialect = dialect_named(header.dialect)
    if isinstance(dialect, KeepsBases):
        return _refolded(db, header, dialect, behind)
    overlay = Overlay(RowCache(lambda coll, id: _stored(db, coll, id)), at=0)
    entries = db.execute(
        "SELECT seq, at, kind, cause, body FROM entries WHERE seq>? ORDER BY seq",
        (min(behind.values()),),
    )
    for seq, at, kind, cause, body in entries:
        only = frozenset(key for key, stored in behind.items() if stored < seq)
        dialect.apply(overlay, Entry(seq, at, kind, cause, body, len(body)), only)
        overlay.accept()
    return {key: row for key, row in overlay.batch.items() if row is not None}


def _refolded(
    db: Handle, header: Header, dialect: KeepsBases, behind: Mapping[Key, int]
) -> dict[Key, Row]:
    def entries(after: int, upto: int) -> list[Entry]:
        found = db.execute(_ENTRIES, (after, upto))
        return [entry_of(values) for values in found]

    rows = RowCache(lambda coll, id: _stored(db, coll, id), entries)
    overlay = Overlay(rows, at=0, floor=header.floor, jump=header.jump)
    dialect.refold(overlay, header.head, behind)
    overlay.accept()
    for row in overlay.batch.values():
        if row is not None:  # as it would be read from the file
            text = msgspec.json.encode(row.value, enc_hook=wire_value)
            row.value = msgspec.json.decode(text)
    return {key: row for key, row in overlay.batch.items() if row is not None}


def _stored(db: Handle, coll: str, id: str) -> Row | None:
    found = db.execute(
        "SELECT rev, seq, body FROM rows WHERE coll=? AND id=?", (coll, id)
    ).fetchone()
    if found is None:
        return None
    rev, seq, body = found
    return Row(msgspec.json.decode(body), rev, seq, len(body), seq)
