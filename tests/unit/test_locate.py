"""Where a file stands against its replica: every way the two can differ after whatever happened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from infra import ltx
from infra.errors import Fenced
from infra.layout import ReplicaGap, file_key
from infra.locate import Local, Located, header_at, locate, nonce_of
from infra.objects import ObjectMissing, StoreUnavailable
from infra.restore import list_replica
from infra.stores.directory import DirectoryStore
from tests.support.faulty_store import Fault, FaultyStore

PREFIX = "default/run~3ar1"
OURS, BEFORE, THEIRS = 2**62 + 7, 2**40 + 5, 3
OWNERS = ((1, BEFORE), (4, OURS))


class Bucket:
    """A replica of files that hold one page and a nonce."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.store = FaultyStore(DirectoryStore(str(path)))

    def put(self, *txids: int, nonce: int = OURS) -> Bucket:
        for txid in txids:
            self._put(0, txid, txid, nonce)
        return self

    def snapshot(self, txid: int, *, nonce: int = OURS) -> Bucket:
        self._put(9, 1, txid, nonce)
        return self

    def _put(self, level: int, first: int, last: int, nonce: int) -> None:
        header = ltx.Header(
            page_size=512, commit=1, min_txid=first, max_txid=last, timestamp_ms=1_000 * last,
            node_id=1, salt1=nonce >> 32, salt2=nonce & 0xFFFF_FFFF,
        )  # fmt: skip
        body = ltx.encode(header, [(1, bytes(512))])
        self.store.put(file_key(PREFIX, level, first, last), body, timestamp_ms=1_000 * last)

    def locate(
        self,
        txid: int,
        *,
        nonce: int = OURS,
        owners: Sequence[tuple[int, int]] = OWNERS,
        lives: Sequence[int] = (),
    ) -> Located:
        self.store.counts.clear()
        return locate(self.store, PREFIX, Local(txid, nonce, owners, lives))

    @property
    def requests(self) -> dict[str, int]:
        return dict(self.store.counts)


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path / "bucket")


def run_of(bucket: Bucket, head: int) -> Bucket:
    """The history of OWNERS up to `head`."""
    for txid in range(1, head + 1):
        bucket.put(txid, nonce=BEFORE if txid < 4 else OURS)
    return bucket


# -- nothing there -------------------------------------------------------------------------


def test_an_empty_bucket_wants_the_file_whole(bucket: Bucket) -> None:
    found = bucket.locate(0, owners=())
    assert (found.files.head, found.whole, found.lost) == (0, True, False)
    assert bucket.requests == {"list": 1}


def test_a_first_batch_that_never_arrived_is_no_loss(bucket: Bucket) -> None:
    found = bucket.locate(1, owners=((1, OURS),))
    assert (found.whole, found.lost) == (True, False)


def test_a_bucket_that_had_batches_has_lost_them(bucket: Bucket) -> None:
    found = bucket.locate(2)
    assert (found.files.head, found.whole, found.lost) == (0, True, True)


def test_other_scopes_are_not_looked_at(bucket: Bucket) -> None:
    bucket.store.put(file_key(PREFIX + "0", 0, 1, 1), b"of another scope")
    bucket.store.put(f"{PREFIX}/0000/notes.txt", b"no batch")
    assert bucket.locate(0, owners=()).files.head == 0


# -- our history ---------------------------------------------------------------------------


def test_the_bucket_has_everything(bucket: Bucket) -> None:
    found = run_of(bucket, 6).locate(6)
    assert (found.files.head, found.files.count, found.whole, found.lost) == (6, 6, False, False)
    assert bucket.requests == {"list": 1, "get": 1}


def test_commits_that_never_shipped_make_it_whole(bucket: Bucket) -> None:
    found = run_of(bucket, 6).locate(7)
    assert (found.files.head, found.whole, found.lost) == (6, True, False)


def test_the_head_may_be_of_an_owner_before(bucket: Bucket) -> None:
    found = run_of(bucket, 3).locate(4)
    assert (found.files.head, found.whole) == (3, True), "ours wrote, and never shipped"


@pytest.mark.parametrize("head", [3, 4, 5])
def test_an_owner_begins_at_its_first_batch(bucket: Bucket, head: int) -> None:
    run_of(bucket, head - 1).put(head, nonce=OURS if head < 4 else BEFORE)
    with pytest.raises(Fenced, match=f"batch {head} "):
        bucket.locate(head)


def test_a_snapshot_is_a_head_too(bucket: Bucket) -> None:
    found = run_of(bucket, 6).snapshot(6).locate(6)
    assert (found.files.head, found.files.count, found.whole) == (6, 0, False)
    bucket.store.delete([file_key(PREFIX, 0, txid, txid) for txid in range(1, 7)])
    found = bucket.locate(6)
    assert (found.files.head, found.files.swept, found.whole) == (6, 6, False)


def test_what_retention_left_is_no_gap(bucket: Bucket) -> None:
    run_of(bucket, 8).snapshot(6)
    bucket.store.delete([file_key(PREFIX, 0, txid, txid) for txid in (2, 3, 5, 6)])
    found = bucket.locate(8)
    assert (found.files.head, found.files.swept) == (8, 6)


def test_owners_of_long_ago_are_pruned_and_the_last_one_is_not(bucket: Bucket) -> None:
    run_of(bucket, 6)
    assert not bucket.locate(6, owners=((6, OURS),)).whole
    assert not bucket.locate(6, owners=()).whole, "the header says whose the last commit was"
    assert bucket.locate(9, owners=((9, OURS),)).whole, "though none is known for batch 6"
    with pytest.raises(Fenced):
        bucket.locate(6, owners=(), nonce=THEIRS)


# -- another history -----------------------------------------------------------------------


def test_a_bucket_that_went_on_fences(bucket: Bucket) -> None:
    run_of(bucket, 5).put(6, nonce=THEIRS)
    with pytest.raises(Fenced, match="at batch 6, this file at 5"):
        bucket.locate(5)
    assert bucket.requests == {"list": 1}, "whoever wrote it"


def test_even_if_it_was_us(bucket: Bucket) -> None:
    # A copy of the directory went on, or this one was put back from a backup.
    with pytest.raises(Fenced):
        run_of(bucket, 6).locate(5)


def test_another_writer_in_the_slot_we_wanted_fences(bucket: Bucket) -> None:
    run_of(bucket, 5).put(6, nonce=THEIRS)
    for txid in (6, 7):
        with pytest.raises(Fenced, match="not of this file's history"):
            bucket.locate(txid)


def test_a_nonce_is_compared_whole(bucket: Bucket) -> None:
    run_of(bucket, 5)
    for nonce in (OURS ^ 1, OURS ^ 1 << 62, OURS & 0xFFFF_FFFF):
        bucket.put(6, nonce=nonce)
        with pytest.raises(Fenced):
            bucket.locate(6)


def test_a_late_request_of_an_earlier_life_is_ours(bucket: Bucket) -> None:
    # It died with a request under way; the next life made its first commit for the same slot.
    bucket.put(1, 2, nonce=BEFORE)
    local = {"txid": 2, "owners": ((1, BEFORE), (2, OURS))}
    with pytest.raises(Fenced):
        bucket.locate(**local)  # type: ignore[arg-type]
    found = bucket.locate(**local, lives=(BEFORE, OURS))  # type: ignore[arg-type]
    assert (found.files.head, found.whole) == (2, True), "what came after it was never shipped"


def test_lives_do_not_excuse_a_head_beyond_the_file(bucket: Bucket) -> None:
    with pytest.raises(Fenced):
        run_of(bucket, 6).locate(5, lives=(OURS, BEFORE))


# -- a damaged bucket ----------------------------------------------------------------------


def test_a_missing_batch_is_an_error_and_not_a_head(bucket: Bucket) -> None:
    run_of(bucket, 6)
    bucket.store.delete([file_key(PREFIX, 0, 4, 4)])
    with pytest.raises(ReplicaGap, match="batch 4 is missing"):
        bucket.locate(6)


def test_a_bucket_without_its_first_batch(bucket: Bucket) -> None:
    bucket.put(2, 3)
    with pytest.raises(ReplicaGap, match="batch 1 is missing"):
        bucket.locate(3)


def test_a_head_that_cannot_be_read_is_an_error(bucket: Bucket) -> None:
    run_of(bucket, 5)
    bucket.store.put(file_key(PREFIX, 0, 6, 6), b"LTX1 and no more")
    with pytest.raises(ltx.LtxError):
        bucket.locate(6)


@pytest.mark.parametrize("kind", ["list", "get"])
def test_trouble_with_the_store_is_not_taken_for_an_answer(bucket: Bucket, kind: str) -> None:
    run_of(bucket, 6)
    bucket.store.arm(kind, Fault.BEFORE)  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable):
        bucket.locate(6)
    assert not bucket.locate(6).whole


# -- headers -------------------------------------------------------------------------------


def test_the_header_of_the_head_is_read_from_the_smaller_level(bucket: Bucket) -> None:
    run_of(bucket, 5).snapshot(5, nonce=THEIRS)
    listed = list_replica(bucket.store, PREFIX)
    assert nonce_of(header_at(bucket.store, listed, 5)) == OURS
    with pytest.raises(ObjectMissing):
        header_at(bucket.store, listed, 6)
