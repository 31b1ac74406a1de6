"""The live messages of one room on this edge, fanned out to its sockets. Pure.

A batch is encoded once for each format and written once to each socket. Whoever sent some of it
gets `ack` for those instead, at their place in the order, so that what a client receives ascends
without gaps. A socket that cannot take a batch, or whose cursor is not right before it, reads the
journal later: nothing is buffered for it and it slows nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, cast

from actors.types import Batch, Bounds, Entry
from edge.dialects.vuer import frames as f
from edge.feed import Feed, Subscriber
from edge.wire import Frames

META: Final = "meta"
# By how much another history's numbers lie above the old ones: after a clear by the first, after
# a restore by the second (actors.host, actors.replication).
CLEAR_JUMP: Final = 2**20
RESTORE_JUMP: Final = 2**32


def cut_reason(epoch: str | None, at: int, bounds: Bounds) -> str | None:
    """Why a reader at `at` of that epoch cannot go on in the room: `cleared`, `restored`, or None
    where it was never in another history.

    By the numbers, because a reader may have joined before the first message, which begins the
    first epoch, and may be behind or offline when the history is cut, more than once even. A
    restore can lose messages that the reader has; a clear comes after everything before it, and
    whatever was restored before or after it, what the reader has is void. Where no clear but half
    a million messages moved the numbers on, the restored room has all that the reader has.
    """
    moved = bounds.floor - at
    if not at or epoch == bounds.epoch or moved < CLEAR_JUMP:
        return None
    half = RESTORE_JUMP // 2
    beside_restores = (moved + half) % RESTORE_JUMP - half
    return "cleared" if beside_restores >= CLEAR_JUMP // 2 else "restored"


class RoomBatch:
    """A released batch, and the frames made of it so far."""

    __slots__ = ("_frames", "bounds", "entries", "first", "has_meta", "last", "origins")

    def __init__(self, batch: Batch) -> None:
        self.first = batch.first
        self.last = batch.last
        self.bounds = batch.bounds
        self.entries: Sequence[Entry] = batch.entries
        self.origins = frozenset(entry.origin for entry in batch.entries)
        self.has_meta = any(entry.kind == META for entry in batch.entries)
        self._frames: dict[f.Format, Frames] = {}

    def frames(self, format: f.Format) -> Frames:
        """All of it, for those who sent none of it."""
        found = self._frames.get(format)
        if found is None:
            bodies = [entry.body for entry in self.entries]
            messages = [f.broadcast(format, run) for run in f.pages_of(bodies)]
            found = self._frames[format] = Frames(messages)
        return found


class Reader(Subscriber, Protocol):
    """A subscriber of a room."""

    def take(self, batch: RoomBatch) -> bool:
        """Queue what is to be told of the batch; False where nothing was queued."""


class RoomFeed(Feed):
    """See edge/feed.py; `live` holds `Reader`s."""

    __slots__ = ()

    def deliver(self, batch: Batch) -> None:
        """Offer a released batch to every live socket."""
        self.bounds = batch.bounds
        if batch.last <= self.tail:
            return  # a broker may repeat
        self.tail = batch.last
        told = RoomBatch(batch)
        behind: list[Reader] = []
        for reader in cast("tuple[Reader, ...]", tuple(self.live)):
            if reader not in self.live or reader.cursor >= batch.last:
                continue  # ended by one before it, or read it from the journal already
            if reader.cursor == batch.first - 1 and reader.take(told):
                reader.cursor = batch.last
            elif reader in self.live:
                behind.append(reader)
        for late in behind:
            self.live.pop(late, None)
            late.lagging()
