"""A store with faults for the files of replicas, whose late writes outlive their process.

A killed process leaves requests behind in the network: they may land after the next one has begun.
So a late put is kept in a folder, and whoever shares the folder lands it, a little later. `drop` is
the control: such a store says yes to every file of a replica and keeps none.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from infra import clock, ids
from infra.errors import StorageError
from infra.objects import ObjectStore
from tests.support.faulty_store import Fault, Faults, FaultyStore, Kind

LATE_MS_MAX = 400


class _Late(msgspec.Struct):
    key: str
    body: bytes
    if_absent: bool
    timestamp_ms: int | None


class LingeringStore(FaultyStore):
    """`folder` must exist; several processes may share it."""

    def __init__(
        self, store: ObjectStore, folder: Path, faults: Faults, *, seed: int = 0, drop: bool = False
    ) -> None:
        super().__init__(store, faults, seed=seed)
        self._folder = folder
        self._drop = drop
        self._asked_now = threading.local()  # the put that this thread is making
        self._troubled = True

    def put(
        self,
        key: str,
        body: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        timestamp_ms: int | None = None,
    ) -> None:
        """See FaultyStore."""
        if self._drop and key.endswith(".ltx"):
            return
        data = body if isinstance(body, bytes) else body.read()
        self._asked_now.put = _Late(key, data, if_absent, timestamp_ms)
        try:
            super().put(key, data, if_absent=if_absent, timestamp_ms=timestamp_ms)
        finally:
            self._asked_now.put = None

    def _pick(self, kind: Kind, chance: float) -> Fault:
        # Starting over a bucket that does not answer is another matter, and another test.
        return super()._pick(kind, chance) if self._troubled else Fault.NONE

    def _begin(self, kind: Kind, key: str) -> tuple[Fault, random.Random]:
        with self._changed:
            self._troubled = kind == "list" or key.endswith(".ltx")
            return super()._begin(kind, key)

    def _postpone(self, apply: Callable[[], object], requests: int) -> None:
        late = getattr(self._asked_now, "put", None)
        if late is None:
            super()._postpone(apply, requests)
            return
        due = clock.now_ms() + random.Random(self.seed + requests).randint(0, LATE_MS_MAX)
        fresh = self._folder / f".{ids.new_id()}"
        fresh.write_bytes(msgspec.msgpack.encode(late))
        fresh.rename(self._folder / f"{due:014d}-{ids.new_id()}")

    def _land(self, by: int | None) -> int:
        return super()._land(by) + self.land_due(now_ms=None if by is None else clock.now_ms())

    def land_due(self, now_ms: int | None) -> int:
        """Apply what is due, or with None everything; how many there were."""
        landed = 0
        for name in sorted(os.listdir(self._folder)):
            if name.startswith(".") or (now_ms is not None and int(name[:14]) > now_ms):
                continue
            mine = self._folder / f".{name}"
            try:
                (self._folder / name).rename(mine)
            except FileNotFoundError:
                continue  # another process was first
            late = msgspec.msgpack.decode(mine.read_bytes(), type=_Late)
            mine.unlink()
            landed += 1
            with suppress(StorageError):  # its answer goes nowhere
                self._store.put(
                    late.key, late.body, if_absent=late.if_absent, timestamp_ms=late.timestamp_ms
                )
        return landed
