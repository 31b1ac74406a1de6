"""The replica of one ledger: batches, claims, requests that fail, fencing, and rest."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from infra.errors import StorageError, TryLater
from infra.locate import nonce_of
from infra.objects import ObjectBusy, ObjectMissing, StoreRefused
from infra.replica import HOPELESS_MS
from tests.support.faulty_store import Fault, Faults, FaultyStore
from tests.support.shipping import NONCE, Bucket, Shipping

# -- batches -------------------------------------------------------------------------------


async def test_the_first_batch_is_a_whole_image(bucket: Bucket, ship: Shipping) -> None:
    assert ship.reports == [(0, 0)], "nothing was ever in it, and the bucket has that"
    await ship.ship(3)
    assert bucket.names == [(0, 1)] and ship.reports == [(0, 0), (1, 3)]
    header, pages = bucket.read(1)
    assert [pgno for pgno, _ in pages] == list(range(1, header.commit + 1))
    assert (header.min_txid, header.max_txid, header.node_id) == (1, 1, ship.ledger.owner)
    assert (nonce_of(header), header.timestamp_ms) == (NONCE, bucket.clock.now)
    assert ship.claims == [] and ship.firsts() == [(1, bucket.clock.now)]
    checked = bucket.restored()
    assert sorted(checked.bodies) == [1, 2, 3]
    assert (checked.header["txid"], checked.header["owner"]) == (1, 1)


async def test_later_batches_hold_what_changed(bucket: Bucket, ship: Shipping) -> None:
    await ship.ship(200, pad=500)
    await ship.ship(1, 1)
    whole, _ = bucket.read(1)
    for txid in (2, 3):
        header, pages = bucket.read(txid)
        assert 0 < len(pages) < whole.commit / 2
        assert header.commit >= whole.commit
        assert sorted(bucket.restored(txid).bodies) == list(range(1, 200 + txid))
    assert ship.reports[1:] == [(1, 200), (2, 201), (3, 202)]


async def test_what_is_committed_meanwhile_is_one_batch(
    bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    store.arm("put", Fault.STALL)
    ship.commit()
    await asyncio.to_thread(store.wait_stalled)
    for _ in range(5):
        ship.commit()
    assert ship.replica.next_txid == 2
    store.release()
    await ship.drained()
    assert bucket.names == [(0, 1), (0, 2)], "one request at a time, and the rest together"
    assert [head for _, head in ship.reports] == [0, 1, 6]
    assert bucket.restored(1).header["head"] == 1


async def test_a_commit_says_the_batch_it_can_ship_in(bucket: Bucket, ship: Shipping) -> None:
    for txid in range(1, 4):
        assert ship.replica.next_txid == txid
        await ship.ship()
        assert bucket.restored().header["txid"] == txid == ship.ledger.header.txid


async def test_nothing_is_shipped_before_the_disk_has_it(
    tmp_path: Path, bucket: Bucket, store: FaultyStore
) -> None:
    ship = Shipping.create(bucket, tmp_path / "y.db", disk_at_once=False)
    ship.commit()
    while not ship.reads:  # the batch is cut meanwhile
        await asyncio.sleep(0)
    for _ in range(20):
        ship.replica.synced()  # of something before it
        await asyncio.sleep(0.001)
    assert store.counts["put"] == 0
    ship.synced()
    await ship.drained()
    assert bucket.names == [(0, 1)]
    await ship.close()


async def test_nothing_is_read_while_a_thread_has_the_handle(
    bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    for batch in (1, 2):
        ship.is_lent = True
        ship.commit()
        ship.replica.urge()
        await ship.idle()
        assert (ship.reads, store.counts["put"]) == (batch - 1, batch - 1)
        assert ship.asked_claims == [1][: batch - 1] and not ship.replica.reading
        ship.is_lent = False
        await ship.drained()
    assert bucket.names == [(0, 1), (0, 2)]


async def test_nor_when_the_claim_has_led_to_that(
    tmp_path: Path, bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    ship.commit()
    await ship.crash()
    bucket.service.nonce += 1
    again = Shipping.open(bucket, tmp_path / "x.db", None)
    again.lent_by_claims = True
    await again.until(lambda: again.claims)
    await again.idle()
    assert (again.reads, store.counts["put"]) == (0, 0)
    again.is_lent = again.lent_by_claims = False
    await again.drained()
    assert bucket.restored().header["head"] == 1
    await again.close()


async def test_a_checkpoint_between_batches_changes_nothing(bucket: Bucket, ship: Shipping) -> None:
    for n in range(6):
        await ship.ship(40, pad=400)
        if n % 2:
            assert not ship.replica.reading
            ship.ledger.checkpoint()
    assert bucket.restored().header["head"] == 240


# -- when a batch goes ---------------------------------------------------------------------


async def test_a_local_scope_waits_for_company(
    bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    ship.is_urgent = False
    ship.commit()
    ship.replica.synced()
    await ship.idle()
    assert (ship.reads, store.counts["put"]) == (0, 0)
    assert ship.replica.pending and not ship.replica.clean
    bucket.clock.now += 1_000
    ship.replica.urge()
    await ship.until(lambda: (1, 1) in ship.reports)
    assert store.counts["put"] == 1


async def test_whoever_waits_for_the_bucket_hurries_it(ship: Shipping) -> None:
    ship.is_urgent = False
    ship.commit()
    await asyncio.sleep(0)
    ship.is_urgent = True
    ship.replica.urge()
    await ship.until(lambda: (1, 1) in ship.reports)


async def test_a_mebibyte_does_not_wait(ship: Shipping) -> None:
    ship.is_urgent = False
    ship.commit()
    await asyncio.sleep(0)
    ship.commit(4, pad=1 << 18)
    await ship.until(lambda: (2, 5) in ship.reports)


async def test_drained_ships_at_once_and_only_this_time(store: FaultyStore, ship: Shipping) -> None:
    ship.is_urgent = False
    await ship.ship(1, 1)
    assert store.counts["put"] == 2
    ship.commit()
    ship.replica.synced()
    await ship.idle()
    assert (ship.reads, store.counts["put"]) == (2, 2)


async def test_a_clean_replica_has_no_task_no_timer_and_makes_no_request(
    bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    await ship.ship(1, 1)
    replica = ship.replica
    assert replica.clean and not replica.pending
    assert not len(bucket.service.tasks)
    assert replica._task is None and replica._snapping is None and replica._stall_timer is None
    before = dict(store.counts)
    bucket.clock.now += 86_400_000
    ship.replica.urge()
    ship.replica.synced()
    await ship.drained()
    assert dict(store.counts) == before == {"put": 2}


# -- replies that are lost, and writes of unknown outcome ----------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        (Fault.LOST_REPLY,),
        (Fault.BEFORE,),
        (Fault.LATE, Fault.NONE),
        (Fault.LATE, Fault.LATE, Fault.BEFORE),
        (Fault.BEFORE, Fault.LOST_REPLY, Fault.LOST_REPLY),
    ],
    ids="+".join,
)
async def test_a_request_that_failed_is_made_again(
    bucket: Bucket, store: FaultyStore, ship: Shipping, faults: tuple[Fault, ...]
) -> None:
    for txid in range(1, 5):
        store.arm("put", *faults)
        await ship.ship()
        assert ship.reports[-1] == (txid, txid) and ship.replica.requests.trouble is None
    store.land()
    assert bucket.names == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert sorted(bucket.restored().bodies) == [1, 2, 3, 4] and ship.fences == []


async def test_a_batch_of_unknown_outcome_stays_as_it_is(
    bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    store.arm("put", Fault.LOST_REPLY, Fault.STALL)
    ship.commit()
    await asyncio.to_thread(store.wait_stalled)
    assert bucket.names == [(0, 1)], "it is there, and nobody knows"
    for _ in range(3):
        ship.commit()
    bucket.clock.now += 1
    store.release()
    await ship.drained()
    assert bucket.restored(1).header["head"] == 1
    assert bucket.restored(2).header["head"] == 4
    assert bucket.names == [(0, 1), (0, 2)] and ship.fences == []


async def test_a_reply_that_comes_after_a_long_pause_is_ours_still(
    bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    await ship.ship()
    store.arm("put", Fault.LOST_REPLY)
    store.arm("get", Fault.BEFORE, Fault.BEFORE)
    bucket.clock.now += 3_600_000
    await ship.ship()
    assert ship.reports[-1] == (2, 2) and ship.fences == []


@pytest.mark.parametrize("error", [ObjectBusy, ObjectMissing])
async def test_what_is_no_trouble_is_repeated_without_a_word(
    store: FaultyStore, ship: Shipping, error: type[StorageError], monkeypatch: pytest.MonkeyPatch
) -> None:
    put, asked = store.put, [error("not now"), error("nor now")]

    def busy(*args: object, **more: object) -> None:
        if asked:
            raise asked.pop()
        put(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "put", busy)
    await ship.ship()
    assert ship.reports[-1] == (1, 1) and ship.replica.requests.counts["put"] == 3
    assert ship.replica.requests.trouble_since is None


async def test_a_store_that_refuses_is_asked_again_when_people_mended_it(
    store: FaultyStore, ship: Shipping, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = store.put
    refused = StoreRefused("the credentials are of yesterday")

    def refuse(*_: object, **__: object) -> None:
        raise refused

    monkeypatch.setattr(store, "put", refuse)
    ship.commit()
    while ship.replica.requests.trouble is not refused:
        await asyncio.sleep(0.001)
    monkeypatch.setattr(store, "put", put)
    await ship.drained()
    assert ship.reports[-1] == (1, 1) and ship.replica.requests.trouble is None


# -- stalls --------------------------------------------------------------------------------


async def test_whoever_waits_too_long_hears_why(tmp_path: Path, store: FaultyStore) -> None:
    bucket = Bucket(tmp_path, store, max_stall_ms=5)
    ship = Shipping.create(bucket, tmp_path / "x.db")
    store.faults = Faults(before=1.0)
    ship.asked_since = bucket.clock.now
    ship.commit()
    bucket.clock.now += 4
    await ship.until(lambda: ship.replica.requests.trouble)
    bucket.clock.now += 1
    await ship.until(lambda: ship.stalls)
    error = ship.stalls[0]
    assert isinstance(error, TryLater) and error.retryable and "5 ms" in str(error)
    assert str(ship.replica.requests.trouble) in str(error)
    assert ship.replica.pending, "it goes on trying"
    count = len(ship.stalls)
    await ship.until(lambda: len(ship.stalls) > count)  # for those who came since
    ship.asked_since = None
    store.faults = Faults()
    await ship.drained()
    assert ship.reports[-1] == (1, 1) and ship.replica._stall_timer is None
    await ship.close()
    await bucket.service.aclose()


async def test_nobody_is_told_of_a_stall_who_does_not_wait(
    tmp_path: Path, store: FaultyStore
) -> None:
    bucket = Bucket(tmp_path, store, max_stall_ms=1)
    ship = Shipping.create(bucket, tmp_path / "x.db")
    store.faults = Faults(before=1.0)
    ship.commit()
    while store.counts["put"] < 10:
        bucket.clock.now += 100
        await asyncio.sleep(0.002)
    assert ship.stalls == []
    ship.asked_since = bucket.clock.now - 1
    await ship.until(lambda: ship.stalls)
    store.faults = Faults()
    await ship.close()
    await bucket.service.aclose()


async def test_a_bucket_in_trouble_for_long_keeps_no_scope_open(
    bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    store.faults = Faults(before=1.0)
    ship.commit()
    await ship.until(lambda: ship.replica.requests.trouble)
    assert ship.replica.pending and not ship.replica.hopeless
    bucket.clock.now += HOPELESS_MS + 1
    assert ship.replica.hopeless and not ship.replica.pending and not ship.replica.clean
    store.faults = Faults()
    await ship.drained()
    assert not ship.replica.hopeless and ship.replica.clean


# -- the end -------------------------------------------------------------------------------


async def test_after_stop_nothing_new_begins_and_what_flies_is_waited_for(
    bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    store.arm("put", Fault.STALL)
    ship.commit()
    await asyncio.to_thread(store.wait_stalled)
    ship.replica.stop()
    landed = asyncio.ensure_future(ship.replica.landed())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not landed.done(), "a thread still reads the store's answer"
    store.release()
    async with asyncio.timeout(20):
        await landed
    assert bucket.names == [(0, 1)] and ship.reports == [(0, 0)], "it landed, and nobody was told"
    before = dict(store.counts)
    ship.commit()
    await ship.drained()
    assert dict(store.counts) == before and not ship.replica.pending


async def test_stop_ends_what_is_being_repeated(store: FaultyStore, ship: Shipping) -> None:
    store.faults = Faults(before=1.0)
    ship.commit()
    await ship.until(lambda: ship.replica.requests.trouble)
    ship.replica.stop()
    await ship.drained()
    await ship.replica.landed()
    assert ship.fences == [] and not ship.replica.clean
