"""One vuer-rtc client, whatever carries its frames (section 11).

Frames are handled strictly in order. After `state` everything ascends: each serverSeq reaches the
client once, as `broadcast`, or as `ack` where the client sent it. A socket is LIVE, or it is behind
and reads the journal once it drains; what it sent itself is acknowledged at its place then, too.

Always true: the connection stands in its feed's live list exactly while it is LIVE; everything up
to `cursor` has been sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from actors.types import Bounds, Resync
from edge.auth import Principal
from edge.budget import Budget
from edge.dialects.vuer import frames as f
from edge.dialects.vuer import limits
from edge.dialects.vuer.answers import Answers
from edge.dialects.vuer.feed import CLEAR_JUMP, META, RoomBatch, cut_reason
from edge.sending import Sink
from edge.wire import Frames, Message
from infra.errors import HoldfastError, ProtocolError

if TYPE_CHECKING:
    from edge.dialects.vuer.server import RTCServer
    from edge.feed import Feed

log = logging.getLogger("holdfast.vuer")

TOO_MANY: Final = 1008
INTERNAL: Final = 1011
FORBIDDEN: Final = 4403
SILENT: Final = 4408
REPLACED: Final = 4409


class RtcConnection:
    """Fits edge.websocket.Session, and what edge.server expects of its connections."""

    def __init__(
        self, server: RTCServer, sink: Sink, room_id: str, session_id: str, principal: Principal,
        format: f.Format = f.JSON,
    ) -> None:  # fmt: skip
        self.sink = sink
        self.room_id = room_id
        self.session_id = session_id
        self.principal: Principal | None = principal
        self.closed = False
        self.address = server.address(room_id, principal.tenant)
        self.user_id = principal.id
        self.watches_silence = False  # its carrier does it
        self.cursor = 0
        self.batched = False
        self.format = format
        self._user = principal
        self._server = server
        self._feed: Feed | None = None
        self._mode = "tail"
        self._epoch = ""  # of the last `state`
        self._behind = False  # reads the journal, or will
        self._restate = False  # has to be sent a whole `state` first
        self._synced: list[Any] = []  # request ids of syncs that are being answered
        self._answers = Answers(format, self.tell_all)
        self._missed: dict[str, Any] = {}  # presence that came while congested
        self._early: list[Frames] | None = []  # of others, before the first `state`
        self._may_write: bool | None = None  # None: not asked yet
        self._may_undo_any = False
        self._inbox: deque[f.Inbound] = deque()
        self._inbox_bytes = 0
        self._working = self._pumping = False
        self._placing = asyncio.Lock()  # held while the position in the room is being moved
        self._errors = 0
        now = server.monotonic()
        self._opened_at = self._heard_at = now
        self._messages = Budget(limits.MESSAGES_PER_S, limits.MESSAGES_BURST, now)
        self._control = Budget(limits.CONTROL_PER_S, limits.CONTROL_BURST, now)

    # -- what the server asks of its connections ---------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing awaits an answer."""
        return not self._answers.waiting

    @property
    def subscriptions(self) -> int:
        """How many scopes this connection follows."""
        return 0 if self._feed is None else 1

    @property
    def joined(self) -> bool:
        """Whether it has been let into its room."""
        return self._feed is not None

    def unauthenticated_since(self, now: float) -> bool:
        """Never: the upgrade was authenticated."""
        return False

    def tick(self, now: float) -> None:
        """Close who has not joined in time, or says nothing any more."""
        if self.closed:
            return
        if self._feed is None and now - self._opened_at > limits.JOIN_WAIT_S:
            self.end(SILENT, f"no join came in {limits.JOIN_WAIT_S:.0f} s")
        elif self.watches_silence and now - self._heard_at > limits.SILENCE_S:
            self.end(SILENT, f"no frame for {limits.SILENCE_S:.0f} s")

    async def reauthorize(self) -> None:
        """Ask again whether the user may be here."""
        if not await self._server.may(self._user, self.address, "join"):
            self.end(FORBIDDEN, "access to this room was withdrawn")
            return
        self._may_write = None

    def end(self, code: int, reason: str) -> None:
        """Close the carrier and drop everything."""
        if not self.closed:
            self.sink.close(code, reason)
            self.close()

    def _over(self) -> bool:
        """Whether it was closed while something awaited."""
        return self.closed

    def close(self) -> None:
        """The carrier is gone. May be called twice."""
        if self.closed:
            return
        self.closed = True
        self._inbox.clear()
        feed, self._feed = self._feed, None
        if feed is not None:
            self._server.feeds.leave(feed, self)
        self._server.gone(self)
        self._server.forget(self)

    # -- inbound -----------------------------------------------------------------------------------

    def handle_message(self, data: bytes | bytearray | str) -> None:
        """One frame: text is JSON, bytes are msgpack. Never raises."""
        self._take(data, binary=not isinstance(data, str))

    def handle(self, data: bytes | bytearray | str) -> None:
        """One text message."""
        self._take(data, binary=False)

    receive = handle

    def receive_binary(self, data: bytes) -> None:
        """One binary message."""
        self._take(data, binary=True)

    def received(self) -> None:
        """Nothing is gathered here."""

    def protocol_error(self, code: str, message: str, re: str | None = None) -> None:
        """Answer `error`; a connection that goes on so is closed."""
        self._refuse("invalid_message", message)

    def _take(self, data: bytes | bytearray | str, *, binary: bool) -> None:
        if self.closed:
            return
        self._heard_at = self._server.monotonic()
        try:
            frame = f.decode(data, binary=binary)
        except f.BadFrame as error:
            self._refuse(error.code, str(error), error.msg_id)
            return
        if self._working:
            self._inbox_bytes += len(data)
            if len(self._inbox) >= limits.INBOX_MAX or self._inbox_bytes > limits.INBOX_BYTES_MAX:
                self.end(TOO_MANY, "too many frames wait behind a slow one")
                return
            self._inbox.append(frame)
        elif isinstance(frame, f.Crdt) and self._may_write is not None:
            self._message(frame)  # what nearly every frame is: nothing to wait for
        else:
            self._inbox.append(frame)
            self._work()

    def _refuse(self, code: str, message: str, msg_id: str | None = None) -> None:
        """An `error` for something that is no message of a joined session."""
        self.tell(f.error(code, message, msg_id=msg_id))
        self._errors += 1
        if self._errors >= limits.ERRORS_MAX:
            self.end(TOO_MANY, "too many frames that could not be read")

    def tell(self, frame: dict[str, Any]) -> None:
        """Send one frame to this client alone."""
        self.tell_all([self.format.encode(frame)])

    def tell_all(self, messages: Sequence[Message]) -> None:
        """Send frames to this client alone."""
        if messages and not self.closed:
            self.sink.send(messages)

    def _work(self) -> None:
        if not self._working and not self.closed and self._inbox:
            self._working = True
            self._server.spawn(self._guarded(self._empty_inbox), "connection")

    async def _empty_inbox(self) -> None:
        """One frame after the other."""
        try:
            while self._inbox and not self.closed:
                frame = self._inbox.popleft()
                if not self._inbox:
                    self._inbox_bytes = 0
                await self._handle(frame)
        finally:
            self._working = False

    def _pump(self) -> None:
        """Have this socket read on, if it does not already."""
        self._behind = True
        if not self._pumping and not self.closed:
            self._pumping = True
            self._server.spawn(self._guarded(self._catch_up), "replay")

    async def _catch_up(self) -> None:
        """Page by page, as the socket drains, until it is live again."""
        try:
            while self._behind and not self.closed:
                await self.sink.drained()
                self._tell_missed()
                async with self._placing:
                    if self._behind and not self.closed:
                        await self._read_on()
        finally:
            self._pumping = False

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """The top of a connection: where something fails it ends, and the others go on."""
        try:
            await work()
        except HoldfastError as error:
            log.warning("connection failed room=%s error=%s", self.room_id, error)
            self.end(INTERNAL, error.code)
        except Exception:
            log.exception("connection failed room=%s", self.room_id)
            self.end(INTERNAL, "internal error")

    async def _handle(self, frame: f.Inbound) -> None:
        if isinstance(frame, f.Crdt):
            if self._may_write is None and self._feed is not None:
                self._may_write = await self._server.may(self._user, self.address, "write")
                self._may_undo_any = await self._server.may(self._user, self.address, "undo_any")
            self._message(frame)
            return
        if wait_ms := self._control.take(1, self._server.monotonic()):
            message = f"more than {limits.CONTROL_PER_S} frames a second"
            self.tell(f.error("rate_limited", message, retry_after_ms=wait_ms))
            return
        if isinstance(frame, f.Join):
            await self._join(frame)
        elif isinstance(frame, f.Leave):
            self._server.leave(self)
            self.end(1000, "left")
        elif self._feed is None:
            self._refuse("not_joined", "send a join frame first")
        elif isinstance(frame, f.Sync):
            await self._sync(frame)
        elif isinstance(frame, f.SyncCheck):
            seq, state_hash = await self._server.journal.status(self.address)
            status = {"serverSeq": seq, "hash": state_hash}
            self.tell({"mtype": "sync-status", "requestId": frame.request_id, "status": status})
        elif isinstance(frame, f.Heartbeat):
            await self._heartbeat(frame)
        else:
            self._server.present(self, frame.state)

    # -- joining -----------------------------------------------------------------------------------

    async def _join(self, frame: f.Join) -> None:
        self._mode = frame.mode
        fresh = False
        if self._feed is None:
            if not await self._server.may(self._user, self.address, "join"):
                self._turn_away("forbidden", "no access to this room")
                return
            await self._server.journal.start()
            if self._over():  # a newer socket may have the session by now
                return
            try:
                fresh = self._server.enter(self)
                feed = await self._server.feeds.join(self.address)
            except ProtocolError as error:
                self._turn_away(error.code, str(error))
                return
            except HoldfastError as error:
                self.tell(f.error(f.wire_code(error.code), str(error), retry_after_ms=1000))
                self.end(INTERNAL, error.code)
                return
            if self._over():
                self._server.gone(self)
                self._server.feeds.leave(feed, None)
                return
            self._feed = feed
        async with self._placing:
            self._feed.live.pop(self, None)
            self._synced.clear()
            await self._send_state(frame.since, frame.epoch)
        if fresh:
            self._server.tell_joined(self)
        if frame.presence is not None:
            self._server.present(self, frame.presence)

    def _turn_away(self, code: str, message: str) -> None:
        self.tell(f.error(code, message))
        self.end(FORBIDDEN, message)

    async def _send_state(self, since: int | None, epoch: str | None) -> None:
        """A `state` frame that goes on from `since`, or a whole one; then live, or behind."""
        journal, graph = self._server.journal, self._mode == "graph"
        found = await journal.bootstrap(self.address, since, epoch, graph=graph)
        members = await self._server.members_of(self)
        message = await journal.run(lambda: f.state(self.format, found, members))
        if self._over():
            return
        at = self.cursor if since is None else since
        reason = cut_reason(self._epoch if since is None else epoch, at, found.bounds)
        if reason is not None:
            self._answers.forget(at + CLEAR_JUMP)
            self.tell({"mtype": "reset", "reason": reason, "epoch": found.bounds.epoch})
        self.sink.send([message])
        self._epoch = found.bounds.epoch
        early, self._early = self._early, None
        for shared in early or ():
            self.sink.send_shared(shared)
        self._restate = False
        self.cursor = found.last
        self.tell_all(self._answers.upto(found.last, found.bounds))
        self._settle_place()

    def _settle_place(self) -> None:
        """Go live where nothing is left to read; without a suspension, so nothing slips through."""
        feed = self._feed
        if feed is None:
            return
        if self._restate or self.cursor < feed.tail:
            self._pump()
        else:
            self._behind = False
            feed.live[self] = None
            for request_id in self._synced:
                answer = {"mtype": "synced", "requestId": request_id, "serverSeq": self.cursor}
                self.tell(answer)
            self._synced.clear()

    async def _read_on(self) -> None:
        """Send a page of what this socket lacks."""
        if self._restate:
            await self._send_state(None, None)
            return
        page = await self._server.journal.page(self.address, self.cursor)
        if self._over():
            return
        if isinstance(page, Resync):
            self._restate = True
            return
        if self._mode == "graph" and any(entry.kind == META for entry in page.entries):
            self._restate = True
            return
        self.tell_all(self._answers.frames_of(page.entries, page.bounds))
        self.cursor = max(self.cursor, page.last)
        self._settle_place()

    async def _sync(self, frame: f.Sync) -> None:
        assert self._feed is not None
        if frame.clock is not None:
            await self._sync_by_clock(frame.clock, frame.request_id)
            return
        assert frame.since is not None
        async with self._placing:
            bounds = await self._server.journal.bounds(self.address)
            if self._over():
                return
            self._feed.live.pop(self, None)
            self._synced.append(frame.request_id)
            if bounds.floor <= frame.since <= bounds.head:
                self.cursor = frame.since
            else:
                self._restate = True
            self._settle_place()

    async def _sync_by_clock(self, clock: dict[str, int], request_id: Any) -> None:
        """Every kept message whose session has counted further than the clock knows."""
        seq = 0
        async for upto, bodies in self._server.journal.beyond(self.address, clock):
            if self._over():
                return
            seq = upto
            self.tell_all([f.broadcast(self.format, run) for run in f.pages_of(bodies)])
            await self.sink.drained()
        self.tell({"mtype": "synced", "requestId": request_id, "serverSeq": seq})

    async def _heartbeat(self, frame: f.Heartbeat) -> None:
        self._server.seen(self, frame.clock)
        bounds = await self._server.journal.bounds(self.address)
        self.tell({
            "mtype": "heartbeat", "serverSeq": bounds.head, "floorSeq": bounds.floor,
            "floorAt": bounds.floor_at, "durableSeq": bounds.durable,
            "now": self._server.now_ms(),
        })  # fmt: skip

    # -- messages ----------------------------------------------------------------------------------

    def _message(self, frame: f.Crdt) -> None:
        msg_id = f.id_of(frame.msg)
        if self._feed is None:
            self._refuse("not_joined", "send a join frame first", msg_id)
            return
        if not self._may_write:
            self._refuse("forbidden", "no write access to this room", msg_id)
            return
        if self._server.stopping:
            text = "the server is going away"
            self.tell(f.error("moved", text, msg_id=msg_id, retry_after_ms=1000))
            return
        if wait_ms := self._messages.take(1, self._server.monotonic()):
            text = f"more than {limits.MESSAGES_PER_S} messages a second"
            self.tell(f.error("rate_limited", text, msg_id=msg_id, retry_after_ms=wait_ms))
            return
        try:
            draft = self._server.journal.draft(
                frame.msg, session_id=self.session_id, prev=frame.prev,
                undo_any=self._may_undo_any,
            )  # fmt: skip
            self._server.journal.submit(self.address, draft, self._answers, msg_id)
        except HoldfastError as error:
            code = f.wire_code(error.code)
            after = error.retry_after_ms or 1000
            self.tell(f.error(code, str(error), msg_id=msg_id, retry_after_ms=after))
            return
        self._answers.waiting += 1

    # -- live (edge.dialects.vuer.feed.Reader) -----------------------------------------------------

    def take(self, batch: RoomBatch) -> bool:
        """See Reader."""
        sink = self.sink
        if sink.congested:
            return False
        if batch.has_meta and self._mode == "graph":
            self._restate = True
            return False
        if self._answers and self.session_id in batch.origins:
            sink.send(self._answers.frames_of(batch.entries, batch.bounds))
        else:
            sink.send_shared(batch.frames(self.format))
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
        if self._feed is not None:
            self._feed.live.pop(self, None)
            self._restate = True
            self._pump()

    # -- presence ----------------------------------------------------------------------------------

    def show(self, session_id: str, state: Any, shared: Frames) -> None:
        """Another session's presence; kept for later where the socket does not drain."""
        if not self.sink.congested or self._feed is None:
            self.tell_shared(shared)
            return
        self._missed[session_id] = state
        self._feed.live.pop(self, None)
        self._pump()

    def tell_shared(self, shared: Frames) -> None:
        """A frame that all in the room get alike."""
        if self.closed:
            return
        if self._early is not None:
            self._early.append(shared)
        else:
            self.sink.send_shared(shared)

    def _tell_missed(self) -> None:
        missed, self._missed = self._missed, {}
        for session_id, state in missed.items():
            self.tell({"mtype": "presence", "sessionId": session_id, "state": state})
