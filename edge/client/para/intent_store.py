"""Where a client keeps its open intents, so that a restart loses none: in memory, or in a file.

A store names the client, too: the server answers a repeat by (client id, op id), so whoever takes
the intents over must be the same client, and no op id may ever be used twice.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Protocol

import msgspec

from edge.client.para.ops import StoredOp
from infra import ids


class IntentStore(Protocol):
    """What a client needs of a store. Every call is done when it returns."""

    @property
    def client_id(self) -> str: ...

    def next_op_id(self) -> str:
        """An id that sorts behind all before it."""

    def load(self) -> list[StoredOp]:
        """The open intents, oldest first."""

    def save(self, op: StoredOp) -> None:
        """Keep it until it is removed."""

    def remove(self, op_id: str) -> None:
        """It has been answered."""


class MemoryIntentStore:
    """Open intents end with the process."""

    def __init__(self) -> None:
        self.client_id = ids.new_id()
        self._count = 0
        self._ops: dict[str, StoredOp] = {}

    def next_op_id(self) -> str:
        """See IntentStore."""
        self._count += 1
        return f"{self._count:012d}"

    def load(self) -> list[StoredOp]:
        """See IntentStore."""
        return list(self._ops.values())

    def save(self, op: StoredOp) -> None:
        """See IntentStore."""
        self._ops[op.op_id] = op

    def remove(self, op_id: str) -> None:
        """See IntentStore."""
        self._ops.pop(op_id, None)


class SqliteIntentStore:
    """Open intents in a file of their own; one client at a time."""

    def __init__(self, path: str | Path) -> None:
        self._db = sqlite3.connect(str(path), isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS client(one INTEGER PRIMARY KEY CHECK(one=1),"
            " id TEXT NOT NULL, ops INTEGER NOT NULL)"
        )
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS ops(id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID"
        )
        self._db.execute("INSERT OR IGNORE INTO client VALUES (1, ?, 0)", (ids.new_id(),))
        (self.client_id,) = self._db.execute("SELECT id FROM client").fetchone()

    def next_op_id(self) -> str:
        """See IntentStore."""
        bump = self._db.execute("UPDATE client SET ops=ops+1 RETURNING ops").fetchall()
        return f"{bump[0][0]:012d}"

    def load(self) -> list[StoredOp]:
        """See IntentStore."""
        rows = self._db.execute("SELECT body FROM ops ORDER BY id").fetchall()
        return [msgspec.json.decode(body, type=StoredOp) for (body,) in rows]

    def save(self, op: StoredOp) -> None:
        """See IntentStore."""
        body = msgspec.json.encode(op).decode()
        self._db.execute("INSERT OR REPLACE INTO ops VALUES (?, ?)", (op.op_id, body))

    def remove(self, op_id: str) -> None:
        """See IntentStore."""
        self._db.execute("DELETE FROM ops WHERE id=?", (op_id,))

    def close(self) -> None:
        """Leave the file to the next client."""
        self._db.close()
