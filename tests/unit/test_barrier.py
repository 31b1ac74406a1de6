"""The durability barrier: what it reports, in which order, and what a failing disk does to it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.barrier import SYNCFS_FILES_MIN, Barrier, Durable, Released

EIO = OSError(errno.EIO, "the disk is on fire")


class File:
    """A WAL with a position; fits infra.barrier.Durable."""

    def __init__(self, directory: Path, name: str, *, new: bool = False) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.wal_path = directory / name
        self.wal_path.write_bytes(b"x")
        self.position = 1
        self.new = new


class Disk:
    """Stands in for the system's sync calls; remembers them and may fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.before: Callable[[], None] = lambda: None
        self.error: OSError | None = None
        monkeypatch.setattr(os, "fdatasync", self._fdatasync)
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _name(self, fd: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{fd}")).name

    def _fdatasync(self, fd: int) -> None:
        self.before()
        self.calls.append(f"data {self._name(fd)}")
        if self.error is not None:
            raise self.error

    def _fsync(self, fd: int) -> None:
        self.calls.append(f"dir {self._name(fd)}")

    def syncfs(self, fd: int) -> OSError | None:
        self.before()
        self.calls.append(f"fs {self._name(fd)}")
        return self.error


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def run(
    tmp_path: Path, disk: Disk, *items: File, syncfs: bool
) -> list[tuple[Durable, int, OSError | None]]:
    """Mark the files, let one pass (or a few) go by, and return what was reported."""
    passed: list[Released] = []
    barrier = Barrier(tmp_path, passed.extend)
    barrier._syncfs = disk.syncfs if syncfs else None
    for item in items:
        barrier._marked[item] = None  # together, as the marks of one loop round come together
    barrier.start()
    barrier.stop()
    return passed


@pytest.mark.parametrize("syncfs", [True, False])
def test_the_position_is_read_before_the_sync(tmp_path: Path, disk: Disk, syncfs: bool) -> None:
    files = [File(tmp_path, f"{n}-wal") for n in range(SYNCFS_FILES_MIN)]

    def commit_more() -> None:
        for file in files:
            file.position = 7

    disk.before = commit_more
    passed = run(tmp_path, disk, *files, syncfs=syncfs)
    assert passed == [(file, 1, None) for file in files]


def test_one_old_file_is_synced_alone(tmp_path: Path, disk: Disk) -> None:
    run(tmp_path, disk, File(tmp_path, "a-wal"), syncfs=True)
    assert disk.calls == ["data a-wal"]


def test_many_files_are_one_call(tmp_path: Path, disk: Disk) -> None:
    files = [File(tmp_path, f"{n}-wal") for n in range(SYNCFS_FILES_MIN)]
    run(tmp_path, disk, *files, syncfs=True)
    assert disk.calls == [f"fs {tmp_path.name}"]


def test_a_new_file_takes_the_whole_file_system(tmp_path: Path, disk: Disk) -> None:
    file = File(tmp_path / "t" / "00", "a-wal", new=True)
    run(tmp_path, disk, file, syncfs=True)
    assert disk.calls == [f"fs {tmp_path.name}"] and not file.new


def test_without_syncfs_a_new_file_syncs_its_directories(tmp_path: Path, disk: Disk) -> None:
    files = [File(tmp_path / "t" / "00", "a-wal", new=True), File(tmp_path / "t" / "01", "b-wal")]
    run(tmp_path, disk, *files, syncfs=False)
    assert disk.calls == ["data a-wal", "dir 00", "dir t", f"dir {tmp_path.name}", "data b-wal"]
    assert not files[0].new


@pytest.mark.parametrize("count", [1, SYNCFS_FILES_MIN])
@pytest.mark.parametrize("syncfs", [True, False])
def test_a_failed_sync_is_reported(tmp_path: Path, disk: Disk, count: int, syncfs: bool) -> None:
    files = [File(tmp_path, f"{n}-wal") for n in range(count)]
    disk.error = EIO
    passed = run(tmp_path, disk, *files, syncfs=syncfs)
    assert passed == [(file, 1, EIO) for file in files]


def test_a_file_that_is_gone_is_reported(tmp_path: Path, disk: Disk) -> None:
    file = File(tmp_path, "a-wal")
    file.wal_path.unlink()
    ((_, _, error),) = run(tmp_path, disk, file, syncfs=True)
    assert isinstance(error, FileNotFoundError)


@pytest.mark.parametrize("count", [1, SYNCFS_FILES_MIN])
def test_a_failed_file_never_passes_again(tmp_path: Path, disk: Disk, count: int) -> None:
    # The kernel reports a lost page once; the next sync of the same file succeeds and means
    # nothing.
    barrier = Barrier(tmp_path, lambda _passed: None)
    barrier._syncfs = disk.syncfs
    barrier._root = os.open(tmp_path, os.O_RDONLY)
    files = [File(tmp_path, f"{n}-wal") for n in range(count)]
    disk.error = EIO
    barrier._pass([(file, 1) for file in files])
    disk.error = None
    assert barrier.sync_now(files[0]) == [(files[0], 1, EIO)]
    other = File(tmp_path, "other-wal")
    again = barrier._pass([(files[0], 2), (other, 1)])
    assert [error for _, _, error in again] == [EIO, None]
    for fd in (*barrier._fds.values(), barrier._root):
        os.close(fd)


def test_stop_passes_what_is_marked(tmp_path: Path) -> None:
    file, passed = File(tmp_path, "a-wal"), list[Released]()
    barrier = Barrier(tmp_path, passed.extend)
    barrier.start()
    barrier.mark(file)
    barrier.stop()
    assert passed[-1] == (file, 1, None)


def test_a_forgotten_file_is_let_go_of(tmp_path: Path) -> None:
    file = File(tmp_path, "a-wal")
    barrier = Barrier(tmp_path, lambda _passed: None)
    barrier.start()
    barrier.mark(file)
    barrier.forget(file)
    barrier.stop()
    assert barrier._fds == {}


def test_the_system_s_own_calls_work(tmp_path: Path) -> None:
    passed: list[Released] = []
    barrier = Barrier(tmp_path, passed.extend)
    barrier.start()
    old, new = File(tmp_path, "a-wal"), File(tmp_path / "t", "b-wal", new=True)
    barrier.mark(new)
    barrier.mark(old)
    barrier.stop()
    assert {(item, error) for item, _, error in passed} == {(old, None), (new, None)}
