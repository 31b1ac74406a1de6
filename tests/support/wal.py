"""A database file with a tracker beside it, and an image that only ever sees what was cut."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from infra.cut import Cut
from infra.sqlite import Handle, open_writer
from infra.wal import WalTracker


class Shadow:
    """What a replica would restore."""

    def __init__(self) -> None:
        self.image = bytearray()

    def apply(self, cut: Cut, pages: Iterable[tuple[int, bytes]]) -> None:
        size = cut.page_size
        last = 0
        for pgno, page in pages:
            assert type(page) is bytes and len(page) == size
            assert last < pgno <= cut.commit, "ascending, and within the database"
            last = pgno
            if cut.whole:
                assert pgno == 1 or len(self.image) >= (pgno - 1) * size
            end = pgno * size
            if len(self.image) < end:
                assert len(self.image) == end - size, f"page before {pgno} is missing"
            self.image[end - size : end] = page
        assert len(self.image) >= cut.commit * size, "pages are missing at the end"
        del self.image[cut.commit * size :]


class Tracked:
    """One writer as infra.sqlite opens it, its tracker, and the count of commits not advanced."""

    def __init__(self, path: Path, *, cache_pages: int = 0, setup: Iterable[str] = ()) -> None:
        self.path = path
        self.wal_path = path.with_name(path.name + "-wal")
        self.cache_pages = cache_pages
        self.shadow = Shadow()
        self.pending = 0
        if not path.exists():
            with sqlite3.connect(path, isolation_level=None) as db:
                for text in (*setup, "CREATE TABLE t(k INTEGER PRIMARY KEY, b BLOB)"):
                    db.execute(text)
            db.close()
        self.tracker = WalTracker.open(path)
        self.db: Handle = self._connect()
        self.tracker.start()

    def _connect(self) -> Handle:
        db = open_writer(self.path)
        db.execute("PRAGMA busy_timeout=0")
        if self.cache_pages:
            db.execute(f"PRAGMA cache_size={self.cache_pages}")
            db.execute("PRAGMA cache_spill=1")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return db

    def write(self, *texts: str) -> None:
        """One transaction that is committed. It always writes."""
        self.db.execute("BEGIN IMMEDIATE")
        for text in texts or ("INSERT INTO t(b) VALUES (randomblob(100))",):
            self.db.execute(text)
        self.db.execute("COMMIT")
        self.pending += 1

    def fill(self, rows: int, size: int) -> None:
        self.write(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<"
            f"{rows}) INSERT INTO t(b) SELECT randomblob({size}) FROM n"
        )

    def roll_back(self, rows: int = 100, size: int = 2000) -> None:
        """A transaction larger than the cache, so it spills to the WAL, and comes to nothing."""
        self.db.execute("BEGIN IMMEDIATE")
        for _ in range(rows):
            self.db.execute("INSERT INTO t(b) VALUES (randomblob(?))", (size,))
        self.db.execute("ROLLBACK")

    def advance(self) -> None:
        self.tracker.advance(self.pending)
        self.pending = 0

    def checkpoint(self, mode: str = "PASSIVE") -> tuple[int, int, int]:
        """(busy, frames in the WAL, frames moved)"""
        self.advance()
        return self.checkpoint_only(mode)

    def checkpoint_only(self, mode: str) -> tuple[int, int, int]:
        """Without the tracker: it is lost, or is to be."""
        self.pending = 0
        (found,) = self.db.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        busy, frames, moved = found
        return busy, frames, moved

    def ship(self, *, whole: bool = False) -> Cut:
        """Cut and apply; the shadow is the database then."""
        self.advance()
        cut = self.tracker.cut(whole=whole)
        self.shadow.apply(cut, self.tracker.read(cut))
        assert self.shadow.image == self.image()
        return cut

    def image(self) -> bytes:
        return self.db.serialize()

    def reopen(self) -> None:
        """Close SQLite, which checkpoints and deletes the WAL, and go on with the same tracker."""
        self.advance()
        self.db.close()
        self.db = self._connect()
        self.tracker.start()

    def reader(self) -> Handle:
        """A handle in a read transaction, at the present state."""
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM t").fetchall()
        return db

    def close(self) -> None:
        self.db.close()
        self.tracker.close()
