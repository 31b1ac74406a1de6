"""Whether a ledger file keeps what docs/ledger.md promises (I1 to I3, I5), and SQLite's own check.

For a whole file that nobody has open, best a scratch copy. Rows are folded anew from the entries
where all entries are kept; the fold goes to a temporary table, so memory holds a batch, not a
scope. Blocking; for threads.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from actors.dedupe import WINDOW_MAX
from actors.dialects import Dialect, KeepsBases, NamedBodies, dialect_named
from actors.header import Header, read_header
from actors.identity import address_of
from actors.rows import Key, Overlay, Row, RowCache, wire_value
from actors.snapshot import fold_tails
from actors.types import Entry
from actors.visible import entry_of
from infra.errors import HoldfastError
from infra.sqlite import Handle, open_reader, storage_error

Progress = Callable[[int, int], None]

PROBLEMS_MAX = 20  # a damaged file has any number; these tell enough
BATCH_ENTRIES = 500
BATCH_BYTES = 4 << 20

_ENTRIES = (
    "SELECT seq, at, kind, cause, body, origin, ref, grp, stamp1, stamp2, flags FROM entries"
    " WHERE seq>? ORDER BY seq LIMIT ?"
)
_FOLD = (
    "CREATE TEMP TABLE fold(coll TEXT NOT NULL, id TEXT NOT NULL, rev INTEGER, seq INTEGER,"
    " body TEXT, origin TEXT, stamp1 INTEGER, stamp2 INTEGER, grp TEXT, deleted INTEGER,"
    " PRIMARY KEY(coll, id)) WITHOUT ROWID"
)
_COLUMNS = "coll, id, rev, seq, body, origin, stamp1, stamp2, grp, deleted"
_REUSED = (
    "SELECT cause, before, seq FROM (SELECT cause, seq, lag(seq) OVER"
    " (PARTITION BY cause ORDER BY seq) AS before FROM entries WHERE cause IS NOT NULL)"
    " WHERE seq-before<=? LIMIT ?"
)


class Checked(msgspec.Struct):
    """What was found. `problems` is empty for a file that is as it must be.

    `refolded`: the rows were compared with the fold of all entries. `db_bytes` is the file's size.
    """

    tenant: str
    scope: str
    dialect: str
    epoch: str
    head: int
    floor: int
    entries: int
    rows: int
    refolded: bool
    db_bytes: int
    problems: list[str]


def check_ledger(path: Path, *, progress: Progress | None = None) -> Checked:
    """Read the whole file. Raises FileRefused for what is no ledger, StorageError for the disk.

    `progress(done, total)` counts bytes of entry bodies.
    """
    wal = path.with_name(path.name + "-wal")
    db = open_reader(path, immutable=not wal.exists() or wal.stat().st_size == 0)
    try:
        return _Check(db, path, progress).run()
    except sqlite3.Error as error:
        raise storage_error(error, path) from error
    finally:
        db.close()


class _Check:
    def __init__(self, db: Handle, path: Path, progress: Progress | None) -> None:
        self._db = db
        self._path = path
        self._progress = progress
        self._problems: list[str] = []
        address = address_of(db, path)
        self._address = address
        self._header: Header = read_header(db, path, address)
        self._dialect: Dialect = dialect_named(self._header.dialect)

    def run(self) -> Checked:
        header, problems = self._header, self._problems
        for (verdict,) in self._db.execute(f"PRAGMA integrity_check({PROBLEMS_MAX})"):
            if verdict != "ok":
                problems.append(f"integrity_check: {verdict}")
        # All entries from the first on are kept, whatever numbers a restore has moved them to.
        refold = header.materialize and header.floor == header.jump
        entries = self._check_entries(refold=refold)
        self._check_causes()
        self._check_rows()
        if refold and not problems:  # what does not fold is not compared
            self._compare()
        (rows,) = self._db.execute("SELECT count(*) FROM rows").fetchone()
        return Checked(
            self._address.tenant, self._address.scope, header.dialect, header.epoch, header.head,
            header.floor, entries, rows, refold, self._path.stat().st_size,
            problems[:PROBLEMS_MAX],
        )  # fmt: skip

    # -- entries -----------------------------------------------------------------------------------

    def _check_entries(self, *, refold: bool) -> int:
        header, problems = self._header, self._problems
        fold = _Fold(self._db, self._dialect, header) if refold else None
        last, size, largest, count = header.floor, 0, 0, 0
        (lowest,) = self._db.execute("SELECT min(seq) FROM entries").fetchone()
        if lowest is not None and lowest <= header.floor:
            problems.append(f"I5: entry {lowest} is at or below the floor {header.floor}")
        for batch in self._batches():
            for entry in batch:
                if entry.seq != last + 1:
                    problems.append(f"I1: entry {last + 1} is missing before {entry.seq}")
                last = entry.seq
                size += entry.size
                largest = max(largest, entry.size)
                count += 1
                self._check_body(entry)
            if fold is not None and not problems:
                self._fold(fold, batch)
            if len(problems) >= PROBLEMS_MAX:
                return count
            if self._progress is not None:
                self._progress(size, max(size, header.bytes))
        if last != header.head:
            problems.append(f"I1: entries end at {last}, the head is {header.head}")
        if size != header.bytes:
            problems.append(f"the entries have {size} bytes, the scope row says {header.bytes}")
        if largest > header.body_max:
            problems.append(f"an entry has {largest} bytes, body_max is {header.body_max}")
        return count

    def _batches(self) -> Iterator[list[Entry]]:
        after, rows = self._header.floor, BATCH_ENTRIES
        while True:
            batch = [
                Entry(seq, at, kind, cause, body, len(body.encode()), None, *rest)
                for seq, at, kind, cause, body, *rest in self._db.execute(_ENTRIES, (after, rows))
            ]
            if not batch:
                return
            yield batch
            after = batch[-1].seq
            # The next one by the size of this one: entries have from 100 bytes to 256 KiB.
            size = sum(entry.size for entry in batch) // len(batch)
            rows = max(1, min(BATCH_ENTRIES, BATCH_BYTES // max(1, size)))

    def _check_body(self, entry: Entry) -> None:
        if not isinstance(self._dialect, NamedBodies):
            return
        try:
            seq, scope = self._dialect.named(entry.body)
        except ValueError as error:
            self._problems.append(f"entry {entry.seq}: its body cannot be read: {error}")
            return
        if (seq, scope) != (entry.seq, self._address.scope):
            self._problems.append(f"entry {entry.seq}: its body says {scope!r} seq {seq}")

    # -- causes ------------------------------------------------------------------------------------

    def _check_causes(self) -> None:
        head, problems = self._header.head, self._problems
        for cause, before, seq in self._db.execute(_REUSED, (WINDOW_MAX, PROBLEMS_MAX)):
            problems.append(f"I3: cause {cause!r} stands at {before} and at {seq}")
        clash = (
            "SELECT d.id, d.seq, e.seq FROM dedupe d JOIN entries e ON e.cause=d.id"
            " WHERE d.seq<>e.seq AND abs(e.seq-d.seq)<=? LIMIT ?"
        )
        for cause, kept, seq in self._db.execute(clash, (WINDOW_MAX, PROBLEMS_MAX)):
            problems.append(f"I3: cause {cause!r} stands at {seq}, dedupe says {kept}")
        beyond = "SELECT id, seq FROM dedupe WHERE seq>? LIMIT ?"
        for cause, seq in self._db.execute(beyond, (head, PROBLEMS_MAX)):
            problems.append(f"I3: dedupe has {cause!r} at {seq}, above the head {head}")

    # -- rows --------------------------------------------------------------------------------------

    def _check_rows(self) -> None:
        db, header, problems = self._db, self._header, self._problems
        for coll, id, seq in db.execute(
            "SELECT coll, id, seq FROM rows WHERE seq>? LIMIT ?", (header.head, PROBLEMS_MAX)
        ):
            problems.append(f"row {coll}/{id}: its seq {seq} is above the head {header.head}")
        for coll, id, seq, stored in db.execute(
            "SELECT u.coll, u.id, u.seq, r.seq FROM unfolded u LEFT JOIN rows r"
            " ON r.coll=u.coll AND r.id=u.id WHERE r.seq IS NOT u.seq LIMIT ?",
            (PROBLEMS_MAX,),
        ):
            problems.append(f"I5: tail of {coll}/{id} from {seq}, its row is of {stored}")
        for coll, id, seq in db.execute(
            "SELECT coll, id, seq FROM unfolded WHERE seq<? LIMIT ?", (header.floor, PROBLEMS_MAX)
        ):
            problems.append(f"I5: tail of {coll}/{id} from {seq} lost entries up to {header.floor}")

    def _fold(self, fold: _Fold, batch: list[Entry]) -> None:
        try:
            fold.add(batch)
        except (HoldfastError, ValueError) as error:
            self._problems.append(
                f"I2: entries {batch[0].seq} to {batch[-1].seq} do not fold: {error}"
            )

    def _compare(self) -> None:
        """Rows at the head, with their tails, against the fold of all entries."""
        db, problems = self._db, self._problems
        try:
            tails = fold_tails(db, self._header)
        except (HoldfastError, ValueError) as error:
            problems.append(f"I2: unfolded tails do not fold: {error}")
            return
        for side, one, other in (("rows", "rows", "fold"), ("the fold", "fold", "rows")):
            missing = (
                f"SELECT coll, id FROM {one} a WHERE NOT EXISTS"
                f" (SELECT 1 FROM {other} b WHERE b.coll=a.coll AND b.id=a.id) LIMIT ?"
            )
            for coll, id in db.execute(missing, (PROBLEMS_MAX,)):
                problems.append(f"I2: {coll}/{id} is only in {side}")
        stored = db.execute(f"SELECT {_COLUMNS} FROM rows ORDER BY coll, id")
        folded = db.execute(f"SELECT {_COLUMNS} FROM fold ORDER BY coll, id")
        if problems:
            return
        for mine, again in zip(stored, folded, strict=True):
            key = (mine[0], mine[1])
            tail = tails.get(key)
            if isinstance(self._dialect, KeepsBases):
                # Of a row made of base and journal, now or after a crash, they are not known.
                mine = (*key, *again[2:4], *mine[4:])  # noqa: PLW2901
                if tail is not None:
                    tail.rev, tail.seq = again[2:4]
            if not _alike(mine, again, tail):
                problems.append(f"I2: row {key[0]}/{key[1]} is not the fold of the entries")
                if len(problems) >= PROBLEMS_MAX:
                    return


class _Fold:
    """All rows of the scope, folded anew into a temporary table."""

    def __init__(self, db: Handle, dialect: Dialect, header: Header) -> None:
        self._db = db
        self._dialect = dialect
        db.execute("PRAGMA query_only=OFF")  # of the file it stays read-only: it was opened so
        db.execute("PRAGMA temp_store=FILE")
        db.execute(_FOLD)
        self._rows = RowCache(self._load, self._entries, self._ids)
        self._header = header

    def add(self, batch: list[Entry]) -> None:
        overlay = Overlay(self._rows, at=0, floor=self._header.floor, jump=self._header.jump)
        for entry in batch:
            self._dialect.apply(overlay, entry)
            overlay.accept()
        for coll in overlay.cleared:
            self._db.execute("DELETE FROM fold WHERE coll=?", (coll,))
        for key, row in overlay.batch.items():
            if row is None:
                self._db.execute("DELETE FROM fold WHERE coll=? AND id=?", key)
            else:
                self._store(key, row)
        self._rows.commit(overlay.batch, overlay.cleared)

    def _store(self, key: Key, row: Row) -> None:
        body = msgspec.json.encode(row.value, enc_hook=wire_value)
        row.size, row.pending = len(body), 0
        self._db.execute(
            f"INSERT OR REPLACE INTO fold({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?)",
            (*key, row.rev, row.seq, body.decode(), row.origin, row.stamp1, row.stamp2, row.grp,
             int(row.deleted)),
        )  # fmt: skip

    def _entries(self, after: int, upto: int) -> list[Entry]:
        rows = self._db.execute(
            "SELECT seq, at, kind, cause, body, origin, ref, grp, stamp1, stamp2, flags"
            " FROM entries WHERE seq>? AND seq<=? ORDER BY seq",
            (after, upto),
        )
        return [entry_of(values) for values in rows]

    def _ids(self, coll: str) -> list[str]:
        rows = self._db.execute("SELECT id FROM fold WHERE coll=?", (coll,))
        return [id for (id,) in rows]

    def _load(self, coll: str, id: str) -> Row | None:
        found = self._db.execute(
            f"SELECT {_COLUMNS} FROM fold WHERE coll=? AND id=?", (coll, id)
        ).fetchone()
        if found is None:
            return None
        _, _, rev, seq, body, origin, stamp1, stamp2, grp, deleted = found
        value = msgspec.json.decode(body)
        return Row(value, rev, seq, len(body), seq, 0, origin, stamp1, stamp2, grp, bool(deleted))


def _alike(mine: tuple[Any, ...], again: tuple[Any, ...], tail: Row | None) -> bool:
    if tail is not None:
        value, rev, seq = tail.value, tail.rev, tail.seq
    else:
        _, _, rev, seq, body, *rest = mine
        if tuple(rest) != again[5:]:
            return False
        if body is None or body == again[4]:
            return (rev, seq, body or "null") == (again[2], again[3], again[4])
        with contextlib.suppress(ValueError):
            value = msgspec.json.decode(body)
            return (value, rev, seq) == (msgspec.json.decode(again[4]), again[2], again[3])
        return False
    return (value, rev, seq) == (msgspec.json.decode(again[4]), again[2], again[3])
