"""A ledger file and its replica, without a scope between them: commits, disk and time by hand.

`Shipping` stands where `actors.replicating.ScopeSource` does. With `disk_at_once` the disk has each
commit as it is made, else after `synced`; the clock stands still until a test moves it. What it was
told is written down, and whoever must wait for it awaits `until`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.ledger import Ledger
from actors.types import Entry
from actors.write import Write
from infra.errors import HoldfastError
from infra.layout import ReplicaFile
from infra.locate import Local
from infra.ltx import Header, decode
from infra.meter import Meter
from infra.objects import ObjectStore
from infra.pages import Batch
from infra.replica import Replica
from infra.replica_files import Files
from infra.replicator import ReplicaSettings, Service
from infra.restore import list_replica, restore_to
from infra.shipped import Point
from infra.wal import WalTracker
from tests.support.ledgers import ADDRESS, NOW, Checked, check_file

PREFIX = "p/default/run~3ar1"
NONCE = 2**61 + 77
WAIT_S = 20
LOOK_S = 0.0005


class Clock:
    """Unix milliseconds, as far as the replica looks at them."""

    def __init__(self, now: int = NOW) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


class Bucket:
    """A store, what shares it, and what lies in it."""

    def __init__(
        self, home: Path, store: ObjectStore, *, nonce: int = NONCE, **settings: Any
    ) -> None:
        settings = {"put_interval_ms": 0, "history_ms": 0, **settings}
        self.clock = Clock()
        self.home = home
        self.store = store
        self.service = Service(
            store, Meter(), ReplicaSettings(**settings), nonce=nonce, spool=home, now_ms=self.clock
        )

    @property
    def files(self) -> list[ReplicaFile]:
        found = list_replica(self.store, PREFIX)
        return sorted(found, key=lambda file: (file.level, file.max_txid))

    @property
    def names(self) -> list[tuple[int, int]]:
        """(level, last TXID) of every file."""
        return [(file.level, file.max_txid) for file in self.files]

    def read(self, txid: int, level: int = 0) -> tuple[Header, list[tuple[int, bytes]]]:
        for file in self.files:
            if (file.level, file.max_txid) == (level, txid):
                return decode(self.store.get(file.key))
        raise AssertionError(f"no file of level {level} at {txid}")

    def restored(self, txid: int | None = None) -> Checked:
        """The state in the bucket, checked."""
        target = self.home / "restored.db"
        restore_to(self.store, PREFIX, target, txid=txid)
        return check_file(target)


class Shipping:
    """Fits infra.shipped.Source."""

    def __init__(self, bucket: Bucket, ledger: Ledger, *, disk_at_once: bool = True) -> None:
        self.bucket = bucket
        self.ledger = ledger
        self.disk_at_once = disk_at_once
        self.position = self.synced_to = 0
        self.asked_since: int | None = None
        self.is_urgent = True
        self.is_lent = False
        self.lent_by_claims = False
        self._noted = False
        self.reports: list[tuple[int, int]] = []
        self.stalls: list[HoldfastError] = []
        self.fences: list[HoldfastError] = []
        self.asked_claims: list[int] = []
        self.claims: list[int] = []  # commits made for one
        self.repairs = 0
        self.reads = 0
        self.break_reads: Callable[[WalTracker], None] | None = None
        self.replica: Replica

    # -- what a test does --------------------------------------------------------------------------

    @classmethod
    def create(cls, bucket: Bucket, path: Path, **options: bool) -> Shipping:
        """A new ledger with a replica that knows that the bucket has nothing of it."""
        ledger = Ledger.create(
            path, ADDRESS, dialect="asterql", epoch="e1", at=NOW, materialize=False,
            nonce=bucket.service.nonce, tracked=True,
        )  # fmt: skip
        found = cls(bucket, ledger, **options)
        found.attach(Files())
        return found

    @classmethod
    def open(
        cls,
        bucket: Bucket,
        path: Path,
        files: Files | None,
        *,
        whole: bool = False,
        claim: Callable[[Ledger], Batch] | None = None,
        foreign: bool = False,
        lives: tuple[int, ...] = (),
    ) -> Shipping:
        """A ledger that nobody has open, with a replica that knows so much."""
        ledger = Ledger.open(path, ADDRESS, nonce=bucket.service.nonce, tracked=True)
        found = cls(bucket, ledger)
        made = None if claim is None else claim(ledger)
        found.attach(files, whole=whole, claim=made, foreign=foreign, lives=lives)
        return found

    def attach(
        self,
        files: Files | None,
        *,
        whole: bool = False,
        claim: Batch | None = None,
        foreign: bool = False,
        lives: tuple[int, ...] = (),
    ) -> None:
        owners = [(owner.txid, owner.nonce) for owner in self.ledger.owners()]
        header = self.ledger.header
        local = Local(header.txid, header.nonce, owners, lives)
        self.replica = Replica(
            self.bucket.service, PREFIX, local, files, whole=whole, claim=claim, foreign=foreign
        )
        self.replica.bind(self)

    def commit(self, count: int = 1, *, pad: int = 10) -> None:
        """One transaction with so many entries."""
        ledger, head = self.ledger, self.ledger.header.head
        ledger.txid = self.replica.next_txid
        entries = [_entry(seq, pad) for seq in range(head + 1, head + count + 1)]
        first = None if ledger.claimed else self.replica.claim_txid
        self._noted = self._noted or first is not None
        ledger.commit(Write(NOW, entries, first_txid=first))
        self._committed(pad * count)

    def _committed(self, size: int) -> None:
        self.position += 1
        if self.disk_at_once:
            self.synced_to = self.position
        self.replica.committed(size)

    def synced(self) -> None:
        """The disk has everything."""
        self.synced_to = self.position
        self.replica.synced()

    async def ship(self, *counts: int, pad: int = 10) -> None:
        """Commit and have the bucket take it, one batch for each number of entries."""
        for count in counts or (1,):
            self.commit(count, pad=pad)
            await self.drained()

    async def drained(self) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.replica.drained()

    async def idle(self) -> None:
        """Let the replica do what it does without anybody's help."""
        for _ in range(10):
            await asyncio.sleep(0)
        await self.replica.landed()

    async def until(self, done: Callable[[], object]) -> None:
        """Wait for something that the replica says, or that can be seen."""
        async with asyncio.timeout(WAIT_S):
            while not done():
                await asyncio.sleep(LOOK_S)

    async def close(self) -> None:
        """As the host does."""
        self.replica.stop()
        await self.replica.landed()
        self.ledger.close()

    async def crash(self) -> None:
        """The handle goes without having a say; what was committed stays in the WAL."""
        self.replica.stop()
        await self.replica.landed()
        _abandoned.append(self.ledger)

    # -- what the replica asks ---------------------------------------------------------------------

    def urgent(self) -> bool:
        return self.is_urgent

    def waiting_since(self) -> int | None:
        return self.asked_since

    def point(self) -> Point:
        ledger = self.ledger
        return Point(self.position, ledger.header.head, ledger.commits, ledger.owner)

    def passed(self) -> int:
        return self.synced_to

    def lent(self) -> bool:
        return self.is_lent

    def pages(self, commits: int) -> WalTracker:
        self.reads += 1
        tracker = self.ledger.follow(commits)
        assert tracker is not None
        if self.break_reads is not None:
            self.break_reads(tracker)
        return tracker

    def firsts(self) -> list[tuple[int, int]]:
        return [(owner.txid, owner.at) for owner in self.ledger.owners()]

    def claim(self, txid: int) -> None:
        """As actors.scope does."""
        self.asked_claims.append(txid)
        ledger, owners = self.ledger, self.ledger.owners()
        if ledger.claimed and owners and owners[-1].owner == ledger.owner:
            last = owners[-1].txid
            if last == txid or (last < txid and not self._noted):
                return
        self._note(txid)

    def _note(self, txid: int) -> None:
        self.claims.append(txid)
        self.ledger.txid = self.replica.next_txid
        self.ledger.commit(Write(NOW, first_txid=txid))
        self._noted = True
        self._committed(0)
        self.is_lent = self.is_lent or self.lent_by_claims

    def shipped(self, position: int, head: int) -> None:
        self.reports.append((position, head))

    def stall(self, error: HoldfastError) -> None:
        self.stalls.append(error)

    def fenced(self, error: HoldfastError) -> None:
        self.fences.append(error)

    def repair(self) -> None:
        self.repairs += 1
        self.break_reads = None
        self.ledger.track_anew()


_abandoned: list[Ledger] = []


def let_go() -> None:
    """Close what crashes left open."""
    while _abandoned:
        _abandoned.pop().close()


def _entry(seq: int, pad: int) -> Entry:
    cause = f"e{seq}"
    body = json.dumps(
        {"seq": seq, "scope": ADDRESS.scope, "eventId": cause, "kind": "patch", "pad": "x" * pad},
        separators=(",", ":"),
    )
    return Entry(seq, NOW, "patch", cause, body, len(body))
