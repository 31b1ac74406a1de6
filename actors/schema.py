"""The tables of a ledger file (docs/adr/0001): one migration, one function, one transaction each.

These are the tables every dialect has. What only some need (indexes by group and stamp, bases,
peers, blobs) they create themselves: an open scope's memory grows with its schema, 196 KiB against
229 KiB.

`PRAGMA user_version` numbers the schema. A file from newer code is refused, never guessed at.
Nothing newer than SQLite 3.40 is needed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import cache

from infra.errors import FileRefused
from infra.sqlite import Handle, transaction

TABLES = """
CREATE TABLE scope(
  one INTEGER PRIMARY KEY CHECK(one=1),
  tenant TEXT NOT NULL, scope TEXT NOT NULL,
  dialect TEXT NOT NULL, dialect_version INTEGER NOT NULL,
  epoch TEXT NOT NULL, owner INTEGER NOT NULL, nonce INTEGER NOT NULL, txid INTEGER NOT NULL,
  level TEXT NOT NULL,
  head INTEGER NOT NULL, floor INTEGER NOT NULL, floor_at INTEGER NOT NULL, jump INTEGER NOT NULL,
  bytes INTEGER NOT NULL, body_max INTEGER NOT NULL, materialize INTEGER NOT NULL, clock TEXT,
  retain INTEGER, retain_seconds INTEGER, retain_bytes INTEGER,
  created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL) STRICT;
CREATE TABLE entries(
  seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, kind TEXT NOT NULL, origin TEXT, ref TEXT, grp TEXT,
  stamp1 INTEGER, stamp2 INTEGER, cause TEXT, flags INTEGER NOT NULL DEFAULT 0,
  body TEXT NOT NULL) STRICT;
CREATE TABLE rows(
  coll TEXT NOT NULL, id TEXT NOT NULL, rev INTEGER NOT NULL, seq INTEGER NOT NULL, origin TEXT,
  stamp1 INTEGER, stamp2 INTEGER, grp TEXT, deleted INTEGER NOT NULL DEFAULT 0, body TEXT,
  PRIMARY KEY(coll, id)) STRICT, WITHOUT ROWID;
CREATE TABLE unfolded(
  coll TEXT NOT NULL, id TEXT NOT NULL, seq INTEGER NOT NULL,
  PRIMARY KEY(coll, id)) STRICT, WITHOUT ROWID;
CREATE TABLE dedupe(
  id TEXT PRIMARY KEY, seq INTEGER NOT NULL, count INTEGER NOT NULL, outcome TEXT,
  at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE alarms(
  name TEXT PRIMARY KEY, due_at INTEGER NOT NULL, payload TEXT, attempts INTEGER NOT NULL,
  set_at INTEGER NOT NULL) STRICT, WITHOUT ROWID
"""


def _create_tables(db: Handle) -> None:
    # Not executescript: it would commit before it starts.
    for statement in TABLES.split(";"):
        db.execute(statement)


MIGRATIONS: tuple[Callable[[Handle], None], ...] = (_create_tables,)
VERSION = len(MIGRATIONS)


@cache
def template() -> bytes:
    """An empty ledger file, in WAL mode: creating a scope is one write instead of a dozen syncs."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    try:
        migrate(db)
        image = bytearray(db.serialize())
    finally:
        db.close()
    image[18] = image[19] = 2  # file format versions: WAL (the file format's section 1.3)
    return bytes(image)


def migrate(db: Handle) -> None:
    """Bring the file to VERSION. Raises FileRefused for a file from newer code, leaving it as it
    is.
    """
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found > VERSION:
        raise FileRefused(
            f"the file has schema {found}, this Holdfast knows {VERSION}; use the newer Holdfast"
        )
    for version in range(found, VERSION):
        with transaction(db):
            MIGRATIONS[version](db)
            db.execute(f"PRAGMA user_version={version + 1}")
