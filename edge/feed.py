"""One stream per scope and edge, fanned out to this edge's subscribers.

A subscriber is a cursor and a mode (asterql.md section 5). LIVE ones are offered each released
batch; whoever cannot take it, because its socket is not draining, falls back to REPLAY and reads
the ledger when it drains: nothing is buffered for it or skipped, and it slows nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from actors.port import Port
from actors.types import Address, Batch, Bounds
from edge.wire import Frames


class Subscriber(Protocol):
    """A live reader of one scope. `cursor` is the seq of the last entry queued to it."""

    cursor: int
    batched: bool

    def offer(self, frames: Frames) -> bool:
        """Queue the frames; False where the socket is congested and nothing was queued."""

    def lagging(self) -> None:
        """Taken off the live list: replay from the cursor."""

    def durable(self, bounds: Bounds) -> None:
        """The durable position moved."""

    def reset(self, bounds: Bounds) -> None:
        """The history was cut: the subscription is over."""


class Feed:
    """The tap of one scope on this edge. `tail` is the last seq it has fanned out."""

    __slots__ = ("address", "bounds", "live", "project", "readers", "tail")

    def __init__(self, address: Address, project: Callable[[str, Batch, bool], Frames]) -> None:
        self.address = address
        self.project = project
        self.bounds = Bounds("", 0, 0, 0)
        self.tail = 0
        self.live: dict[Subscriber, None] = {}
        self.readers = 0

    def deliver(self, batch: Batch) -> None:
        """Offer a released batch to every live subscriber."""
        self.bounds = batch.bounds
        self.tail = last = batch.last
        first = batch.first - 1
        frames: dict[bool, Frames] = {}
        behind: list[Subscriber] = []
        for subscriber in tuple(self.live):
            if subscriber not in self.live:
                continue  # a receiver before it ended it, from within its own `send`
            batched = subscriber.batched
            shared = frames.get(batched)
            if shared is None:
                shared = frames[batched] = self.project(self.address.scope, batch, batched)
            if subscriber.cursor == first and subscriber.offer(shared):
                subscriber.cursor = last
            elif subscriber.cursor < last:
                behind.append(subscriber)
        for subscriber in behind:
            self.live.pop(subscriber, None)
            subscriber.lagging()

    def durable(self, bounds: Bounds) -> None:
        self.bounds = bounds
        for subscriber in tuple(self.live):
            subscriber.durable(bounds)

    def moved(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.tail = bounds.head
        for subscriber in [live for live in self.live if live.cursor != bounds.head]:
            self.live.pop(subscriber, None)
            subscriber.lagging()

    def reset(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.tail = bounds.head
        for subscriber in tuple(self.live):
            subscriber.reset(bounds)


class Feeds:
    """The feeds of one edge: opened with a scope's first reader, closed with its last."""

    def __init__(
        self, port: Port, project: Callable[[str, Batch, bool], Frames], make: type[Feed] = Feed
    ) -> None:
        self._make = make
        self._port = port
        self._project = project
        self._feeds: dict[Address, Feed] = {}

    def __len__(self) -> int:
        return len(self._feeds)

    def readers(self, address: Address) -> int:
        """How many subscriptions follow the scope on this edge."""
        feed = self._feeds.get(address)
        return 0 if feed is None else feed.readers

    async def join(self, address: Address) -> Feed:
        """The scope's feed, with one reader more; `leave` it once."""
        feed = self._feeds.get(address)
        if feed is None:
            fresh = self._make(address, self._project)
            bounds = await self._port.subscribe(address, fresh)
            feed = self._feeds.get(address)
            if feed is None:
                feed = self._feeds[address] = fresh
                if fresh.tail <= bounds.head:
                    fresh.bounds, fresh.tail = bounds, bounds.head
            else:  # somebody joined first while we waited
                self._port.unsubscribe(address, fresh)
        feed.readers += 1
        return feed

    def leave(self, feed: Feed, subscriber: Subscriber | None) -> None:
        """One reader less."""
        if subscriber is not None:
            feed.live.pop(subscriber, None)
        feed.readers -= 1
        if feed.readers == 0 and self._feeds.get(feed.address) is feed:
            del self._feeds[feed.address]
            self._port.unsubscribe(feed.address, feed)
