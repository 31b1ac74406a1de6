"""One vuer-rtc client, whatever carries its frames (section 11).

Frames are handled strictly in order; what the room tells the client is its place's (place.py).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from actors.dialects.vuer.sessions import user_mark
from edge.auth import Principal
from edge.budget import Budget
from edge.dialects.vuer import frames as f
from edge.dialects.vuer import limits
from edge.dialects.vuer.place import Place
from edge.sending import Sink
from edge.wire import Frames, Message
from infra.errors import HoldfastError, ProtocolError

if TYPE_CHECKING:
    from edge.dialects.vuer.server import RTCServer

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
        self.format = format
        self.server = server
        self._user = principal
        self._mark = user_mark(principal.id)
        self._place = Place(self)
        self._may_write: bool | None = None  # None: not asked yet
        self._may_undo_any = False
        self._inbox: deque[f.Inbound] = deque()
        self._inbox_bytes = 0
        self._working = False
        self._errors = 0
        now = server.monotonic()
        self._opened_at = self._heard_at = now
        self._control = Budget(limits.CONTROL_PER_S, limits.CONTROL_BURST, now)

    # -- what the server asks of its connections ---------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing awaits an answer."""
        return not self._place.answers.waiting

    @property
    def subscriptions(self) -> int:
        """How many scopes this connection follows."""
        return 0 if self._place.feed is None else 1

    @property
    def joined(self) -> bool:
        """Whether it has been let into its room."""
        return self._place.feed is not None

    def unauthenticated_since(self, now: float) -> bool:
        """Never: the upgrade was authenticated."""
        return False

    def tick(self, now: float) -> None:
        """Close who has not joined in time, or says nothing any more."""
        if self.closed:
            return
        if self._place.feed is None and now - self._opened_at > limits.JOIN_WAIT_S:
            self.end(SILENT, f"no join came in {limits.JOIN_WAIT_S:.0f} s")
        elif self.watches_silence and now - self._heard_at > limits.SILENCE_S:
            self.end(SILENT, f"no frame for {limits.SILENCE_S:.0f} s")

    async def reauthorize(self) -> None:
        """Ask again whether the user may be here."""
        if not await self.server.may(self._user, self.address, "join"):
            self.end(FORBIDDEN, "access to this room was withdrawn")
            return
        self._may_write = None

    def end(self, code: int, reason: str) -> None:
        """Close the carrier and drop everything."""
        if not self.closed:
            self.sink.close(code, reason)
            self.close()

    def over(self) -> bool:
        """Whether it was closed while something awaited."""
        return self.closed

    def close(self) -> None:
        """The carrier is gone. May be called twice."""
        if self.closed:
            return
        self.closed = True
        self._inbox.clear()
        self._place.leave()
        self.server.gone(self)
        self.server.forget(self)

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
        self._heard_at = self.server.monotonic()
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
            self.start(self._empty_inbox, "connection")

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

    def start(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        """Run it beside; what it raises ends this connection alone."""
        self.server.spawn(self._guarded(work), name)

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
            if self._may_write is None and self._place.feed is not None:
                self._may_write = await self.server.may(self._user, self.address, "write")
                self._may_undo_any = await self.server.may(self._user, self.address, "undo_any")
            self._message(frame)
            return
        if wait_ms := self._control.take(1, self.server.monotonic()):
            message = f"more than {limits.CONTROL_PER_S} frames a second"
            self.tell(f.error("rate_limited", message, retry_after_ms=wait_ms))
            return
        if isinstance(frame, f.Join):
            await self._join(frame)
        elif isinstance(frame, f.Leave):
            self.server.leave(self)
            self.end(1000, "left")
        elif self._place.feed is None:
            self._refuse("not_joined", "send a join frame first")
        elif isinstance(frame, f.Sync):
            if frame.clock is not None:
                await self._place.sync_by_clock(frame.clock, frame.request_id)
            else:
                assert frame.since is not None
                await self._place.sync(frame.since, frame.request_id)
        elif isinstance(frame, f.SyncCheck):
            seq, state_hash = await self.server.journal.status(self.address)
            status = {"serverSeq": seq, "hash": state_hash}
            self.tell({"mtype": "sync-status", "requestId": frame.request_id, "status": status})
        elif isinstance(frame, f.Heartbeat):
            await self._heartbeat(frame)
        else:
            self.server.present(self, frame.state)

    # -- joining -----------------------------------------------------------------------------------

    async def _join(self, frame: f.Join) -> None:
        fresh = False
        if self._place.feed is None:
            if not await self.server.may(self._user, self.address, "join"):
                self.turn_away("forbidden", "no access to this room")
                return
            await self.server.journal.start()
            try:
                owner = await self.server.journal.repository.owner(self.address, self.session_id)
                await self.server.meet(self.address)
                if self.over():  # a newer socket may have the session by now
                    return
                if owner not in (None, self._mark):
                    self.turn_away("session_taken", "this session is another user's")
                    return
                fresh = self.server.enter(self)
                feed = await self.server.feeds.join(self.address)
            except ProtocolError as error:
                self.turn_away(error.code, str(error))
                return
            except HoldfastError as error:
                self.tell(f.error(f.wire_code(error.code), str(error), retry_after_ms=1000))
                self.end(INTERNAL, error.code)
                return
            if self.over():
                self.server.gone(self)
                self.server.feeds.leave(feed, None)
                return
            self._place.feed = feed
        await self._place.begin(frame.since, frame.epoch, frame.mode)
        if fresh:
            self.server.tell_joined(self)
        if frame.presence is not None:
            self.server.present(self, frame.presence)

    def turn_away(self, code: str, message: str) -> None:
        """Say why this client may not be here, and close."""
        self.tell(f.error(code, message))
        self.end(FORBIDDEN, message)

    async def _heartbeat(self, frame: f.Heartbeat) -> None:
        self.server.seen(self, frame.clock)
        bounds = await self.server.journal.bounds(self.address)
        self.tell({
            "mtype": "heartbeat", "serverSeq": bounds.head, "floorSeq": bounds.floor,
            "floorAt": bounds.floor_at, "durableSeq": bounds.durable,
            "now": self.server.now_ms(),
        })  # fmt: skip

    # -- messages ----------------------------------------------------------------------------------

    def _message(self, frame: f.Crdt) -> None:
        msg_id = f.id_of(frame.msg)
        if self._place.feed is None:
            self._refuse("not_joined", "send a join frame first", msg_id)
            return
        if not self._may_write:
            self._refuse("forbidden", "no write access to this room", msg_id)
            return
        if self.server.stopping:
            text = "the server is going away"
            self.tell(f.error("moved", text, msg_id=msg_id, retry_after_ms=1000))
            return
        if wait_ms := self.server.allow(self):
            text = f"more than {limits.MESSAGES_PER_S} messages a second"
            self.tell(f.error("rate_limited", text, msg_id=msg_id, retry_after_ms=wait_ms))
            return
        try:
            draft = self.server.journal.draft(
                frame.msg, session_id=self.session_id, prev=frame.prev,
                undo_any=self._may_undo_any, user=self._mark,
            )  # fmt: skip
            self.server.journal.submit(self.address, draft, self._place.answers, msg_id)
        except HoldfastError as error:
            code = f.wire_code(error.code)
            after = error.retry_after_ms or 1000
            self.tell(f.error(code, str(error), msg_id=msg_id, retry_after_ms=after))
            return
        self._place.answers.waiting += 1

    # -- what others tell --------------------------------------------------------------------------

    def show(self, session_id: str, state: Any, shared: Frames) -> None:
        """Another session's presence."""
        self._place.show(session_id, state, shared)

    def tell_shared(self, shared: Frames) -> None:
        """A frame that all in the room get alike."""
        self._place.tell_shared(shared)
