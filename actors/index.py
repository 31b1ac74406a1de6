"""The host's index: which scopes exist and when their next alarm is due. Never the truth, always
rebuildable.

One SQLite file beside the ledgers. A due time is written here before the ledger commits it, so a
crash leaves at worst a wake for nothing, never an alarm nobody looks at. After an unclean end the
index is rebuilt from the ledger files.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from actors.schema import VERSION
from actors.types import Address
from infra.errors import FileRefused, HoldfastError
from infra.replica_files import Files
from infra.sqlite import open_reader, open_writer, storage_error, transaction

_VERSION = 2
_TABLES = (
    "CREATE TABLE IF NOT EXISTS scopes(tenant TEXT NOT NULL, scope TEXT NOT NULL,"
    " path TEXT NOT NULL, due_at INTEGER, replica TEXT, closed_at INTEGER,"
    " evicted INTEGER NOT NULL DEFAULT 0, PRIMARY KEY(tenant, scope)) STRICT, WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS scopes_due ON scopes(due_at) WHERE due_at IS NOT NULL",
    "CREATE TABLE IF NOT EXISTS state("
    "one INTEGER PRIMARY KEY CHECK(one=1), clean INTEGER NOT NULL) STRICT",
    "INSERT OR IGNORE INTO state(one, clean) VALUES (1, 1)",
)


class ReplicaRecord(msgspec.Struct):
    """What the bucket holds of a closed scope: everything, in these files, last written by the
    process life `nonce`.
    """

    files: Files
    nonce: int


_decode_record = msgspec.json.Decoder(ReplicaRecord).decode


class Index:
    """The one writer of the index file."""

    def __init__(self, root: Path, place: Path | None = None) -> None:
        self._root = root
        self.path = (place or root) / "index.db"
        self.wal_path = (place or root) / "index.db-wal"
        self.position = 0
        self.new = not self.path.exists()
        self.damaged = False  # what it alone knew is lost: which scopes are in the bucket only
        try:
            self._open()
        except FileRefused:
            # Only an index: a damaged one is set aside and built again, without its old WAL.
            self.damaged = True
            self.path.rename(self.path.with_suffix(".damaged"))
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            self.new = True
            self._open()

    def _open(self) -> None:
        self._db = open_writer(self.path)
        try:
            self._db.execute("PRAGMA wal_autocheckpoint=1000")  # small, and nobody else's to do
            with transaction(self._db):
                self._migrate()
                for statement in _TABLES:
                    self._db.execute(statement)
                (clean,) = self._db.execute("SELECT clean FROM state").fetchone()
                self.must_rebuild = not clean or self.new
                self._db.execute("UPDATE state SET clean=0")
        except sqlite3.Error as error:
            self._db.close()
            raise storage_error(error, self.path) from error

    def _migrate(self) -> None:
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found < _VERSION:  # older ones knew nothing that the ledger files do not
            self._db.execute("DROP TABLE IF EXISTS scopes")
            self._db.execute("DROP TABLE IF EXISTS state")
            self._db.execute(f"PRAGMA user_version={_VERSION}")
            self.new = True

    def add(self, address: Address, path: Path) -> None:
        """A scope's file exists from now on."""
        self._write(
            "INSERT OR IGNORE INTO scopes(tenant, scope, path) VALUES (?,?,?)",
            (*address, str(path.relative_to(self._root))),
        )

    def remove(self, address: Address) -> None:
        """The scope is another process's now."""
        self._write("DELETE FROM scopes WHERE tenant=? AND scope=?", address)

    def set_due(self, address: Address, due_at: int | None) -> None:
        """When the scope's next alarm is due; None: never."""
        self._write("UPDATE scopes SET due_at=? WHERE tenant=? AND scope=?", (due_at, *address))

    def lower_due(self, address: Address, due_at: int) -> None:
        """An alarm is about to be set: look at the scope no later than then."""
        self._write(
            "UPDATE scopes SET due_at=min(coalesce(due_at, ?), ?) WHERE tenant=? AND scope=?",
            (due_at, due_at, *address),
        )

    def closed(self, address: Address, at: int, record: ReplicaRecord | None) -> None:
        """The scope's file is closed; `record` where the bucket has all of it."""
        text = None if record is None else msgspec.json.encode(record).decode()
        self._write(
            "UPDATE scopes SET closed_at=?, replica=?, evicted=0 WHERE tenant=? AND scope=?",
            (at, text, *address),
        )

    def opened(self, address: Address) -> None:
        """The scope is in use: not to be evicted, and about to hold what the bucket has not."""
        self._write(
            "UPDATE scopes SET closed_at=NULL, replica=NULL, evicted=0 WHERE tenant=? AND scope=?",
            address,
        )

    def replica_of(self, address: Address) -> ReplicaRecord | None:
        """What the bucket is known to hold."""
        row = self._db.execute(
            "SELECT replica FROM scopes WHERE tenant=? AND scope=?", address
        ).fetchone()
        return None if row is None or row[0] is None else _decode_record(row[0])

    def forget_replicas(self) -> None:
        """Nothing is known any more of what the bucket holds: it is another one. Durable at once.
        Raises StorageError.
        """
        self._write("UPDATE scopes SET replica=NULL", ())
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def is_evicted(self, address: Address) -> bool:
        """Whether the scope is in the bucket and not on this disk."""
        row = self._db.execute(
            "SELECT evicted FROM scopes WHERE tenant=? AND scope=?", address
        ).fetchone()
        return row is not None and bool(row[0])

    def evict(self, address: Address) -> None:
        """The file is gone from this disk."""
        self._write("UPDATE scopes SET evicted=1 WHERE tenant=? AND scope=?", address)

    def evictable(self, closed_before: int, limit: int) -> list[tuple[Address, str]]:
        """(address, path) of scopes closed before then whose files the bucket has whole."""
        rows = self._db.execute(
            "SELECT tenant, scope, path FROM scopes WHERE closed_at<? AND replica IS NOT NULL"
            " AND evicted=0 LIMIT ?",
            (closed_before, limit),
        )
        return [(Address(tenant, scope), path) for tenant, scope, path in rows]

    def unshipped(self, limit: int, after: Address | None = None) -> list[Address]:
        """Scopes of which the bucket may lack something, in order of name."""
        rows = self._db.execute(
            "SELECT tenant, scope FROM scopes WHERE replica IS NULL AND evicted=0"
            " AND (tenant, scope) > (?, ?) ORDER BY tenant, scope LIMIT ?",
            (*(after or ("", "")), limit),
        )
        return [Address(*row) for row in rows]

    def due(self, now_ms: int, limit: int) -> list[Address]:
        """Scopes whose alarm is due, longest due first."""
        rows = self._db.execute(
            "SELECT tenant, scope FROM scopes WHERE due_at<=? ORDER BY due_at LIMIT ?",
            (now_ms, limit),
        )
        return [Address(*row) for row in rows]

    def next_due(self, skip: Collection[Address] = ()) -> int | None:
        """The earliest due time, leaving out some scopes."""
        rows = self._db.execute(
            "SELECT tenant, scope, due_at FROM scopes WHERE due_at IS NOT NULL"
            " ORDER BY due_at LIMIT ?",
            (len(skip) + 1,),
        )
        return next((due for *address, due in rows if Address(*address) not in skip), None)

    def has(self, address: Address) -> bool:
        """Whether the scope is known, on this disk or in the bucket."""
        sql = "SELECT 1 FROM scopes WHERE tenant=? AND scope=?"
        return self._db.execute(sql, address).fetchone() is not None

    def due_at(self, address: Address) -> int | None:
        """When the scope's next alarm is due; earlier than that at worst."""
        sql = "SELECT due_at FROM scopes WHERE tenant=? AND scope=?"
        row = self._db.execute(sql, address).fetchone()
        return None if row is None else row[0]

    def page(self, tenant: str, prefix: str, after: str, limit: int) -> list[tuple[str, str]]:
        """(scope, path) in order of name, those that begin with `prefix` and follow `after`."""
        return self._db.execute(
            "SELECT scope, path FROM scopes WHERE tenant=? AND scope>? AND scope>=?"
            " AND substr(scope, 1, ?)=? ORDER BY scope LIMIT ?",
            (tenant, after, prefix, len(prefix), prefix, limit),
        ).fetchall()

    def replace(self, found: list[tuple[Address, str, int | None]]) -> None:
        """What a rebuild found, beside what was added meanwhile."""
        with transaction(self._db):
            self._db.executemany(
                "INSERT INTO scopes(tenant, scope, path, due_at) VALUES (?,?,?,?)"
                " ON CONFLICT(tenant, scope) DO UPDATE SET"
                " due_at=coalesce(min(due_at, excluded.due_at), due_at, excluded.due_at)",
                [(*address, path, due_at) for address, path, due_at in found],
            )
        self.position += 1

    def close(self) -> None:
        """A clean end: the next start trusts the index."""
        with contextlib.suppress(sqlite3.Error):  # a full disk must not keep the server from ending
            self._db.execute("UPDATE state SET clean=1")
        self._db.close()

    def _write(self, sql: str, values: tuple[object, ...]) -> None:
        try:
            self._db.execute(sql, values)
        except sqlite3.Error as error:
            raise storage_error(error, self.path) from error
        self.position += 1


def scan(root: Path, home: str = "*") -> Iterator[tuple[Address, str, int | None]]:
    """Every ledger file below `root`, or of one tenant's home: address, path, earliest alarm.

    Slow: for a thread.
    """
    for path in sorted(root.glob(f"{home}/??/*.db")):
        if (found := peek(path)) is not None:
            yield found[0], str(path.relative_to(root)), found[1]


def peek(path: Path) -> tuple[Address, int | None] | None:
    """Whose ledger it is, and its earliest alarm; None for what is none. For a thread."""
    try:
        wal = path.with_name(path.name + "-wal")
        # Immutable: a reader would leave a -shm beside every closed ledger. Whoever looks has the
        # directory, and a file without a WAL is whole.
        db = open_reader(path, immutable=not wal.exists() or wal.stat().st_size == 0)
    except (HoldfastError, OSError):
        return None
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        row = db.execute("SELECT tenant, scope FROM scope").fetchone()
        if row is None or version > VERSION:
            return None
        (due_at,) = db.execute("SELECT min(due_at) FROM alarms").fetchone()
        return Address(*row), due_at
    except sqlite3.Error:
        return None  # damaged or not a ledger: opening the scope will say so
    finally:
        db.close()
