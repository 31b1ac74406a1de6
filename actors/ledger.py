"""The history of one scope: append-only, gap-free, one SQLite file. No clock, task or network here.

Always true in a file (I1-I5 of docs/ledger.md): floor <= head; every entry with floor < seq <= head
is stored and no other; head never goes back; rows, with the tails named in `unfolded`, are the fold
of all entries up to head; a cause is found in `entries` or in `dedupe`.

A commit here is not yet durable: infra/barrier.py makes it so, and only then may anybody see it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import msgspec

from actors.dedupe import WINDOW_AGE_MS, WINDOW_MAX
from actors.header import Header, read_header
from actors.inserting import insert_entries
from actors.ledger_file import begin_tracking, empty_wal, opening, write_template
from actors.owners import Owner, note_owner, read_owners
from actors.renumber import renumber
from actors.rows import Key, Row, wire_value
from actors.schema import migrate
from actors.types import Address, Bounds, Duplicate, Entry, EntryPage
from actors.visible import entry_of, visible_page
from actors.write import Write
from infra.errors import StorageError
from infra.sqlite import Handle, storage_error, transaction
from infra.wal import WalTracker

_ROW = (
    "INSERT INTO rows(coll, id, rev, seq, body, origin, stamp1, stamp2, grp, deleted)"
    " VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT(coll, id) DO UPDATE SET rev=excluded.rev,"
    " seq=excluded.seq, body=excluded.body, origin=excluded.origin, stamp1=excluded.stamp1,"
    " stamp2=excluded.stamp2, grp=excluded.grp, deleted=excluded.deleted"
)
_UPDATE = (
    "UPDATE scope SET owner=?, nonce=?, txid=?, level=?, head=?, floor=?, floor_at=?, jump=?,"
    " bytes=?, body_max=?, epoch=?, clock=?, updated_at=? WHERE one=1 AND owner=? AND head=?"
)
_PAGE = "SELECT seq, body FROM entries WHERE seq>? AND seq<=? ORDER BY seq LIMIT ?"
_JOINED = (
    "SELECT max(seq), group_concat(body) FROM"
    " (SELECT seq, body FROM entries WHERE seq>? AND seq<=? ORDER BY seq LIMIT ?)"
)


class StaleOwner(StorageError):
    """Another writer has opened the file. Nothing was written; stop using this handle."""

    code = "fenced"


_P = ParamSpec("_P")
_T = TypeVar("_T")


def _guarded(
    method: Callable[Concatenate[Ledger, _P], _T],
) -> Callable[Concatenate[Ledger, _P], _T]:
    """SQLite's errors leave the ledger as typed ones."""

    @wraps(method)
    def guarded(self: Ledger, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(self, *args, **kwargs)
        except sqlite3.Error as error:
            raise storage_error(error, self.path) from error

    return cast("Callable[Concatenate[Ledger, _P], _T]", guarded)


class Ledger:
    """The one writer of a ledger file, for as long as the file still carries its `owner`."""

    def __init__(
        self, path: Path, db: Handle, header: Header, nonce: int, tracker: WalTracker | None
    ) -> None:
        self.path = path
        self.header = header
        self.nonce = nonce
        self.txid = header.txid  # what the next commit carries
        self.level = header.level  # the same
        self.commits = 0  # transactions so far that the tracker will meet in the WAL
        self._followed = self._before = 0
        self._claims: Sequence[int] = ()
        self._tracker = tracker
        self._db = db
        db.execute(f"PRAGMA trusted_schema={header.dialect != 'asterql':d}")  # JSON in indexes
        # The same process again: it closed the file itself, nobody came between.
        self._claimed = nonce != 0 and header.nonce == nonce

    @classmethod
    def create(
        cls,
        path: Path,
        address: Address,
        *,
        dialect: str,
        epoch: str,
        at: int,
        materialize: bool,
        level: str = "local",
        sync: bool = True,
        nonce: int = 0,
        tracked: bool = False,
    ) -> Ledger:
        """A new file with an empty history; a half-made one is finished. Raises StorageError.

        Without `sync` the image of an empty ledger is left to the barrier, whose first pass over a
        new file then covers the whole file system; before it nobody is told that the scope exists.
        `tracked`: a replica will ask which pages the commits change.
        """
        write_template(path, sync)
        with opening(path, tracked=tracked) as (db, tracker):
            migrate(db)
            begin_tracking(db, path, tracker)
            with transaction(db):
                made = db.execute(
                    "INSERT OR IGNORE INTO scope(one, tenant, scope, dialect, dialect_version,"
                    " epoch, owner, nonce, txid, level, head, floor, floor_at, jump, bytes,"
                    " body_max, materialize, created_at, updated_at)"
                    " VALUES (1,?,?,?,1,?,0,0,0,?,0,0,0,0,0,0,?,?,?)",
                    (*address, dialect, epoch, level, int(materialize), at, at),
                )
            ledger = cls(path, db, read_header(db, path, address), nonce, tracker)
            ledger.commits = made.rowcount
            return ledger

    @classmethod
    def open(cls, path: Path, address: Address, *, nonce: int = 0, tracked: bool = False) -> Ledger:
        """An existing file. Raises FileRefused where it is damaged, newer, or another scope's.

        `nonce` names the process life: one that opens its own file again goes on as its owner.
        """
        with opening(path, tracked=tracked) as (db, tracker):
            migrate(db)
            begin_tracking(db, path, tracker)
            return cls(path, db, read_header(db, path, address), nonce, tracker)

    @_guarded
    def commit(self, write: Write) -> None:
        """Put the batch into the file, all or nothing, and move the header.

        Raises StaleOwner once another owner has opened the file, StorageError for the disk's
        troubles; in both cases the file and the header are as before.
        """
        new = self._advanced(write)
        with transaction(self._db):
            self._write_header(new, write.at)  # first: a stale owner is told so by name
            for statement in write.ddl:
                self._db.execute(statement)
            insert_entries(self._db, write.entries)
            self._write_rows(write)
            self._write_rest(write)
            if write.floor is not None:
                new.bytes -= self._trim(write.floor)
                self._db.execute("UPDATE scope SET bytes=?", (new.bytes,))
            if write.first_txid is not None:
                owner = Owner(new.owner, write.first_txid, self.nonce, write.at)
                note_owner(self._db, owner, self._claims)
        self._committed(new)

    def _committed(self, new: Header) -> None:
        self.header = new
        self.commits += 1
        self._claimed = True

    def _advanced(self, write: Write) -> Header:
        old = self.header
        entries = write.entries
        new = self._signed(old)
        if entries:
            new.head = entries[-1].seq
            sizes = [entry.size for entry in entries]
            new.bytes += sum(sizes)
            new.body_max = max(new.body_max, *sizes)
        if write.floor is not None:
            new.floor, new.floor_at = write.floor, new.head
        if write.clock is not None:
            new.clock = write.clock
        return new

    def _signed(self, old: Header) -> Header:
        return msgspec.structs.replace(
            old, owner=self.owner, nonce=self.nonce, txid=self.txid, level=self.level
        )

    def _write_rows(self, write: Write) -> None:
        db = self._db
        for coll in write.cleared:
            db.execute("DELETE FROM rows WHERE coll=?", (coll,))
            db.execute("DELETE FROM unfolded WHERE coll=?", (coll,))
        encode = msgspec.json.encode
        stored: list[tuple[Any, ...]] = []
        gone: list[Key] = []
        for key, row in write.rows.items():
            if row is None:
                gone.append(key)
                continue
            text = encode(row.value, enc_hook=wire_value)
            body = text.decode()
            row.size, row.stored, row.pending = len(text), row.seq, 0
            stored.append(
                (*key, row.rev, row.seq, body, row.origin, row.stamp1, row.stamp2, row.grp,
                 int(row.deleted))
            )  # fmt: skip
        if stored:
            db.executemany(_ROW, stored)
        if gone:
            db.executemany("DELETE FROM rows WHERE coll=? AND id=?", gone)

    def _write_rest(self, write: Write) -> None:
        db = self._db
        if write.unfolded:
            db.executemany(
                "INSERT OR IGNORE INTO unfolded(coll, id, seq) VALUES (?,?,?)",
                [(*key, seq) for key, seq in write.unfolded.items()],
            )
        if write.flags:
            db.executemany(
                "UPDATE entries SET flags=? WHERE seq=?",
                [(flags, seq) for seq, flags in write.flags.items()],
            )
        if write.folded:
            db.executemany("DELETE FROM unfolded WHERE coll=? AND id=?", write.folded)
        if write.dedupe:
            db.executemany(
                "INSERT OR REPLACE INTO dedupe(id, seq, count, outcome, at) VALUES (?,?,?,?,?)",
                [(*row, write.at) for row in write.dedupe],
            )
        if write.forget:
            db.execute(
                "DELETE FROM dedupe WHERE seq<=? OR at<?",
                (self.header.head - WINDOW_MAX, write.at - WINDOW_AGE_MS),
            )
        if write.alarms:
            db.executemany(
                "INSERT OR REPLACE INTO alarms(name, due_at, payload, attempts, set_at)"
                " VALUES (?,?,?,?,?)",
                [(*alarm, write.at) for alarm in write.alarms],
            )
        if write.alarms_done:
            db.executemany("DELETE FROM alarms WHERE name=? AND due_at=?", write.alarms_done)

    def _trim(self, floor: int) -> int:
        """Remove entries up to the floor, keeping their causes; the bytes they held."""
        db = self._db
        (size,) = db.execute(
            "SELECT coalesce(sum(length(CAST(body AS BLOB))), 0) FROM entries WHERE seq<=?",
            (floor,),
        ).fetchone()
        db.execute(
            "INSERT INTO dedupe(id, seq, count, outcome, at)"
            " SELECT cause, seq, 1, NULL, at FROM entries WHERE seq<=? AND cause IS NOT NULL"
            # What a commit stored as the answer stays; a row of an older use goes.
            " ON CONFLICT(id) DO UPDATE SET seq=excluded.seq, count=1, outcome=NULL,"
            " at=excluded.at WHERE dedupe.seq<>excluded.seq",
            (floor,),
        )
        db.execute("DELETE FROM entries WHERE seq<=?", (floor,))
        return int(size)

    def _write_header(self, new: Header, at: int) -> None:
        # The owner is checked by the same statement that moves the head: before BEGIN it could be
        # stale. The head too: who opened the file before its owner's last commit does not know it.
        done = self._db.execute(
            _UPDATE,
            (new.owner, new.nonce, new.txid, new.level, new.head, new.floor, new.floor_at,
             new.jump, new.bytes, new.body_max, new.epoch, new.clock, at, self.header.owner,
             self.header.head),
        )  # fmt: skip
        if done.rowcount != 1:
            raise StaleOwner(f"{self.path.name}: another writer owns the file")

    # -- reading -----------------------------------------------------------------------------

    @_guarded
    def page(
        self, after: int, upto: int, *, entries_max: int, bytes_max: int
    ) -> list[tuple[int, str]]:
        """(seq, body) of the entries after `after`, at least one if there is any."""
        size = 0
        found: list[tuple[int, str]] = []
        for seq, body in self._db.execute(_PAGE, (after, upto, entries_max)):
            size += len(body)
            if found and size > bytes_max:
                break
            found.append((seq, body))
        return found

    @_guarded
    def joined_page(self, after: int, upto: int, *, entries_max: int) -> tuple[int, str]:
        """(last seq, bodies joined by commas) of the entries after `after`; (after, "") at the end.

        Joined inside SQLite, three times as fast as row by row; the caller bounds the size by
        `header.body_max`.
        """
        last, text = self._db.execute(_JOINED, (after, upto, entries_max)).fetchone()
        return (after, "") if last is None else (last, text)

    @_guarded
    def entries(self, after: int, upto: int) -> list[Entry]:
        """Whole entries, oldest first: for folding and checks."""
        rows = self._db.execute(
            "SELECT seq, at, kind, cause, body, origin, ref, grp, stamp1, stamp2, flags"
            " FROM entries WHERE seq>? AND seq<=? ORDER BY seq",
            (after, upto),
        )
        return [entry_of(values) for values in rows]

    @_guarded
    def visible(
        self, after: int, bounds: Bounds, groups: str, *, entries_max: int, bytes_max: int
    ) -> EntryPage:
        """Entries of no group or of one in `groups`, a JSON list; up to the head of `bounds`."""
        return visible_page(self._db, after, bounds, groups, entries_max, bytes_max)

    @_guarded
    def schema(self) -> dict[str, str]:
        """The tables, indexes and views of the file: name to SQL."""
        rows = self._db.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
        return dict(rows.fetchall())

    @_guarded
    def row(self, coll: str, id: str) -> Row | None:
        """The stored row, without its unfolded tail."""
        found = self._db.execute(
            "SELECT rev, seq, body, origin, stamp1, stamp2, grp, deleted FROM rows"
            " WHERE coll=? AND id=?",
            (coll, id),
        ).fetchone()
        if found is None:
            return None
        rev, seq, body, origin, stamp1, stamp2, grp, deleted = found
        value = None if body is None else msgspec.json.decode(body)
        size = 0 if body is None else len(body.encode())
        return Row(value, rev, seq, size, seq, 0, origin, stamp1, stamp2, grp, bool(deleted))

    @_guarded
    def ids(self, coll: str) -> list[str]:
        """The ids of a collection's stored rows."""
        rows = self._db.execute("SELECT id FROM rows WHERE coll=? ORDER BY id", (coll,))
        return [id for (id,) in rows]

    @_guarded
    def unfolded(self) -> dict[Key, int]:
        """Rows whose stored copy is behind, with the seq of that copy."""
        rows = self._db.execute("SELECT coll, id, seq FROM unfolded").fetchall()
        return {(coll, id): seq for coll, id, seq in rows}

    @_guarded
    def causes(self) -> list[tuple[str, int]]:
        """The newest causes with the seq of their first entry, oldest first."""
        db = self._db
        live = db.execute(
            "SELECT cause, seq FROM entries WHERE cause IS NOT NULL AND seq>? ORDER BY seq",
            (self.header.head - WINDOW_MAX,),
        ).fetchall()
        older = db.execute(
            "SELECT id, seq FROM dedupe ORDER BY seq DESC LIMIT ?", (WINDOW_MAX - len(live),)
        ).fetchall()
        return [*reversed(older), *live]

    @_guarded
    def recall(self, cause: str, seq: int) -> Duplicate:
        """The answer first given to `cause`, with its entry where retention has left it."""
        found = self._db.execute(
            "SELECT seq, count, outcome FROM dedupe WHERE id=?", (cause,)
        ).fetchone()
        if found is None or found[0] != seq:  # a row of an older use, beyond the window
            found = (seq, 1, None)
        first, count, outcome = found
        if not count:
            return Duplicate(first, 0, outcome)
        body = self._db.execute("SELECT body FROM entries WHERE seq=?", (first,)).fetchone()
        return Duplicate(first, count, outcome, None if body is None else body[0])

    @_guarded
    def oldest(self, count: int) -> list[tuple[int, int, int]]:
        """(seq, at, bytes) of the oldest entries, for retention by age and size."""
        sql = "SELECT seq, at, length(CAST(body AS BLOB)) FROM entries ORDER BY seq LIMIT ?"
        return self._db.execute(sql, (count,)).fetchall()

    @_guarded
    def alarms(self) -> list[tuple[str, int, str | None, int]]:
        """(name, due_at, payload, attempts), soonest first."""
        return self._db.execute(
            "SELECT name, due_at, payload, attempts FROM alarms ORDER BY due_at, name"
        ).fetchall()

    # -- settings, checkpoint, end -----------------------------------------------------------

    @property
    def claimed(self) -> bool:
        """Whether this process has written to the file."""
        return self._claimed

    @property
    def owner(self) -> int:
        """The owner this writer's commits carry: one more than whoever wrote before."""
        return self.header.owner if self._claimed else max(self.header.owner, self._before) + 1

    def follows(self, owner: int, claims: Sequence[int] = ()) -> None:
        """Others may have owned the history since; those of `claims` wrote nothing into it."""
        self._before, self._claims, self._claimed = owner, claims, False

    @_guarded
    def owners(self) -> list[Owner]:
        """Who owned the history from which replica batch on, oldest first."""
        return read_owners(self._db)

    @_guarded
    def begin_epoch(self, epoch: str, *, jump: int, at: int) -> None:
        """Cut the history: no entries, no rows, numbers go on `jump` higher (I6).
        Committed at once.
        """
        new = self._signed(self.header)
        new.head = new.floor = new.floor_at = self.header.head + jump
        new.epoch, new.jump, new.bytes = epoch, self.header.jump + jump, 0
        with transaction(self._db):
            for table in ("entries", "rows", "unfolded", "dedupe", "alarms"):
                self._db.execute(f"DELETE FROM {table}")
            self._write_header(new, at)
        self._committed(new)

    @_guarded
    def move_epoch(self, epoch: str, *, jump: int, at: int) -> None:
        """Keep the history under a new epoch, every number `jump` higher (I6): for a restore that
        may have cut what was released. Old cursors lie below the new floor. Committed at once.
        """
        new = self._signed(self.header)
        new.head, new.floor = self.header.head + jump, self.header.floor + jump
        new.floor_at, new.epoch, new.jump = new.floor, epoch, self.header.jump + jump
        with transaction(self._db):
            new.bytes, new.body_max = renumber(
                self._db, new.dialect, head=self.header.head, jump=jump
            )
            self._write_header(new, at)
        self._committed(new)

    @property
    def wal_path(self) -> Path:
        return self.path.with_name(self.path.name + "-wal")

    @_guarded
    def checkpoint(self) -> None:
        """Move the WAL's pages into the database file.

        Slow: run it in a thread, with nothing else using the handle.
        """
        self.follow(self.commits)
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def follow(self, commits: int) -> WalTracker | None:
        """Have the tracker look at the WAL up to that many commits; in a thread, one at a time."""
        if self._tracker is not None:
            self._tracker.advance(commits - self._followed)
            self._followed = commits
        return self._tracker

    @_guarded
    def track_anew(self) -> None:
        """After the tracker lost its place: empty the WAL and begin there. Slow, as `checkpoint`.

        What changed before is unknown; the next batch must be a whole image.
        """
        assert self._tracker is not None
        empty_wal(self._db, self.path)
        self._tracker.start()
        self._followed = self.commits

    def close(self) -> None:
        """Checkpoint, remove the WAL, close. Slow, as `checkpoint`."""
        self._db.close()
        if self._tracker is not None:
            self._tracker.close()  # after SQLite: closing it earlier would drop SQLite's locks
