"""One StrataSync socket: subscribe frames, and the application's own messages beside them.

Rules kept here (stratasync.md section 8): frames are handled strictly one after another; a new
subscribe ends the one before, also where it is refused; replay first, `subscribed` last, then live;
what is no JSON object or array is ignored, other frames reach the application while subscribed. An
error frame makes a client subscribe anew, so nothing else is ever told with one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

from actors.dialects.stratasync.models import MEMBERS
from actors.dialects.stratasync.plan import effective_groups, stored_groups
from actors.json_text import mended
from actors.types import Address
from edge.auth import Principal, resolve
from edge.dialects.asterql.connection import Sink
from edge.dialects.stratasync import frames as f
from edge.dialects.stratasync.auth import GroupsFailed, User
from edge.dialects.stratasync.declared import SocketContext
from edge.dialects.stratasync.feed import Audience
from edge.dialects.stratasync.requests import Subscribe, subscribe_ask
from edge.dialects.stratasync.subscription import REPLAY_FAILED, StrataSubscription
from edge.wire import Frames
from infra import ids
from infra.errors import AuthError, HoldfastError

if TYPE_CHECKING:
    from edge.dialects.stratasync.service import StrataService

log = logging.getLogger("holdfast.stratasync")
INBOX_MAX: Final = 1024
INBOX_BYTES_MAX: Final = 4 << 20
HOOK_WAIT_S: Final = 30.0
TOO_MANY: Final = 1008
INTERNAL: Final = 1011
_decode = msgspec.json.Decoder().decode


def _decoded(data: bytes | bytearray | str) -> Any:
    """Raises MsgspecError, UnicodeError, RecursionError."""
    try:
        return _decode(data)
    except msgspec.DecodeError:
        return _decode(mended(data if isinstance(data, str) else data.decode()))


class StrataConnection:
    """Fits edge.websocket.Session and what edge.server expects of its connections."""

    def __init__(
        self, service: StrataService, sink: Sink, name: str, tenant: str | None = None
    ) -> None:
        """`tenant` is whom the address names that the client came to."""
        self.service = service
        self.sink = sink
        self.name = name
        self._tenant = tenant
        self.closed = False
        self.principal: Principal | None = None
        self._context = SocketContext(conn := ids.new_id(), f"anonymous-{conn}")
        self.subscription: StrataSubscription | None = None
        self._address: Address | None = None
        self._user: User | None = None
        self._asked: tuple[str, ...] = ()
        self._inbox: deque[Any] = deque()
        self._inbox_bytes = 0
        self._working = False
        self._replay_wanted = False

    @property
    def context(self) -> SocketContext:
        """Who is on the socket, with the groups that are the user's by now."""
        held = self.subscription
        if held is None or held.audience.groups.issuperset(self._context.groups):
            return self._context
        still = tuple(group for group in self._context.groups if group in held.audience.groups)
        return dataclasses.replace(self._context, groups=still)

    # -- what the server asks of its connections ---------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing is lost by closing now: clients repeat what they were not answered."""
        return True

    @property
    def subscriptions(self) -> int:
        """How many scopes this connection follows."""
        return 0 if self.subscription is None else 1

    def unauthenticated_since(self, now: float) -> bool:
        """Never: the upgrade was authenticated."""
        return False

    async def reauthorize(self) -> None:
        """Ask the resolver again, and narrow to what is still the user's."""
        held, user = self.subscription, self._user
        if held is None or user is None:
            return
        try:
            groups, known_at = await self._groups_of(user)
        except HoldfastError:
            return  # nobody can say: what was granted stays until somebody can
        held.audience.groups &= frozenset(groups)
        held.audience.known_at = max(held.audience.known_at, known_at)

    def end(self, code: int, reason: str) -> None:
        """Close the socket from our side."""
        self.close()
        self.sink.close(code, reason)

    # -- inbound -----------------------------------------------------------------------------------

    def handle(self, data: bytes | bytearray | str) -> None:
        """One text message. Never raises."""
        if self.closed:
            return
        try:
            frame = _decoded(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return
        if not isinstance(frame, dict | list):
            return
        self._inbox_bytes += len(data)
        if len(self._inbox) >= INBOX_MAX or self._inbox_bytes > INBOX_BYTES_MAX:
            self.end(TOO_MANY, "too many frames wait behind a slow one")
            return
        self._inbox.append(frame)
        self._work()

    receive = handle

    def received(self) -> None:
        """Nothing is gathered here."""

    def protocol_error(self, code: str, message: str, re: str | None = None) -> None:
        """A binary message: ignored, as whatever is no JSON."""

    def close(self) -> None:
        """The socket is gone: release everything. May be called twice."""
        if self.closed:
            return
        self.closed = True
        self._inbox.clear()
        self._drop()
        self.service.topics.forget(self)
        self.service.connections.discard(self)
        hook = self.service.declared.hooks.on_close
        if hook is not None:
            self.service.spawn(self._quietly(hook, self, self.context), "close-hook")

    def _work(self) -> None:
        if not self._working and not self.closed and (self._inbox or self._replay_wanted):
            self._working = True
            self.service.spawn(self._run(), "socket")

    async def _run(self) -> None:
        """One frame after the other, until none waits."""
        try:
            while not self.closed and (self._inbox or self._replay_wanted):
                if self._replay_wanted:
                    await self._replay()
                    continue
                frame = self._inbox.popleft()
                if not self._inbox:
                    self._inbox_bytes = 0
                if isinstance(frame, dict) and frame.get("type") == "subscribe":
                    await self._subscribe(frame)
                else:
                    await self._message(frame)
        except Exception:  # the top of a socket: it ends, the others go on
            log.exception("socket failed name=%s", self.name)
            self.end(INTERNAL, "internal error")
        finally:
            self._working = False

    async def _message(self, frame: Any) -> None:
        hook = self.service.declared.hooks.on_message
        if hook is not None and self.subscription is not None:
            await self._quietly(hook, self, frame, self.context)

    async def _quietly(self, hook: Any, *args: Any) -> bool:
        """Run a hook; False where it raised."""
        try:
            async with asyncio.timeout(HOOK_WAIT_S):
                await resolve(hook(*args))
        except Exception:  # user code must not end the socket
            log.exception("socket hook failed")
            return False
        return True

    # -- subscribing -------------------------------------------------------------------------------

    async def _subscribe(self, frame: dict[str, Any]) -> None:
        asked = subscribe_ask(frame)
        if asked is None:
            self.sink.send([f.error("Authentication required")])
            return
        self._drop()
        previous = self.context if self._user is not None else None
        try:
            user = await self.service.user(asked.token, self.name, self._tenant)
            address = self.service.address(user, self.name)
            audience, groups = await self._audience(user, address, asked)
        except GroupsFailed as error:
            self.sink.send([f.error(str(error))])
            self.end(INTERNAL, str(error))
            return
        except AuthError:
            self.sink.send([f.error("Invalid token")])
            return
        except HoldfastError as error:
            self.sink.send([f.error(error.code)])  # the client tries again with backoff
            return
        self._become(user, address, groups)
        hook = self.service.declared.hooks.on_subscribe
        if hook is not None and not await self._quietly(hook, self, self.context, previous):
            return
        if not self.closed:
            await self._begin(address, audience, groups, asked.after)

    def _become(self, user: User, address: Address, groups: tuple[str, ...]) -> None:
        before = None if self._user is None else self._user.user_id
        if (before, self._address) != (user.user_id, address):
            self.service.topics.forget(self)  # joined by somebody else
        self._user, self._address = user, address
        self._context = SocketContext(self._context.conn_id, user.user_id, groups)
        self.principal = Principal(
            id=user.user_id, tenant=user.tenant, expires_at_ms=user.expires_at_ms
        )

    async def _groups_of(self, user: User) -> tuple[tuple[str, ...], int]:
        """(effective groups, the seq they are right for)."""
        address = self.service.address(user, self.name)
        # The row before the resolver: what changes in between is found in the log after its seq.
        (row,) = await self.service.port.get(address, [(MEMBERS, user.user_id)])
        resolved = await self.service.declared.auth.groups(user.user_id, self.name)
        groups = effective_groups(resolved, stored_groups(row), user.user_id)
        return groups, 0 if row is None else row.seq

    async def _audience(
        self, user: User, address: Address, asked: Subscribe
    ) -> tuple[Audience, tuple[str, ...]]:
        groups, known_at = await self._groups_of(user)
        if asked.groups:
            may = frozenset(groups)
            groups = tuple(dict.fromkeys(group for group in asked.groups if group in may))
        return Audience(user.user_id, groups, known_at), groups

    async def _begin(
        self, address: Address, audience: Audience, groups: tuple[str, ...], after: int
    ) -> None:
        try:
            feed = await self.service.feeds.join(address)
        except HoldfastError as error:
            self.sink.send([f.error(error.code)])
            return
        held = StrataSubscription(self, feed, audience, groups, after)
        self.subscription = held
        if self.closed:
            self._drop()
            return
        floor = feed.bounds.floor
        if 0 < after < floor:
            held.stale()
            self._drop()
            return
        held.cursor = max(after, floor)
        await self._replay()

    def replay_later(self) -> None:
        """The subscription has fallen behind: read the log once the socket drains."""
        self._replay_wanted = True
        self._work()

    async def _replay(self) -> None:
        self._replay_wanted = False
        held = self.subscription
        if held is None or self.closed:
            return
        try:
            await self.sink.drained()
            await held.replay()
        except HoldfastError as error:
            log.warning("replay failed scope=%s error=%s", held.feed.address.scope, error)
            self.sink.send([f.error("Replay failed")])
            self.end(REPLAY_FAILED, "Replay failed")
            return
        if held.ended and self.subscription is held:
            self._drop()

    def _drop(self) -> None:
        held, self.subscription = self.subscription, None
        if held is not None:
            held.end()
            self.service.feeds.leave(held.feed, None)

    # -- the application's side (edge.dialects.stratasync.declared.StrataSocket) -------------------

    def send(self, message: Any) -> None:
        """See StrataSocket."""
        if not self.closed and not self.sink.congested:
            self.sink.send([f.text(message)])

    def tell(self, frames: Frames) -> None:
        """A broadcast; dropped where the socket does not drain."""
        if not self.closed and not self.sink.congested:
            self.sink.send_shared(frames)

    def join(self, topic: str) -> None:
        """See StrataSocket. Raises ProtocolError where too many are joined."""
        if self._address is not None and not self.closed:
            self.service.topics.join(self._address, topic, self)

    def leave(self, topic: str) -> None:
        """See StrataSocket."""
        if self._address is not None:
            self.service.topics.leave(self._address, topic, self)

    def broadcast(self, topic: str, message: Any) -> int:
        """See StrataSocket."""
        if self._address is None:
            return 0
        return self.service.topics.broadcast(self._address, topic, f.text(message), but=self)
