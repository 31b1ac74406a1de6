"""`ObjectFeedClient`: all keys, intents, queries and presence of a client on one socket.

It is a SyncTransport that comes back by itself and brings its followers up to date: on every
connection it follows each key from what is applied. Open intents are kept in an injected store and
sent again, in their order and under the same ids, once their keys have a baseline. All calls belong
to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from actors.dialects.para.envelope import SyncEnvelope
from actors.dialects.para.integers import WORD, may_be_wide, unwrapped, wrapped
from actors.dialects.para.keys import check_key
from edge.client.effects import SyncError
from edge.client.para.feed_keys import FollowedKey, envelope_in
from edge.client.para.feed_socket import FeedSocket
from edge.client.para.handlers import Handler, Unsubscribe
from edge.client.para.intent_store import IntentStore, MemoryIntentStore
from edge.client.para.ops import Op, OpQueue, StoredOp
from edge.client.para.peers import PresenceChannel
from edge.client.para.schema import SyncSchema
from edge.client.para.transport import Follower
from edge.client.transport import Token
from infra import clock, ids
from infra.errors import ProtocolError
from infra.tasks import TaskOwner

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger("holdfast.para")
PING_S: Final = 15.0  # well below the 45 s after which presence ends
FETCH_WAIT_S: Final = 30.0
RETRY_S_MAX: Final = 30.0
OnMembers = Callable[[list[str], dict[str, SyncEnvelope]], None]
"""(keys in order, envelopes of those that are new)"""


class Ticket:
    """An intent under way. `await ticket` gives the sequence of each key.

    Raises SyncError with the server's code where it was rejected. Nobody needs to await it.
    """

    def __init__(self, op_id: str) -> None:
        self.op_id = op_id
        self.sequences: dict[str, int] | None = None
        self.error: SyncError | None = None
        self._done = asyncio.Event()

    @property
    def done(self) -> bool:
        """Whether the server has answered."""
        return self._done.is_set()

    def settle(self, sequences: dict[str, int] | None, error: SyncError | None) -> None:
        """For the client: the answer."""
        self.sequences, self.error = sequences, error
        self._done.set()

    async def wait(self) -> dict[str, int]:
        """The sequence of each key. Raises SyncError."""
        await self._done.wait()
        if self.error is not None:
            raise self.error
        return self.sequences or {}

    def __await__(self) -> Any:
        return self.wait().__await__()


class ObjectFeedClient:
    """`url` is the server's objectfeed (`http://host/para/main/objectfeed`); `token` as for
    SyncClient. `store` keeps open intents; in memory without one.
    """

    def __init__(
        self, url: str, token: Token = None, session: aiohttp.ClientSession | None = None,
        *, store: IntentStore | None = None,
        on_error: Callable[[str | None, SyncError], None] | None = None,
    ) -> None:  # fmt: skip
        self.store = MemoryIntentStore() if store is None else store
        self.connected = False
        self._socket = FeedSocket(url, token, session)
        self._on_error = on_error
        self._keys: dict[str, FollowedKey] = {}
        self._ops = OpQueue()
        self._fetches: dict[str, tuple[str, asyncio.Future[SyncEnvelope | None]]] = {}
        self._queries: dict[str, tuple[Any, OnMembers]] = {}
        self._channels: dict[str, PresenceChannel] = {}
        self._wanted: dict[str, None] = {}  # keys whose `sub` goes out with the next turn
        self._flushing = False
        self._counter = 0
        self._attempt = 0
        self._running = False
        self._closed = False
        self._tasks = TaskOwner()
        for stored in self.store.load():
            self._ops.add(Op(stored, lambda sequences, error: None))
            for intent in stored.intents:
                self._key(intent["key"]).pending.begin(stored.op_id)

    # -- keys (SyncTransport, FollowedTransport) ---------------------------------------------------

    def attach(self, key: str, follower: Follower) -> Unsubscribe:
        """Keep the follower up to date until the result is called."""
        held = self._key(check_key(key))
        held.followers[follower] = None
        self._want(key)
        return self._unsubscribe(held, lambda: held.followers.pop(follower, None))

    def subscribe(self, key: str, handler: Handler) -> Unsubscribe:
        """Have the handler called with the current envelope and each later one."""
        held = self._key(check_key(key))
        held.handlers[handler] = None
        held.whole = True
        self._want(key)
        return self._unsubscribe(held, lambda: held.handlers.pop(handler, None))

    def publish(self, key: str, envelope: SyncEnvelope | Mapping[str, Any]) -> None:
        """Refused: the server owns every value; send an intent."""
        raise SyncError("a client publishes nothing; send an intent", code="forbidden")

    async def refetch(self, key: str) -> SyncEnvelope | None:
        """The current envelope; None where there is no such object. Raises SyncError."""
        self._counter += 1
        id = f"f{self._counter}"
        future: asyncio.Future[SyncEnvelope | None] = asyncio.get_running_loop().create_future()
        self._fetches[id] = (key, future)
        self._start()
        if self.connected:
            self._send({"type": "fetch", "id": id, "key": key})
        try:
            async with asyncio.timeout(FETCH_WAIT_S):
                return await future
        except TimeoutError as error:
            raise SyncError("no answer to a fetch", code="unavailable") from error
        finally:
            self._fetches.pop(id, None)

    def followed(self, key: str) -> FollowedKey:
        """For `synced`: the state of a key."""
        return self._key(key)

    def pending_value(self, key: str) -> tuple[bool, Any]:
        """(whether there is one, the value) that the newest open intent of the key sets."""
        return self._ops.newest_value(key)

    def _key(self, key: str) -> FollowedKey:
        return self._keys.setdefault(key, FollowedKey(key))

    def _unsubscribe(self, held: FollowedKey, off: Callable[[], object]) -> Unsubscribe:
        done = False

        def unsubscribe() -> None:
            nonlocal done
            if done:
                return
            done = True
            off()
            if not held.used:
                self._wanted.pop(held.key, None)
                held.disconnected()
                if self.connected:
                    self._send({"type": "unsub", "key": held.key})
                if not held.pending and self._keys.get(held.key) is held:
                    del self._keys[held.key]

        return unsubscribe

    def _want(self, key: str) -> None:
        self._wanted[key] = None
        self._start()
        if not self._flushing:
            self._flushing = True
            # With the next turn: a replica has taken its seed by then.
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if not self.connected:
            return  # `opened` follows every key
        wanted, self._wanted = self._wanted, {}
        for key in wanted:
            held = self._keys.get(key)
            if held is not None and held.used:
                held.ready = False
                self._send(held.sub())

    # -- intents -----------------------------------------------------------------------------------

    def intent(
        self, key: str, *, name: str | None = None, input: Any = None, value: Any = msgspec.UNSET,
        base: Any = None,
    ) -> Ticket:  # fmt: skip
        """Ask for one change: a `value`, or a `name` with an `input`. Kept until it is answered."""
        intent: dict[str, Any] = {"key": check_key(key)}
        if (name is None) == (value is msgspec.UNSET):
            raise ValueError("an intent has a value, or a name with an input")
        if name is None:
            intent["value"] = value
            if base is not None:
                intent["base"] = base
        else:
            intent["name"] = name
            intent["input"] = input
        return self._enqueue([intent], group=False)

    def tx(self, intents: Sequence[Mapping[str, Any]]) -> Ticket:
        """Ask for several changes that happen together or not at all; each as `intent` has it."""
        return self._enqueue([dict(intent) for intent in intents], group=True)

    def _enqueue(self, intents: list[dict[str, Any]], *, group: bool) -> Ticket:
        self._check_open()
        stored = StoredOp(self.store.next_op_id(), intents, group)
        self.store.save(stored)
        ticket = Ticket(stored.op_id)
        op = Op(stored, ticket.settle)
        self._ops.add(op)
        for key in op.keys:
            self._key(key).pending.begin(stored.op_id)
        self._start()
        self._send_ops()
        return ticket

    def _send_ops(self) -> None:
        if not self.connected:
            return
        now = clock.monotonic()
        for op in self._ops.sendable(self._is_ready, now):
            op.sent = True
            self._send(self._frame_of(op))
        at = self._ops.next_at(now)
        if at is not None:
            asyncio.get_running_loop().call_later(max(0.0, at - now), self._send_ops)

    def _is_ready(self, key: str) -> bool:
        held = self._keys.get(key)
        return held is None or not held.used or held.ready

    def _frame_of(self, op: Op) -> dict[str, Any]:
        stored = op.stored
        intents = [
            {**intent, "v": self._key(intent["key"]).pending.again(stored.op_id)}
            for intent in stored.intents
        ]
        if stored.group:
            return {
                "type": "tx", "clientId": self.store.client_id, "groupOpId": stored.op_id,
                "intents": intents,
            }  # fmt: skip
        return {
            "type": "intent", "clientId": self.store.client_id, "opId": stored.op_id, **intents[0],
        }  # fmt: skip

    def _answered(self, frame: dict[str, Any]) -> None:
        op_id = frame.get("opId") or frame.get("groupOpId") or ""
        op = self._ops.get(op_id)
        if op is None or frame.get("clientId") != self.store.client_id:
            return
        confirmed = frame["type"] == "confirm"
        code = frame.get("code", "internal")
        if not confirmed and "retryAfterMs" in frame:  # by this alone: codes may be the app's own
            op.sent = False
            wait_s = min(RETRY_S_MAX, frame["retryAfterMs"] / 1000)
            op.not_before = clock.monotonic() + wait_s
            self._send_ops()
            return
        self._ops.take(op_id)
        self.store.remove(op_id)
        sequences = frame.get("sequences", {})
        touched = [self._key(key) for key in op.keys]
        for held in touched:
            if confirmed and held.used:
                held.pending.confirmed(op_id, sequences.get(held.key, 0), held.applied)
            else:
                held.pending.rejected(op_id)
        error = None if confirmed else SyncError(frame.get("message", code), code=code)
        op.settle(sequences if confirmed else None, error)
        for held in touched:
            self._release(held)
            held.settle()
        self._send_ops()

    # -- queries and presence ----------------------------------------------------------------------

    def query(self, spec: Any, on_members: OnMembers) -> Unsubscribe:
        """Follow the members of a query until the result is called."""
        self._counter += 1
        qid = f"q{self._counter}"
        self._queries[qid] = (spec, on_members)
        self._start()
        if self.connected:
            self._send({"type": "query", "qid": qid, "spec": spec})

        def unquery() -> None:
            if self._queries.pop(qid, None) is not None and self.connected:
                self._send({"type": "unquery", "qid": qid})

        return unquery

    def presence(
        self, channel: str, schema: SyncSchema[Any], peer_id: str | None = None
    ) -> PresenceChannel:
        """Who is in the channel; `peer_id` is one's own name there. Close it once."""
        if channel in self._channels:
            raise ValueError(f"presence of {channel!r} is open already")
        peer = peer_id or ids.new_id()
        held = PresenceChannel(check_key(channel), schema, peer, self._tell, self._forget)
        self._channels[channel] = held
        self._start()
        if self.connected:
            held.opened()
        return held

    def _tell(self, frame: dict[str, Any]) -> None:
        if self.connected:
            self._send(frame)

    def _forget(self, channel: str) -> None:
        self._channels.pop(channel, None)

    # -- the connection (edge.client.transport.Peer) -----------------------------------------------

    def opened(self) -> None:
        """For the socket: follow everything, ask everything again."""
        self.connected = True
        self._attempt = 0
        self._wanted.clear()
        for held in self._keys.values():
            if held.used:
                self._send(held.sub())
        for id, (key, _) in self._fetches.items():
            self._send({"type": "fetch", "id": id, "key": key})
        for qid, (spec, _) in self._queries.items():
            self._send({"type": "query", "qid": qid, "spec": spec})
        for channel in self._channels.values():
            channel.opened()
        self._send_ops()

    def received(self, text: str) -> None:
        """For the socket: a frame came. Raises ProtocolError for what is none."""
        try:
            frame = msgspec.json.decode(text)
            if WORD in text:
                frame = unwrapped(frame)
            self._take(frame)
        except (msgspec.MsgspecError, KeyError, TypeError, AttributeError) as error:
            raise ProtocolError(f"not a frame of an objectfeed: {error!r}") from error

    def gone(self, refusal: SyncError | None, close_code: int | None) -> float | None:
        """For the socket: it is closed; when to try again."""
        self.connected = False
        self._ops.disconnected()
        for held in self._keys.values():
            held.disconnected()
        for channel in self._channels.values():
            channel.disconnected()
        if refusal is not None:
            self._failed(None, refusal)
        if self._closed:
            return None
        self._attempt += 1
        return float(min(RETRY_S_MAX, 0.1 * 2 ** min(self._attempt, 10)) * (0.5 + ids.random()))

    def _take(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "envelope":
                self._envelope(frame)
            case "subscribed":
                if (held := self._keys.get(frame["key"])) is not None:
                    held.subscribed(frame)
                    self._send_ops()
            case "confirm" | "reject":
                self._answered(frame)
            case "fetched":
                self._fetched(frame)
            case "membership":
                self._members(frame)
            case "presence":
                if (channel := self._channels.get(frame["channel"])) is not None:
                    channel.received(frame)
            case "keyError":
                self._failed(frame["key"], SyncError(frame["message"], code=frame["code"]))
                if (held := self._keys.get(frame["key"])) is not None:
                    held.ready = True  # no baseline will come: open intents wait for none
                    self._send_ops()
            case "error":
                self._failed(None, SyncError(frame["message"], code=frame["code"]))
            case _:
                pass  # `pong`, and what later servers may send

    def _envelope(self, frame: dict[str, Any]) -> None:
        held = self._keys.get(frame["key"])
        if held is None or not held.used:
            return
        if self._ops.groups_of(held.key):
            held.hold(frame)
            held.ready = True
        else:
            self._deliver(held, frame)
        self._send_ops()

    def _release(self, held: FollowedKey) -> None:
        if not self._ops.groups_of(held.key):
            for frame in held.release():
                self._deliver(held, frame)

    def _deliver(self, held: FollowedKey, frame: dict[str, Any]) -> None:
        for error in held.deliver(frame):
            log.error("a listener failed key=%s", held.key, exc_info=error)

    def _fetched(self, frame: dict[str, Any]) -> None:
        _, future = self._fetches.get(frame["id"], ("", None))
        if future is None or future.done():
            return
        error = frame.get("error")
        if error is None:
            future.set_result(envelope_in(frame))
        elif error["code"] == "not_found":
            future.set_result(None)
        else:
            future.set_exception(SyncError(error["message"], code=error["code"]))

    def _members(self, frame: dict[str, Any]) -> None:
        _, on_members = self._queries.get(frame["qid"], (None, None))
        if on_members is None:
            return
        seeds = {key: SyncEnvelope(**members) for key, members in frame["seeds"].items()}
        try:
            on_members(frame["keys"], seeds)
        except Exception:  # the application's: the others go on
            log.exception("a query's listener failed")

    def _failed(self, key: str | None, error: SyncError) -> None:
        if self._on_error is None:
            log.warning("objectfeed error key=%s code=%s error=%s", key, error.code, error)
        else:
            self._on_error(key, error)

    def _send(self, frame: dict[str, Any]) -> None:
        text = msgspec.json.encode(frame)
        if may_be_wide(text.decode()):
            text = msgspec.json.encode(wrapped(frame))
        self._socket.send(text)

    # -- life --------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise SyncError("the client was closed", code="closed")

    def _start(self) -> None:
        self._check_open()
        if not self._running:
            self._running = True
            self._tasks.spawn(self._socket.run(self), name="objectfeed")
            self._tasks.spawn(self._ping(), name="objectfeed ping")

    def connect(self) -> None:
        """Begin now rather than with the first key: open intents of an earlier life are sent."""
        self._start()

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING_S)
            if self.connected:
                self._send({"type": "ping"})

    async def close(self) -> None:
        """Stop. Open intents stay in the store. Safe to call twice."""
        self._closed = True
        await self._socket.drop()
        await self._tasks.aclose()
        await self._socket.aclose()
        self.connected = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
