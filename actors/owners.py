"""Which writer began to own a scope's history at which replica batch: the `owners` table.

It exists only in ledgers that have a replica. Two questions are answered from it: whose file a
batch in the bucket must be if the history is ours, and which level-0 files are some owner's first
and so must outlive the others (a sleeper's next slot is always its successor's first file).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from infra.sqlite import Handle

KEPT_MS = 61 * 86_400_000  # a row outlives its file in the bucket (infra/prune.py), then goes


class Owner(NamedTuple):
    """`txid` is the owner's first batch, `nonce` what its files carry, `at` when it claimed."""

    owner: int
    txid: int
    nonce: int
    at: int


def note_owner(db: Handle, new: Owner, claims: Sequence[int] = ()) -> None:
    """Within the transaction of the owner's first commit, or of one that corrects its `txid`.

    `claims`: the batches of owners before it that wrote nothing. Those files are first ones too;
    who their writers were is not known, so each is noted as -TXID with the nonce 0.
    """
    db.execute(
        "CREATE TABLE IF NOT EXISTS owners(owner INTEGER PRIMARY KEY, txid INTEGER NOT NULL,"
        " nonce INTEGER NOT NULL, at INTEGER NOT NULL) STRICT"
    )
    db.execute("DELETE FROM owners WHERE at<? OR txid>=?", (new.at - KEPT_MS, new.txid))
    silent = [Owner(-txid, txid, 0, new.at) for txid in claims]
    db.executemany(
        "INSERT OR REPLACE INTO owners(owner, txid, nonce, at) VALUES (?,?,?,?)", [*silent, new]
    )


def read_owners(db: Handle) -> list[Owner]:
    """Oldest first; empty for a ledger that never had a replica."""
    if not db.execute("SELECT 1 FROM sqlite_schema WHERE name='owners'").fetchone():
        return []
    rows = db.execute("SELECT owner, txid, nonce, at FROM owners ORDER BY txid").fetchall()
    return [Owner(*row) for row in rows]


def nonce_at(owners: Sequence[Owner], txid: int) -> int | None:
    """The nonce that our history's batch `txid` carries; None where it is not known any more."""
    before = [owner for owner in owners if owner.txid <= txid]
    return before[-1].nonce if before else None
