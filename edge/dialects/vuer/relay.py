"""Any RoomBroker as the place where a room's stream comes from."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from actors.types import Address, Batch, Bounds, Entry, Tap
from edge.dialects.vuer import limits
from edge.dialects.vuer.broker import RoomBroker, SequencedMessage, Unsubscribe
from edge.dialects.vuer.repositories import JournalRepository
from edge.dialects.vuer.rooms import room_of
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.vuer")


class BrokerTaps:
    """Any broker as the place where a room's stream comes from (edge.feed.Feeds asks for it).

    What this process stores it publishes; what anybody has published its sockets hear, and only
    that, so that several processes may share a store and a broker.
    """

    def __init__(self, broker: RoomBroker, store: JournalRepository) -> None:
        self._broker = broker
        self._store = store
        self._tasks = TaskOwner()
        self._held: dict[tuple[Address, int], tuple[_Relay, Unsubscribe]] = {}

    async def subscribe(self, address: Address, tap: Tap) -> Bounds:
        """See actors.port.Port."""
        room_id = room_of(address)
        relay = _Relay(self._broker, room_id, tap)

        def heard(msg: SequencedMessage) -> None:
            tap.deliver(_batch_of(msg, relay.bounds))

        unsubscribe = self._broker.subscribe(room_id, heard)
        bounds = await self._store.subscribe(address, relay)
        relay.bounds = bounds
        relay.task = self._tasks.spawn(relay.run(), name="vuer-relay")
        self._held[(address, id(tap))] = (relay, unsubscribe)
        return bounds

    def unsubscribe(self, address: Address, tap: Tap) -> None:
        """See actors.port.Port."""
        held = self._held.pop((address, id(tap)), None)
        if held is not None:
            relay, unsubscribe = held
            unsubscribe()
            self._store.unsubscribe(address, relay)
            if relay.task is not None:
                relay.task.cancel()

    async def aclose(self) -> None:
        """End what still publishes."""
        await self._tasks.aclose()


class _Relay:
    """The tap that publishes: one message after the other, in order."""

    def __init__(self, broker: RoomBroker, room_id: str, tap: Tap) -> None:
        self.bounds = Bounds("", 0, 0, 0)
        self.task: asyncio.Task[None] | None = None
        self._broker = broker
        self._room_id = room_id
        self._tap = tap
        # What is committed while a publish awaits. Where a broker is slower than that, this
        # process's sockets read the journal instead.
        self._queue: asyncio.Queue[str] = asyncio.Queue(limits.INBOX_MAX)

    async def run(self) -> None:
        while True:
            msg = msgspec.json.decode(await self._queue.get())
            try:
                await self._broker.publish(self._room_id, msg)
            except Exception:  # user code: sockets notice the gap and read the journal
                log.exception("publish failed room=%s", self._room_id)

    def deliver(self, batch: Batch) -> None:
        self.bounds = batch.bounds
        for entry in batch.entries:
            if self._queue.full():
                self._tap.moved(batch.bounds)
                return
            self._queue.put_nowait(entry.body)

    def durable(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._tap.durable(bounds)

    def moved(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._tap.moved(bounds)

    def reset(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._tap.reset(bounds)


def _batch_of(msg: SequencedMessage, bounds: Bounds) -> Batch:
    body = msgspec.json.encode(msg).decode()
    seq = msg["serverSeq"]
    kind = "meta" if msg["ops"][0]["otype"].startswith("meta.") else "msg"
    entry = Entry(seq, 0, kind, msg["id"], body, len(body), origin=msg["sessionId"])
    return Batch(seq, seq, [body], bounds, [entry])
