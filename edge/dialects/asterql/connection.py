"""One AsterQL client, whatever carries its frames: a socket, an event stream, or a `send` callable.

Rules kept here (asterql.md sections 4 to 6): frames are handled strictly in order; a scope has at
most one subscription per connection; `subscribed` comes before its events, `caughtUp` once when
replay ends; events of a subscription ascend without gap or repeat; a socket that does not drain is
replayed to later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import Any, Protocol

import msgspec

from actors.dialects.asterql.keys import check_scope
from actors.port import Port
from actors.types import Address, Batch, Bounds
from edge.auth import Action, Principal, PublishLimits
from edge.budget import Budget
from edge.dialects.asterql import frames as f
from edge.dialects.asterql.publisher import Publisher
from edge.dialects.asterql.subscription import Subscription
from edge.feed import Feeds
from edge.wire import Frames
from infra import limits
from infra.errors import AuthError, HoldfastError, ProtocolError
from infra.tasks import TaskOwner

INBOX_MAX = 1024  # frames that wait behind one that awaits
INBOX_BYTES_MAX = 4 << 20
POLICY_VIOLATION = 1008
NOT_AUTHENTICATED = 4401


class Sink(Protocol):
    """Where a connection's frames go. `congested`: what is sent now is only piling up."""

    congested: bool

    def send(self, texts: list[str]) -> None:
        """Frames for this client alone."""

    def send_shared(self, frames: Frames) -> None:
        """Frames that others get alike."""

    async def drained(self) -> None:
        """Returns once not congested, or closed."""

    def close(self, code: int, reason: str) -> None:
        """End the connection after what was sent."""


class Environment(Protocol):
    """What a connection shares with all others of its server."""

    port: Port
    feeds: Feeds
    tasks: TaskOwner
    publish_limits: PublishLimits
    page_entries: int

    def now_ms(self) -> int: ...
    def monotonic(self) -> float: ...

    def authorize(self, principal: Principal, scope: str, action: Action) -> bool | Awaitable[bool]:
        """Whether the principal may. Never raises; waits at most AUTHORIZE_WAIT_S."""

    async def authenticate(self, token: str, tenant: str | None) -> Principal:
        """Who the token names, at an address of `tenant`. Raises AuthError."""


class Connection:
    """`handle` never raises; `close` may be called twice."""

    __slots__ = (
        "_control", "_env", "_errors", "_inbox", "_inbox_bytes", "_opened_at", "_publisher",
        "_pumping", "_subscriptions", "_tenant", "_waiting", "closed", "principal", "sink",
    )  # fmt: skip

    def __init__(
        self, env: Environment, sink: Sink, principal: Principal | None, tenant: str | None = None
    ) -> None:
        """`tenant` is whom the address names that the client came to."""
        self.sink = sink
        self.principal = principal
        self.closed = False
        self._env = env
        self._tenant = tenant
        self._subscriptions: dict[str, Subscription] = {}
        self._publisher: Publisher | None = None  # made by the first publish frame
        self._inbox: deque[f.Inbound] | None = None
        self._inbox_bytes = 0  # since it was last empty
        self._waiting = False  # a frame is being handled that awaits
        self._pumping = False
        self._errors = 0
        self._opened_at = env.monotonic()
        self._control = Budget(
            limits.CONTROL_FRAMES_PER_S, limits.CONTROL_FRAMES_BURST, env.monotonic()
        )

    @property
    def subscriptions(self) -> int:
        """How many scopes this connection follows."""
        return len(self._subscriptions)

    def epoch_of(self, scope: str) -> str:
        """The epoch of a scope this connection follows.

        "" where it follows none, or none is written.
        """
        held = self._subscriptions.get(scope)
        return "" if held is None else held.feed.bounds.epoch

    def unauthenticated_since(self, now: float) -> bool:
        """Whether the auth frame has been waited for long enough."""
        return self.principal is None and now - self._opened_at > limits.AUTH_FRAME_WAIT_S

    @property
    def idle(self) -> bool:
        """Nothing awaits an answer."""
        return not (self._waiting or (self._publisher and self._publisher.pending))

    # -- inbound ---------------------------------------------------------------------------------

    def handle(self, data: bytes | bytearray | str) -> None:
        """One inbound text message."""
        self.receive(data)
        self.received()

    def received(self) -> None:
        """No further message is at hand: put what `receive` gathered to its scope."""
        if self._publisher is not None:
            self._publisher.submit()

    def receive(self, data: bytes | bytearray | str) -> None:
        """One of several messages that came together; `received` follows the last."""
        if self.closed:
            return
        try:
            frame = f.decode_frame(data)
        except f.BadFrame as error:
            self.protocol_error(error.code, str(error), error.re)
            return
        if (
            type(frame) is f.Publish
            and not self._waiting
            and self._publisher is not None
            and self._publisher.take_known(frame)
        ):
            return  # what nearly every frame of a busy connection is, without further detours
        if self._waiting:
            self._enqueue(frame, len(data))
        else:
            self._dispatch(frame)

    def protocol_error(self, code: str, message: str, re: str | None = None) -> None:
        """Answer `error`; the twentieth on a connection closes it."""
        self.sink.send([f.error(code, message, re)])
        self._errors += 1
        if self._errors >= limits.PROTOCOL_ERRORS_MAX:
            self.end(POLICY_VIOLATION, "too many protocol errors")

    def _enqueue(self, frame: f.Inbound, size: int) -> None:
        if self._inbox is None:
            self._inbox = deque()
            self._inbox_bytes = 0
        self._inbox_bytes += size
        if len(self._inbox) >= INBOX_MAX or self._inbox_bytes > INBOX_BYTES_MAX:
            self.protocol_error("rate_limited", "too many frames wait behind a slow one")
            return
        self._inbox.append(frame)

    def _dispatch(self, frame: f.Inbound) -> None:
        kind = type(frame)
        if kind is f.Publish:
            self._publish(frame)  # type: ignore[arg-type]
            return
        self.received()  # in order: publishes before this frame are put first
        if self._over_control_rate(kind.__struct_config__.tag):  # type: ignore[arg-type]
            return
        if self.principal is None and kind is not f.Auth:
            self.end(NOT_AUTHENTICATED, "send an auth frame first")
            return
        match frame:
            case f.Sub():
                self._await(self._subscribe(frame), "subscribe")
            case f.Replay():
                self._replay(frame)
            case f.Unsub():
                self._drop(frame.scope)
                self.sink.send([f.unsubscribed(frame.scope)])
            case f.Ping():
                self._ping(frame)
            case f.Auth():
                self._await(self._authenticate(frame), "auth")

    def _over_control_rate(self, tag: str) -> bool:
        if not self._control.take(1, self._env.monotonic()):
            return False
        message = f"more than {limits.CONTROL_FRAMES_PER_S} control frames a second"
        self.protocol_error("rate_limited", message, tag)
        return True

    def _await(self, work: Any, name: str) -> None:
        """Handle a frame that may have to wait; the ones behind it wait too."""
        self._waiting = True
        self._env.tasks.spawn(self._finish(work), name=f"asterql-{name}")

    async def _finish(self, work: Awaitable[None]) -> None:
        try:
            await work
        finally:
            self._waiting = False
            inbox = self._inbox
            while inbox and not self._waiting and not self.closed:
                self._dispatch(inbox.popleft())
            if not inbox:
                self._inbox = None
            self.received()

    def _ping(self, frame: f.Ping) -> None:
        if frame.t is not msgspec.UNSET and len(bytes(frame.t)) > limits.PING_BYTES_MAX:
            self.protocol_error("bad_frame", f"t: at most {limits.PING_BYTES_MAX} bytes", "ping")
            return
        try:
            durable = {
                scope: held.feed.bounds
                for scope, held in self._subscriptions.items()
                if held.wants_durable
            }
            text = f.pong(frame.t, self._env.now_ms(), durable)
        except UnicodeDecodeError as error:  # raw members are not decoded before
            self.protocol_error("bad_json", f"not JSON: {error}", "ping")
            return
        self.sink.send([text])

    async def _authenticate(self, frame: f.Auth) -> None:
        try:
            principal = await self._env.authenticate(frame.token, self._tenant)
        except AuthError as error:
            self.end(NOT_AUTHENTICATED, str(error))
            return
        if self.principal is not None and principal.tenant != self.principal.tenant:
            self.end(NOT_AUTHENTICATED, "the new token names another tenant")
            return
        self.principal = principal
        if self._publisher is not None:
            self._publisher.become(principal)
        self.sink.send([f.authenticated(principal.id, principal.expires_at_ms)])
        await self.reauthorize()  # a renewed token may allow less than the one before

    def _publish(self, frame: f.Publish) -> None:
        if self.principal is None:
            self.end(NOT_AUTHENTICATED, "send an auth frame first")
            return
        if not 0 < len(frame.envelopes) <= limits.PUBLISH_ENVELOPES_MAX:
            message = f"envelopes: from 1 to {limits.PUBLISH_ENVELOPES_MAX} in one frame"
            self.protocol_error("bad_frame", message, "publish")
            return
        if self._publisher is None:
            self._publisher = Publisher(self._env, self.sink, self.principal)
        if not self._publisher.knows(frame.scope) and self._over_control_rate("publish"):
            return  # asking `authorize` costs more than a frame
        undecided = self._publisher.take(frame)
        if undecided is not None:
            self._await(undecided, "authorize")

    # -- subscribing -----------------------------------------------------------------------------

    async def _subscribe(self, frame: f.Sub) -> None:
        scope = frame.scope
        refusal = await self._may_subscribe(frame)
        if refusal is not None:
            self._drop(scope)  # a scopeError says that there is no subscription (any more)
            self.sink.send([refusal])
            return
        held = self._subscriptions.get(scope)
        if held is not None:
            self._resubscribe(held, frame)
            return
        assert self.principal is not None
        address = Address(self.principal.tenant, scope)
        feed = bounds = None
        try:
            feed = await self._env.feeds.join(address)
            if frame.since is not None and frame.since > feed.bounds.head:
                # Another edge may have heard of it before this one: the scope itself knows. It is
                # asked for what follows, as a host that was away would not know itself.
                page = await self._env.port.read(
                    address, frame.since, entries_max=1, bytes_max=limits.PAGE_BYTES_MAX,
                    joined=False,
                )  # fmt: skip
                bounds = page.bounds
        except HoldfastError as error:
            if feed is not None:
                self._env.feeds.leave(feed, None)
                feed = None
            self._scope_error(scope, error)
            return
        finally:
            if self.closed and feed is not None:
                self._env.feeds.leave(feed, None)
        if self.closed:
            return
        subscription = Subscription(
            self, feed, scope, batched=frame.batch, wants_durable=frame.durable
        )
        self._subscriptions[scope] = subscription
        self._begin(subscription, frame.since, frame.epoch, bounds)

    async def _may_subscribe(self, frame: f.Sub) -> str | None:
        """The refusal to send, or None."""
        scope = frame.scope
        assert self.principal is not None
        try:
            check_scope(scope)
        except ProtocolError as error:
            return f.scope_error(scope, "bad_scope", str(error))
        full = len(self._subscriptions) >= limits.SUBSCRIPTIONS_MAX
        if full and scope not in self._subscriptions:
            message = f"at most {limits.SUBSCRIPTIONS_MAX} scopes on one connection"
            return f.scope_error(scope, "too_many_subscriptions", message)
        if not _is_cursor(frame.since):
            return f.scope_error(scope, "bad_since", "since: a seq from 0 to 2^53-1, or nothing")
        answer = self._env.authorize(self.principal, scope, Action.READ)
        allowed = answer if isinstance(answer, bool) else await answer
        return (
            None if allowed else f.scope_error(scope, "forbidden", "no read access to this scope")
        )

    def _resubscribe(self, held: Subscription, frame: f.Sub) -> None:
        """Rule (a): with `since` it acts as `replay`, without it only `subscribed` is repeated."""
        if frame.since is None:
            self.sink.send([f.subscribed(held.scope, held.feed.bounds, held.cursor)])
        else:
            held.batched, held.wants_durable = frame.batch, frame.durable
            self._begin(held, frame.since, frame.epoch)

    def _replay(self, frame: f.Replay) -> None:
        held = self._subscriptions.get(frame.scope)
        if held is None:
            self.protocol_error("not_subscribed", f"{frame.scope[:200]!r}: sub first", "replay")
        elif frame.since is None or not _is_cursor(frame.since):
            self.protocol_error("bad_frame", "since: the seq to read on from", "replay")
        else:
            self._begin(held, frame.since, None)

    def _begin(
        self, subscription: Subscription, since: int | None, epoch: str | None,
        asked: Bounds | None = None,
    ) -> None:  # fmt: skip
        """Start (again) at `since`; without it at the head, live from now. `asked` is what the
        scope itself has just said, where that was needed.
        """
        feed = subscription.feed
        bounds = asked or feed.bounds
        reason = None
        if epoch and bounds.epoch and epoch != bounds.epoch:
            reason = "epoch_changed"
        elif since is not None and since < bounds.floor:
            reason = "below_floor"
        elif since is not None and since > bounds.head:
            reason = "ahead_of_head"
        if reason is not None:
            self.resync(subscription, reason, bounds)
            return
        feed.live.pop(subscription, None)
        subscription.cursor = bounds.head if since is None else since
        subscription.announced = False
        self.sink.send([f.subscribed(subscription.scope, bounds, subscription.cursor)])
        if self._subscriptions.get(subscription.scope) is not subscription:
            return  # sending ended the connection
        if subscription.cursor == feed.tail:
            subscription.go_live()
        else:
            subscription.replaying = True
            self.pump()

    def resync(self, subscription: Subscription, reason: str, bounds: Bounds) -> None:
        """The cursor cannot be served: the client must fetch a snapshot and subscribe again."""
        self._drop(subscription.scope)
        message = "fetch the scope's view, then subscribe from its seq"
        text = f.scope_error(
            subscription.scope, "snapshot_required", message, reason=reason, bounds=bounds
        )
        self.sink.send([text])

    def _drop(self, scope: str) -> None:
        subscription = self._subscriptions.pop(scope, None)
        if subscription is not None:
            subscription.replaying = False
            self._env.feeds.leave(subscription.feed, subscription)

    def _scope_error(self, scope: str, error: HoldfastError) -> None:
        code = "moved" if error.retryable else "internal"
        self.sink.send(
            [f.scope_error(scope, code, str(error), retry_after_ms=error.retry_after_ms or 1000)]
        )

    async def reauthorize(self) -> None:
        """Ask again whether each subscription may go on; end those that may not with `revoked`."""
        for scope, held in list(self._subscriptions.items()):
            if self.principal is None or self.closed:
                return
            answer = self._env.authorize(self.principal, scope, Action.READ)
            allowed = answer if isinstance(answer, bool) else await answer
            if not allowed and self._subscriptions.get(scope) is held:
                self._drop(scope)
                self.sink.send([f.scope_error(scope, "revoked", "read access was withdrawn")])
        if self._publisher is not None:
            self._publisher.forget_gates()

    # -- replay ----------------------------------------------------------------------------------

    def pump(self) -> None:
        """Have the subscriptions that are behind read on, if nobody does already."""
        if not self._pumping and not self.closed:
            self._pumping = True
            self._env.tasks.spawn(self._pump(), name="asterql-replay")

    async def _pump(self) -> None:
        try:
            while not self.closed:
                behind = [s for s in self._subscriptions.values() if s.replaying]
                if not behind:
                    return
                for subscription in behind:
                    if self.sink.congested:
                        await self.sink.drained()
                    try:
                        await subscription.replay_page(self._env.port, self._env.page_entries)
                    except HoldfastError as error:
                        if self._subscriptions.get(subscription.scope) is subscription:
                            self._drop(subscription.scope)
                            self._scope_error(subscription.scope, error)
                    await asyncio.sleep(0)  # a long replay leaves room for others, page by page
        finally:
            self._pumping = False

    # -- end -------------------------------------------------------------------------------------

    def end(self, code: int, reason: str) -> None:
        """Close the carrier and drop everything."""
        if not self.closed:
            self.sink.close(code, reason)
            self.close()

    def close(self) -> None:
        """The carrier is gone: drop every subscription. Publishes under way are not undone."""
        if self.closed:
            return
        self.closed = True
        for scope in list(self._subscriptions):
            self._drop(scope)
        self._inbox = None


def _is_cursor(since: Any) -> bool:
    return since is None or (type(since) is int and 0 <= since <= limits.INTEGER_MAX)


def project(scope: str, batch: Batch, batched: bool) -> Frames:
    """A released batch as frames: `events` for those who asked for it, `event` for the others."""
    if batched:
        return Frames(f.events(scope, batch.bodies))
    return Frames([f.event(body) for body in batch.bodies])
