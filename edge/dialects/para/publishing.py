"""Changes of scopes on a SyncTransport, for the services beside a server: after release, in order.

A tap of each scope that somebody writes to through the authority; what is published is whole.
"""

from __future__ import annotations

import asyncio
import logging

from actors.dialects.para.envelope import SyncEnvelope
from actors.dialects.para.plan import stored_of
from actors.port import Port
from actors.types import Address, Batch, Bounds, Entry
from edge.client.para.transport import SyncTransport

log = logging.getLogger("holdfast.para")


def envelope_of_entry(entry: Entry, jump: int) -> SyncEnvelope:
    """The envelope that an entry made."""
    stored = stored_of(entry)
    return SyncEnvelope(
        stored.value, stored.schema_version, stored.rev + jump, deleted=entry.kind == "del"
    )


class Publisher:
    """One tap per scope; call `follow` before writing to it, `close` at the end."""

    def __init__(self, port: Port, transport: SyncTransport) -> None:
        self._port = port
        self._transport = transport
        self._taps: dict[Address, _Tap] = {}
        self._lock = asyncio.Lock()

    async def follow(self, address: Address) -> None:
        """Publish every later change of the scope."""
        if address in self._taps:
            return
        async with self._lock:  # who comes second must not write before the tap stands
            if address not in self._taps:
                tap = _Tap(self._transport)
                await self._port.subscribe(address, tap)
                self._taps[address] = tap

    def close(self) -> None:
        """Publish nothing more."""
        for address, tap in self._taps.items():
            self._port.unsubscribe(address, tap)
        self._taps.clear()


class _Tap:
    def __init__(self, transport: SyncTransport) -> None:
        self._transport = transport

    def deliver(self, batch: Batch) -> None:
        for entry in batch.entries:
            assert entry.ref is not None
            try:
                self._transport.publish(entry.ref, envelope_of_entry(entry, batch.bounds.jump))
            except Exception:  # a listener's, or the bus is away: replicas catch up by refetch
                log.exception("publish failed")

    def durable(self, bounds: Bounds) -> None:
        """Nobody asks on a transport."""

    def moved(self, bounds: Bounds) -> None:
        """What was missed is found by its gap."""

    def reset(self, bounds: Bounds) -> None:
        """The same: numbers have jumped."""
