"""Whose history a replica writes: other writers, what a crash leaves, late requests, claims."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from actors.ledger import Ledger
from infra import ltx
from infra.errors import Fenced
from infra.layout import ReplicaGap, file_key
from infra.locate import nonce_of
from infra.pages import Batch, write_claim
from infra.replica_files import Files, from_listing
from tests.support.faulty_store import Fault, Faults, FaultyStore
from tests.support.shipping import NONCE, PREFIX, Bucket, Shipping


def put_other(bucket: Bucket, txid: int, body: bytes = b"") -> bytes:
    """Batch 1 once more, as somebody else's batch, or whatever is given."""
    if not body:
        header, pages = bucket.read(1)
        theirs = msgspec.structs.replace(header, min_txid=txid, max_txid=txid, salt2=9)
        body = ltx.encode(theirs, pages)
    bucket.store.put(file_key(PREFIX, 0, txid, txid), body)
    return body


# -- another writer ------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"x", b"L" * 5000])
async def test_a_file_that_is_not_ours_fences(
    bucket: Bucket, store: FaultyStore, ship: Shipping, body: bytes
) -> None:
    await ship.ship()
    theirs = put_other(bucket, 2, body)
    ship.commit()
    await ship.until(lambda: ship.fences)
    (error,) = ship.fences
    assert isinstance(error, Fenced) and error.retryable
    assert ship.reports == [(0, 0), (1, 1)] and not ship.replica.pending
    assert store.get(file_key(PREFIX, 0, 2, 2)) == theirs, "nothing is overwritten"
    before = dict(store.counts)
    ship.commit()
    await ship.drained()
    assert dict(store.counts) == before and len(ship.fences) == 1, "and that was all"


async def test_fenced_though_the_first_reply_was_lost(
    bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    await ship.ship()
    store.arm("put", Fault.BEFORE)
    ship.commit()
    await ship.until(lambda: ship.replica.requests.trouble)
    put_other(bucket, 2)
    await ship.until(lambda: ship.fences)
    assert isinstance(ship.fences[0], Fenced) and ship.reports[-1] == (1, 1)


async def test_a_restored_state_whose_writer_went_on_is_fenced(
    tmp_path: Path, bucket: Bucket, ship: Shipping
) -> None:
    # Its slot was taken, and retention has deleted it again: what stands behind it tells.
    await ship.ship(1)
    await ship.close()
    bucket.store.put(file_key(PREFIX, 0, 3, 3), bucket.store.get(file_key(PREFIX, 0, 1, 1)))
    again = Shipping.open(bucket, tmp_path / "x.db", Files(head=1, count=1, size=1), foreign=True)
    again.commit()
    await again.until(lambda: again.fences)
    assert isinstance(again.fences[0], Fenced) and again.reports == [(0, 1)]
    await again.close()


async def test_a_restored_state_whose_writer_has_ended_goes_on(
    tmp_path: Path, bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    await ship.ship(1)
    await ship.close()
    files = Files(head=1, count=1, size=1)
    again = Shipping.open(bucket, tmp_path / "x.db", files, foreign=True)
    listed = store.counts["list"]
    await again.ship(1, 1)
    assert again.reports == [(0, 1), (1, 2), (2, 3)] and again.fences == []
    assert store.counts["list"] == listed + 1, "looked once"
    await again.close()


# -- what a crash leaves -------------------------------------------------------------------


async def test_a_file_the_bucket_has_whole_costs_a_look(
    tmp_path: Path, bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    await ship.ship(1, 1, 1)
    await ship.crash()
    store.counts.clear()
    again = Shipping.open(bucket, tmp_path / "x.db", None)
    assert again.replica.unproven and not again.replica.clean
    await again.until(lambda: again.reports)
    assert again.reports == [(0, 3)] and dict(store.counts) == {"list": 1, "get": 1}
    await again.drained()
    assert again.replica.clean and not again.replica.unproven
    await again.ship()
    assert bucket.names[-1] == (0, 4) and again.claims == []
    header, pages = bucket.read(4)
    assert len(pages) < header.commit
    assert sorted(bucket.restored().bodies) == [1, 2, 3, 4]
    await again.close()


async def test_what_never_shipped_makes_the_next_batch_whole(
    tmp_path: Path, bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    await ship.ship(1, 1)
    store.faults = Faults(before=1.0)
    ship.commit()
    await ship.until(lambda: ship.replica.requests.trouble)
    await ship.crash()
    store.faults = Faults()
    again = Shipping.open(bucket, tmp_path / "x.db", None)
    await again.drained()
    assert again.reports == [(0, 3)] and bucket.names == [(0, 1), (0, 2), (0, 3)]
    header, pages = bucket.read(3)
    assert [pgno for pgno, _ in pages] == list(range(1, header.commit + 1))
    assert sorted(bucket.restored().bodies) == [1, 2, 3]
    await again.close()


async def test_a_file_that_is_known_to_have_more_ships_whole(
    tmp_path: Path, bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    await ship.ship(20, 1, pad=300)
    await ship.close()
    store.counts.clear()
    files = from_listing(bucket.files)
    again = Shipping.open(bucket, tmp_path / "x.db", files, whole=True)
    assert again.replica.unproven and again.reports == []
    await again.drained()
    assert again.reports == [(0, 21)] and not again.replica.unproven
    header, pages = bucket.read(3)
    assert len(pages) == header.commit and store.counts["put"] == 1
    await again.close()


async def test_another_process_claims_the_batch_it_really_begins_with(
    tmp_path: Path, store: FaultyStore, bucket: Bucket, ship: Shipping
) -> None:
    await ship.ship(1, 1)
    store.faults = Faults(before=1.0)
    ship.commit()
    await ship.until(lambda: ship.replica.requests.trouble)
    await ship.crash()
    store.faults = Faults()
    bucket.service.nonce = NONCE + 1
    again = Shipping.open(bucket, tmp_path / "x.db", None)
    again.commit()  # before it is known how far the bucket is
    assert again.ledger.owners()[-1].txid == 4, "as far as the file can know"
    await again.drained()
    assert again.claims == [3]
    assert [(o.owner, o.txid, o.nonce) for o in again.ledger.owners()] == [
        (1, 1, NONCE), (2, 3, NONCE + 1),
    ]  # fmt: skip
    header, _ = bucket.read(3)
    assert (header.node_id, nonce_of(header)) == (2, NONCE + 1)
    checked = bucket.restored()
    assert sorted(checked.bodies) == [1, 2, 3, 4] and checked.header["owner"] == 2
    await again.close()


async def test_until_something_shipped_commits_say_more_than_a_late_request_could(
    tmp_path: Path, store: FaultyStore, bucket: Bucket, ship: Shipping
) -> None:
    await ship.ship(1)
    store.arm("put", Fault.LATE, *[Fault.BEFORE] * 50)
    ship.commit()
    await ship.until(lambda: ship.replica.requests.trouble)
    await ship.crash()
    store.arm("put", Fault.NONE)
    store._armed.clear()
    bucket.service.nonce = NONCE + 1
    again = Shipping.open(bucket, tmp_path / "x.db", None)
    store.arm("put", Fault.STALL)
    await asyncio.to_thread(store.wait_stalled)
    assert again.claims == [2], "the first batch that the bucket lacks"
    assert again.ledger.header.txid == 3, "not 2, which the request of before may take"
    again.commit()
    store.release()
    await again.drained()
    store.land()
    assert sorted(bucket.restored().bodies) == [1, 2, 3] and again.fences == []
    await again.close()


async def test_a_late_request_of_an_earlier_life_takes_the_first_slot(
    tmp_path: Path, store: FaultyStore, bucket: Bucket, ship: Shipping
) -> None:
    await ship.ship(1)
    store.arm("put", Fault.LATE)
    ship.commit()
    await ship.until(lambda: ship.replica.requests.trouble)
    await ship.crash()
    bucket.service.nonce = NONCE + 1
    store.arm("put", Fault.STALL)
    again = Shipping.open(bucket, tmp_path / "x.db", None)
    await asyncio.to_thread(store.wait_stalled)
    store.land()
    store.release()
    again.commit()
    await again.drained()
    assert again.fences == [] and bucket.names == [(0, 1), (0, 2), (0, 3)]
    header, pages = bucket.read(3)
    assert len(pages) == header.commit, "what the refused batch held is in this one"
    assert sorted(bucket.restored().bodies) == [1, 2, 3]
    assert [(owner.txid, owner.nonce) for owner in again.ledger.owners()] == [
        (1, NONCE), (3, NONCE + 1),
    ]  # fmt: skip
    await again.close()


async def test_a_late_request_of_somebody_else_fences_at_the_first_slot(
    tmp_path: Path, store: FaultyStore, bucket: Bucket, ship: Shipping
) -> None:
    await ship.ship(1)
    ship.commit()
    await ship.crash()
    store.arm("put", Fault.STALL)
    again = Shipping.open(bucket, tmp_path / "x.db", None)
    await asyncio.to_thread(store.wait_stalled)
    theirs = put_other(bucket, 2)
    store.release()
    await again.until(lambda: again.fences)
    assert isinstance(again.fences[0], Fenced) and again.reports == []
    assert store.get(file_key(PREFIX, 0, 2, 2)) == theirs and len(bucket.names) == 2
    await again.close()


async def test_a_bucket_with_a_gap_is_an_error_and_stays_as_it_is(
    tmp_path: Path, store: FaultyStore, bucket: Bucket, ship: Shipping
) -> None:
    await ship.ship(1, 1, 1)
    await ship.crash()
    store.delete([file_key(PREFIX, 0, 2, 2)])
    again = Shipping.open(bucket, tmp_path / "x.db", None)
    await again.until(lambda: again.fences)
    assert isinstance(again.fences[0], ReplicaGap) and not isinstance(again.fences[0], Fenced)
    assert bucket.names == [(0, 1), (0, 3)]
    await again.close()


async def test_a_lost_bucket_is_written_anew(
    tmp_path: Path, store: FaultyStore, bucket: Bucket, ship: Shipping
) -> None:
    await ship.ship(1, 1)
    await ship.crash()
    store.delete([file.key for file in bucket.files])
    again = Shipping.open(bucket, tmp_path / "x.db", None)
    await again.drained()
    assert bucket.names == [(0, 1)] and sorted(bucket.restored().bodies) == [1, 2]
    await again.close()


# -- claims --------------------------------------------------------------------------------


def claim_at(txid: int, bucket: Bucket) -> Callable[[Ledger], Batch]:
    """What a host that shares the bucket does before a scope's first commit."""

    def made(ledger: Ledger) -> Batch:
        tracker = ledger.follow(0)
        assert tracker is not None
        return write_claim(
            tracker, txid=txid, owner=ledger.owner, nonce=bucket.service.nonce,
            now_ms=bucket.clock.now,
        )  # fmt: skip

    return made


async def test_a_claim_takes_the_next_slot_before_anything_is_written(
    tmp_path: Path, bucket: Bucket, ship: Shipping
) -> None:
    await ship.ship(2, 1)
    await ship.close()
    files = from_listing(bucket.files)
    bucket.service.nonce = NONCE + 1
    again = Shipping.open(bucket, tmp_path / "x.db", files, claim=claim_at(3, bucket))
    assert again.replica.unproven and again.reports == []
    assert (again.replica.claim_txid, again.replica.next_txid) == (3, 4)
    await again.until(lambda: again.reports)
    assert again.reports == [(0, 3)] and not again.replica.unproven
    header, pages = bucket.read(3)
    assert (header.node_id, nonce_of(header), pages) == (2, NONCE + 1, [])
    assert sorted(bucket.restored().bodies) == [1, 2, 3], "a claim changes nothing"
    await again.ship()
    assert again.ledger.owners()[-1].txid == 3 and again.ledger.header.txid == 4
    assert bucket.names == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert len(bucket.read(4)[1]) < bucket.read(4)[0].commit
    assert sorted(bucket.restored().bodies) == [1, 2, 3, 4]
    await again.close()


async def test_what_is_written_during_a_claim_ships_after_it(
    tmp_path: Path, bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    await ship.ship(1)
    await ship.close()
    store.arm("put", Fault.STALL)
    files = from_listing(bucket.files)
    again = Shipping.open(bucket, tmp_path / "x.db", files, claim=claim_at(2, bucket))
    await asyncio.to_thread(store.wait_stalled)
    again.commit()
    assert again.ledger.header.txid == 3 and again.replica.unproven
    store.release()
    await again.drained()
    assert again.reports == [(0, 1), (1, 2)] and bucket.names == [(0, 1), (0, 2), (0, 3)]
    assert sorted(bucket.restored().bodies) == [1, 2]
    await again.close()


async def test_of_two_who_claim_one_is_fenced(
    tmp_path: Path, bucket: Bucket, ship: Shipping
) -> None:
    await ship.ship(1)
    await ship.close()
    files = from_listing(bucket.files)
    claim = claim_at(2, bucket)
    bucket.service.nonce = NONCE + 1
    first = Shipping.open(bucket, tmp_path / "x.db", files, claim=claim)
    await first.until(lambda: first.reports)
    await first.close()
    bucket.service.nonce = NONCE + 2
    second = Shipping.open(
        bucket, tmp_path / "x.db", Files(head=1, count=1, size=1), claim=claim_at(2, bucket)
    )
    await second.until(lambda: second.fences)
    assert isinstance(second.fences[0], Fenced) and second.reports == []
    assert nonce_of(bucket.read(2)[0]) == NONCE + 1
    second.commit()
    await second.drained()
    assert bucket.names == [(0, 1), (0, 2)]
    await second.close()


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.BEFORE])
async def test_a_claim_is_repeated_like_any_other_file(
    tmp_path: Path, bucket: Bucket, store: FaultyStore, ship: Shipping, fault: Fault
) -> None:
    await ship.ship(1)
    await ship.close()
    store.arm("put", fault, fault)
    files = from_listing(bucket.files)
    again = Shipping.open(bucket, tmp_path / "x.db", files, claim=claim_at(2, bucket))
    await again.ship()
    assert again.reports == [(0, 1), (1, 2)] and again.fences == []
    await again.close()


async def test_a_history_goes_on_through_owners_that_crash(
    tmp_path: Path, bucket: Bucket, store: FaultyStore, ship: Shipping
) -> None:
    # Each life finds what the one before it left: shipped, under way, or only on this disk.
    current, head = ship, 0
    for life, fault in enumerate([Fault.LOST_REPLY, Fault.BEFORE, Fault.LATE, Fault.NONE] * 2):
        await current.ship(2)
        store.arm("put", fault, *[Fault.BEFORE] * 200)
        current.commit()
        head += 3
        if fault is not Fault.NONE:
            await current.until(lambda: current.replica.requests.trouble)  # noqa: B023
        await current.crash()
        store._armed.clear()
        bucket.service.nonce = NONCE + 1 + life
        lives = tuple(range(NONCE, NONCE + 2 + life))
        current = Shipping.open(bucket, tmp_path / "x.db", None, lives=lives)
        if life % 2:
            store.land()
    await current.drained()
    assert current.fences == []
    assert sorted(bucket.restored().bodies) == list(range(1, head + 1))
    await current.close()
