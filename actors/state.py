"""Reads of a scope's rows and groups through the gate: what comes back is released.

The part of the port (actors/port.py) that needs nothing of opening and closing scopes but to have
one at hand; `Host` is made on it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from actors.ephemeral import Ephemera, Line, Party
from actors.rows import Key, Row
from actors.scan import Spool, Work, take_scan
from actors.scope import Scope
from actors.snapshot import Snapshot, take_snapshot
from actors.types import Address, Bounds, EntryPage, Resync
from actors.wakes import Why

EMPTY = Bounds("", 0, 0, 0)
SCAN_THREADS = 2  # apart from the host's others: a long read must not hold up a checkpoint


class StateReads(ABC):
    """Fits what actors.port.StatePort adds to Port."""

    directory: Path
    ephemera: Ephemera
    resting: dict[Address, Bounds]
    _scans: ThreadPoolExecutor | None = None

    @abstractmethod
    async def awake(self, address: Address, why: Why = Why.READ) -> Scope | None: ...

    @abstractmethod
    async def settled(self, address: Address) -> None: ...

    @abstractmethod
    async def run(self, work: Callable[[], Any]) -> Any: ...

    def ephemeral(self, address: Address, party: Party) -> Line:
        """See actors.port.StatePort."""
        return self.ephemera.open(address, party)

    async def snapshot(self, address: Address, coll: str) -> Snapshot | None:
        scope = await self.awake(address)
        if scope is None:
            return None
        path = scope.ledger.path
        taken: Snapshot = await self.run(lambda: take_snapshot(path, address, coll, self.directory))
        try:
            if taken.seq > scope.released:
                await self.settled(address)
        except BaseException:
            taken.close()
            raise
        return taken

    async def visible(
        self, address: Address, after: int, groups: str, *, entries_max: int, bytes_max: int
    ) -> EntryPage | Resync:
        known = self.resting.get(address)
        if known is not None and after == known.head:
            return EntryPage(after, [], known)
        scope = await self.awake(address, Why.REPLAY)
        if scope is None:
            return EntryPage(0, [], EMPTY) if after == 0 else Resync("ahead_of_head", EMPTY)
        return scope.visible(after, groups, entries_max=entries_max, bytes_max=bytes_max)

    async def get(self, address: Address, keys: Sequence[Key]) -> list[Row | None]:
        scope = await self.awake(address)
        if scope is None:
            return [None] * len(keys)
        found = scope.rows(keys)
        # A row that is missing may have been removed by a commit that is not released yet.
        if scope.head > scope.released and any(
            row is None or row.seq > scope.released for row in found
        ):
            await self.settled(address)
        return found

    async def scan(self, address: Address, work: Work) -> Spool | None:
        scope = await self.awake(address)
        if scope is None:
            return None
        path = scope.ledger.path
        if self._scans is None:  # most hosts never scan
            self._scans = ThreadPoolExecutor(SCAN_THREADS, thread_name_prefix="holdfast-scan")
        scan = asyncio.get_running_loop().run_in_executor(
            self._scans, lambda: take_scan(path, address, work, self.directory, scope.dialect)
        )
        try:
            taken: Spool = await asyncio.shield(scan)
        except asyncio.CancelledError:
            scan.add_done_callback(_close_unwanted)  # the thread goes on all the same
            raise
        try:
            if taken.seq > scope.released:
                await self.settled(address)
        except BaseException:
            taken.close()
            raise
        return taken

    def end_scans(self) -> None:
        """Wait for the scans under way. Slow where there are long ones."""
        if self._scans is not None:
            self._scans.shutdown()


def _close_unwanted(scan: asyncio.Future[Spool]) -> None:
    if not scan.cancelled() and scan.exception() is None:
        scan.result().close()
