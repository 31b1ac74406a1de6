"""Restore: the right state with few requests, or an error that says why and an untouched target."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra import ltx, restore
from infra.errors import StorageError
from infra.layout import NoBackup, ReplicaGap, file_key
from infra.ltx import LtxError
from infra.objects import ObjectMissing, StoreRefused
from infra.restore import list_replica, restore_to
from infra.stores.directory import DirectoryStore
from tests.support.codecs import pure_python
from tests.support.replicas import (
    PAGE,
    START_MS,
    ReplicaWriter,
    WatchedStore,
    image_of,
    keys_of,
    rewrite,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "litestream"
OFFICIAL = json.loads((VECTORS / "restored.json").read_text())
A, B, C, D = image_of(1, 2), image_of(1, 3, 4), image_of(5), image_of(5, 6, 7, 8)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "bucket")


@pytest.fixture
def writer(store: DirectoryStore) -> ReplicaWriter:
    """A, B, C, D as TXIDs 1 to 4, grown and shrunk on the way, with a snapshot of B."""
    writer = ReplicaWriter(store)
    for image in (A, B, C, D):
        writer.write(image)
    writer.snapshot(2)
    return writer


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "x.db"
    path.write_bytes(b"old")
    (tmp_path / "out" / "x.db-wal").write_bytes(b"old wal")
    return path


@contextmanager
def untouched(target: Path) -> Iterator[None]:
    try:
        yield
    finally:  # whatever was raised, for the test to see
        assert sorted(os.listdir(target.parent)) == ["x.db", "x.db-wal"]
        assert target.read_bytes() == b"old"


def test_the_latest_state(store: DirectoryStore, writer: ReplicaWriter, target: Path) -> None:
    found = restore_to(store, "p", target)
    assert target.read_bytes() == D and os.listdir(target.parent) == ["x.db"]
    assert (found.txid, found.timestamp_ms, found.commit) == (4, START_MS + 4000, 4)
    assert (found.node_id, found.salt1, found.salt2, found.page_size) == (7, 4, 99, PAGE)
    sizes = {file.key: file.size for file in found.listed}
    planned = [file_key("p", 9, 1, 2), file_key("p", 0, 3, 3), file_key("p", 0, 4, 4)]
    assert found.files_read == 3 and found.bytes_read == sum(sizes[key] for key in planned)
    assert sorted(sizes) == keys_of(store)


def test_every_txid_and_time(store: DirectoryStore, writer: ReplicaWriter, target: Path) -> None:
    for txid in (1, 2, 3, 4):
        assert restore_to(store, "p", target, txid=txid).txid == txid
        assert target.read_bytes() == writer.images[txid]
        found = restore_to(store, "p", target, timestamp_ms=writer.times[txid] + 1)
        assert found.txid == txid and target.read_bytes() == writer.images[txid]
    with pytest.raises(NoBackup, match="before"):
        restore_to(store, "p", target, timestamp_ms=writer.times[1])
    with pytest.raises(NoBackup, match="TXID 5"):
        restore_to(store, "p", target, txid=5)
    with pytest.raises(ValueError, match="not to both"):
        restore_to(store, "p", target, txid=1, timestamp_ms=1)


def test_a_target_that_is_not_there_yet(
    store: DirectoryStore, writer: ReplicaWriter, tmp_path: Path
) -> None:
    restore_to(store, "p", tmp_path / "new.db")
    assert (tmp_path / "new.db").read_bytes() == D


def test_one_listing_and_one_read_for_each_planned_file(
    store: DirectoryStore, writer: ReplicaWriter, target: Path
) -> None:
    watched = WatchedStore(store)
    found = restore_to(watched, "p", target)
    assert watched.calls == {"list": 1, "get": 3}
    restore_to(watched, "p", target, files=found.listed)
    assert watched.calls == {"list": 1, "get": 6}


def test_a_scope_is_not_its_namesake(store: DirectoryStore, target: Path) -> None:
    ReplicaWriter(store, "p/run1").write(A)
    ReplicaWriter(store, "p/run10").write(B)
    with pytest.raises(NoBackup), untouched(target):
        restore_to(store, "p/run", target)
    restore_to(store, "p/run1", target)
    assert target.read_bytes() == A


def test_a_replica_at_the_top_of_its_store(store: DirectoryStore, target: Path) -> None:
    ReplicaWriter(store, "").write(A)
    restore_to(store, "", target)
    assert target.read_bytes() == A


def test_progress_counts_to_the_end(
    store: DirectoryStore, writer: ReplicaWriter, target: Path
) -> None:
    seen: list[tuple[int, int]] = []
    found = restore_to(store, "p", target, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1] == (found.bytes_read, found.bytes_read)


def test_large_files_are_streamed(
    store: DirectoryStore, writer: ReplicaWriter, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = [file_key("p", 9, 1, 2), file_key("p", 0, 3, 3), file_key("p", 0, 4, 4)]
    sizes = [len(store.get(key)) for key in planned]
    monkeypatch.setattr(restore, "WHOLE_BYTES_MAX", min(sizes))
    watched = WatchedStore(store)
    found = restore_to(watched, "p", target)
    large = sum(size > min(sizes) for size in sizes)
    assert large and watched.calls == {"list": 1, "get": 3 - large, "open": large}
    assert target.read_bytes() == D and found.bytes_read == sum(sizes)


@pytest.mark.parametrize("ahead_bytes", [1, 300, 1 << 20])
def test_many_files_with_a_pool_that_is_full(
    store: DirectoryStore, target: Path, monkeypatch: pytest.MonkeyPatch, ahead_bytes: int
) -> None:
    monkeypatch.setattr(restore, "AHEAD_BYTES_MAX", ahead_bytes)
    writer = ReplicaWriter(store)
    for number in range(1, 41):
        writer.write(image_of(number, 2))
    with ThreadPoolExecutor(1) as pool:
        # The pool's one thread runs the restore itself: nobody else could fetch.
        pool.submit(restore_to, store, "p", target, pool=pool).result()
    assert target.read_bytes() == image_of(40, 2)


def test_files_wait_ahead_only_up_to_the_limits(
    store: DirectoryStore, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "AHEAD_FILES_MAX", 3)
    writer = ReplicaWriter(store)
    for number in range(1, 21):
        writer.write(image_of(number))
    watched = WatchedStore(store)
    fetched_at_apply: list[int] = []
    decode = ltx.decode_stream

    def spy(read: Callable[[int], bytes]) -> object:
        fetched_at_apply.append(watched.calls["get"])
        return decode(read)

    monkeypatch.setattr(restore, "decode_stream", spy)
    restore_to(watched, "p", target)
    ahead = [fetched - used for used, fetched in enumerate(fetched_at_apply)]
    assert len(ahead) == 20 and max(ahead) <= 3


@pytest.mark.parametrize("page", [2, 3, 5, 9])
def test_a_long_listing_is_read_from_the_snapshot_on(
    store: DirectoryStore, target: Path, page: int
) -> None:
    writer = ReplicaWriter(store)
    for number in range(1, 31):
        writer.write(image_of(number, number % 3))
    for txid in (10, 20):
        writer.snapshot(txid)
    writer.pack(21, 25, level=1)
    store.put("p/lock.json", b"{}")
    watched = WatchedStore(store, page=page)
    listed = list_replica(watched, "p")
    assert restore_to(watched, "p", target).files_read == 7
    assert target.read_bytes() == writer.images[30]
    level0 = {file.min_txid for file in listed if file.level == 0}
    assert level0 == {*range(1, page + 1), *range(21, 31)}
    assert {file.max_txid for file in listed if file.level} == {10, 20, 25}
    for txid in range(1, 31):
        restore_to(watched, "p", target, txid=txid)
        assert target.read_bytes() == writer.images[txid]
        restore_to(watched, "p", target, timestamp_ms=writer.times[txid] + 1)
        assert target.read_bytes() == writer.images[txid]


def test_a_long_listing_of_an_official_directory(target: Path) -> None:
    tree = WatchedStore(DirectoryStore(VECTORS / "0.5.17"), page=4)
    for txid, digest in OFFICIAL["0.5.17"].items():
        restore_to(tree, "", target, txid=int(txid))
        assert hashlib.sha256(target.read_bytes()).hexdigest() == digest


def test_a_listing_without_end_is_an_error(
    store: DirectoryStore, writer: ReplicaWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "LIST_PAGES_MAX", 1)
    with pytest.raises(StorageError, match="more than 1 listings"):
        list_replica(WatchedStore(store, page=1), "p")


@pytest.mark.parametrize("pure", [False, True])
@pytest.mark.parametrize("version", sorted(OFFICIAL))
def test_what_the_official_tool_wrote(version: str, pure: bool, target: Path) -> None:
    """Both page-frame forms, several levels: byte for byte what its own restore makes."""
    tree = DirectoryStore(VECTORS / version)

    def check() -> None:
        for txid, digest in OFFICIAL[version].items():
            restore_to(tree, "", target, txid=int(txid))
            assert hashlib.sha256(target.read_bytes()).hexdigest() == digest

    if pure:
        with pure_python():
            check()
    else:
        check()


# --- times


def test_the_header_decides_where_the_store_received_late(
    store: DirectoryStore, writer: ReplicaWriter, target: Path
) -> None:
    # The bucket was copied a year later: the listing knows nothing.
    copied = WatchedStore(store, received=lambda info: START_MS + 365 * 86_400_000)
    for txid in (1, 2, 3, 4):
        assert restore_to(copied, "p", target, timestamp_ms=writer.times[txid] + 1).txid == txid
        assert target.read_bytes() == writer.images[txid]
    with pytest.raises(NoBackup):
        restore_to(copied, "p", target, timestamp_ms=writer.times[1])


def test_whole_seconds_of_a_listing_do_not_blur_the_target(
    store: DirectoryStore, target: Path
) -> None:
    writer = ReplicaWriter(store, step_ms=10)
    for number in range(1, 31):
        writer.write(image_of(number))
    writer.snapshot(12)
    coarse = WatchedStore(store, received=lambda info: info.modified_ms // 1000 * 1000)
    for txid in (1, 11, 12, 13, 29, 30):
        assert restore_to(coarse, "p", target, timestamp_ms=writer.times[txid] + 1).txid == txid


def test_what_was_received_long_before_needs_no_header(store: DirectoryStore, target: Path) -> None:
    writer = ReplicaWriter(store, step_ms=60_000)
    for number in range(1, 101):
        writer.write(image_of(number))
    watched = WatchedStore(store)
    restore_to(watched, "p", target, timestamp_ms=writer.times[60] + 1)
    assert target.read_bytes() == image_of(60)
    # 15 minutes before the target, and what one turn of reading looks beyond it.
    assert watched.calls["get"] == 60 and watched.calls["head"] <= 15 + 2 * restore.HEADERS_AHEAD


def test_few_headers_of_many_snapshots_are_read(store: DirectoryStore, target: Path) -> None:
    writer = ReplicaWriter(store)
    for number in range(1, 65):
        writer.write(image_of(number))
        writer.snapshot()
    store.delete([key for key in keys_of(store) if "/0000/" in key])
    watched = WatchedStore(store)
    restore_to(watched, "p", target, timestamp_ms=writer.times[37])
    assert target.read_bytes() == image_of(36) and watched.calls["head"] <= 8


def test_a_late_compacted_file_is_replaced_by_what_it_was_made_of(
    store: DirectoryStore, target: Path
) -> None:
    writer = ReplicaWriter(store)
    for number in range(1, 13):
        writer.write(image_of(number))
    writer.pack(2, 6, level=1)
    writer.pack(7, 12, level=1)
    writer.pack(2, 12, level=2)
    for txid in range(1, 13):
        restore_to(store, "p", target, timestamp_ms=writer.times[txid] + 1)
        assert target.read_bytes() == image_of(txid)


# --- damage


def test_no_backup(store: DirectoryStore, writer: ReplicaWriter, target: Path) -> None:
    with pytest.raises(NoBackup) as caught, untouched(target):
        restore_to(store, "q", target)
    assert caught.value.code == "not_found" and not caught.value.retryable
    with pytest.raises(StoreRefused), untouched(target):
        restore_to(DirectoryStore(target.parent / "none"), "p", target)


def test_a_gap(store: DirectoryStore, writer: ReplicaWriter, target: Path) -> None:
    store.delete([file_key("p", 0, 3, 3)])
    with pytest.raises(ReplicaGap, match="TXID 2") as caught, untouched(target):
        restore_to(store, "p", target)
    assert caught.value.code == "corrupt"
    writer.snapshot(3)
    restore_to(store, "p", target)
    assert target.read_bytes() == D


def test_a_superseded_damaged_file_is_not_read(
    store: DirectoryStore, writer: ReplicaWriter, target: Path
) -> None:
    rewrite(store, file_key("p", 0, 1, 1), lambda body: b"rubbish")
    restore_to(store, "p", target)
    assert target.read_bytes() == D


def flipped(body: bytes) -> bytes:
    return body[:-20] + bytes([body[-20] ^ 1]) + body[-19:]


@pytest.mark.parametrize("level", [0, 9])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flipped, "index"),
        (lambda body: body[:-1] + bytes([body[-1] ^ 1]), "checksum"),
        (lambda body: body[:-10], "ends"),
        (lambda body: body[:50], "ends"),
        (lambda body: b"", "ends"),
        (lambda body: body + b"x", "after the end"),
        (lambda body: b"<html>" + body, "not an LTX file"),
    ],
)
def test_a_damaged_file(
    store: DirectoryStore,
    writer: ReplicaWriter,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    level: int,
    streamed: bool,
    change: Callable[[bytes], bytes],
    message: str,
) -> None:
    if streamed:
        monkeypatch.setattr(restore, "WHOLE_BYTES_MAX", -1)
    key = file_key("p", 9, 1, 2) if level else file_key("p", 0, 4, 4)
    rewrite(store, key, change)
    with pytest.raises(LtxError, match=message) as caught, untouched(target):
        restore_to(store, "p", target)
    assert key in str(caught.value) and caught.value.code == "corrupt"


def test_a_damaged_header_in_a_restore_to_a_time(
    store: DirectoryStore, writer: ReplicaWriter, target: Path
) -> None:
    key = file_key("p", 0, 3, 3)
    rewrite(store, key, lambda body: b"rubbish")
    with pytest.raises(LtxError, match=key), untouched(target):
        restore_to(store, "p", target, timestamp_ms=START_MS + 3500)


def test_a_file_under_anothers_name(
    store: DirectoryStore, writer: ReplicaWriter, target: Path
) -> None:
    body = store.get(file_key("p", 0, 3, 3))
    rewrite(store, file_key("p", 0, 4, 4), lambda _: body)
    with pytest.raises(LtxError, match="TXIDs 3 to 3: another file's bytes"), untouched(target):
        restore_to(store, "p", target)


def test_pages_of_two_sizes(store: DirectoryStore, writer: ReplicaWriter, target: Path) -> None:
    other = ReplicaWriter(store, "other", page_size=1024)
    for image in (A, A, A, A, A):
        other.write(image + image)
    writer.images.append(D)
    writer.times.append(0)
    body = store.get(file_key("other", 0, 5, 5))
    store.put(file_key("p", 0, 5, 5), body)
    with pytest.raises(LtxError, match="pages of 1024 bytes after pages of 512"), untouched(target):
        restore_to(store, "p", target)


def test_a_grown_page_that_no_file_brought(
    store: DirectoryStore, writer: ReplicaWriter, target: Path
) -> None:
    header = ltx.Header(page_size=PAGE, commit=7, min_txid=5, max_txid=5, timestamp_ms=1)
    store.put(file_key("p", 0, 5, 5), ltx.encode(header, [(5, A[:PAGE]), (7, A[:PAGE])]))
    with pytest.raises(LtxError, match="page 6 of 7 is in no file"), untouched(target):
        restore_to(store, "p", target)


def test_an_empty_claim_changes_nothing_but_the_txid(
    store: DirectoryStore, writer: ReplicaWriter, target: Path
) -> None:
    header = ltx.Header(
        page_size=PAGE, commit=4, min_txid=5, max_txid=5, timestamp_ms=9, node_id=8, salt1=3
    )
    store.put(file_key("p", 0, 5, 5), ltx.encode(header, ()))
    found = restore_to(store, "p", target)
    assert (found.txid, found.node_id, found.salt1, found.salt2) == (5, 8, 3, 0)
    assert target.read_bytes() == D


def test_a_listed_file_that_is_gone(
    store: DirectoryStore, writer: ReplicaWriter, target: Path
) -> None:
    listed = list_replica(store, "p")
    store.delete([file_key("p", 0, 4, 4)])
    with pytest.raises(ReplicaGap, match=file_key("p", 0, 4, 4)) as caught, untouched(target):
        restore_to(store, "p", target, files=listed)
    assert isinstance(caught.value.__cause__, ObjectMissing)


def test_retention_during_a_restore_is_planned_anew(
    store: DirectoryStore, writer: ReplicaWriter, target: Path
) -> None:
    class Retention(WatchedStore):
        def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
            if self.calls["list"] == 1:
                writer.snapshot(4)
                self.delete([file_key("p", 0, 3, 3), file_key("p", 0, 4, 4)])
            return super().get(key, start=start, end=end)

    store_under_retention = Retention(store)
    restore_to(store_under_retention, "p", target)
    assert target.read_bytes() == D and store_under_retention.calls["list"] == 2


def test_a_store_that_fails_midway(
    store: DirectoryStore, writer: ReplicaWriter, target: Path
) -> None:
    class Failing(WatchedStore):
        def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
            if key == file_key("p", 0, 4, 4):
                raise StorageError("no answer")
            return super().get(key, start=start, end=end)

    with pytest.raises(StorageError, match="no answer"), untouched(target):
        restore_to(Failing(store), "p", target)
    with (
        ThreadPoolExecutor(2) as pool,
        pytest.raises(StorageError, match="no answer"),
        untouched(target),
    ):
        restore_to(Failing(store), "p", target, pool=pool)


def test_a_full_disk_leaves_the_target(
    store: DirectoryStore, writer: ReplicaWriter, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"), untouched(target):
        restore_to(store, "p", target)
