"""One AsterQL client, whatever carries its frames: a socket, an event stream, or a `send` callable.

Rules kept here (asterql.md sections 4 to 6): frames are handled strictly in order; a scope has at most
one subscription per connection; `subscribed` comes before its events, `caughtUp` once when replay ends;
events of a subscription ascend without gap or repeat; a socket that does not drain is replayed to later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable
from typing import Any, Protocol

import msgspec

from actors.dialects.asterql.envelope import parse_envelope
from actors.dialects.asterql.keys import check_scope
from actors.port import Port
from actors.types import Address, Appended, Batch, Bounds, Draft, Outcome, Rejected
from edge.auth import Action, Principal, PublishLimits
from edge.budget import Budget
from edge.dialects.asterql import frames as f
from edge.dialects.asterql.subscription import Subscription
from edge.feed import Feeds
from edge.wire import Frames
from infra import limits
from infra.errors import AuthError, HoldfastError, ProtocolError
from infra.tasks import TaskOwner

GATES_MAX = 1000  # scopes whose write permission a connection remembers
INBOX_MAX = 1024  # frames that wait behind one that awaits
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

    def authorize(
        self, principal: Principal, scope: str, action: Action
    ) -> bool | Awaitable[bool]:
        """Whether the principal may. Never raises; waits at most AUTHORIZE_WAIT_S."""

    async def authenticate(self, token: str) -> Principal:
        """Who the token names. Raises AuthError."""


class _Gate(msgspec.Struct):
    """A scope this connection may publish to."""

    address: Address
    text: str  # the scope as JSON


class _Tag(msgspec.Struct, gc=False):
    """One `publish` frame under way: its id, and the results known before the append."""

    id: str
    gate: _Gate
    known: list[str | None] | None
    durable: bool


class Connection:
    """`handle` never raises; `close` may be called twice."""

    __slots__ = (
        "_acks", "_bytes", "_control", "_env", "_envelopes", "_errors", "_gates", "_inbox", "_opened_at", "_pumping",
        "_pending", "_subscriptions", "_waiting", "closed", "principal", "sink",
    )  # fmt: skip

    def __init__(self, env: Environment, sink: Sink, principal: Principal | None) -> None:
        self.sink = sink
        self.principal = principal
        self.closed = False
        self._env = env
        self._subscriptions: dict[str, Subscription] = {}
        self._gates: dict[str, _Gate] = {}
        self._inbox: deque[f.Inbound] | None = None
        self._waiting = False  # a frame is being handled that awaits
        self._pumping = False
        self._pending = 0  # publish frames without an answer
        self._acks: list[str] = []
        self._errors = 0
        self._opened_at = env.monotonic()
        self._control = Budget(
            limits.CONTROL_FRAMES_PER_S, limits.CONTROL_FRAMES_BURST, env.monotonic()
        )
        self._envelopes: Budget | None = None
        self._bytes: Budget | None = None
        if principal is not None:
            self._set_budgets(principal)

    @property
    def subscriptions(self) -> int:
        """How many scopes this connection follows."""
        return len(self._subscriptions)

    def unauthenticated_since(self, now: float) -> bool:
        """Whether the auth frame has been waited for long enough."""
        return self.principal is None and now - self._opened_at > limits.AUTH_FRAME_WAIT_S

    @property
    def idle(self) -> bool:
        """Nothing awaits an answer."""
        return not (self._waiting or self._pending)

    # -- inbound ---------------------------------------------------------------------------------

    def handle(self, data: bytes | bytearray | str) -> None:
        """One inbound text message."""
        if self.closed:
            return
        try:
            frame = f.decode_frame(data)
        except f.BadFrame as error:
            self.protocol_error(error.code, str(error), error.re)
            return
        if self._waiting:
            self._enqueue(frame)
        else:
            self._dispatch(frame)

    def protocol_error(self, code: str, message: str, re: str | None = None) -> None:
        """Answer `error`; the twentieth on a connection closes it."""
        self.sink.send([f.error(code, message, re)])
        self._errors += 1
        if self._errors >= limits.PROTOCOL_ERRORS_MAX:
            self.end(POLICY_VIOLATION, "too many protocol errors")

    def _enqueue(self, frame: f.Inbound) -> None:
        if self._inbox is None:
            self._inbox = deque()
        if len(self._inbox) >= INBOX_MAX:
            self.protocol_error("rate_limited", "too many frames wait behind a slow one")
            return
        self._inbox.append(frame)

    def _dispatch(self, frame: f.Inbound) -> None:
        kind = type(frame)
        if kind is f.Publish:
            self._publish(frame)  # type: ignore[arg-type]
            return
        if self._control.take(1, self._env.monotonic()):
            message = f"more than {limits.CONTROL_FRAMES_PER_S} control frames a second"
            self.protocol_error("rate_limited", message, kind.__struct_config__.tag)  # type: ignore[arg-type]
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

    def _ping(self, frame: f.Ping) -> None:
        if frame.t is not msgspec.UNSET and len(bytes(frame.t)) > limits.PING_BYTES_MAX:  # type: ignore[arg-type]
            self.protocol_error("bad_frame", f"t: at most {limits.PING_BYTES_MAX} bytes", "ping")
            return
        self.sink.send([f.pong(frame.t, self._env.now_ms())])

    async def _authenticate(self, frame: f.Auth) -> None:
        try:
            principal = await self._env.authenticate(frame.token)
        except AuthError as error:
            self.end(NOT_AUTHENTICATED, str(error))
            return
        if self.principal is not None and principal.tenant != self.principal.tenant:
            self.end(NOT_AUTHENTICATED, "the new token names another tenant")
            return
        self.principal = principal
        self._gates.clear()
        self._set_budgets(principal)
        self.sink.send([f.authenticated(principal.id, principal.expires_at_ms)])

    def _set_budgets(self, principal: Principal) -> None:
        now = self._env.monotonic()
        allowed = principal.publish or self._env.publish_limits
        rate, size = allowed.envelopes_per_s, allowed.bytes_per_s
        self._envelopes = Budget(rate, 2 * rate, now) if rate else None
        self._bytes = Budget(size, 2 * size, now) if size else None

    # -- publishing ------------------------------------------------------------------------------

    def _publish(self, frame: f.Publish) -> None:
        gate = self._gates.get(frame.scope)
        if gate is not None:
            self._append(frame, gate)
        elif self.principal is None:
            self.end(NOT_AUTHENTICATED, "send an auth frame first")
        else:
            self._open_gate(frame)

    def _open_gate(self, frame: f.Publish) -> None:
        assert self.principal is not None
        try:
            check_scope(frame.scope)
        except ProtocolError as error:
            self._refuse(frame, "bad_scope", str(error))
            return
        answer = self._env.authorize(self.principal, frame.scope, Action.WRITE)
        if isinstance(answer, bool):
            self._gate_decided(frame, answer)
        else:
            self._await(self._decide_gate(frame, answer), "authorize")

    async def _decide_gate(self, frame: f.Publish, answer: Awaitable[bool]) -> None:
        self._gate_decided(frame, await answer)

    def _gate_decided(self, frame: f.Publish, allowed: bool) -> None:
        if not allowed or self.principal is None:
            self._refuse(frame, "forbidden", "no write access to this scope")
            return
        if len(self._gates) >= GATES_MAX:
            self._gates.clear()
        gate = _Gate(Address(self.principal.tenant, frame.scope), f.quote(frame.scope))
        self._gates[frame.scope] = gate
        self._append(frame, gate)

    def _append(self, frame: f.Publish, gate: _Gate) -> None:
        envelopes = frame.envelopes
        if not 0 < len(envelopes) <= limits.PUBLISH_ENVELOPES_MAX:
            message = f"envelopes: from 1 to {limits.PUBLISH_ENVELOPES_MAX} in one frame"
            self.protocol_error("bad_frame", message, "publish")
            return
        if self._envelopes is not None or self._bytes is not None:
            wait_ms = self._over_budget(envelopes)
            if wait_ms:
                self._refuse(frame, "rate_limited", "the token's publish limit", wait_ms)
                return
        drafts: list[Draft] = []
        known: list[str | None] | None = None
        for index, raw in enumerate(envelopes):
            try:
                drafts.append(parse_envelope(bytes(raw), frame.scope))
            except ProtocolError as error:
                if known is None:
                    known = [None] * len(envelopes)
                known[index] = f.result(Rejected(error.code, str(error)))
        id = frame.id
        tag = _Tag(str(id) if type(id) is int else f.quote(id), gate, known, frame.durable)
        self._pending += 1
        try:
            self._env.port.append(gate.address, drafts, self, tag)
        except HoldfastError as error:
            self._pending -= 1
            self._refuse(frame, error.code, str(error), error.retry_after_ms or 1000)

    def _over_budget(self, envelopes: list[msgspec.Raw]) -> int:
        now = self._env.monotonic()
        wait_ms = 0
        if self._envelopes is not None:
            wait_ms = self._envelopes.take(len(envelopes), now)
        if not wait_ms and self._bytes is not None:
            wait_ms = self._bytes.take(sum(len(bytes(raw)) for raw in envelopes), now)
        return wait_ms

    def _refuse(
        self, frame: f.Publish, code: str, message: str, retry_after_ms: int | None = None
    ) -> None:
        result = f.result(Rejected(code, message, retry_after_ms=retry_after_ms))
        results = ",".join([result] * max(1, len(frame.envelopes)))
        scope, empty = f.quote(frame.scope), Bounds("", 0, 0, 0)
        self.sink.send([f.published(f.quote(frame.id), scope, empty, results, False)])

    def settle(self, tag: _Tag, outcomes: list[Outcome], bounds: Bounds) -> None:
        """An append was decided and released (actors.types.Reply)."""
        self._pending -= 1
        known = tag.known
        if known is None and len(outcomes) == 1 and type(outcomes[0]) is Appended:
            results = f'{{"seq":{outcomes[0].first}}}'
        elif known is None:
            results = ",".join([f.result(outcome) for outcome in outcomes])
        else:
            rest = iter(outcomes)
            results = ",".join([f.result(next(rest)) if text is None else text for text in known])
        self._acks.append(f.published(tag.id, tag.gate.text, bounds, results, tag.durable))

    def flush(self) -> None:
        """Send the answers gathered in this turn, as one write."""
        acks, self._acks = self._acks, []
        if acks and not self.closed:
            self.sink.send(acks)

    # -- subscribing -----------------------------------------------------------------------------

    async def _subscribe(self, frame: f.Sub) -> None:
        scope = frame.scope
        held = self._subscriptions.get(scope)
        if held is not None:
            self._resubscribe(held, frame)
            return
        refusal = await self._may_subscribe(frame)
        if refusal is not None:
            self.sink.send([refusal])
            return
        assert self.principal is not None
        feed = None
        try:
            feed = await self._env.feeds.join(Address(self.principal.tenant, scope))
        except HoldfastError as error:
            self._scope_error(scope, error)
            return
        finally:
            if self.closed and feed is not None:
                self._env.feeds.leave(feed, None)
        if self.closed:
            return
        subscription = Subscription(self, feed, scope, batched=frame.batch, wants_durable=frame.durable)
        self._subscriptions[scope] = subscription
        self._begin(subscription, frame.since, frame.epoch)

    async def _may_subscribe(self, frame: f.Sub) -> str | None:
        """The refusal to send, or None."""
        scope = frame.scope
        assert self.principal is not None
        try:
            check_scope(scope)
        except ProtocolError as error:
            return f.scope_error(scope, "bad_scope", str(error))
        if len(self._subscriptions) >= limits.SUBSCRIPTIONS_MAX:
            message = f"at most {limits.SUBSCRIPTIONS_MAX} scopes on one connection"
            return f.scope_error(scope, "too_many_subscriptions", message)
        if not _is_cursor(frame.since):
            return f.scope_error(scope, "bad_since", "since: a seq from 0 to 2^53-1, or nothing")
        answer = self._env.authorize(self.principal, scope, Action.READ)
        allowed = answer if isinstance(answer, bool) else await answer
        return None if allowed else f.scope_error(scope, "forbidden", "no read access to this scope")

    def _resubscribe(self, held: Subscription, frame: f.Sub) -> None:
        """Rule (a): with `since` it acts as `replay`, without it only `subscribed` is repeated."""
        if frame.since is None:
            self.sink.send([f.subscribed(held.scope, held.feed.bounds, held.cursor)])
        elif not _is_cursor(frame.since):
            message = "since: a seq from 0 to 2^53-1, or nothing"
            self.sink.send([f.scope_error(held.scope, "bad_since", message)])
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

    def _begin(self, subscription: Subscription, since: int | None, epoch: str | None) -> None:
        """Start (again) at `since`; without it at the head, live from now."""
        feed = subscription.feed
        bounds = feed.bounds
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
        self.sink.send([f.subscribed(subscription.scope, bounds, subscription.cursor)])
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
        for scope in list(self._subscriptions):
            if self.principal is None or self.closed:
                return
            answer = self._env.authorize(self.principal, scope, Action.READ)
            if not (answer if isinstance(answer, bool) else await answer):
                self._drop(scope)
                self.sink.send([f.scope_error(scope, "revoked", "read access was withdrawn")])
        self._gates.clear()

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
                    if self.closed:
                        return
                    try:
                        await subscription.replay_page(self._env.port, self._env.page_entries)
                    except HoldfastError as error:
                        self._drop(subscription.scope)
                        self._scope_error(subscription.scope, error)
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


