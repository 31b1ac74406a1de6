"""What a replica's writer knows of its own files, so that it need not list them. Pure.

Always true of a replica: level 0 holds one file for each TXID, without a gap, up to the head; level
9 holds snapshots, each exactly the state at its TXID. Which files may go (docs/durability.md):
level 0 files that a snapshot older than the history window covers, and snapshots that are neither
the newest few nor the one the window begins with. The first file of each owner stays 30 days: a
writer that slept finds its next slot taken however long ago its successor came.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from infra.layout import LEVEL_CHANGES, LEVEL_SNAPSHOT, ReplicaFile

SNAPSHOT_FILES = 32  # level 0 files after which a small scope is written whole again
SNAPSHOT_FILES_MAX = 1024
SNAPSHOT_BYTES = 64 << 10  # or so many bytes of them, or as many as the last snapshot had
REST_FILES = 8  # at rest fewer are enough, so that waking reads little
BYTES_PER_FILE = 64 << 10  # of snapshot that one more file is worth waiting for
OWNER_FILE_MS = 30 * 86_400_000
STRAYS_MAX = 64  # files below the unbroken run that are not looked at again
DELETES_MAX = 10_000  # at one go; the rest goes with the next snapshot


class Mark(msgspec.Struct):
    """A snapshot: its TXID, when it was made (Unix milliseconds), its size in bytes."""

    txid: int
    at: int
    size: int


class Files(msgspec.Struct):
    """A replica as its writer knows it. `swept`: level 0 files up to it were deleted."""

    head: int = 0
    swept: int = 0
    count: int = 0  # level 0 files since the last snapshot
    size: int = 0  # their bytes
    snapshots: list[Mark] = []

    def shipped(self, txid: int, size: int) -> None:
        """One more level 0 file."""
        self.head = txid
        self.count += 1
        self.size += size

    def snapped(self, mark: Mark) -> None:
        """One more snapshot, of the state at `mark.txid`; files shipped since stay counted."""
        self.snapshots.append(mark)
        before, self.count = self.count, self.head - mark.txid
        # Their share, for which of the bytes are theirs is not known. All would call for the next
        # snapshot at once, and a busy scope would write nothing else.
        self.size = self.size * self.count // before if before else 0

    def wants_snapshot(self, *, resting: bool) -> bool:
        """Whether the state should be written whole."""
        last = self.snapshots[-1].size if self.snapshots else 0
        if resting and self.count >= REST_FILES:
            return True
        files = min(SNAPSHOT_FILES_MAX, max(SNAPSHOT_FILES, last // BYTES_PER_FILE))
        return self.count >= files or (self.count > 1 and self.size > max(SNAPSHOT_BYTES, last))


def from_listing(files: Sequence[ReplicaFile]) -> Files:
    """What a listing says. The head is that of the unbroken run from the last snapshot on."""
    snapshots = [Mark(f.max_txid, f.created_ms, f.size) for f in files if f.level == LEVEL_SNAPSHOT]
    snapshots.sort(key=lambda mark: mark.txid)
    found = Files(snapshots=snapshots)
    covered = found.head = snapshots[-1].txid if snapshots else 0
    changes = sorted(
        (f for f in files if f.level != LEVEL_SNAPSHOT), key=lambda f: (f.min_txid, f.max_txid)
    )
    for file in changes:
        if file.max_txid <= covered or file.min_txid > found.head + 1:
            continue
        found.head = max(found.head, file.max_txid)
        found.count += 1
        found.size += file.size
    singles = [f.max_txid for f in changes if f.level == LEVEL_CHANGES]
    found.swept = _begins(singles) - 1 if singles else found.head
    return found


def _begins(txids: Sequence[int]) -> int:
    """The lowest TXID that retention may still find something at."""
    first, at = txids[-1], len(txids)
    while at and txids[at - 1] >= first - 1:
        at -= 1
        first = txids[at]
    # A few below the run are owners' first files; more were left behind by a listing cut short.
    return txids[0] if at > STRAYS_MAX else first


class Sweep(msgspec.Struct, frozen=True):
    """What may be deleted, and how `Files` looks afterwards."""

    changes: list[int]  # TXIDs of level 0 files
    snapshots: list[int]  # TXIDs of snapshots
    swept: int


def sweep(
    files: Files,
    firsts: Sequence[tuple[int, int]],
    *,
    now: int,
    history_ms: int,
    snapshots_min: int,
) -> Sweep | None:
    """What retention lets go. `firsts`: (TXID, when) of each owner's first file.

    `history_ms` = 0 keeps everything. None where nothing is to be done.
    """
    if history_ms == 0 or len(files.snapshots) < 2:
        return None
    previous = files.snapshots[:-1]
    aged = [mark for mark in previous if mark.at <= now - history_ms]
    if not aged:
        return None
    base = aged[-1]
    kept_first = {txid for txid, at in firsts if at > now - OWNER_FILE_MS}
    upto = min(base.txid, files.swept + DELETES_MAX)
    gone = [txid for txid in range(files.swept + 1, upto + 1) if txid not in kept_first]
    gone += [t for t, at in firsts if t <= files.swept and at <= now - OWNER_FILE_MS]
    newest = {mark.txid for mark in files.snapshots[-max(2, snapshots_min) :]}
    keep = newest | {base.txid}
    old = [mark.txid for mark in files.snapshots if mark.txid not in keep]
    if not gone and not old:
        return None
    return Sweep(gone, old, upto)


def after_sweep(files: Files, done: Sweep) -> None:
    """The deletion went through."""
    files.swept = max(files.swept, done.swept)
    files.snapshots = [mark for mark in files.snapshots if mark.txid not in set(done.snapshots)]
