"""Where one client is in its room's order, and what it is told of it (section 11).

After `state` everything ascends: each serverSeq reaches the client once, as `broadcast`, or as
`ack` where the client sent it. A place is LIVE, or it is behind and reads the journal once its
socket drains; what the client sent itself is acknowledged at its place then, too.

Always true: the place stands in its feed's live list exactly while it is LIVE; everything up to
`cursor` has been sent.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from actors.types import Bounds, Resync
from edge.dialects.vuer import frames as f
from edge.dialects.vuer.answers import Answers
from edge.dialects.vuer.feed import CLEAR_JUMP, META, RoomBatch, cut_reason
from edge.wire import Frames

if TYPE_CHECKING:
    from edge.dialects.vuer.connection import RtcConnection
    from edge.feed import Feed


class Place:
    """Fits edge.dialects.vuer.feed.Reader. `client` is told, and ends where it cannot go on."""

    def __init__(self, client: RtcConnection) -> None:
        self.cursor = 0
        self.batched = False
        self.feed: Feed | None = None  # from the join on
        self.answers = Answers(client.format, client.tell_all)
        self._client = client
        self._sink = client.sink
        self._format = client.format
        self._address = client.address
        self._journal = client.server.journal
        self._mode = "tail"
        self._epoch = ""  # of the last `state`
        self._behind = False  # reads the journal, or will
        self._restate = False  # has to be sent a whole `state` first
        self._synced: list[Any] = []  # request ids of syncs that are being answered
        self._missed: dict[str, Any] = {}  # presence that came while congested
        self._early: list[Frames] | None = []  # of others, before the first `state`
        self._pumping = False
        self._placing = asyncio.Lock()  # held while the position in the room is being moved

    def leave(self) -> None:
        """The client has gone."""
        feed, self.feed = self.feed, None
        if feed is not None:
            self._client.server.feeds.leave(feed, self)

    # -- moving ------------------------------------------------------------------------------------

    async def begin(self, since: int | None, epoch: str | None, mode: str) -> None:
        """Answer a join: a `state`, and what follows it."""
        assert self.feed is not None
        self._mode = mode
        async with self._placing:
            self.feed.live.pop(self, None)
            self._synced.clear()
            await self._send_state(since, epoch)

    async def sync(self, since: int, request_id: Any) -> None:
        """Go back to `since`, or on to it; `synced` where that is read."""
        assert self.feed is not None
        async with self._placing:
            bounds = await self._journal.bounds(self._address)
            if self._client.over():
                return
            self.feed.live.pop(self, None)
            self._synced.append(request_id)
            if bounds.floor <= since <= bounds.head:
                self.cursor = since
            else:
                self._restate = True
            self._settle()

    async def sync_by_clock(self, clock: dict[str, int], request_id: Any) -> None:
        """Every kept message whose session has counted further than the clock knows."""
        seq = 0
        async for upto, bodies in self._journal.beyond(self._address, clock):
            if self._client.over():
                return
            seq = upto
            self._client.tell_all([f.broadcast(self._format, run) for run in f.pages_of(bodies)])
            await self._sink.drained()
        self._client.tell({"mtype": "synced", "requestId": request_id, "serverSeq": seq})

    def _pump(self) -> None:
        """Have this socket read on, if it does not already."""
        self._behind = True
        if not self._pumping and not self._client.closed:
            self._pumping = True
            self._client.start(self._catch_up, "replay")

    async def _catch_up(self) -> None:
        """Page by page, as the socket drains, until it is live again."""
        try:
            while self._behind and not self._client.closed:
                await self._sink.drained()
                self._tell_missed()
                async with self._placing:
                    if self._behind and not self._client.closed:
                        await self._read_on()
        finally:
            self._pumping = False

    async def _send_state(self, since: int | None, epoch: str | None) -> None:
        """A `state` frame that goes on from `since`, or a whole one; then live, or behind."""
        journal, graph = self._journal, self._mode == "graph"
        found = await journal.bootstrap(self._address, since, epoch, graph=graph)
        members = await self._client.server.members_of(self._client)
        message = await journal.run(lambda: f.state(self._format, found, members))
        if self._client.over():
            return
        at = self.cursor if since is None else since
        reason = cut_reason(self._epoch if since is None else epoch, at, found.bounds)
        if reason is not None:
            self.answers.forget(at + CLEAR_JUMP)
            self._client.tell({"mtype": "reset", "reason": reason, "epoch": found.bounds.epoch})
        self._sink.send([message])
        self._epoch = found.bounds.epoch
        early, self._early = self._early, None
        for shared in early or ():
            self._sink.send_shared(shared)
        self._restate = False
        self.cursor = found.last
        self._client.tell_all(self.answers.upto(found.last, found.bounds))
        self._settle()

    def _settle(self) -> None:
        """Go live where nothing is left to read; without a suspension, so nothing slips through."""
        feed = self.feed
        if feed is None:
            return
        if self._restate or self.cursor < feed.tail:
            self._pump()
        else:
            self._behind = False
            feed.live[self] = None
            for request_id in self._synced:
                answer = {"mtype": "synced", "requestId": request_id, "serverSeq": self.cursor}
                self._client.tell(answer)
            self._synced.clear()

    async def _read_on(self) -> None:
        """Send a page of what this socket lacks."""
        if self._restate:
            await self._send_state(None, None)
            return
        page = await self._journal.page(self._address, self.cursor)
        if self._client.over():
            return
        if isinstance(page, Resync):
            self._restate = True
            return
        if self._mode == "graph" and any(entry.kind == META for entry in page.entries):
            self._restate = True
            return
        self._client.tell_all(self.answers.frames_of(page.entries, page.bounds))
        self.cursor = max(self.cursor, page.last)
        self._settle()

    # -- live (edge.dialects.vuer.feed.Reader) -----------------------------------------------------

    def take(self, batch: RoomBatch) -> bool:
        """See Reader."""
        sink = self._sink
        if sink.congested:
            return False
        if batch.has_meta and self._mode == "graph":
            self._restate = True
            return False
        if self.answers and self._client.session_id in batch.origins:
            sink.send(self.answers.frames_of(batch.entries, batch.bounds))
        else:
            sink.send_shared(batch.frames(self._format))
        return True

    def offer(self, frames: Frames) -> bool:
        """RoomFeed asks `take` instead."""
        return False

    def lagging(self) -> None:
        """Taken off the live list: read the journal from the cursor."""
        self._pump()

    def durable(self, bounds: Bounds) -> None:
        """Acks and heartbeats tell it."""

    def reset(self, bounds: Bounds) -> None:
        """The room was cleared or restored: `_send_state` says so, as to who is not live."""
        if self.feed is not None:
            self.feed.live.pop(self, None)
            self._restate = True
            self._pump()

    # -- presence ----------------------------------------------------------------------------------

    def show(self, session_id: str, state: Any, shared: Frames) -> None:
        """Another session's presence; kept for later where the socket does not drain."""
        if not self._sink.congested or self.feed is None:
            self.tell_shared(shared)
            return
        self._missed[session_id] = state
        self.feed.live.pop(self, None)
        self._pump()

    def tell_shared(self, shared: Frames) -> None:
        """A frame that all in the room get alike."""
        if self._client.closed:
            return
        if self._early is not None:
            self._early.append(shared)
        else:
            self._sink.send_shared(shared)

    def _tell_missed(self) -> None:
        missed, self._missed = self._missed, {}
        for session_id, state in missed.items():
            self._client.tell({"mtype": "presence", "sessionId": session_id, "state": state})
