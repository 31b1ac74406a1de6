"""The output gate of one scope: what is committed and may not leave yet. Pure.

Positions count commits; heads are seqs. Three marks follow each other: `committed` (the file),
`passed` (the disk), `shipped` (the bucket, where there is a replica). What leaves at level `local`
has passed, at `replicated` it has been shipped. A request may ask for more than its scope's level;
then its entries are shown when the level allows and only its answer waits.

Always true: `durable` <= `released` <= head; batches leave in the order of their commits, once.
"""

from __future__ import annotations

from collections import deque

import msgspec

from actors.mailbox import Request
from actors.types import Entry

LOCAL = "local"
REPLICATED = "replicated"


class Waiting(msgspec.Struct):
    """A batch between its commit and its release. `last` is the head everything in it has seen."""

    first: int
    last: int
    position: int
    at: int
    bodies: list[str]
    requests: list[Request]
    entries: list[Entry] = []  # where the dialect's followers need them whole


class Opened(msgspec.Struct):
    """What may leave now: batches to fan out, and requests to answer."""

    batches: list[Waiting]
    requests: list[Request]


class Gate:
    """`level` is what holds now. Lowering it takes effect once the bucket knows of it."""

    def __init__(self, head: int, level: str, *, replica: bool) -> None:
        self.released = head
        self.level = level
        self.passed = 0
        # Below the first position until the bucket is known to have what the file held when it was
        # opened: an answer that rests on that, such as a duplicate's, waits for it too.
        self.shipped = -1 if replica else 0
        self.replica = replica
        self.durable = head if not replica else 0
        self.waiting: deque[Waiting] = deque()
        self._raised: deque[tuple[int, int, Request]] = deque()  # (position, at, request)
        self._urgent_until = self.shipped
        self._level_from: int | None = None  # `local` holds once this position is shipped

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self.waiting or self._raised)

    def lower_level_after(self, position: int) -> None:
        """From now on commits say `local`; until the first is shipped the bucket says otherwise."""
        self._level_from = position

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for the bucket, or will as soon as the disk has it."""
        return self._urgent_until > self.shipped or (
            self.level == REPLICATED and bool(self.waiting)
        )

    def hold(self, batch: Waiting) -> None:
        """Keep the batch until it may leave."""
        self.waiting.append(batch)
        if self.replica and any(request.replicated for request in batch.requests):
            self._urgent_until = batch.position

    def pass_disk(self, position: int) -> Opened:
        """The disk has the commits up to `position`."""
        self.passed = max(self.passed, position)
        return self._open()

    def pass_bucket(self, position: int, head: int) -> Opened:
        """The bucket has the commits up to `position`, and with them all entries up to `head`."""
        self.shipped = max(self.shipped, position)
        self.durable = max(self.durable, head)
        if self._level_from is not None and self.shipped >= self._level_from:
            self.level, self._level_from = LOCAL, None
        opened = self._open()
        while self._raised and self._raised[0][0] <= self.shipped:
            opened.requests.append(self._raised.popleft()[2])
        return opened

    def _open(self) -> Opened:
        limit = self.passed
        if self.level == REPLICATED:
            limit = min(limit, self.shipped)
        opened = Opened([], [])
        waiting = self.waiting
        while waiting and waiting[0].position <= limit:
            batch = waiting.popleft()
            opened.batches.append(batch)
            if not self.replica or batch.position <= self.shipped:
                opened.requests.extend(batch.requests)
                continue
            for request in batch.requests:
                if request.replicated:
                    self._raised.append((batch.position, batch.at, request))
                else:
                    opened.requests.append(request)
        if opened.batches:
            self.released = max(self.released, opened.batches[-1].last)
            if not self.replica:
                self.durable = self.released
        return opened

    def oldest_unshipped_at(self) -> int | None:
        """When the oldest commit was made whose answers wait for the bucket."""
        if self.level == REPLICATED:
            return self.waiting[0].at if self.waiting else None
        return self._raised[0][1] if self._raised else None

    def give_up(self) -> list[Request]:
        """Everybody who waits for the bucket; their entries stay and leave when it has them."""
        given = [request for _, _, request in self._raised]
        self._raised.clear()
        if self.level == REPLICATED:
            for batch in self.waiting:
                given.extend(batch.requests)
                batch.requests = []
        return given

    def drop(self) -> list[Request]:
        """Everybody who waits; nothing of it is shown any more."""
        given = [request for batch in self.waiting for request in batch.requests]
        given.extend(request for _, _, request in self._raised)
        self.waiting.clear()
        self._raised.clear()
        return given
