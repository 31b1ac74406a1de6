"""A database file out of pages: complete or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from infra.errors import StorageError
from infra.pagefile import SUFFIX, PageFile
from tests.support.replicas import image_of

SIZE = 512


def page(fill: int) -> bytes:
    return bytes([fill]) * SIZE


def build(target: Path, *files: tuple[int, dict[int, int]], hole: int = 2097153) -> None:
    """Each file: (commit, {page number: byte})."""
    with PageFile(target, page_size=SIZE, hole=hole) as output:
        for commit, pages in files:
            output.apply([(number, page(fill)) for number, fill in pages.items()], commit=commit)
        output.finish(files[-1][0])


def test_later_pages_win_and_the_file_has_the_last_size(tmp_path: Path) -> None:
    target = tmp_path / "x.db"
    build(target, (3, {1: 1, 2: 2, 3: 3}), (4, {2: 5, 4: 6}), (2, {}), (3, {3: 9}))
    assert target.read_bytes() == image_of(1, 5, 9)
    assert os.listdir(tmp_path) == ["x.db"]
    assert target.stat().st_mode & 0o777 == 0o600


def test_pages_may_come_in_any_order_and_number(tmp_path: Path) -> None:
    target = tmp_path / "x.db"
    build(target, (4, {3: 3, 4: 4}), (4, {1: 1}), (4, {2: 2}))
    assert target.read_bytes() == image_of(1, 2, 3, 4)
    many = {number: number % 251 for number in range(1, 2000)}  # more than one write takes
    build(target, (1999, many))
    assert target.read_bytes() == image_of(*many.values())


def test_the_hole_is_zero_and_not_missing(tmp_path: Path) -> None:
    target = tmp_path / "x.db"
    build(target, (4, {1: 1, 2: 2, 4: 4}), hole=3)
    assert target.read_bytes() == image_of(1, 2, 0, 4)
    build(target, (2, {1: 1, 2: 2}), hole=3)
    assert target.read_bytes() == image_of(1, 2)
    build(target, (3, {1: 1, 2: 2}), hole=3)
    assert target.read_bytes() == image_of(1, 2, 0)
    build(target, (4, {1: 1, 2: 2, 4: 4}), (2, {}), (5, {4: 7, 5: 8}), hole=3)
    assert target.read_bytes() == image_of(1, 2, 0, 7, 8)


@pytest.mark.parametrize(
    "files",
    [
        [(3, {1: 1, 3: 3})],
        [(2, {1: 1, 2: 2}), (4, {4: 4})],
        [(4, {1: 1, 2: 2, 3: 3, 4: 4}), (2, {}), (4, {4: 4})],  # page 3 was cut off meanwhile
        [(2, {1: 1})],
        [(1, {})],
    ],
)
def test_a_missing_page_is_an_error_and_leaves_the_target(
    tmp_path: Path, files: list[tuple[int, dict[int, int]]]
) -> None:
    target = tmp_path / "x.db"
    target.write_bytes(b"old")
    with pytest.raises(ValueError, match="is in no file"):
        build(target, *files)
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["x.db"]


def test_companions_of_the_old_file_go_and_others_stay(tmp_path: Path) -> None:
    target = tmp_path / "x.db"
    for end in ("", "-wal", "-shm", "-journal", "-wal2", SUFFIX):
        (tmp_path / f"x.db{end}").write_bytes(b"old")
    build(target, (1, {1: 1}))
    assert sorted(os.listdir(tmp_path)) == ["x.db", "x.db-wal2"]


def test_companions_stay_where_the_file_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "x.db"
    (tmp_path / "x.db-wal").write_bytes(b"old")
    with pytest.raises(ValueError, match="page 2"):
        build(target, (2, {1: 1}))
    assert os.listdir(tmp_path) == ["x.db-wal"]


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="disk is full") as caught:
        build(tmp_path / "x.db", (1, {1: 1}))
    assert caught.value.code == "disk_full" and os.listdir(tmp_path) == []


def test_a_part_taken_is_not_a_page_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, data[:100], at))
    build(tmp_path / "x.db", (2, {1: 1, 2: 2}))
    assert (tmp_path / "x.db").read_bytes() == image_of(1, 2)


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        build(tmp_path / "none" / "x.db", (1, {1: 1}))
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="cannot be written: Is a directory"):
        build(tmp_path / "folder", (1, {1: 1}))
    assert os.listdir(tmp_path) == ["folder"]


def test_old_journals_are_gone_on_disk_before_the_new_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.db-wal").write_bytes(b"old")
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(fd: int) -> None:
        steps.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def replaced(source: Path, target: Path) -> None:
        steps.append("replace" + (" beside a journal" if list(tmp_path.glob("*-wal")) else ""))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    build(tmp_path / "x.db", (1, {1: 1}))
    folder = "sync " + tmp_path.name
    assert steps == ["sync x.db" + SUFFIX, folder, "replace", folder]
