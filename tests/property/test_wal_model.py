"""A database, its tracker and a shadow of the cuts, with every step of a writer in any order.

Transactions of all kinds, rollbacks that had spilled, VACUUM, readers that hold checkpoints up,
checkpoints, cuts read in pieces while commits go on, reopening and crashes are separate rules.
After each cut the shadow must be the database as it was after the last advanced commit.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)

from infra.cut import Cut
from infra.sqlite import Handle
from infra.wal import WalBroken
from tests.support.wal import Tracked

PAGES_MAX = 400  # of the database; beyond it transactions only remove

sizes = st.sampled_from([1, 60, 400, 3_000, 20_000])
operations = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.integers(1, 12), sizes),
        st.tuples(st.just("update"), st.integers(1, 40), sizes),
        st.tuples(st.just("delete"), st.integers(1, 5), st.integers(0, 4)),
        st.tuples(st.just("undo"), st.integers(1, 30), sizes),  # a savepoint rolled back
        st.tuples(st.just("shrink"), st.integers(1, 9), st.just(0)),
        st.tuples(st.just("table"), st.integers(0, 3), st.just(0)),
    ),
    max_size=6,
)


class WalMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.files = 0
        self.reader: Handle | None = None
        self.cut: Cut | None = None
        self.reading: Iterator[tuple[int, bytes]] = iter(())
        self.read: list[tuple[int, bytes]] = []
        self.expected = b""

    @initialize(
        page_size=st.sampled_from([512, 1024, 4096]),
        vacuum=st.sampled_from(["NONE", "FULL", "INCREMENTAL"]),
        cache_pages=st.sampled_from([0, 3, 10]),
    )
    def create(self, page_size: int, vacuum: str, cache_pages: int) -> None:
        self.t = Tracked(
            self.directory / "0.db",
            cache_pages=cache_pages,
            setup=(f"PRAGMA page_size={page_size}", f"PRAGMA auto_vacuum={vacuum}",
                   "CREATE TABLE counter(n INTEGER)", "INSERT INTO counter VALUES (0)"),
        )  # fmt: skip
        self.images = {0: self.t.image()}  # by commit
        self.commits = self.advanced = 0
        self.t.shadow.apply(*self._whole())

    def _whole(self) -> tuple[Cut, Iterator[tuple[int, bytes]]]:
        cut = self.t.tracker.cut(whole=True)
        return cut, self.t.tracker.read(cut)

    # -- commits -----------------------------------------------------------------------------

    def _apply(self, name: str, count: int, size: int) -> None:
        db = self.t.db
        if name in ("insert", "undo", "update"):
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            if pages > PAGES_MAX:
                name = "delete"
        if name == "insert":
            db.executemany("INSERT INTO t(b) VALUES (randomblob(?))", [(size,)] * count)
        elif name == "update":
            db.execute("UPDATE t SET b=randomblob(?) WHERE k % ? = 0", (size, count))
        elif name == "delete":
            db.execute("DELETE FROM t WHERE k % ? <= ?", (count, size))
        elif name == "undo":
            db.execute("SAVEPOINT s")
            db.executemany("INSERT INTO t(b) VALUES (randomblob(?))", [(size,)] * count)
            db.execute("DELETE FROM t WHERE k % 2 = 0")
            db.execute("ROLLBACK TO s")
            db.execute("RELEASE s")
        elif name == "shrink":
            db.execute(f"PRAGMA incremental_vacuum({count})").fetchall()
        else:
            (there,) = db.execute("SELECT count(*) FROM sqlite_master WHERE name='x'").fetchone()
            db.execute("DROP TABLE x" if there else "CREATE TABLE x(a, b UNIQUE)")

    def _committed(self) -> None:
        self.t.pending += 1
        self.commits += 1
        self.images[self.commits] = self.t.image()

    def _transaction(self, steps: list[tuple[str, int, int]], end: str) -> None:
        self.t.db.execute("BEGIN IMMEDIATE")
        self.t.db.execute("UPDATE counter SET n=n+1")  # so that it always writes
        for step in steps:
            self._apply(*step)
        self.t.db.execute(end)

    @rule(steps=operations)
    def commit(self, steps: list[tuple[str, int, int]]) -> None:
        self._transaction(steps, "COMMIT")
        self._committed()

    @rule(steps=operations, spill=st.booleans())
    def roll_back(self, steps: list[tuple[str, int, int]], spill: bool) -> None:
        more = [("insert", 12, 3_000)] * (4 if spill else 0)
        self._transaction([*steps, *more], "ROLLBACK")

    @precondition(lambda self: self.reader is None)
    @rule()
    def vacuum(self) -> None:
        self.t.db.execute("VACUUM")
        self._committed()

    # -- readers and checkpoints -------------------------------------------------------------

    @precondition(lambda self: self.reader is None)
    @rule()
    def begin_reading(self) -> None:
        self.reader = self.t.reader()

    @precondition(lambda self: self.reader is not None)
    @rule()
    def end_reading(self) -> None:
        assert self.reader is not None
        self.reader.close()
        self.reader = None

    @rule(mode=st.sampled_from(["PASSIVE", "PASSIVE", "RESTART", "TRUNCATE"]))
    def checkpoint(self, mode: str) -> None:
        self._finish_cut()
        self._advance(self.t.pending)
        self.t.db.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        if mode == "RESTART":  # a second one in a row is not to be told from lost commits
            self.commit([])

    # -- following, cutting, shipping --------------------------------------------------------

    def _advance(self, commits: int) -> None:
        try:
            self.t.tracker.advance(commits)
        except WalBroken:
            assert self._lost_by_sqlite()
            self._begin_again()
            return
        self.t.pending -= commits
        self.advanced += commits
        assert self.t.tracker.commit * self.t.tracker.page_size == len(self.images[self.advanced])

    def _lost_by_sqlite(self) -> bool:
        """Whether a crash now would cost commits: then the tracker is right to refuse.

        Where pages have spilled, a savepoint is rolled back and the rest committed, SQLite 3.40
        leaves frames without salts before the commit frame. It goes on with them in memory, but
        takes them for the end of the WAL when it recovers one.
        """
        path = self._copy()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            return db.serialize() != self.images[self.commits]

    def _begin_again(self) -> None:
        """What a caller does after WalBroken."""
        self._close_reader()
        self._finish_cut()
        self.t.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self.t.tracker.start()
        self.t.pending, self.advanced = 0, self.commits
        with pytest.raises(WalBroken):
            self.t.tracker.cut()
        self.t.shadow.apply(*self._whole())
        assert self.t.shadow.image == self.images[self.commits]

    def _copy(self) -> Path:
        """The files as a killed process leaves them, in another place."""
        self.files += 1
        path = self.directory / f"{self.files}.db"
        shutil.copy(self.t.path, path)
        if self.t.wal_path.exists():
            shutil.copy(self.t.wal_path, path.with_name(path.name + "-wal"))
        return path

    @rule(part=st.floats(0, 1))
    def advance(self, part: float) -> None:
        self._advance(round(part * self.t.pending))

    @precondition(lambda self: self.cut is None)
    @rule(whole=st.integers(0, 5))
    def take_cut(self, whole: int) -> None:
        before = len(self.t.shadow.image)
        cut = self.t.tracker.cut(whole=whole == 0 or self.t.tracker.whole_due)
        assert cut.commit == self.t.tracker.commit
        assert cut.shrunk == (cut.commit * cut.page_size < before)
        assert not cut.filled, "SQLite writes each page it grows by"
        assert self.t.tracker.bytes_pending == 0
        self.cut, self.reading, self.read = cut, self.t.tracker.read(cut), []
        self.expected = self.images[self.advanced]

    @precondition(lambda self: self.cut is not None)
    @rule(pages=st.integers(0, 80))
    def read_some(self, pages: int) -> None:
        for _, page in zip(range(pages), self.reading, strict=False):
            self.read.append(page)

    @precondition(lambda self: self.cut is not None)
    @rule()
    def ship(self) -> None:
        self._finish_cut()

    def _finish_cut(self) -> None:
        if self.cut is None:
            return
        self.read.extend(self.reading)
        assert [pgno for pgno, _ in self.read] == self.cut.pgnos
        assert len(self.read) == self.cut.pages
        self.t.shadow.apply(self.cut, self.read)
        assert self.t.shadow.image == self.expected
        self.cut = None

    # -- ends and beginnings -----------------------------------------------------------------

    def _close_reader(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None

    @rule(ship=st.booleans(), same_tracker=st.booleans())
    def reopen(self, ship: bool, same_tracker: bool) -> None:
        self._close_reader()
        self._finish_cut()
        self._advance(self.t.pending)
        if ship:
            self.take_cut(1)
            self._finish_cut()
        if same_tracker:
            due = self.t.tracker.whole_due or bool(self.t.tracker.changed)
            self.t.reopen()
            assert self.t.tracker.whole_due == due
        else:
            self.t.close()
            self._open(self.t.path, ship)

    @rule()
    def crash(self) -> None:
        """A killed process, its files opened by the next."""
        self._advance(self.t.pending)
        self._close_reader()
        self._finish_cut()
        path = self._copy()
        self.t.close()
        self._open(path, False)

    def _open(self, path: Path, shipped: bool) -> None:
        old = self.t
        self.t = Tracked(path, cache_pages=old.cache_pages)
        self.t.shadow = old.shadow
        self.commits = self.advanced = max(self.images)
        assert self.t.image() == self.images[self.commits]
        if not shipped:
            self.t.shadow.apply(*self._whole())
        assert self.t.shadow.image == self.images[self.commits]

    def teardown(self) -> None:
        try:
            if hasattr(self, "t"):
                self._close_reader()
                self._finish_cut()
                self._advance(self.t.pending)
                self.take_cut(1)
                self._finish_cut()
                self.t.close()
        finally:
            shutil.rmtree(self.directory)


TestWalMachine = WalMachine.TestCase
TestWalMachine.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
