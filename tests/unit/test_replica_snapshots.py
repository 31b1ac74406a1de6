"""A replica's snapshots: when pages are in doubt, when files are many, at rest; and what may go."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from actors.write import Write
from infra import replica_files
from infra.errors import StorageError
from infra.layout import file_key
from infra.replica_files import OWNER_FILE_MS, from_listing
from tests.support.faulty_store import Fault, Faults, FaultyStore
from tests.support.ledgers import NOW
from tests.support.shipping import PREFIX, Bucket, Shipping

DAY_MS = 86_400_000


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot after three files, at rest after two."""
    monkeypatch.setattr(replica_files, "SNAPSHOT_FILES", 3)
    monkeypatch.setattr(replica_files, "REST_FILES", 2)


# -- in doubt about pages ------------------------------------------------------------------


async def test_a_tracker_that_lost_its_place_ships_everything(
    bucket: Bucket, ship: Shipping
) -> None:
    await ship.ship(50, pad=300)
    ship.break_reads = lambda tracker: tracker.advance(99)  # commits that nobody made
    ship.commit()
    await ship.drained()
    assert ship.repairs == 1 and ship.reports[-1] == (2, 51)
    header, pages = bucket.read(2)
    assert [pgno for pgno, _ in pages] == list(range(1, header.commit + 1))
    assert sorted(bucket.restored().bodies) == list(range(1, 52))
    await ship.ship()
    header, pages = bucket.read(3)
    assert len(pages) < header.commit


async def test_a_disk_that_cannot_be_read_just_now_is_asked_again(
    bucket: Bucket, ship: Shipping
) -> None:
    await ship.ship(5)

    def fail(_: object) -> None:
        raise StorageError("no file descriptors left")

    ship.break_reads = fail
    ship.commit()
    ship.commit()
    await ship.drained()
    assert ship.repairs == 1 and ship.reports[-1][1] == 7 and not ship.replica.reading
    assert sorted(bucket.restored().bodies) == list(range(1, 8))


async def test_a_database_that_shrank_gets_a_snapshot(bucket: Bucket, ship: Shipping) -> None:
    await ship.ship(100, pad=2_000)
    ship.ledger.commit(Write(NOW, floor=90))
    ship.ledger._db.execute("VACUUM")
    ship.ledger.commits += 1
    await ship.ship()
    assert (9, 2) in bucket.names
    header, pages = bucket.read(2, 9)
    assert (header.min_txid, header.max_txid, len(pages)) == (1, 2, header.commit)
    assert header.commit < bucket.read(1)[0].commit / 2
    assert sorted(bucket.restored().bodies) == list(range(91, 102))
    assert not ship.replica.reading


@pytest.mark.usefixtures("few")
async def test_one_that_shrank_during_a_snapshot_gets_another(
    bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    await ship.ship(100, 1, 1, pad=2_000)
    store.arm("put", Fault.NONE, Fault.STALL)
    ship.commit()
    await asyncio.to_thread(store.wait_stalled)
    ship.ledger.commit(Write(NOW, floor=90))
    ship.ledger._db.execute("VACUUM")
    ship.ledger.commits += 1
    ship.commit()
    await ship.until(lambda: ship.reports[-1][1] == 104)
    store.release()
    await ship.drained()
    assert [name for name in bucket.names if name[0]] == [(9, 4)] and not ship.replica.reading
    await ship.ship()
    assert [name for name in bucket.names if name[0]] == [(9, 4), (9, 6)]
    assert sorted(bucket.restored().bodies) == list(range(91, 106))


# -- snapshots -----------------------------------------------------------------------------


@pytest.mark.usefixtures("few")
async def test_many_files_make_a_snapshot(bucket: Bucket, ship: Shipping) -> None:
    await ship.ship(1, 1, 1)
    assert bucket.names == [(0, 1), (0, 2), (0, 3)]
    await ship.ship()
    assert bucket.names == [(0, 1), (0, 2), (0, 3), (0, 4), (9, 4)]
    header, pages = bucket.read(4, 9)
    assert (header.min_txid, header.max_txid, len(pages)) == (1, 4, header.commit)
    assert header.timestamp_ms == bucket.clock.now
    assert not ship.replica.reading
    assert ship.replica.files == from_listing(bucket.files)
    bucket.store.delete([file_key(PREFIX, 0, txid, txid) for txid in range(1, 5)])
    assert sorted(bucket.restored().bodies) == [1, 2, 3, 4], "it stands for them all"
    await ship.ship()
    assert sorted(bucket.restored().bodies) == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("few")
async def test_batches_go_on_while_a_snapshot_is_on_its_way(
    bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    await ship.ship(1, 1, 1)
    store.arm("put", Fault.NONE, Fault.STALL)
    ship.commit()
    await asyncio.to_thread(store.wait_stalled)
    assert ship.replica.reading, "no checkpoint may move its pages"
    for head in (5, 6, 7):
        ship.commit()
        await ship.until(lambda: ship.reports[-1][1] == head)  # noqa: B023
    assert ship.replica.pending
    store.release()
    await ship.drained()
    assert not ship.replica.reading and ship.replica.clean
    assert [name for name in bucket.names if name[0]] == [(9, 4)]
    header, _ = bucket.read(4, 9)
    bucket.store.delete([file_key(PREFIX, 0, 4, 4)])
    assert sorted(bucket.restored(4).bodies) == [1, 2, 3, 4], "as it was when it was cut"
    assert header.timestamp_ms == NOW


@pytest.mark.usefixtures("few")
async def test_a_snapshot_that_fails_is_done_without(
    bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    await ship.ship(1, 1, 1)
    store.arm("put", Fault.NONE, Fault.BEFORE)
    await ship.ship()
    assert bucket.names == [(0, 1), (0, 2), (0, 3), (0, 4)] and not ship.replica.reading
    await ship.ship()
    assert bucket.names[-1] == (9, 5), "and tried again with the next batch"
    assert ship.fences == [] and ship.replica.clean


@pytest.mark.usefixtures("few")
async def test_a_snapshot_the_disk_has_no_room_for_is_done_without(
    bucket: Bucket, ship: Shipping, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.service.spool = bucket.home / "no such place"
    monkey = pytest.MonkeyPatch()
    monkey.setattr("infra.pages.SPOOL_BYTES_MAX", 100)
    await ship.ship(1, 1, 1, 1)
    monkey.undo()
    assert bucket.names == [(0, 1), (0, 2), (0, 3), (0, 4)] and not ship.replica.reading
    assert "no snapshot" in caplog.text and "task failed" not in caplog.text
    bucket.service.spool = bucket.home
    await ship.ship()
    assert bucket.names[-1] == (9, 5)


# -- rest ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("few")
async def test_at_rest_a_few_files_are_enough(bucket: Bucket, ship: Shipping) -> None:
    await ship.ship(1)
    await ship.replica.rest()
    assert bucket.names == [(0, 1)]
    await ship.ship(1)
    await ship.replica.rest()
    assert bucket.names == [(0, 1), (0, 2), (9, 2)]
    assert sorted(bucket.restored().bodies) == [1, 2] and not ship.replica.reading
    await ship.replica.rest()
    assert len(bucket.names) == 3
    bucket.store.delete([file_key(PREFIX, 0, txid, txid) for txid in (1, 2)])
    assert sorted(bucket.restored().bodies) == [1, 2]


@pytest.mark.usefixtures("few")
async def test_rest_does_not_wait_for_a_bucket_in_trouble(
    bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    await ship.ship(1, 1)
    store.arm("put", Fault.STALL)
    ship.commit()
    await asyncio.to_thread(store.wait_stalled)
    async with asyncio.timeout(20):
        await ship.replica.rest()
    assert bucket.names == [(0, 1), (0, 2)], "and takes nothing for shipped that is not"
    store.release()
    await ship.drained()


@pytest.mark.usefixtures("few")
async def test_who_wrote_nothing_rests_without_a_request(
    tmp_path: Path, bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    await ship.ship(1, 1)
    await ship.close()
    again = Shipping.open(bucket, tmp_path / "x.db", from_listing(bucket.files))
    store.counts.clear()
    await again.replica.rest()
    await again.close()
    assert not store.counts and again.reports == [(0, 2)]


@pytest.mark.usefixtures("few")
async def test_a_snapshot_at_rest_that_fails_leaves_the_scope_closable(
    bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    await ship.ship(1, 1)

    def fail(_: object) -> None:
        raise StorageError("no file descriptors left")

    ship.break_reads = fail
    await ship.replica.rest()
    assert not ship.replica.reading and not ship.replica.pending
    ship.break_reads = None
    store.arm("put", Fault.BEFORE)
    await ship.replica.rest()
    assert not ship.replica.reading and bucket.names == [(0, 1), (0, 2)]


# -- what may go ---------------------------------------------------------------------------


@pytest.mark.usefixtures("few")
async def test_files_that_nobody_can_ask_for_any_more_are_deleted(
    tmp_path: Path, store: FaultyStore
) -> None:
    bucket = Bucket(tmp_path, store, history_ms=3_600_000)
    ship = Shipping.create(bucket, tmp_path / "x.db")
    for _ in range(4):
        await ship.ship(1, 1, 1, 1)
        bucket.clock.now += 3_600_000
    changes = [txid for level, txid in bucket.names if level == 0]
    snapshots = [txid for level, txid in bucket.names if level == 9]
    assert snapshots == [12, 16], "of 4, 8, 12 and 16; the window begins at 12"
    assert changes == [1, 13, 14, 15, 16], "and the first file of an owner"
    for txid in range(12, 17):
        assert bucket.restored(txid).header["head"] == txid
    assert ship.replica.files == from_listing(bucket.files)
    bucket.clock.now = NOW + OWNER_FILE_MS
    await ship.ship(1, 1, 1, 1)
    assert (0, 1) not in bucket.names
    await ship.close()
    await bucket.service.aclose()


@pytest.mark.usefixtures("few")
async def test_a_deletion_that_fails_is_made_up_for(tmp_path: Path, store: FaultyStore) -> None:
    bucket = Bucket(tmp_path, store, history_ms=1)
    ship = Shipping.create(bucket, tmp_path / "x.db")
    store.arm("delete", Fault.BEFORE, Fault.LOST_REPLY)
    for _ in range(4):
        await ship.ship(1, 1, 1, 1)
        bucket.clock.now += 1_000
        assert sorted(bucket.restored().bodies) == list(range(1, ship.ledger.header.head + 1))
    assert store.counts["delete"] == 3 and ship.replica.clean
    head = ship.ledger.header.head
    changes = [txid for level, txid in bucket.names if level == 0]
    base = next(txid for level, txid in bucket.names if level == 9)
    assert changes == [1, *range(base + 1, head + 1)]
    await ship.close()
    await bucket.service.aclose()


# -- all at once ---------------------------------------------------------------------------


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("seed", range(4))
async def test_under_any_faults_the_bucket_has_what_was_reported(
    tmp_path: Path, store: FaultyStore, seed: int
) -> None:
    store.seed = seed
    store.faults = Faults(before=0.2, lost_reply=0.2, late=0.1, late_requests_max=6)
    draw = random.Random(seed)
    bucket = Bucket(tmp_path, store, history_ms=60_000)
    ship = Shipping.create(bucket, tmp_path / "x.db")
    shown: dict[int, int] = {}  # head the bucket was said to have -> batches there were then
    for _ in range(25):
        for _ in range(draw.randint(1, 3)):
            ship.commit(draw.randint(1, 3))
            await asyncio.sleep(0)
        if draw.random() < 0.3:
            await ship.drained()
        if draw.random() < 0.2:
            ship.ledger.checkpoint() if not ship.replica.reading else None
        bucket.clock.now += draw.choice([1, 1_000, 30_000])
        faults, store.faults = store.faults, Faults()
        head = ship.reports[-1][1]
        if head and head not in shown:
            shown[head] = bucket.restored().header["head"]
        store.faults = faults
    await ship.drained()
    store.faults = Faults()
    store.land()
    assert all(there >= said for said, there in shown.items())
    assert ship.fences == [] and ship.reports == sorted(set(ship.reports))
    checked = bucket.restored()
    assert sorted(checked.bodies) == list(range(1, ship.ledger.header.head + 1))
    assert checked.header["txid"] == ship.ledger.header.txid
    await ship.close()
    await bucket.service.aclose()
