"""An earlier state of a scope out of the bucket: by TXID, by time, or by seq. Blocking; no server
is asked and nothing is locked.

Replicas know batches, not seqs. The batch that brought a seq is found by halving: a state in the
middle is restored to a scratch file beside the target and tells its head, which never goes back
from one batch to the next. Some ten small restores; one for each snapshot halved first, so that
only one snapshot's changes are listed.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

from actors.header import Header
from actors.identity import whose
from actors.moment import At, rfc3339
from infra.layout import LEVEL_SNAPSHOT, NoBackup, ReplicaFile, snapshots
from infra.objects import ObjectStore
from infra.restore import Progress, Restored, list_replica, restore_to

NOTHING = At()


def restore_state(
    store: ObjectStore,
    prefix: str,
    target: Path,
    at: At = NOTHING,
    *,
    pool: Executor | None = None,
    progress: Progress | None = None,
) -> Restored:
    """`infra.restore.restore_to`, also by seq: then the first state that holds it, with whatever
    else came in the same batch. For a seq the replica must be of a ledger.

    Raises NoBackup where that state is not kept or never was, FileRefused for what is no ledger,
    and what `restore_to` raises; the target is untouched then.
    """
    if at.seq is None:
        try:
            return restore_to(
                store, prefix, target, txid=at.txid, timestamp_ms=at.time_ms, pool=pool,
                progress=progress,
            )  # fmt: skip
        except NoBackup as error:
            if at.time_ms is None:
                raise
            moment = rfc3339(at.time_ms)
            raise NoBackup(f"the replica holds nothing from before {moment}") from error
    search = _Search(store, prefix, target.with_name(target.name + ".probe"), pool)
    try:
        txid, files = search.find(at.seq)
    finally:
        search.close()
    return restore_to(store, prefix, target, txid=txid, files=files, pool=pool, progress=progress)


class _Search:
    """Heads of states, each looked at once."""

    def __init__(
        self, store: ObjectStore, prefix: str, scratch: Path, pool: Executor | None
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._scratch = scratch
        self._pool = pool
        self._headers: dict[int, Header] = {}

    def find(self, seq: int) -> tuple[int, list[ReplicaFile]]:
        """(TXID, files to restore it from) of the first state whose head is at or above `seq`."""
        listed = list_replica(self._store, self._prefix)
        images = snapshots(listed)
        index = bisect_left(images, seq, key=lambda file: self._head(file.max_txid, [file]))
        low = images[index - 1].max_txid if index else 0
        high = images[index].max_txid if index < len(images) else None
        if high is not None:  # the first listing holds only what follows the newest snapshot
            listed = list_replica(self._store, self._prefix, txid=max(1, high - 1))
        txids = [
            txid for txid in _reachable(listed) if txid > low and (high is None or txid < high)
        ]
        files = listed
        at = bisect_left(txids, seq, key=lambda txid: self._head(txid, files))
        if at < len(txids):
            found = txids[at]
        elif high is not None:
            found = high
        else:
            raise self._not_there(seq, [low, *txids])
        before = txids[at - 1] if at else low
        self._check(seq, found, before)
        return found, files

    def _head(self, txid: int, files: list[ReplicaFile]) -> int:
        return self._state(txid, files).head

    def _state(self, txid: int, files: list[ReplicaFile]) -> Header:
        header = self._headers.get(txid)
        if header is None:
            restore_to(
                self._store, self._prefix, self._scratch, txid=txid, files=files, pool=self._pool
            )
            header = self._headers[txid] = whose(self._scratch).header
        return header

    def _check(self, seq: int, found: int, before: int) -> None:
        """The state holds the seq, and it is the first one: nothing older was deleted that did."""
        header = self._headers[found]
        if before != found - 1 and header.head > seq:
            raise NoBackup(
                f"the state that ended with seq {seq} is not kept any more: the next one that is"
                f" goes up to seq {header.head}; use --at txid:{found}"
            )
        if before and header.jump != self._headers[before].jump:
            last = self._headers[before].head
            if seq <= last + header.jump - self._headers[before].jump:
                raise NoBackup(
                    f"no entry was given seq {seq}: the history was cut after {last} and its"
                    f" numbers jumped (TXID {found}); use --at txid:{before} or later"
                )

    def _not_there(self, seq: int, txids: Sequence[int]) -> NoBackup:
        last = self._headers.get(txids[-1])
        where = "nothing" if last is None else f"up to seq {last.head} (TXID {txids[-1]})"
        return NoBackup(f"the replica does not hold seq {seq}: it has {where}")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._scratch.unlink(missing_ok=True)


def _reachable(files: Sequence[ReplicaFile]) -> list[int]:
    """The TXIDs whose states can be rebuilt, ascending."""
    follows: dict[int, int] = {}
    for file in files:
        if file.level != LEVEL_SNAPSHOT:
            follows[file.min_txid] = max(file.max_txid, follows.get(file.min_txid, 0))
    found: set[int] = set()
    for start in (0, *(file.max_txid for file in snapshots(files))):
        txid: int | None = start
        while txid is not None and txid not in found:
            found.add(txid)
            txid = follows.get(txid + 1)
    found.discard(0)
    return sorted(found)
