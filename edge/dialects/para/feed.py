"""Changes of one scope, fanned out by key. Pure.

A subscriber of a key is LIVE, or to be READ. LIVE ones are handed each change at once. Whoever
cannot take one, because its socket is not draining, is marked and will read the row when it drains:
however many changes pass meanwhile, it is sent one envelope. So a slow consumer costs as much
memory as it has keys, and slows nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from actors.dialects.para.envelope import SyncEnvelope
from actors.types import Address, Batch, Bounds, Entry
from edge.dialects.para.publishing import envelope_of_entry
from edge.feed import Feed
from edge.wire import Frames


class Change:
    """One change on its way to everyone who follows its key; `frames`: what is built of it."""

    __slots__ = ("entry", "envelope", "frames", "key")

    def __init__(self, entry: Entry, envelope: SyncEnvelope) -> None:
        assert entry.ref is not None
        self.entry = entry
        self.key = entry.ref
        self.envelope = envelope
        self.frames: dict[object, Frames] = {}


class KeyFollower(Protocol):
    """Who follows one key."""

    def changed(self, change: Change) -> None:
        """A released change, each once, in the order of sequences."""

    def stale(self) -> None:
        """Changes may have been missed, or the numbers are new ones: read the row."""


class Watcher(Protocol):
    """Who wants to know that something in the scope has changed."""

    def touched(self, keys: frozenset[str] | None) -> None:
        """These keys; None where nobody can say which."""


class ParaFeed(Feed):
    """See edge/feed.py. `keys` are the followers by key, `watchers` those of the whole scope."""

    __slots__ = ("keys", "watchers")

    def __init__(self, address: Address, project: Callable[[str, Batch, bool], Frames]) -> None:
        super().__init__(address, project)
        self.keys: dict[str, dict[KeyFollower, None]] = {}
        self.watchers: dict[Watcher, None] = {}

    def follow(self, key: str, follower: KeyFollower) -> None:
        """Hand it every later change of the key."""
        self.keys.setdefault(key, {})[follower] = None

    def forget(self, key: str, follower: KeyFollower) -> None:
        """No longer."""
        followers = self.keys.get(key)
        if followers is not None:
            followers.pop(follower, None)
            if not followers:
                del self.keys[key]

    def deliver(self, batch: Batch) -> None:
        """Hand the changes of a released batch to their followers."""
        self.bounds = batch.bounds
        self.tail = batch.last
        jump = batch.bounds.jump
        for entry in batch.entries:
            followers = self.keys.get(entry.ref or "")
            if followers:
                change = Change(entry, envelope_of_entry(entry, jump))
                for follower in tuple(followers):
                    follower.changed(change)
        if self.watchers and batch.entries:
            self._touch(frozenset(entry.ref for entry in batch.entries if entry.ref is not None))

    def durable(self, bounds: Bounds) -> None:
        """No frame of this protocol tells it."""
        self.bounds = bounds

    def moved(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.tail = bounds.head
        self._all_stale()

    def reset(self, bounds: Bounds) -> None:
        self.moved(bounds)

    def _all_stale(self) -> None:
        for follower in _all(self.keys.values()):
            follower.stale()
        self._touch(None)

    def _touch(self, keys: frozenset[str] | None) -> None:
        for watcher in tuple(self.watchers):
            watcher.touched(keys)


def _all(groups: Iterable[dict[KeyFollower, None]]) -> list[KeyFollower]:
    return [follower for group in groups for follower in group]
