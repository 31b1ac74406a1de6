"""One objectfeed socket: keys, queries, intents and presence of one user.

Rules kept here (docs/para-sync.md): frames are begun strictly in order; a key is followed once;
sequences of a key ascend; `subscribed` precedes its envelopes. Intents of one key are decided in
the order they came, those of different keys side by side. Whoever does not drain is sent one
envelope for each key once it does.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
from msgspec import UNSET

from actors.dialects.para.keys import BadKey, check_key
from actors.dialects.para.plan import Op
from edge.auth import Principal
from edge.budget import Budget
from edge.dialects.para import frames as f
from edge.dialects.para.access import View
from edge.dialects.para.intents import Wish, decide
from edge.dialects.para.presence_desk import PresenceDesk
from edge.dialects.para.queries import QuerySubscription
from edge.dialects.para.subscription import KeySubscription
from edge.wire import Frames, Message
from infra import clock, ids, limits
from infra.errors import HoldfastError

if TYPE_CHECKING:
    from edge.dialects.para.authority import SyncedAuthority
    from edge.dialects.para.service import ParaService

log = logging.getLogger("holdfast.para")
KEYS_MAX: Final = 1000
QUERIES_MAX: Final = 50
IN_FLIGHT_MAX: Final = 256
INBOX_MAX: Final = 2048
INBOX_BYTES_MAX: Final = 8 << 20
ORIGINS_MAX: Final = 16  # client ids that one socket may write as
TOO_MANY: Final = 1008
INTERNAL: Final = 1011


class ParaSink(Protocol):
    """Where frames go; edge.websocket.Socket fits."""

    congested: bool

    def send(self, texts: Sequence[Message]) -> None: ...
    def send_shared(self, frames: Any) -> None: ...
    async def drained(self) -> None: ...
    def close(self, code: int, reason: str) -> None: ...


class ParaConnection:
    """Fits edge.websocket.Session and what edge.server expects of its connections."""

    def __init__(
        self, service: ParaService, sink: ParaSink, principal: Principal,
        authority: SyncedAuthority, codec: f.FrameCodec,
    ) -> None:  # fmt: skip
        self.service = service
        self.sink = sink
        self.principal = principal
        self.authority = authority
        self.codec = codec
        self.closed = False
        self.origins: set[str] = set()
        self.presence = PresenceDesk(self, service, ids.new_id())
        self._keys: dict[str, KeySubscription] = {}
        self._queries: dict[str, QuerySubscription] = {}
        self._behind: dict[KeySubscription, None] = {}
        self._catching_up = False
        self._inbox: deque[f.Inbound] = deque()
        self._inbox_bytes = 0
        self._working = False
        self._in_flight = 0
        self._errors = 0
        now = clock.monotonic()
        # All keys at once, and once more: a client that comes back follows what it followed.
        self._control = Budget(limits.CONTROL_FRAMES_PER_S, 2 * KEYS_MAX, now)
        allowed = principal.publish or service.publish_limits
        self._writes = Budget(allowed.envelopes_per_s, 2 * allowed.envelopes_per_s, now)
        self._bytes = Budget(allowed.bytes_per_s, 2 * allowed.bytes_per_s, now)

    # -- what the server asks of its connections ---------------------------------------------------

    @property
    def idle(self) -> bool:
        """No intent waits for its answer."""
        return not self._in_flight

    @property
    def subscriptions(self) -> int:
        """How many keys and queries this connection follows."""
        return len(self._keys) + len(self._queries)

    def unauthenticated_since(self, now: float) -> bool:
        """Never: the upgrade was authenticated."""
        return False

    async def reauthorize(self) -> None:
        """Ask again about every key; what is no longer allowed ends."""
        for key, held in list(self._keys.items()):
            scope = held.feed.address.scope
            allowed = await self.authority.doorkeeper.ask(self.principal, scope, key, "read")
            if self._keys.get(key) is not held:
                continue
            if allowed is None:
                self.end_key(key, "forbidden", "no read access to this key any more")
            else:
                held.view.allowed = allowed
        for query in list(self._queries.values()):
            query.touched(None)

    def end(self, code: int, reason: str) -> None:
        """Close the socket from our side."""
        self.close()
        self.sink.close(code, reason)

    def close(self) -> None:
        """The socket is gone: release everything. May be called twice."""
        if self.closed:
            return
        self.closed = True
        self._inbox.clear()
        for key in list(self._keys):
            self._drop_key(key)
        for qid in list(self._queries):
            self._drop_query(qid)
        self.presence.close()
        self.service.connections.discard(self)

    # -- outbound ----------------------------------------------------------------------------------

    def send(self, frame: f.Frame) -> None:
        """One frame for this client alone."""
        if self.closed:
            return
        self.sink.send([self.codec.encode(frame)])

    def shared(self, frame: f.Frame) -> Frames:
        """A frame that others of the same codec get alike."""
        return Frames([self.codec.encode(frame)])

    # -- inbound -----------------------------------------------------------------------------------

    def handle(self, data: bytes | bytearray | str) -> None:
        """One text message. Never raises."""
        if self.codec.binary:
            self.protocol_error("bad_frame", "send binary frames: this socket speaks msgpack")
        else:
            self._take(data)

    receive = handle

    def received(self) -> None:
        """Nothing is gathered here."""

    def receive_binary(self, data: bytes) -> None:
        """One binary message."""
        if self.codec.binary:
            self._take(data)
        else:
            self.protocol_error("bad_frame", "send text frames, or open with ?codec=msgpack")

    def protocol_error(self, code: str, message: str, re: str | None = None) -> None:
        """Tell it; too many of them end the socket."""
        self.send(f.error(code, message, re))
        self._errors += 1
        if self._errors >= limits.PROTOCOL_ERRORS_MAX and not self.closed:
            self.end(TOO_MANY, f"{self._errors} protocol errors")

    def _take(self, data: bytes | bytearray | str) -> None:
        if self.closed:
            return
        self.presence.heard_at_ms = clock.now_ms()
        try:
            frame = self.codec.decode(data)
        except f.BadFrame as error:
            self.protocol_error(error.code, str(error))
            return
        if isinstance(frame, f.Ping):
            self._pong(frame)
            return
        self._inbox_bytes += len(data)
        if len(self._inbox) >= INBOX_MAX or self._inbox_bytes > INBOX_BYTES_MAX:
            self.end(TOO_MANY, "too many frames wait behind a slow one")
            return
        self._inbox.append(frame)
        self._work()

    def _pong(self, frame: f.Ping) -> None:
        if len(msgspec.msgpack.encode(frame.t if frame.t is not UNSET else None)) > (
            limits.PING_BYTES_MAX
        ):
            self.protocol_error("bad_frame", f"t has at most {limits.PING_BYTES_MAX} bytes", "ping")
        elif not self._control.take(1, clock.monotonic()):
            self.send(f.pong(frame.t, clock.now_ms()))

    def _work(self) -> None:
        free = self._in_flight < IN_FLIGHT_MAX
        if not self._working and not self.closed and self._inbox and free:
            self._working = True
            self.service.spawn(self._run(), "socket")

    async def _run(self) -> None:
        """One frame after the other, until none waits or too many intents are under way."""
        try:
            while not self.closed and self._inbox and self._in_flight < IN_FLIGHT_MAX:
                frame = self._inbox.popleft()
                if not self._inbox:
                    self._inbox_bytes = 0
                await self._one(frame)
        except Exception:  # the top of a socket: it ends, the others go on
            log.exception("socket failed name=%s", self.authority.spaces.name)
            self.end(INTERNAL, "internal error")
        finally:
            self._working = False

    async def _one(self, frame: f.Inbound) -> None:
        match frame:
            case f.IntentFrame():
                self._begin_intent(frame)
                return
            case f.Tx():
                self._begin_tx(frame)
                return
            case _:
                pass
        if wait_ms := self._control.take(1, clock.monotonic()):
            tag = frame.__struct_config__.tag
            self.protocol_error("rate_limited", f"again in {wait_ms} ms", str(tag))
            return
        await self.sink.drained()  # what these are answered with may be large
        match frame:
            case f.Sub():
                await self._subscribe(frame)
            case f.Unsub():
                self._drop_key(frame.key)
            case f.Fetch():
                await self._fetch(frame)
            case f.Query():
                await self._query(frame)
            case f.Unquery():
                self._drop_query(frame.qid)
            case f.PresenceFrame():
                await self.presence.handle(frame)
            case _:
                raise AssertionError(frame)

    # -- keys --------------------------------------------------------------------------------------

    async def _subscribe(self, frame: f.Sub) -> None:
        key = frame.key
        self._drop_key(key)
        try:
            view = await self._view(key)
            if len(self._keys) >= KEYS_MAX:
                self.send(f.key_error(key, "too_many_keys", f"at most {KEYS_MAX} keys"))
                return
            feed = await self.service.join(self.authority.address(key))
        except HoldfastError as error:
            self.send(f.key_error(key[:256], error.code, str(error)))
            return
        held = self._keys[key] = KeySubscription(self, feed, view, frame)
        if self.closed:
            self._drop_key(key)
            return
        await self._read(held, frame.epoch)

    async def _view(self, key: str) -> View:
        """What this user may see of the key. Raises HoldfastError."""
        kind = self.authority.kinds.of(check_key(key))
        scope = self.authority.address(key).scope
        allowed = await self.authority.doorkeeper.ask(self.principal, scope, key, "read")
        if allowed is None:
            raise NotYours("no read access to this key")
        return View(kind, self.principal, key, allowed)

    async def _read(self, held: KeySubscription, epoch: str | None = None) -> None:
        try:
            await held.read(epoch)
        except HoldfastError as error:
            if not held.ended:
                self.end_key(held.key, error.code, str(error))

    def end_key(self, key: str, code: str, message: str) -> None:
        """Follow it no longer, and say why."""
        self._drop_key(key)
        self.send(f.key_error(key, code, message))

    def _drop_key(self, key: str) -> None:
        held = self._keys.pop(key, None)
        if held is not None:
            held.end()
            self._behind.pop(held, None)
            self.service.leave(held.feed)

    def read_later(self, held: KeySubscription) -> None:
        """The key has moved on while nothing could be sent: read it once the socket drains."""
        self._behind[held] = None
        if not self._catching_up and not self.closed:
            self._catching_up = True
            self.service.spawn(self._catch_up(), "catch-up")

    async def _catch_up(self) -> None:
        try:
            while self._behind and not self.closed:
                await self.sink.drained()
                if not self._behind:
                    break
                held = next(iter(self._behind))
                del self._behind[held]
                if not held.ended:
                    await self._read(held)
        except Exception:  # as in _run
            log.exception("catch-up failed name=%s", self.authority.spaces.name)
            self.end(INTERNAL, "internal error")
        finally:
            self._catching_up = False

    async def _fetch(self, frame: f.Fetch) -> None:
        try:
            view = await self._view(frame.key)
            envelope = (await self.authority.read([frame.key]))[0]
            shown = None if envelope is None else view.show(envelope)
        except HoldfastError as error:
            self.send(f.unfetched(frame.id, frame.key[:256], error.code, str(error)))
            return
        if envelope is None:
            self.send(f.unfetched(frame.id, frame.key, "not_found", "there is no such object"))
        elif shown is None:
            self.send(f.unfetched(frame.id, frame.key, "forbidden", "it cannot be shown to you"))
        else:
            self.send(f.fetched(frame.id, frame.key, shown))

    # -- queries -----------------------------------------------------------------------------------

    async def _query(self, frame: f.Query) -> None:
        self._drop_query(frame.qid)
        try:
            f.check_id(frame.qid, "qid")
            if len(self._queries) >= QUERIES_MAX:
                raise f.BadFrame(f"at most {QUERIES_MAX} queries of one connection")
            asked = self.service.queries(self.authority).open(self, frame)
            held = self._queries[frame.qid] = asked
            await held.start()
        except HoldfastError as error:
            self._drop_query(frame.qid)
            self.send(f.query_error(frame.qid[:256], error.code, str(error)))

    def _drop_query(self, qid: str) -> None:
        held = self._queries.pop(qid, None)
        if held is not None:
            held.end()

    # -- intents -----------------------------------------------------------------------------------

    def _begin_intent(self, frame: f.IntentFrame) -> None:
        name = {"clientId": frame.clientId, "opId": frame.opId}
        self._begin(name, frame.clientId, frame.opId, [frame])

    def _begin_tx(self, frame: f.Tx) -> None:
        name = {"clientId": frame.clientId, "groupOpId": frame.groupOpId}
        self._begin(name, frame.clientId, frame.groupOpId, frame.intents)

    def _begin(
        self, name: f.Frame, client: str, op_id: str, given: list[f.IntentFrame] | list[f.TxIntent]
    ) -> None:
        short = {member: value[:256] for member, value in name.items()}
        try:
            f.check_id(client, "clientId")
            f.check_id(op_id, "opId")
            self._spend(given)
        except HoldfastError as error:
            self.send(f.reject(short, error.code, str(error), error.retry_after_ms))
            return
        origin = Op(self.principal.id, client, op_id).origin
        if origin not in self.origins and len(self.origins) >= ORIGINS_MAX:
            self.send(f.reject(name, "bad_frame", f"at most {ORIGINS_MAX} clientIds of a socket"))
            return
        self.origins.add(origin)
        wishes = [self._wish(part) for part in given]
        self._in_flight += 1
        self.service.spawn(self._decide(name, client, op_id, wishes), "intent")

    def _wish(self, part: f.IntentFrame | f.TxIntent) -> Wish:
        held = self._keys.get(part.key)
        version = None if held is None else held.version
        return Wish(part.key, part.v, part.value, part.name, part.input, part.base, version)

    def _spend(self, given: list[f.IntentFrame] | list[f.TxIntent]) -> None:
        now = clock.monotonic()
        size = sum(_size_of(part) for part in given)
        wait_ms = self._writes.take(len(given), now) or self._bytes.take(size, now)
        if wait_ms:
            raise RateLimited("the publish limit", retry_after_ms=wait_ms)

    async def _decide(self, name: f.Frame, client: str, op_id: str, wishes: list[Wish]) -> None:
        try:
            sequences = await decide(self.authority, self.principal, client, op_id, wishes)
            self.send(f.confirm(name, sequences))
        except HoldfastError as error:
            after = error.retry_after_ms
            if after is None and error.retryable:
                after = 1000
            self.send(f.reject(name, error.code, str(error), after))
        except Exception:  # nobody may be left waiting
            log.exception("intent failed name=%s", self.authority.spaces.name)
            self.send(f.reject(name, "internal", "see the server's log"))
        finally:
            self._in_flight -= 1
            self._work()


class NotYours(HoldfastError):
    """The user may not read this."""

    code = "forbidden"


class RateLimited(HoldfastError):
    """More writes than allowed; nothing was taken."""

    code = "rate_limited"
    retryable = True


def _size_of(part: f.IntentFrame | f.TxIntent) -> int:
    value = part.input if part.value is UNSET else part.value
    try:
        return len(msgspec.msgpack.encode(value))
    except (TypeError, ValueError, RecursionError, OverflowError, msgspec.MsgspecError):
        return 0  # refused later, with a reason


__all__ = ["BadKey", "ParaConnection"]
