"""The tracker and its files: where it starts, sizes and holes SQLite does not make, and locks."""

from __future__ import annotations

import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.errors import StorageError
from infra.wal import WalBroken, WalTracker
from tests.support.wal import Tracked

Open = Callable[..., Tracked]


@pytest.fixture
def open_tracked(tmp_path: Path, request: pytest.FixtureRequest) -> Open:
    def opened(**options: object) -> Tracked:
        tracked = Tracked(tmp_path / "a.db", **options)  # type: ignore[arg-type]
        request.addfinalizer(tracked.close)
        tracked.ship(whole=True)
        return tracked

    return opened


# -- starting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["absent", "empty"])
def test_start_with_no_wal_yet_and_with_an_empty_one(tmp_path: Path, state: str) -> None:
    t = Tracked(tmp_path / "a.db")
    t.db.close()
    t.db = sqlite3.connect(t.path, isolation_level=None)  # reads nothing before it is used
    if state == "empty":
        t.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert t.wal_path.exists() == (state == "empty")
    t.tracker.start()
    t.db.execute("PRAGMA cache_size=3")
    t.roll_back()  # a generation whose salts may be drawn anew for the first commit
    t.tracker.advance(0)
    t.write()
    t.ship(whole=True)
    t.close()


def test_start_refuses_a_wal_that_holds_something(open_tracked: Open) -> None:
    t = open_tracked()
    t.write()
    with pytest.raises(WalBroken, match="checkpoint with TRUNCATE first"):
        t.tracker.start()
    with pytest.raises(WalBroken, match="not started"):
        t.tracker.advance(1)
    t.checkpoint_only("TRUNCATE")
    t.tracker.start()


def test_recovered_wal(open_tracked: Open, tmp_path: Path) -> None:
    t = open_tracked()
    t.write()
    image = t.image()
    copy = tmp_path / "b.db"
    copy.write_bytes(t.path.read_bytes())
    copy.with_name("b.db-wal").write_bytes(t.wal_path.read_bytes())
    second = Tracked(copy)
    second.ship(whole=True)
    assert second.shadow.image == image
    second.close()


def test_reopened_file(open_tracked: Open) -> None:
    t = open_tracked()
    t.write()
    t.ship()
    t.reopen()
    t.write("CREATE TABLE u(a)")
    assert t.ship().pgnos == [1, 3]


def test_changes_left_at_start_make_the_next_cut_whole(open_tracked: Open) -> None:
    t = open_tracked()
    t.write()
    t.reopen()
    assert t.tracker.whole_due
    with pytest.raises(WalBroken, match="must be whole"):
        t.tracker.cut()
    t.ship(whole=True)
    assert not t.tracker.whole_due
    t.write()
    t.ship()


def test_size_comes_from_the_file_where_the_header_is_out_of_date(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    Tracked(path).close()
    for pages, valid_for, expected in [(2, 1, 2), (9, 0, 2), (1, 1, 1)]:
        image = bytearray(path.read_bytes())
        struct.pack_into(">II", image, 24, 1, pages)
        struct.pack_into(">I", image, 92, valid_for)
        path.write_bytes(image)
        tracker = WalTracker.open(path)
        tracker.start()
        assert tracker.commit == expected
        tracker.close()


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, b"x"), (16, b"\x03\x00"), (16, b"\x00\x00"), (28, b"\xff\xff\xff\xff")],
    ids=["magic", "page size", "no page size", "more pages than the file has"],
)
def test_start_refuses_a_damaged_header(tmp_path: Path, at: int, value: bytes) -> None:
    path = tmp_path / "a.db"
    Tracked(path).close()
    image = bytearray(path.read_bytes())
    image[at : at + len(value)] = value
    path.write_bytes(image)
    tracker = WalTracker.open(path)
    with pytest.raises(WalBroken):
        tracker.start()
    tracker.close()


def test_start_refuses_another_file_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    Tracked(path).close()
    tracker = WalTracker.open(path)
    path.with_name("b.db").write_bytes(path.read_bytes())
    path.with_name("b.db").replace(path)
    with pytest.raises(WalBroken, match="replaced"):
        tracker.start()
    tracker.close()


def test_nothing_works_before_start_or_after_close(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"a\.db"):
        WalTracker.open(tmp_path / "a.db")
    t = Tracked(tmp_path / "a.db")
    for work in (lambda: t.tracker.advance(0), t.tracker.cut, t.tracker.start):
        t.close()
        with pytest.raises(WalBroken, match="closed"):
            work()


# -- written by hand: what SQLite does not do ------------------------------------------------------


def _hand_made(path: Path, page_size: int, pages: int) -> WalTracker:
    """A database file that is all holes but for its header."""
    header = bytearray(page_size)
    header[:16] = b"SQLite format 3\0"
    struct.pack_into(">H", header, 16, 1 if page_size == 65536 else page_size)
    struct.pack_into(">II", header, 24, 7, pages)
    struct.pack_into(">I", header, 92, 7)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(pages * page_size)
    tracker = WalTracker.open(path)
    tracker.start()
    return tracker


def _write_wal(path: Path, page_size: int, frames: list[tuple[int, int]]) -> None:
    salts = b"\0\0\0\1abcd"
    wal = struct.pack(">IIII8sII", 0x377F0682, 3007000, page_size, 0, salts, 0, 0)
    for pgno, commit in frames:
        wal += struct.pack(">II8sII", pgno, commit, salts, 0, 0) + bytes([pgno % 256]) * page_size
    path.with_name(path.name + "-wal").write_bytes(wal)


def test_growth_that_was_not_written_is_filled(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    tracker = _hand_made(path, 512, 3)
    with path.open("r+b") as file:
        file.seek(3 * 512)
        file.write(b"d" * 512)  # page 4 is in the file, 5 and 6 are nowhere
    _write_wal(path, 512, [(1, 0), (7, 7)])
    tracker.advance(1)
    cut = tracker.cut()
    assert (cut.pgnos, cut.filled) == ([1, 4, 5, 6, 7], 3)
    first = [page[:1] for _, page in tracker.read(cut)]
    assert first == [b"\x01", b"d", b"\0", b"\0", b"\x07"]
    tracker.close()


def test_pages_below_a_passing_minimum_are_filled(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    tracker = _hand_made(path, 512, 6)
    _write_wal(path, 512, [(1, 3), (6, 6)])
    tracker.advance(2)
    cut = tracker.cut()
    assert (cut.pgnos, cut.filled, cut.shrunk) == ([1, 4, 5, 6], 2, False)
    tracker.close()


def test_lock_page_is_never_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    lock = 16385
    tracker = _hand_made(path, 65536, lock + 3)
    whole = tracker.cut(whole=True)
    assert [(run.first, run.pages) for run in whole.runs] == [(1, lock - 1), (lock + 1, 3)]
    tracker.close()
    tracker = _hand_made(path, 65536, lock - 1)
    _write_wal(path, 65536, [(lock + 1, lock + 2)])
    tracker.advance(1)
    cut = tracker.cut()
    assert (cut.pgnos, cut.filled) == ([lock + 1, lock + 2], 1)
    tracker.close()


# -- locks -----------------------------------------------------------------------------------------

_VISITOR = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("SELECT count(*) FROM t").fetchone()
db.close()
"""


@pytest.mark.parametrize("trap", [False, True])
def test_another_process_cannot_delete_the_live_wal(open_tracked: Open, trap: bool) -> None:
    """Unless the database file was opened and closed beside SQLite: the trap `open` tells of."""
    t = open_tracked()
    for _ in range(3):
        t.write()
        t.ship()
        t.checkpoint("TRUNCATE")
    t.write()
    if trap:
        os.close(os.open(t.path, os.O_RDONLY))
    inode = t.wal_path.stat().st_ino
    subprocess.run([sys.executable, "-c", _VISITOR, t.path], check=True, timeout=30)
    assert t.wal_path.exists() == (not trap)
    t.write()
    if trap:
        with pytest.raises(WalBroken, match="deleted"):
            t.advance()
    else:
        assert t.wal_path.stat().st_ino == inode
        t.ship()


def test_locks_outlive_the_wal_descriptor(open_tracked: Open) -> None:
    t = open_tracked()
    t.write()
    t.checkpoint("TRUNCATE")
    t.tracker.start()  # closes the WAL's descriptor
    t.write()
    subprocess.run([sys.executable, "-c", _VISITOR, t.path], check=True, timeout=30)
    t.ship(whole=True)
