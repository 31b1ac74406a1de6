"""Following a WAL: what a cut holds after each kind of commit, and what the tracker refuses."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.cut import FILE
from infra.errors import StorageError
from infra.wal import READ_BYTES, SCAN_BYTES, WalBroken
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


# -- what a cut holds ------------------------------------------------------------------------------


def test_cut_holds_the_pages_of_its_commits(open_tracked: Open) -> None:
    t = open_tracked()
    t.write("CREATE TABLE u(a)")
    cut = t.ship()
    assert cut.pgnos == [1, 3] and (cut.commit, cut.filled, cut.shrunk) == (3, 0, False)
    t.write("INSERT INTO u VALUES (1)")
    assert t.ship().pgnos == [3]
    assert t.ship().pgnos == []


def test_only_advanced_commits_are_cut(open_tracked: Open) -> None:
    t = open_tracked()
    t.write("CREATE TABLE u(a)")
    before = t.image()
    t.write("DROP TABLE u")
    t.tracker.advance(1)
    cut = t.tracker.cut()
    t.shadow.apply(cut, t.tracker.read(cut))
    assert t.shadow.image == before
    t.pending = 1
    t.ship()


@pytest.mark.parametrize("page_size", [512, 1024, 4096, 65536])
def test_large_commits_of_every_page_size(open_tracked: Open, page_size: int) -> None:
    t = open_tracked(setup=[f"PRAGMA page_size={page_size}"])
    t.fill(40, 1 + max(READ_BYTES, SCAN_BYTES) // 16)
    t.write()
    assert t.tracker.page_size == page_size
    assert t.ship().pages * page_size > 2 * READ_BYTES


def test_pending_bytes_and_filled_wal(open_tracked: Open) -> None:
    t = open_tracked()
    assert (t.tracker.bytes_pending, t.tracker.wal_bytes) == (0, 0)
    t.write()
    t.write()
    t.advance()
    assert t.tracker.bytes_pending == 4096
    assert t.tracker.wal_bytes == t.wal_path.stat().st_size
    t.checkpoint("TRUNCATE")
    t.tracker.advance(0)
    assert (t.tracker.bytes_pending, t.tracker.wal_bytes) == (4096, 0)


def test_shrunken_database(open_tracked: Open) -> None:
    t = open_tracked()
    t.fill(50, 4000)
    t.ship()
    t.write("DELETE FROM t")
    t.db.execute("VACUUM")
    t.pending += 1
    cut = t.ship()
    assert cut.shrunk and max(cut.pgnos) <= cut.commit == 2
    assert not t.ship(whole=True).shrunk
    t.write()
    assert not t.ship().shrunk


def test_database_that_shrank_before_it_was_reopened(open_tracked: Open) -> None:
    t = open_tracked()
    t.fill(50, 4000)
    t.ship()
    t.write("DELETE FROM t")
    t.db.execute("VACUUM")
    t.pending += 1
    t.reopen()
    assert t.ship(whole=True).shrunk


def test_shrunken_and_grown_again_within_a_cut(open_tracked: Open) -> None:
    t = open_tracked()
    t.fill(50, 4000)
    pages = t.ship().commit
    t.write("DELETE FROM t")
    t.db.execute("VACUUM")
    t.pending += 1
    t.fill(50, 4000)
    cut = t.ship()
    assert cut.commit == pages and not cut.shrunk and not cut.filled


def test_whole_cut_takes_pages_from_wal_and_file(open_tracked: Open) -> None:
    t = open_tracked()
    t.fill(20, 4000)
    t.checkpoint("TRUNCATE")
    t.write("UPDATE t SET b=randomblob(10) WHERE k=7")
    cut = t.ship(whole=True)
    assert cut.pgnos == list(range(1, cut.commit + 1))
    assert {run.offset == FILE for run in cut.runs} == {True, False}


def test_rolled_back_transactions_that_spilled_are_skipped(open_tracked: Open) -> None:
    t = open_tracked(cache_pages=3)
    t.write()
    t.roll_back()
    size = t.wal_path.stat().st_size
    t.write()
    t.roll_back(rows=10)
    t.write()
    assert t.wal_path.stat().st_size == size > 50 * 4096
    assert t.ship().pgnos == [2]


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["PASSIVE", "TRUNCATE"])
@pytest.mark.parametrize(("first", "second"), [(1, 30), (30, 1), (5, 5)])
def test_wal_that_begins_again(open_tracked: Open, mode: str, first: int, second: int) -> None:
    t = open_tracked()
    t.fill(first, 4000)
    assert t.checkpoint(mode)[0] == 0
    t.fill(second, 4000)
    assert t.tracker.wal_bytes > 0
    t.ship()


def test_unfinished_checkpoint(open_tracked: Open) -> None:
    t = open_tracked()
    t.fill(5, 4000)
    reader = t.reader()
    t.fill(5, 4000)
    _, frames, moved = t.checkpoint()
    assert 0 < moved < frames
    t.write()
    t.ship()
    reader.close()
    _, frames, moved = t.checkpoint()
    assert moved == frames
    t.write()
    t.ship()
    assert t.tracker.wal_bytes == 32 + 4120


def test_pages_overwritten_in_the_wal_before_they_are_read(open_tracked: Open) -> None:
    t = open_tracked()
    t.fill(READ_BYTES // 4096 + 20, 4000)
    t.checkpoint()
    cut = t.tracker.cut()
    before = t.image()
    reading = t.tracker.read(cut)
    pages = [next(reading)]
    t.fill(200, 4000)  # begins the WAL again: what was cut is in the database file by now
    pages.extend(reading)
    t.shadow.apply(cut, pages)
    assert t.shadow.image == before
    t.ship()


def test_wal_that_begins_again_while_a_group_is_read(
    open_tracked: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = open_tracked()
    t.fill(20, 4000)
    t.checkpoint()
    cut = t.tracker.cut()
    before = t.image()
    pread, calls = os.pread, []

    def commit_after_the_first(*args: int) -> bytes:
        data = pread(*args)
        calls.append(args)
        if len(calls) == 1:
            t.fill(40, 4000)
        return data

    monkeypatch.setattr(os, "pread", commit_after_the_first)
    t.shadow.apply(cut, t.tracker.read(cut))
    assert t.shadow.image == before


def test_generation_without_commits_between_two_checkpoints(open_tracked: Open) -> None:
    t = open_tracked(cache_pages=3)
    t.write()
    t.checkpoint()
    t.roll_back()  # begins the WAL again and leaves nothing
    t.checkpoint("TRUNCATE")
    t.write()
    t.ship()


def test_two_truncating_checkpoints(open_tracked: Open) -> None:
    t = open_tracked()
    t.write()
    for _ in range(3):
        t.checkpoint("TRUNCATE")
    t.write()
    t.ship()


# -- what is refused, and how to go on -------------------------------------------------------------


def _begin_again(t: Tracked) -> None:
    t.checkpoint_only("TRUNCATE")
    t.tracker.start()
    with pytest.raises(WalBroken, match="whole"):
        t.tracker.cut()
    t.ship(whole=True)
    t.write()
    assert t.ship().pages < t.tracker.commit


@pytest.mark.parametrize("commits", [-1, 3, 1000])
def test_other_commits_than_were_made(open_tracked: Open, commits: int) -> None:
    t = open_tracked()
    t.fill(100, 4000)
    t.write()
    with pytest.raises(WalBroken, match=r"missing|back"):
        t.tracker.advance(commits)
    for work in (lambda: t.tracker.advance(0), lambda: t.tracker.cut(whole=True)):
        with pytest.raises(WalBroken, match="start again"):
            work()
    _begin_again(t)


def test_commits_of_a_spilled_rollback_are_not_taken_for_commits(open_tracked: Open) -> None:
    t = open_tracked(cache_pages=3)
    t.write()
    t.roll_back()
    with pytest.raises(WalBroken, match="1 of 2 commits are missing"):
        t.tracker.advance(2)
    _begin_again(t)


def test_frames_of_an_older_generation_are_not_taken_for_commits(open_tracked: Open) -> None:
    t = open_tracked()
    for _ in range(10):
        t.write()
    t.checkpoint()
    t.write()
    with pytest.raises(WalBroken, match="1 of 2 commits are missing"):
        t.tracker.advance(2)
    _begin_again(t)


def test_commit_in_an_empty_wal(open_tracked: Open) -> None:
    t = open_tracked()
    with pytest.raises(WalBroken, match="empty"):
        t.tracker.advance(1)
    _begin_again(t)


def test_update_that_changes_nothing_is_no_commit(open_tracked: Open) -> None:
    t = open_tracked()
    t.write()
    t.write("UPDATE t SET b=x'00'")
    t.advance()
    t.write("UPDATE t SET b=x'00'")
    with pytest.raises(WalBroken, match="1 of 1 commits are missing"):
        t.tracker.advance(1)
    _begin_again(t)


def test_two_generations_without_a_look_between(open_tracked: Open) -> None:
    t = open_tracked()
    t.write()
    t.checkpoint()
    for _ in range(2):  # commits of the first are lost to the tracker
        t.write()
        t.checkpoint_only("PASSIVE")
    t.write()
    with pytest.raises(WalBroken, match="more than once"):
        t.tracker.advance(1)
    _begin_again(t)


def test_deleted_wal(open_tracked: Open) -> None:
    t = open_tracked()
    t.write()
    t.advance()
    t.wal_path.unlink()
    t.write()
    with pytest.raises(WalBroken, match="deleted"):
        t.tracker.advance(1)


def test_replaced_wal(open_tracked: Open) -> None:
    t = open_tracked()
    t.write()
    t.advance()
    copy = t.wal_path.read_bytes()
    t.wal_path.rename(t.path.with_name("old-wal"))
    t.wal_path.write_bytes(copy)
    with pytest.raises(WalBroken, match="replaced"):
        t.tracker.advance(0)


def test_damaged_wal_header(open_tracked: Open) -> None:
    t = open_tracked()
    t.write()
    with t.wal_path.open("r+b") as wal:
        wal.seek(8)
        wal.write(b"\x00\x00\x20\x00")
    with pytest.raises(WalBroken, match="of another database"):
        t.tracker.advance(1)


def test_pages_gone_from_the_file(open_tracked: Open) -> None:
    t = open_tracked()
    t.fill(100, 4000)
    t.checkpoint()
    cut = t.tracker.cut(whole=True)
    t.checkpoint("TRUNCATE")  # against the promise, but nothing is lost by it
    assert len(list(t.tracker.read(cut))) == cut.pages
    os.truncate(t.path, 4096 * 50)
    with pytest.raises(WalBroken, match="gone"):
        list(t.tracker.read(cut))
    assert t.tracker.whole_due


def test_disk_that_cannot_be_read_just_now(
    open_tracked: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = open_tracked()
    t.write()

    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, "no luck")

    with monkeypatch.context() as broken:
        broken.setattr(os, "pread", failing)
        with pytest.raises(StorageError, match="no luck") as caught:
            t.tracker.advance(1)
        assert not isinstance(caught.value, WalBroken)
    t.advance()
    cut = t.tracker.cut()
    with monkeypatch.context() as broken:
        broken.setattr(os, "pread", failing)
        with pytest.raises(StorageError, match="no luck"):
            list(t.tracker.read(cut))
    with pytest.raises(WalBroken, match="must be whole"):  # the failed cut may be lost
        t.tracker.cut()
    t.ship(whole=True)


def test_frames_that_sqlite_would_not_recover(open_tracked: Open, tmp_path: Path) -> None:
    """Savepoint, spill, rollback to it, commit: SQLite 3.40 leaves frames without salts."""
    t = open_tracked(cache_pages=3)
    t.write()
    t.write(
        "UPDATE t SET b=1",
        "SAVEPOINT s",
        *["INSERT INTO t(b) VALUES (zeroblob(2000))"] * 20,
        "DELETE FROM t WHERE k % 2 = 0",
        "ROLLBACK TO s",
        "RELEASE s",
    )
    copy = tmp_path / "b.db"
    copy.write_bytes(t.path.read_bytes())
    copy.with_name("b.db-wal").write_bytes(t.wal_path.read_bytes())
    recovered = sqlite3.connect(copy)
    lost = recovered.serialize() != t.image()
    recovered.close()
    if lost:
        with pytest.raises(WalBroken, match="1 of 2 commits"):
            t.tracker.advance(2)
        _begin_again(t)
    else:
        t.ship()  # a SQLite without the fault
