"""The official `litestream` and we read each other's replicas, over HTTP and from a directory."""

from __future__ import annotations

import io
import os
import random
import sqlite3
import time
from pathlib import Path

import pytest

from infra import clock, ltx
from infra.layout import file_key, plan_restore
from infra.objects import ObjectStore, open_store
from infra.restore import list_replica, restore_to
from tests.support.litestream import (
    official_follow,
    official_replicate,
    official_restore,
    official_url,
    rfc3339,
    same_tables,
)
from tests.support.replicas import ReplicaWriter
from tests.support.s3 import S3Server
from tests.support.workload import Workload

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("s3_credentials")]

SEED = int(os.environ.get("HOLDFAST_SEED", "11"))
PREFIX = "backups/default/run~3a1"
# Compaction at an interval it does not document as allowed, so that levels fill in a test's time.
LEVELS = "levels: [{interval: 1s}, {interval: 2s}]\nsnapshot: {interval: 3s, retention: 1h}"


def bucket_of(kind: str, moto_server: S3Server, tmp_path: Path) -> str:
    """The URL, as ours, of an empty bucket or directory."""
    return moto_server.bucket_url() if kind == "s3" else f"file:{tmp_path / 'bucket'}"


def compare_restores(
    store: ObjectStore, url: str, folder: Path, images: list[bytes] | None = None
) -> int:
    """Restore every TXID there is with both tools, byte for byte alike; how many there were.

    `images`, by TXID, are what to expect.
    """
    listed = list_replica(store, PREFIX)
    txids = sorted({file.max_txid for file in listed})
    ours, theirs = folder / "ours.db", folder / "theirs.db"
    for txid in txids:
        official_restore(url, theirs, "-txid", f"{txid:016x}")
        found = restore_to(store, PREFIX, ours, txid=txid, files=listed)
        assert found.txid == txid and ours.read_bytes() == theirs.read_bytes()
        assert images is None or ours.read_bytes() == images[txid]
    return len(txids)


@pytest.mark.parametrize("kind", ["file", "s3"])
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_we_restore_what_the_official_tool_wrote(
    kind: str, page_size: int, moto_server: S3Server, tmp_path: Path
) -> None:
    bucket = bucket_of(kind, moto_server, tmp_path)
    url = official_url(bucket, PREFIX)
    source = tmp_path / "source.db"
    work = Workload(source, seed=SEED + page_size, page_size=page_size)
    with official_replicate(source, url) as replica:
        for _ in range(15):
            work.step()  # now and then one that changes nothing, and makes no TXID
            replicated = replica.sync()
    store = open_store(bucket)
    found = restore_to(store, PREFIX, tmp_path / "ours.db")
    assert found.txid == replicated > 5 and found.page_size == page_size
    assert same_tables(source, tmp_path / "ours.db")
    assert compare_restores(store, url, tmp_path) == found.txid
    work.close()


@pytest.mark.slow
def test_all_levels_of_the_official_tool(moto_server: S3Server, tmp_path: Path) -> None:
    bucket = moto_server.bucket_url()
    url = official_url(bucket, PREFIX)
    source = tmp_path / "source.db"
    work = Workload(source, seed=SEED)
    store = open_store(bucket)
    deadline = time.monotonic() + 60
    with official_replicate(source, url, settings=LEVELS) as replica:
        # It compacts by the clock: go on until it has.
        while {file.level for file in list_replica(store, PREFIX)} != {0, 1, 2, 9}:
            assert time.monotonic() < deadline
            work.step()
            replica.sync()
    restore_to(store, PREFIX, tmp_path / "ours.db")
    assert same_tables(source, tmp_path / "ours.db")
    compare_restores(store, url, tmp_path)
    work.close()


def test_times_mean_what_they_mean_to_the_official_tool(tmp_path: Path) -> None:
    # In a directory, where the tool keeps milliseconds.
    bucket = f"file:{tmp_path / 'bucket'}"
    url = official_url(bucket, PREFIX)
    work = Workload(tmp_path / "source.db", seed=SEED)
    with official_replicate(tmp_path / "source.db", url) as replica:
        for _ in range(10):
            work.step()
            replica.sync()
    work.close()
    store = open_store(bucket)
    listed = list_replica(store, PREFIX)
    ours, theirs = tmp_path / "ours.db", tmp_path / "theirs.db"
    compared = 0
    for file in plan_restore(listed)[1:]:
        for moment in (file.created_ms, file.created_ms + 1):
            done = official_restore(url, theirs, "-timestamp", rfc3339(moment), check=False)
            if done.returncode == 0:  # it refuses what is outside the range of the files' times
                restore_to(store, PREFIX, ours, timestamp_ms=moment)
                assert ours.read_bytes() == theirs.read_bytes()
                compared += 1
    assert compared > 5


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_the_official_tool_restores_what_we_wrote(
    page_size: int, moto_server: S3Server, tmp_path: Path
) -> None:
    bucket = moto_server.bucket_url()
    url = official_url(bucket, PREFIX)
    store = open_store(bucket)
    draw = random.Random(SEED)
    work = Workload(tmp_path / "source.db", seed=SEED, page_size=page_size)
    writer = ReplicaWriter(store, PREFIX, page_size=page_size)
    out = tmp_path / "theirs.db"
    for _ in range(25):
        writer.write(work.db.serialize())
        if draw.random() < 0.15:
            writer.snapshot()
        work.step()
    writer.write(work.db.serialize())
    official_restore(url, out, "-integrity-check", "full")
    assert out.read_bytes() == writer.images[-1]
    assert same_tables(tmp_path / "source.db", out)
    assert compare_restores(store, url, tmp_path, writer.images) == writer.txid
    work.close()


def test_the_official_tool_restores_ours_by_time(moto_server: S3Server, tmp_path: Path) -> None:
    bucket = moto_server.bucket_url()
    store = open_store(bucket)
    work = Workload(tmp_path / "source.db", seed=SEED)
    writer = ReplicaWriter(store, PREFIX, page_size=4096)
    second = clock.now_ms() // 1000 * 1000
    for number in range(8):
        writer.write(work.db.serialize(), at=second + 1000 + number * 10)
        work.step()
    # It only takes times between the first and the last LastModified, which are whole seconds.
    while clock.now_ms() < second + 3000:
        time.sleep(0.05)
    writer.write(work.db.serialize(), at=clock.now_ms())
    work.close()
    out = tmp_path / "theirs.db"
    for txid in range(1, 9):
        moment = writer.times[txid] + 1
        official_restore(official_url(bucket, PREFIX), out, "-timestamp", rfc3339(moment))
        assert out.read_bytes() == writer.images[txid]
        assert restore_to(store, PREFIX, out, timestamp_ms=moment).txid == txid
        assert out.read_bytes() == writer.images[txid]


def test_the_official_tool_follows_ours(moto_server: S3Server, tmp_path: Path) -> None:
    bucket = moto_server.bucket_url()
    work = Workload(tmp_path / "source.db", seed=SEED)
    writer = ReplicaWriter(open_store(bucket), PREFIX, page_size=4096)
    writer.write(work.db.serialize())
    with official_follow(official_url(bucket, PREFIX), tmp_path / "copy.db") as following:
        for _ in range(12):
            following.wait_for(writer.txid)
            work.step()
            writer.write(work.db.serialize())
        following.wait_for(writer.txid)
    assert same_tables(tmp_path / "source.db", tmp_path / "copy.db")
    work.close()


def test_the_official_tool_goes_on_where_we_stopped(moto_server: S3Server, tmp_path: Path) -> None:
    bucket = moto_server.bucket_url()
    url = official_url(bucket, PREFIX)
    store = open_store(bucket)
    work = Workload(tmp_path / "source.db", seed=SEED)
    writer = ReplicaWriter(store, PREFIX, page_size=4096)
    for _ in range(5):
        work.step()
        writer.write(work.db.serialize())
    work.close()
    copy = tmp_path / "copy.db"
    restore_to(store, PREFIX, copy)
    more = Workload(copy, seed=SEED + 1)
    with official_replicate(copy, url) as replica:
        for _ in range(5):
            replica.sync()
            more.step()
        assert replica.sync() > writer.txid
    restore_to(store, PREFIX, tmp_path / "ours.db")
    assert same_tables(copy, tmp_path / "ours.db")
    compare_restores(store, url, tmp_path)
    more.close()


@pytest.mark.soak
@pytest.mark.parametrize("page_size", [4096, 65536])
def test_the_lock_page_of_a_database_above_a_gigabyte(
    page_size: int, moto_server: S3Server, tmp_path: Path
) -> None:
    source, out = tmp_path / "source.db", tmp_path / "out.db"
    db = sqlite3.connect(source, isolation_level=None)
    db.execute(f"PRAGMA page_size={page_size}")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA wal_autocheckpoint=0")
    db.execute("CREATE TABLE large (id INTEGER PRIMARY KEY, raw BLOB)")
    url = official_url(f"file:{tmp_path / 'bucket'}", PREFIX)
    with official_replicate(source, url) as replica:
        for _ in range(18):
            db.execute("INSERT INTO large (raw) VALUES (zeroblob(62000000))")
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            replica.sync()
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    commit = source.stat().st_size // page_size
    assert commit > ltx.lock_page(page_size)
    restore_to(open_store(f"file:{tmp_path / 'bucket'}"), PREFIX, out)
    assert same_tables(source, out)
    # And the other way round, from a snapshot of ours.
    bucket = moto_server.bucket_url()
    body = io.BytesIO()
    header = ltx.Header(
        page_size=page_size, commit=commit, min_txid=1, max_txid=3, timestamp_ms=clock.now_ms()
    )
    encoder = ltx.Encoder(header, body.write)
    with source.open("rb") as file:
        for number in range(1, commit + 1):
            page = file.read(page_size)
            if number != ltx.lock_page(page_size):
                encoder.page(number, page)
    encoder.finish()
    store = open_store(bucket)
    store.put(file_key(PREFIX, 9, 1, 3), body.getvalue())
    official_restore(official_url(bucket, PREFIX), out, "-integrity-check", "quick")
    assert same_tables(source, out)
    restore_to(store, PREFIX, out)
    assert same_tables(source, out)
    db.close()
