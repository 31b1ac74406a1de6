"""Where a ledger file stands against its replica: behind it, ahead of it, or off its history.

The file says which batch its last commit can ship in (`txid`), and which nonce the owner of each
batch writes with. From the rule that a commit carries a TXID not below the batch it ships in
follows: if the bucket's head is ours and not below `txid`, the bucket has everything.

A request of a process that was killed may land long after. So the head may be a batch that an
earlier life of this directory wrote, where the file names a later owner; whatever it holds, this
disk had before it was sent.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from infra.errors import Fenced
from infra.layout import LEVEL_CHANGES, ReplicaFile, ReplicaGap, file_key
from infra.ltx import Header, decode_header
from infra.ltx.header import HEADER_BYTES
from infra.objects import ObjectMissing, ObjectStore
from infra.replica_files import Files, from_listing
from infra.restore import list_replica


class Local(NamedTuple):
    """What the file said when it was opened. `owners`: (first TXID, nonce), oldest first; `lives`:
    the nonces of all processes that ran on this directory, as far as they are known.
    """

    txid: int
    nonce: int
    owners: Sequence[tuple[int, int]]
    lives: Collection[int] = ()


class Located(NamedTuple):
    """`whole`: the file has commits that the bucket lacks and nobody tracked: ship it whole.
    `lost`: the bucket had files of this scope and has none now.
    """

    files: Files
    whole: bool
    lost: bool


def locate(store: ObjectStore, prefix: str, local: Local) -> Located:
    """One listing, and one read of a header where there is history. Raises Fenced where the file
    does not belong to the bucket's history, ReplicaGap where a batch is missing, or StorageError.
    """
    listed = list_replica(store, prefix)
    files = from_listing(listed)
    if any(file.min_txid > files.head + 1 for file in listed):
        # The next batch would fill the hole, and what stands behind it would hide what it holds.
        raise ReplicaGap(
            f"{prefix}: batch {files.head + 1} is missing in the bucket, later ones are there: put"
            " it back, or move this scope's files there out of the way to have it written anew"
        )
    if files.head == 0:
        return Located(files, whole=True, lost=local.txid > 1)
    if files.head > local.txid:
        raise Fenced(
            f"{prefix}: the bucket is at batch {files.head}, this file at {local.txid}:"
            " another writer has gone on"
        )
    nonce = nonce_of(header_at(store, listed, files.head))
    expected = nonce == _expected(local, files.head)
    if not expected and nonce not in local.lives:
        raise Fenced(f"{prefix}: batch {files.head} in the bucket is not of this file's history")
    return Located(files, whole=local.txid > files.head or not expected, lost=False)


def overtaken(store: ObjectStore, prefix: str, head: int, nonce: int) -> bool:
    """Whether a writer of another nonce has made the batch after `head`. One read."""
    key = file_key(prefix, LEVEL_CHANGES, head + 1, head + 1)
    try:
        data = store.get(key, end=HEADER_BYTES)
    except ObjectMissing:
        return False
    return nonce_of(decode_header(data)) != nonce


def header_at(store: ObjectStore, listed: Sequence[ReplicaFile], head: int) -> Header:
    """The header of the newest file. Raises ObjectMissing where the head is in none of them."""
    newest = [file for file in listed if file.max_txid == head]
    if not newest:
        raise ObjectMissing(f"batch {head} is not in the listing")
    key = min(newest, key=lambda file: (file.level, file.size)).key
    return decode_header(store.get(key, end=HEADER_BYTES))


def nonce_of(header: Header) -> int:
    """The writer's nonce, which its files carry where SQLite's WAL would have its salts."""
    return header.salt1 << 32 | header.salt2


def _expected(local: Local, txid: int) -> int:
    before = [nonce for first, nonce in local.owners if first <= txid]
    return before[-1] if before else local.nonce
