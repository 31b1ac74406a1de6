"""Any `SyncScopeLedger` as a port: so that a hub runs the same connections over a foreign store.

One task per scope appends in order; taps follow through the bus, and every few seconds by comparing
heads, since hints may be lost (asterql.md section 8).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from actors.snapshot import Snapshot
from actors.types import (
    Address,
    Appended,
    Batch,
    Bounds,
    Draft,
    Duplicate,
    Outcome,
    Page,
    Rejected,
    Reply,
    Resync,
    Tap,
)  # fmt: skip
from edge.dialects.asterql.bus import HINT_BYTES_MAX, SyncBus
from edge.dialects.asterql.ledgers import BelowFloor, PublishError, SyncScopeLedger
from infra import limits
from infra.errors import Busy, Closed
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.ledger_port")

COMPARE_S = 5.0


class _Followed:
    """A scope with taps: the last seq they were given."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.tail = bounds.head
        self.taps: list[Tap] = []
        self.reading = False
        self.again = False  # a hint came while reading


class LedgerPort:
    """Fits actors.port.Port."""

    def __init__(self, ledger: SyncScopeLedger, bus: SyncBus) -> None:
        self._ledger = ledger
        self._bus = bus
        self._tasks = TaskOwner()
        self._queues: dict[Address, asyncio.Queue[tuple[list[Draft], Reply, Any]]] = {}
        self._writers: dict[Address, asyncio.Task[None]] = {}
        self._followed: dict[Address, _Followed] = {}
        self._unsubscribe = bus.subscribe(self._heard)
        self._comparing = False
        self._closed = False

    # -- writing -----------------------------------------------------------------------------------

    def append(
        self,
        address: Address,
        drafts: list[Draft],
        reply: Reply,
        tag: Any,
        *,
        replicated: bool = False,
    ) -> None:
        if self._closed:
            raise Closed("the hub is closed")
        queue = self._queues.get(address)
        if queue is None:
            queue = self._queues[address] = asyncio.Queue(limits.MAILBOX_DRAFTS_MAX)
            writer = self._tasks.spawn(self._write(address, queue), name="ledger-writer")
            self._writers[address] = writer
        try:
            queue.put_nowait((drafts, reply, tag))
        except asyncio.QueueFull as error:
            raise Busy("too many writes wait in this scope", retry_after_ms=100) from error

    async def _write(
        self, address: Address, queue: asyncio.Queue[tuple[list[Draft], Reply, Any]]
    ) -> None:
        while not queue.empty():
            drafts, reply, tag = queue.get_nowait()
            outcomes = [await self._append_one(address, draft) for draft in drafts]
            try:
                bounds = await self._ledger.bounds(address.scope)
            except Exception:  # a foreign store: whoever waits is answered all the same
                bounds = Bounds("", 0, 0, 0)
            reply.settle(tag, outcomes, bounds)
            reply.flush()
        del self._queues[address], self._writers[address]

    async def _append_one(self, address: Address, draft: Draft) -> Outcome:
        made = draft.make
        text = "{" + draft.body

        def make(seq: int) -> dict[str, Any]:
            body = text if made is None else "{" + made(seq, 0).body
            return {**msgspec.json.decode(body), "seq": seq}

        try:
            published = await self._ledger.append(address.scope, make)
        except PublishError as error:
            detail = {"entity": error.entity, "index": error.index, "reason": error.reason}
            known = {name: value for name, value in detail.items() if value is not None}
            return Rejected(error.code, str(error), known or None)
        except Exception as error:  # a foreign store, or the caller's factory
            return Rejected(getattr(error, "code", "internal"), str(error), error=error)
        envelope = published.envelope or {}
        seq = int(envelope.get("seq", 0))
        if published.duplicate:
            gone = published.envelope is None  # retention took it
            return Duplicate(seq, body=None if gone else msgspec.json.encode(envelope).decode())
        await self._tell(address, seq, envelope)
        return Appended(seq, seq)

    async def _tell(self, address: Address, seq: int, envelope: dict[str, Any]) -> None:
        small = len(msgspec.json.encode(envelope)) <= HINT_BYTES_MAX
        await self._bus.publish(address.scope, seq, envelope if small else None)

    # -- following ---------------------------------------------------------------------------------

    async def subscribe(self, address: Address, tap: Tap) -> Bounds:
        followed = self._followed.get(address)
        if followed is None:
            bounds = await self._ledger.bounds(address.scope)
            followed = self._followed.setdefault(address, _Followed(bounds))
        followed.taps.append(tap)
        if not self._comparing:
            self._comparing = True
            self._tasks.spawn(self._compare(), name="ledger-compare")
        return msgspec.structs.replace(followed.bounds, head=followed.tail)

    def unsubscribe(self, address: Address, tap: Tap) -> None:
        followed = self._followed.get(address)
        if followed is not None and tap in followed.taps:
            followed.taps.remove(tap)
            if not followed.taps:
                del self._followed[address]

    def _heard(self, scope: str, seq: int, envelope: dict[str, Any] | None) -> None:
        for address, followed in list(self._followed.items()):
            if address.scope != scope or seq <= followed.tail:
                continue
            known = followed.bounds.epoch != ""  # of a scope followed before its first entry: not
            direct = known and envelope is not None and not followed.reading
            if envelope is not None and direct and seq == followed.tail + 1:
                self._deliver(followed, seq, [msgspec.json.encode(envelope).decode()])
            else:
                self._catch_up(address, followed)

    def _catch_up(self, address: Address, followed: _Followed) -> None:
        followed.again = True
        if not followed.reading and not self._closed:
            followed.reading = True
            self._tasks.spawn(self._read_on(address, followed), name="ledger-catch-up")

    async def _read_on(self, address: Address, followed: _Followed) -> None:
        try:
            while followed.again:
                followed.again = False
                bounds = await self._ledger.bounds(address.scope)
                if bounds.epoch != followed.bounds.epoch and followed.bounds.epoch:
                    followed.bounds, followed.tail = bounds, bounds.head
                    for tap in tuple(followed.taps):
                        tap.reset(bounds)
                    return
                followed.bounds = bounds
                found = await self._ledger.read(
                    address.scope, followed.tail, limits.PAGE_ENTRIES_MAX
                )
                if not found:
                    continue
                followed.again = True
                bodies = [msgspec.json.encode(envelope).decode() for envelope in found]
                self._deliver(followed, followed.tail + len(bodies), bodies)
        except BelowFloor as error:
            followed.tail = max(error.floor, followed.bounds.head)
            for tap in tuple(followed.taps):
                tap.reset(followed.bounds)
        finally:
            followed.reading = False

    def _deliver(self, followed: _Followed, last: int, bodies: list[str]) -> None:
        first = followed.tail + 1
        followed.tail = last
        old = followed.bounds
        followed.bounds = Bounds(old.epoch, max(last, old.head), old.floor, last)
        batch = Batch(first, last, bodies, msgspec.structs.replace(followed.bounds, head=last))
        for tap in tuple(followed.taps):
            tap.deliver(batch)

    async def _compare(self) -> None:
        while True:
            await asyncio.sleep(COMPARE_S)
            for address, followed in list(self._followed.items()):
                try:
                    bounds = await self._ledger.bounds(address.scope)
                except Exception:  # a foreign store: it may answer the next time
                    log.exception("bounds failed scope=%s", address.scope)
                    continue
                if bounds.head != followed.tail or bounds.epoch != followed.bounds.epoch:
                    self._catch_up(address, followed)

    # -- reading -----------------------------------------------------------------------------------

    async def read(
        self, address: Address, after: int, *, entries_max: int, bytes_max: int, joined: bool
    ) -> Page | Resync:
        bounds = await self._ledger.bounds(address.scope)
        followed = self._followed.get(address)
        # Nobody may be shown more than the live stream has passed, or an entry would come twice.
        head = bounds.head if followed is None else min(bounds.head, followed.tail)
        seen = msgspec.structs.replace(bounds, head=head, durable=head)
        if after > head:
            return Resync("ahead_of_head", seen)
        try:
            found = await self._ledger.read(
                address.scope, after, min(entries_max, max(1, head - after))
            )
        except BelowFloor:
            return Resync("below_floor", seen)
        bodies: list[str] = []
        size = 0
        for envelope in found[: head - after]:
            text = msgspec.json.encode(envelope).decode()
            size += len(text)
            if bodies and size > bytes_max:
                break
            bodies.append(text)
        last = after + len(bodies)
        return Page(
            after + 1, last, [] if joined else bodies, ",".join(bodies) if joined else "", seen
        )

    async def bounds(self, address: Address) -> Bounds:
        return await self._ledger.bounds(address.scope)

    async def snapshot(self, address: Address, coll: str) -> Snapshot | None:
        """A hub reads `ledger.snapshot`; spooled ones belong to actors."""
        return None

    async def clear(self, address: Address) -> Bounds:
        await self._ledger.clear(address.scope)
        followed = self._followed.get(address)
        if followed is not None:
            self._catch_up(address, followed)
        return await self._ledger.bounds(address.scope)

    async def run(self, work: Callable[[], Any]) -> Any:
        return await asyncio.to_thread(work)

    async def aclose(self) -> None:
        """Finish what was taken, then stop."""
        self._closed = True
        self._unsubscribe()
        if self._writers:
            await asyncio.wait(list(self._writers.values()))
        await self._tasks.aclose()
