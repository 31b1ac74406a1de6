"""Random SQL that does to a database file what applications do: grow, shrink, overflow, VACUUM."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

LARGE_ROW_BYTES = 60_000


class Workload:
    """Statements drawn from a seed; each `step` is one transaction, or a VACUUM.

    Goes on with the tables of an earlier one where there are any.
    """

    def __init__(self, path: Path, *, seed: int, page_size: int = 4096) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode=WAL", "wal_autocheckpoint=0", "busy_timeout=5000"):
            # The page size is only taken before the first page is there.
            self.db.execute(f"PRAGMA page_size={page_size}")
            self.db.execute(f"PRAGMA {pragma}")
        self._draw = random.Random(seed)
        tables = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name GLOB 't[0-9]*'"
        (self._tables,) = self.db.execute(tables).fetchone()
        self.step()

    def step(self) -> None:
        """Change something."""
        if self._draw.random() < 0.1:
            self.db.execute("VACUUM")
            return
        self.db.execute("BEGIN IMMEDIATE")
        if self._tables == 0 or self._draw.random() < 0.1:
            self._create()
        for _ in range(self._draw.randint(1, 4)):
            self._change(f"t{self._draw.randrange(self._tables)}")
        self.db.execute("COMMIT")

    def close(self) -> None:
        """Close the database, which checkpoints it."""
        self.db.close()

    def _create(self) -> None:
        name = f"t{self._tables}"
        self._tables += 1
        self.db.execute(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, note TEXT, raw BLOB)")
        if self._tables % 2:
            self.db.execute(f"CREATE INDEX {name}_note ON {name} (note)")

    def _change(self, table: str) -> None:
        draw = self._draw
        kind = draw.random()
        if kind < 0.5:
            rows = [
                (
                    "note " * draw.randint(0, 30) + str(draw.random()),
                    draw.randbytes(draw.randint(0, 300)),
                )
                for _ in range(draw.randint(1, 40))
            ]
            self.db.executemany(f"INSERT INTO {table} (note, raw) VALUES (?, ?)", rows)
        elif kind < 0.65:
            large = draw.randbytes(draw.randrange(LARGE_ROW_BYTES))
            self.db.execute(f"INSERT INTO {table} (note, raw) VALUES ('large', ?)", (large,))
        elif kind < 0.8:
            update = f"UPDATE {table} SET note = note || 'x' WHERE id % 7 = ?"
            self.db.execute(update, (draw.randrange(7),))
        else:
            low = draw.randrange(200)
            delete = f"DELETE FROM {table} WHERE id BETWEEN ? AND ?"
            self.db.execute(delete, (low, low + draw.randrange(300)))
