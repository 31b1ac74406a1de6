"""What only a directory has: files, folders, a disk that may fill up or not be mounted."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

from infra import clock
from infra.objects import (
    ObjectExists,
    ObjectMissing,
    StoreRefused,
    StoreUnavailable,
    probe_conditional_writes,
)
from infra.stores import directory
from infra.stores.directory import LEFTOVER_AGE_MS, TEMPORARY_FOLDER, DirectoryStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "bucket"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore(root)


def files(root: Path) -> list[str]:
    """Every file, temporary ones too."""
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def keys(store: DirectoryStore) -> list[str]:
    return [info.key for info in store.list("").objects]


def test_the_layout_is_that_of_the_keys(root: Path, store: DirectoryStore) -> None:
    store.put("t/s/0000/1-1.ltx", b"one", if_absent=True)
    store.put("t/s/0009/1-1.ltx", b"two")
    assert files(root) == ["t/s/0000/1-1.ltx", "t/s/0009/1-1.ltx"]
    assert (root / "t/s/0000/1-1.ltx").read_bytes() == b"one"


@pytest.mark.parametrize("if_absent", [True, False])
def test_the_time_of_an_object_is_that_of_the_file(
    root: Path, store: DirectoryStore, if_absent: bool
) -> None:
    store.put("a", b"x", if_absent=if_absent, timestamp_ms=1_700_000_000_123)
    (info,) = store.list("").objects
    assert info.modified_ms == 1_700_000_000_123
    assert (root / "a").stat().st_mtime_ns == 1_700_000_000_123_000_000


def test_the_first_write_makes_the_bucket(root: Path, store: DirectoryStore) -> None:
    for read in (lambda: store.list(""), lambda: store.get("a"), lambda: store.delete(["a"])):
        with pytest.raises(StoreRefused, match="does not exist"):
            read()
    assert not root.exists()
    probe_conditional_writes(store, "p")
    assert root.is_dir() and store.list("").objects == []


def test_a_bucket_without_a_parent_is_refused(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "not" / "mounted")
    with pytest.raises(StoreRefused, match="make the parent"):
        store.put("a", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bucket").write_text("x")
    with pytest.raises(StoreRefused, match="is a file"):
        DirectoryStore(tmp_path / "bucket").put("a", b"x")


@pytest.mark.parametrize("seen_by", ["put", "list"])
def test_a_bucket_that_vanishes_is_not_made_again(
    root: Path, store: DirectoryStore, seen_by: str
) -> None:
    root.mkdir()
    if seen_by == "put":
        store.put("a", b"x")
    else:
        store.list("")
    root.rename(root.with_name("unmounted"))
    with pytest.raises(StoreRefused, match="mount its disk"):
        store.put("b", b"x", if_absent=True)
    with pytest.raises(StoreRefused, match="mount its disk"):
        store.get("a")
    assert not root.exists()


def test_a_relative_path_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = DirectoryStore("bucket")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.put("a", b"x")
    assert (tmp_path / "bucket" / "a").exists() and store.url == f"file:{tmp_path}/bucket"


@pytest.mark.parametrize("other", ["a", "a/b/c"])
@pytest.mark.parametrize("if_absent", [True, False])
def test_a_key_is_no_folder(root: Path, store: DirectoryStore, other: str, if_absent: bool) -> None:
    store.put("a/b", b"x")
    with pytest.raises(StoreRefused, match="another one's folder"):
        store.put(other, b"y", if_absent=if_absent)
    assert files(root) == ["a/b"]


def test_the_folder_of_the_store_is_no_key(store: DirectoryStore) -> None:
    for key in (TEMPORARY_FOLDER, f"{TEMPORARY_FOLDER}/a"):
        with pytest.raises(StoreRefused, match="own"):
            store.put(key, b"x")
    store.put(f"a/{TEMPORARY_FOLDER}/b", b"x")
    assert keys(store) == [f"a/{TEMPORARY_FOLDER}/b"]


def test_what_a_listing_leaves_out(
    root: Path, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a", b"x")
    (root / TEMPORARY_FOLDER / "half").write_text("x")
    (root / "empty").mkdir()
    (root / "link").symlink_to(root / "a")
    (root / os.fsdecode(b"\xff")).write_text("x")
    assert keys(store) == ["a"]


def test_a_listing_reads_only_the_folders_it_must(
    root: Path, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        for level in ("0000", "0009"):
            store.put(f"t/s{number}/{level}/1.ltx", b"x")
    read: list[str] = []
    scandir = os.scandir

    def counting(path: str) -> object:
        read.append(os.path.relpath(path, root))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    store.list("t/s1/0009/")
    assert read == ["t/s1/0009"]
    read.clear()
    store.list("t/s1/", after="t/s1/0009/0")
    assert read == ["t/s1", "t/s1/0009"]
    read.clear()
    store.list("t/", limit=1)
    assert read == ["t", "t/s0", "t/s0/0000", "t/s0/0009"]


def test_a_file_that_goes_while_it_is_listed(store: DirectoryStore, root: Path) -> None:
    for key in ("a", "b", "c"):
        store.put(key, b"x")
    walk = directory._walk(str(root), "", "", b"")
    assert next(walk).key == "a"
    store.delete(["b"])
    assert [info.key for info in walk] == ["c"]


def fail(monkeypatch: pytest.MonkeyPatch, name: str, number: int, *, times: int = 1) -> None:
    """Have a call of `os` fail so many times."""
    real = getattr(os, name)
    left = [times]

    def failing(*args: object, **options: object) -> object:
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return real(*args, **options)

    monkeypatch.setattr(os, name, failing)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(
    root: Path, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store.put("first", b"x")
    fail(monkeypatch, "fsync", number)
    with pytest.raises(StoreUnavailable, match="free space") as caught:
        store.put("a", b"x", if_absent=True)
    assert caught.value.code == "disk_full" and caught.value.retryable
    assert files(root) == ["first"]
    store.put("a", b"x", if_absent=True)


def test_a_disk_that_fills_up_while_a_file_is_written(root: Path, store: DirectoryStore) -> None:
    class Full(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise OSError(errno.ENOSPC, "no space")
            return super().read(10)

    with pytest.raises(StoreUnavailable, match="free space"):
        store.put("a", Full(bytes(20)))
    assert files(root) == []


@pytest.mark.parametrize(
    ("call", "number", "error", "said"),
    [
        ("fsync", errno.EIO, StoreUnavailable, "Input/output"),
        ("link", errno.EPERM, StoreRefused, "no hard links"),
        ("link", errno.EOPNOTSUPP, StoreRefused, "no hard links"),
        ("link", errno.EACCES, StoreRefused, "permissions"),
        ("link", errno.EROFS, StoreRefused, "mount"),
        ("link", errno.ENOENT, StoreUnavailable, "No such file"),
    ],
)
def test_a_create_that_fails_creates_nothing(
    root: Path,
    store: DirectoryStore,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    error: type[Exception],
    said: str,
) -> None:
    store.put("first", b"x")
    fail(monkeypatch, call, number)
    with pytest.raises(error, match=said):
        store.put("a", b"x", if_absent=True)
    assert files(root) == ["first"]


def test_a_create_whose_last_sync_fails_is_ambiguous(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with a lost reply: the key may be there, and repeating tells.
    store.put("first", b"x")
    sync = directory._sync
    fail_next = [True]

    def failing(folder: str) -> None:
        if fail_next.pop() if fail_next else False:
            raise OSError(errno.EIO, "no")
        sync(folder)

    monkeypatch.setattr(directory, "_sync", failing)
    with pytest.raises(StoreUnavailable):
        store.put("a", b"x", if_absent=True)
    with pytest.raises(ObjectExists):
        store.put("a", b"x", if_absent=True)


def test_every_put_is_synced_before_it_has_its_name(
    root: Path, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def log(name: str, real: object) -> object:
        def called(*args: object, **options: object) -> object:
            if name == "fsync":
                path = Path(os.readlink(f"/proc/self/fd/{args[0]}"))
                what = path.relative_to(root.parent).as_posix()
                calls.append(f"fsync {'file' if TEMPORARY_FOLDER in what else what}")
            else:
                calls.append(name)
            return real(*args, **options)  # type: ignore[operator]

        return called

    for name in ("fsync", "link", "replace"):
        monkeypatch.setattr(os, name, log(name, getattr(os, name)))
    store.put("t/s/a", b"x", if_absent=True)
    # New folders first: their entries must be there whenever the file is.
    made = ["fsync bucket/t", "fsync bucket"]
    assert calls == ["fsync .", *made, "fsync file", "link", "fsync bucket/t/s"]
    calls.clear()
    store.put("t/s/b", b"x")
    assert calls == ["fsync file", "replace", "fsync bucket/t/s"]
    calls.clear()
    # Another process may have made the folders and not have synced them yet.
    DirectoryStore(root).put("t/s/c", b"x")
    assert calls == [*made, "fsync file", "replace", "fsync bucket/t/s"]


def test_a_reader_never_sees_a_part(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("a", b"old")
    seen: list[bytes] = []
    fsync = os.fsync

    def looking(fd: int) -> None:
        seen.append(store.get("a"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", looking)
    store.put("a", b"newer")
    assert seen == [b"old", b"newer"] and store.get("a") == b"newer"


def test_what_a_crash_left_goes_after_a_day(
    root: Path, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a", b"x")
    leftover = root / TEMPORARY_FOLDER / "left"
    leftover.write_text("x")
    os.utime(leftover, (0, 0))  # not what counts: files carry the time of their content
    DirectoryStore(root).put("b", b"x")
    assert leftover.exists()
    tomorrow_ms = clock.now_ms() + LEFTOVER_AGE_MS + 60_000
    monkeypatch.setattr(clock, "now_ms", lambda: tomorrow_ms)
    DirectoryStore(root).put("c", b"x")
    assert not leftover.exists()


def test_folders_may_be_forgotten(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "SYNCED_FOLDERS_MAX", 3)
    for number in range(20):
        store.put(f"t/{number}/a", b"x", if_absent=True)
    assert len(store._synced) <= 4 and len(keys(store)) == 20


def test_a_folder_that_was_removed_is_made_again(root: Path, store: DirectoryStore) -> None:
    store.put("t/s/a", b"x")
    store.delete(["t/s/a"])
    (root / "t/s").rmdir()
    (root / TEMPORARY_FOLDER).rmdir()
    store.put("t/s/b", b"x", if_absent=True)
    with pytest.raises(ObjectMissing):
        store.get("t/s/a")
    assert keys(store) == ["t/s/b"]
