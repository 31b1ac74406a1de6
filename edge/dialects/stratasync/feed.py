"""The live log of one database, fanned out by groups. Pure.

A subscriber is shown entries without a group and those of its groups. Frames are built once for
each set of groups that a batch can tell apart, and written once per socket and batch. A membership
entry narrows the sockets of its user at exactly its place in the log: what stands behind it is
judged by the new groups. It never widens them; the client does that itself, by fetching the rows
of its new groups first and subscribing again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol, cast

import msgspec

from actors.types import Batch, Entry
from edge.dialects.stratasync import frames as f
from edge.feed import Feed, Subscriber
from edge.wire import Frames

MEMBERSHIP: Final = "G"


class Audience:
    """What one subscriber may see. `known_at`: the seq its groups are right for."""

    __slots__ = ("groups", "known_at", "user")

    def __init__(self, user: str, groups: Iterable[str], known_at: int) -> None:
        self.user = user
        self.groups = frozenset(groups)
        self.known_at = known_at

    def concerns(self, entry: Entry) -> bool:
        """Whether the entry changes who this is shown things as."""
        return (
            entry.kind == MEMBERSHIP
            and entry.seq > self.known_at
            and entry.ref is not None
            and entry.ref.partition(":")[2] == self.user
        )

    def narrow(self, groups: Iterable[str], at: int) -> None:
        """Keep only those that are still the user's."""
        self.groups &= frozenset(groups)
        self.known_at = at

    def pick(self, entries: Iterable[Entry], after: int = 0) -> list[Entry]:
        """What of these is shown, in order, narrowing on the way."""
        shown: list[Entry] = []
        for entry in entries:
            if entry.seq > after and (entry.grp is None or entry.grp in self.groups):
                shown.append(entry)
            if self.concerns(entry):
                self.narrow(groups_in(entry), entry.seq)
        return shown


def groups_in(entry: Entry) -> list[str]:
    """The effective groups a membership entry names."""
    data: Any = entry.data if entry.data is not None else msgspec.json.decode(entry.body)
    found: list[str] = data["subscribedSyncGroups"]
    return found


class Shown(Subscriber, Protocol):
    """A subscriber with an audience. `ahead`: a cursor beyond the log, below which nothing is
    sent.
    """

    audience: Audience
    ahead: int

    @property
    def congested(self) -> bool: ...


class StrataFeed(Feed):
    """See edge/feed.py; `live` holds `Shown` ones."""

    __slots__ = ()

    def deliver(self, batch: Batch) -> None:
        """Offer a released batch to every live subscriber, each as much as it may see."""
        self.bounds = batch.bounds
        self.tail = batch.last
        entries = batch.entries
        present = frozenset(entry.grp for entry in entries if entry.grp is not None)
        changes = [entry for entry in entries if entry.kind == MEMBERSHIP]
        built: dict[frozenset[str], Frames | None] = {}
        behind: list[Subscriber] = []
        for subscriber in cast("tuple[Shown, ...]", tuple(self.live)):
            if subscriber not in self.live:
                continue  # one before it ended it
            if subscriber.cursor != batch.first - 1:
                if subscriber.cursor < batch.last:
                    behind.append(subscriber)
                continue
            audience = subscriber.audience
            alone = subscriber.ahead >= batch.first or any(map(audience.concerns, changes))
            if alone and subscriber.congested:
                behind.append(subscriber)  # before it is narrowed: it will be read again
                continue
            frames = self._frames(entries, audience, present, built, subscriber.ahead, alone)
            if frames is None or subscriber.offer(frames):
                subscriber.cursor = batch.last
            else:
                behind.append(subscriber)
        for late in behind:
            self.live.pop(late, None)
            late.lagging()

    def _frames(
        self, entries: Sequence[Entry], audience: Audience, present: frozenset[str],
        built: dict[frozenset[str], Frames | None], ahead: int, alone: bool,
    ) -> Frames | None:  # fmt: skip
        if alone:
            return frames_of(audience.pick(entries, ahead))
        seen = present & audience.groups
        if seen not in built:
            built[seen] = frames_of([e for e in entries if e.grp is None or e.grp in seen])
        return built[seen]


def frames_of(entries: Sequence[Entry]) -> Frames | None:
    """One frame an entry; None where there is nothing to send."""
    return Frames([f.delta(entry) for entry in entries]) if entries else None
