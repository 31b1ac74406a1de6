"""One socket's place in the log of its database: REPLAY, then LIVE, and back where it falls behind.

Always true: everything visible up to `cursor` has been sent, nothing after it; the subscription
stands in its feed's live list exactly while it is LIVE. The ledger is the queue: nothing is
buffered here, however far behind a socket is.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import msgspec

from actors.types import Bounds, Resync
from edge.dialects.stratasync import frames as f
from edge.dialects.stratasync.feed import Audience, frames_of
from edge.wire import Frames
from infra import limits

if TYPE_CHECKING:
    from edge.dialects.stratasync.connection import StrataConnection
    from edge.feed import Feed

log = logging.getLogger("holdfast.stratasync")
PAGE_ENTRIES: Final = 1000
REPLAY_FAILED: Final = 1011


class StrataSubscription:
    """Fits edge.dialects.stratasync.feed.Shown."""

    __slots__ = (
        "ahead", "announced", "asked", "audience", "batched", "connection", "cursor", "ended",
        "feed", "groups", "last_sent", "replaying",
    )  # fmt: skip

    def __init__(
        self, connection: StrataConnection, feed: Feed, audience: Audience,
        groups: tuple[str, ...], after: int,
    ) -> None:  # fmt: skip
        self.connection = connection
        self.feed = feed
        self.audience = audience
        self.groups = groups  # in the order they are told
        self.cursor = after
        self.ahead = 0
        self.last_sent = after
        self.batched = False
        self.replaying = False
        self.announced = False
        self.ended = False

    @property
    def congested(self) -> bool:
        return self.connection.sink.congested

    # -- live (edge.feed.Subscriber) ---------------------------------------------------------------

    def offer(self, frames: Frames) -> bool:
        sink = self.connection.sink
        if sink.congested:
            return False
        sink.send_shared(frames)
        return True

    def lagging(self) -> None:
        self.connection.replay_later()

    def durable(self, bounds: Bounds) -> None:
        """Clients of this dialect have no word for it."""

    def reset(self, bounds: Bounds) -> None:
        """The history was cut: every cursor lies below the new floor."""
        self.stale()

    def stale(self) -> None:
        """Tell the client to bootstrap; the socket stays."""
        self.end()
        message = "A fresh bootstrap is required before subscribing to deltas"
        self.connection.sink.send([f.error(message, f.BOOTSTRAP_REQUIRED)])

    def end(self) -> None:
        """No more frames of this one."""
        self.ended = True
        self.feed.live.pop(self, None)

    # -- replay ------------------------------------------------------------------------------------

    async def replay(self) -> None:
        """Send what stands in the log after the cursor, then go live. Raises HoldfastError."""
        self.replaying = True
        try:
            while self.replaying and not self.ended:
                await self._page()
                await self.connection.sink.drained()
        finally:
            self.replaying = False

    async def _page(self) -> None:
        connection = self.connection
        # Waiting for somebody to read may have outlived the groups: they are the audience's. With
        # the user's own, asked for or not: changes of memberships are told there.
        audience = self.audience
        groups = msgspec.json.encode(sorted({*audience.groups, audience.user})).decode()
        page = await connection.service.port.visible(
            self.feed.address, self.cursor, groups, entries_max=PAGE_ENTRIES,
            bytes_max=limits.PAGE_BYTES_MAX,
        )  # fmt: skip
        if self.ended:
            return
        if isinstance(page, Resync):
            if page.reason == "ahead_of_head":
                self.ahead, self.cursor = self.cursor, self.feed.tail
                self._go_live()
            else:
                self.stale()
            return
        frames = frames_of(shown := audience.pick(page.entries))
        if frames is not None:
            connection.sink.send_shared(frames)
            self.last_sent = shown[-1].seq
        self.cursor = page.last
        if self.cursor >= self.feed.tail:  # tested without a suspension before the list is joined
            self.cursor = self.feed.tail
            self._go_live()

    def _go_live(self) -> None:
        self.replaying = False
        self.feed.live[self] = None
        if not self.announced:
            self.announced = True
            groups = [group for group in self.groups if group in self.audience.groups]
            self.connection.sink.send([f.subscribed(self.last_sent, groups)])
