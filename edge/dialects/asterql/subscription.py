"""One scope on one connection: a cursor, and REPLAY or LIVE (asterql.md section 5).

Always true: everything up to `cursor` has been queued to the client, nothing after it; the
subscription stands in its feed's live list exactly while it is LIVE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.port import Port
from actors.types import Bounds, Resync
from edge.dialects.asterql import frames as f
from edge.feed import Feed
from edge.wire import Frames
from infra import limits

if TYPE_CHECKING:
    from edge.dialects.asterql.connection import Connection

FIRST_PAGE = 64  # entries: the first page is there to come soon


class Subscription:
    """Fits edge.feed.Subscriber."""

    __slots__ = (
        "announced", "batched", "connection", "cursor", "feed", "page", "replaying", "scope",
        "wants_durable", )  # fmt: skip

    def __init__(
        self, connection: Connection, feed: Feed, scope: str, *, batched: bool, wants_durable: bool
    ) -> None:
        self.connection = connection
        self.feed = feed
        self.scope = scope
        self.batched = batched
        self.wants_durable = wants_durable
        self.cursor = 0
        self.replaying = False
        self.announced = False  # `caughtUp` was sent: once, not again after a congestion
        self.page = FIRST_PAGE

    # -- live ------------------------------------------------------------------------------------

    def offer(self, frames: Frames) -> bool:
        sink = self.connection.sink
        if sink.congested:
            return False
        sink.send_shared(frames)
        if self.wants_durable:
            self.durable(self.feed.bounds)
        return True

    def lagging(self) -> None:
        self.replaying = True
        self.connection.pump()

    def durable(self, bounds: Bounds) -> None:
        if self.wants_durable:
            self.connection.sink.send([f.durable(self.scope, bounds)])

    def reset(self, bounds: Bounds) -> None:
        self.connection.resync(self, "epoch_changed", bounds)

    def go_live(self) -> None:
        """The cursor is at the feed's tail, tested without a suspension in between; or beyond it,
        and the scope has no more.
        """
        self.replaying = False
        self.feed.live[self] = None  # first: sending may end the connection
        if not self.announced:
            self.announced = True
            durable = self.feed.bounds.durable if self.wants_durable else None
            self.connection.sink.send([f.caught_up(self.scope, self.cursor, durable)])

    # -- replay ----------------------------------------------------------------------------------

    async def replay_page(self, port: Port, page_entries: int) -> None:
        """Queue the next page, or go live where there is none."""
        cursor, batched = self.cursor, self.batched
        entries_max = min(self.page, page_entries)
        page = await port.read(
            self.feed.address, cursor, entries_max=entries_max,
            bytes_max=limits.EVENTS_BYTES_MAX if batched else limits.PAGE_BYTES_MAX,
            joined=batched,
        )  # fmt: skip
        if not self.replaying or self.cursor != cursor:
            return  # unsubscribed or begun anew meanwhile
        if isinstance(page, Resync):
            self.connection.resync(self, page.reason, page.bounds)
        elif page.last > cursor:
            self.page = min(limits.PAGE_ENTRIES_MAX, 4 * self.page)
            self.cursor = page.last
            if batched:  # as the page was read; a `sub` may have changed it since
                text = f"{f.events_head(self.scope)}{page.joined}]}}"
                self.connection.sink.send([text])
            else:
                self.connection.sink.send([f.event(body) for body in page.bodies])
            if self.replaying and self.cursor == self.feed.tail:
                self.go_live()
        elif self.cursor >= self.feed.tail:
            # Or beyond it: what this edge's feed hears of late, it passes over.
            self.go_live()
