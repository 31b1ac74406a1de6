"""The broker of rooms that are scopes of a port.

Their writers give out the numbers, and whoever follows a room has every batch from its writer,
after release; so `publish` has nothing left to do. Members are this process's memory.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from actors.port import StatePort
from actors.types import Address, Batch, Bounds, Resync
from edge.dialects.vuer import limits
from edge.dialects.vuer.broker import (
    Handler,
    Members,
    SequencedMessage,
    Unsubscribe,
    call_handler,
)
from edge.dialects.vuer.rooms import TENANT, room_address
from infra.errors import HoldfastError
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.vuer")


class ActorBroker(Members):
    """Rooms of a port. Use `aclose` before the port goes."""

    def __init__(self, port: StatePort, *, tenant: str = TENANT) -> None:
        super().__init__()
        self.port = port
        self._tenant = tenant
        self._tasks = TaskOwner()
        self._followers: dict[str, set[_Follower]] = {}

    async def publish(self, room_id: str, msg: SequencedMessage) -> None:
        """Nothing: see the module."""

    def subscribe(self, room_id: str, handler: Handler) -> Unsubscribe:
        """See RoomBroker. What the handler is slow to take is read from the ledger again."""
        follower = _Follower(self.port, room_address(room_id, self._tenant), handler)
        self._followers.setdefault(room_id, set()).add(follower)
        task = self._tasks.spawn(follower.run(), name="vuer-handler")

        def unsubscribe() -> None:
            followers = self._followers.get(room_id, set())
            followers.discard(follower)
            if not followers:
                self._followers.pop(room_id, None)
            follower.ended = True
            task.cancel()

        follower.end = unsubscribe
        return unsubscribe

    async def next_seq(self, room_id: str) -> int:
        """The number the next message gets, if nobody comes before it: only the writer knows."""
        bounds = await self.port.bounds(room_address(room_id, self._tenant))
        return bounds.head + 1

    async def delete_room(self, room_id: str) -> None:
        """See RoomBroker."""
        for follower in list(self._followers.get(room_id, ())):
            follower.end()
        await self.clear_room(room_id)

    async def clear_room(self, room_id: str) -> None:
        """See RoomBroker: the room begins a new epoch, and its numbers go on above the old ones."""
        self._members.pop(room_id, None)
        await self.port.clear(room_address(room_id, self._tenant))

    async def aclose(self) -> None:
        """End every subscription."""
        await self._tasks.aclose()


class _Follower:
    """The tap of one handler. `news` only wakes it: what it hands on it reads from the ledger."""

    def __init__(self, port: StatePort, address: Address, handler: Handler) -> None:
        self.ended = False
        self.end: Unsubscribe = lambda: None
        self._port = port
        self._address = address
        self._handler = handler
        self._cursor = 0
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Follow from the head on until cancelled."""
        try:
            self._cursor = (await self._port.subscribe(self._address, self)).head
            while True:
                await self._news.wait()
                self._news.clear()
                await self._read()
        finally:
            self._port.unsubscribe(self._address, self)

    async def _read(self) -> None:
        while not self.ended:
            try:
                page = await self._port.visible(
                    self._address, self._cursor, "[]", entries_max=limits.BATCH_MESSAGES_MAX,
                    bytes_max=limits.JOURNAL_BYTES_MAX,
                )  # fmt: skip
            except HoldfastError as error:  # the next message wakes it again
                log.warning("follower cannot read scope=%s error=%s", self._address.scope, error)
                return
            if isinstance(page, Resync):
                self._cursor = page.bounds.floor if page.reason == "below_floor" else (
                    page.bounds.head)  # fmt: skip
                continue
            for entry in page.entries:
                await call_handler(
                    self._handler, msgspec.json.decode(entry.body), self._address.scope
                )
            self._cursor = page.last
            if page.last >= page.bounds.head:
                return

    # -- actors.types.Tap --------------------------------------------------------------------------

    def deliver(self, batch: Batch) -> None:
        self._news.set()

    def durable(self, bounds: Bounds) -> None:
        """Nothing new to hear."""

    def moved(self, bounds: Bounds) -> None:
        self._news.set()

    def reset(self, bounds: Bounds) -> None:
        self._cursor = bounds.head
