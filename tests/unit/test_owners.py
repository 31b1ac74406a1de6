"""The owners of a history: who began at which batch, as the file remembers it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.ledger import Ledger, StaleOwner
from actors.owners import KEPT_MS, Owner, nonce_at, note_owner, read_owners
from actors.write import Write
from tests.support.ledgers import ADDRESS, NOW


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(":memory:", isolation_level=None)
    yield db
    db.close()


def note(db: sqlite3.Connection, *owners: Owner) -> None:
    for owner in owners:
        note_owner(db, owner)


# -- the table -----------------------------------------------------------------------------


def test_a_file_without_a_replica_has_no_owners(db: sqlite3.Connection) -> None:
    assert read_owners(db) == []
    assert not db.execute("SELECT 1 FROM sqlite_schema").fetchall(), "and no table for them"


def test_owners_come_oldest_first(db: sqlite3.Connection) -> None:
    first, second = Owner(1, 1, 11, NOW), Owner(2, 5, 22, NOW + 1)
    note(db, first, second)
    assert read_owners(db) == [first, second]


def test_a_corrected_claim_takes_the_place_of_the_first(db: sqlite3.Connection) -> None:
    # The bucket was further than the file could know when its first commit was made.
    note(db, Owner(1, 1, 11, NOW), Owner(2, 3, 22, NOW), Owner(2, 5, 22, NOW))
    assert read_owners(db) == [Owner(1, 1, 11, NOW), Owner(2, 5, 22, NOW)]
    note(db, Owner(2, 4, 22, NOW))
    assert read_owners(db) == [Owner(1, 1, 11, NOW), Owner(2, 4, 22, NOW)], "or less far"


def test_who_never_shipped_goes_when_another_has_its_slot(db: sqlite3.Connection) -> None:
    note(db, Owner(1, 1, 11, NOW), Owner(2, 5, 22, NOW), Owner(3, 5, 33, NOW))
    assert read_owners(db) == [Owner(1, 1, 11, NOW), Owner(3, 5, 33, NOW)]


def test_owners_of_long_ago_go(db: sqlite3.Connection) -> None:
    note(db, Owner(1, 1, 11, NOW), Owner(2, 5, 22, NOW + 1), Owner(3, 9, 33, NOW + KEPT_MS))
    assert [owner.owner for owner in read_owners(db)] == [1, 2, 3]
    note(db, Owner(4, 12, 44, NOW + KEPT_MS + 1))
    assert [owner.owner for owner in read_owners(db)] == [2, 3, 4]


def test_owners_who_wrote_nothing_are_noted_by_their_batches(db: sqlite3.Connection) -> None:
    note_owner(db, Owner(1, 1, 11, NOW))
    note_owner(db, Owner(4, 6, 44, NOW + 1), claims=range(4, 6))
    assert read_owners(db) == [
        Owner(1, 1, 11, NOW),
        Owner(-4, 4, 0, NOW + 1),
        Owner(-5, 5, 0, NOW + 1),
        Owner(4, 6, 44, NOW + 1),
    ]
    note_owner(db, Owner(4, 6, 44, NOW + 2), claims=range(4, 6))
    assert [owner.txid for owner in read_owners(db)] == [1, 4, 5, 6], "once"


@pytest.mark.parametrize(
    ("txid", "nonce"), [(0, None), (1, 11), (4, 11), (5, 22), (8, 22), (9, 33), (10**6, 33)]
)
def test_whose_a_batch_must_be(txid: int, nonce: int | None) -> None:
    owners = [Owner(1, 1, 11, NOW), Owner(2, 5, 22, NOW), Owner(3, 9, 33, NOW)]
    assert nonce_at(owners, txid) == nonce


def test_a_batch_before_every_owner_that_is_kept_is_nobodys() -> None:
    assert nonce_at([Owner(7, 50, 77, NOW)], 49) is None
    assert nonce_at([], 1) is None


# -- in a ledger ---------------------------------------------------------------------------


def made(path: Path, nonce: int = 11) -> Ledger:
    return Ledger.create(
        path, ADDRESS, dialect="asterql", epoch="e1", at=NOW, materialize=True, nonce=nonce
    )


def test_an_owner_is_noted_with_the_commit_that_says_so(tmp_path: Path) -> None:
    ledger = made(tmp_path / "x.db")
    assert not ledger.claimed and ledger.owner == 1 and ledger.owners() == []
    ledger.txid = 1
    ledger.commit(Write(NOW, first_txid=1))
    ledger.commit(Write(NOW + 1))
    assert ledger.claimed and ledger.owner == 1
    assert ledger.owners() == [Owner(1, 1, 11, NOW)]
    assert (ledger.header.owner, ledger.header.nonce, ledger.header.txid) == (1, 11, 1)
    ledger.close()


def test_another_process_is_the_next_owner_and_the_same_one_is_not(tmp_path: Path) -> None:
    ledger = made(tmp_path / "x.db")
    ledger.commit(Write(NOW, first_txid=1))
    ledger.close()
    for nonce, owner, claimed in ((11, 1, True), (22, 2, False), (0, 2, False)):
        again = Ledger.open(tmp_path / "x.db", ADDRESS, nonce=nonce)
        assert (again.owner, again.claimed) == (owner, claimed)
        again.close()


def test_without_a_bucket_every_opening_is_another_owner(tmp_path: Path) -> None:
    ledger = made(tmp_path / "x.db", nonce=0)
    ledger.commit(Write(NOW))
    twin = Ledger.open(tmp_path / "x.db", ADDRESS)
    assert (ledger.owner, twin.owner, twin.claimed) == (1, 2, False)
    twin.commit(Write(NOW))
    with pytest.raises(StaleOwner):
        ledger.commit(Write(NOW))
    twin.close()
    ledger.close()


def test_an_owner_follows_those_who_only_claimed(tmp_path: Path) -> None:
    ledger = made(tmp_path / "x.db")
    ledger.commit(Write(NOW, first_txid=1))
    ledger.close()
    again = Ledger.open(tmp_path / "x.db", ADDRESS, nonce=11)
    again.follows(4, claims=[2, 3, 4])
    assert again.owner == 5 and not again.claimed, "others came between, though it was ours"
    again.txid = 5
    again.commit(Write(NOW + 1, first_txid=5))
    assert [(owner.owner, owner.txid) for owner in again.owners()] == [
        (1, 1), (-2, 2), (-3, 3), (-4, 4), (5, 5),
    ]  # fmt: skip
    assert again.header.owner == again.owner == 5
    again.close()


def test_a_stale_owner_notes_nothing(tmp_path: Path) -> None:
    ledger, late = made(tmp_path / "x.db"), Ledger.open(tmp_path / "x.db", ADDRESS, nonce=22)
    ledger.commit(Write(NOW, first_txid=1))
    with pytest.raises(StaleOwner):
        late.commit(Write(NOW, first_txid=1))
    assert ledger.owners() == [Owner(1, 1, 11, NOW)] and late.owners() == ledger.owners()
    late.close()
    ledger.close()
