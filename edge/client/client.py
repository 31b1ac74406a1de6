"""`SyncClient`: the machine of edge/client/machine.py on an aiohttp socket, with callbacks.

One socket carries all scopes and publishes; it opens with the first of them. Callbacks run on the
event loop, one at a time and in order; they may call the client back. Deadlines are the caller's:
`async with asyncio.timeout(...)` around `publish` or `fetch_view`. A cancelled `publish` may still
be stored; repeated with the same `eventId`s it cannot be stored twice.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Self

from edge.client.cursors import GAP, Cursor, Outcome
from edge.client.effects import (
    Answered,
    CaughtUp,
    Deliver,
    Drop,
    DurableMoved,
    Effect,
    Failed,
    Send,
    SnapshotInfo,
    SnapshotRequired,
    SyncError,
)
from edge.client.machine import ClientMachine
from edge.client.outbox import Level, Outbox, PublishResult, Ticket
from edge.client.transport import Token, Transport
from edge.client.views import ScopeView, ViewPages, base_url, view_refusal, view_url
from infra import clock, ids
from infra.tasks import TaskOwner

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger("holdfast.client")

Envelope = Mapping[str, Any]
OnEnvelope = Callable[[Envelope], Outcome | None]
OnSnapshotRequired = Callable[[str, SnapshotInfo], Cursor | Awaitable[Cursor | None] | None]
OnError = Callable[[Exception], object]

VIEW_ATTEMPTS_MAX: Final = 6


class Subscription:
    """One consumer of one scope. Calling it unsubscribes; so does the end of the client."""

    def __init__(
        self,
        client: SyncClient,
        scope: str,
        *,
        on_envelope: OnEnvelope,
        on_snapshot_required: OnSnapshotRequired | None,
        on_error: OnError | None,
        on_caught_up: Callable[[int], object] | None,
        on_durable: Callable[[str, int], object] | None,
    ) -> None:
        self.scope = scope
        self.on_envelope = on_envelope
        self.on_snapshot_required = on_snapshot_required
        self.on_error = on_error
        self.on_caught_up = on_caught_up
        self.on_durable = on_durable
        self.id = 0
        self._client = client

    def __call__(self) -> None:
        """End the subscription; no callback runs afterwards. Safe to repeat."""
        self._client._unsubscribe(self)

    def restart(self, seq: int, epoch: str | None = None) -> None:
        """Read on from another cursor, for a consumer whose state was replaced."""
        self._client._restart(self, Cursor(seq, epoch))

    def resync(self, info: SnapshotInfo) -> None:
        """Run `on_snapshot_required` on the consumer's own wish; envelopes go on meanwhile."""
        self._client._resync(self, info)

    def failed(self, error: Exception) -> None:
        """Tell the consumer, or the log where it does not listen."""
        if self.on_error is None:
            log.warning("subscription error scope=%s error=%s", self.scope, error)
        else:
            self.on_error(error)


class SyncClient:
    """A connection to one server that comes back by itself.

    `url`: the server (`http://host:port`), the mount (`…/api/sync`) or the socket itself. `token`:
    text, or a callable asked before every connection, which may be async. `session`: an aiohttp
    ClientSession to use; it stays the caller's to close.
    """

    def __init__(
        self,
        url: str,
        token: Token = None,
        session: aiohttp.ClientSession | None = None,
        *,
        window_frames: int | None = None,
    ) -> None:
        self.url = base_url(url)
        self._transport = Transport(self.url, token, session)
        outbox = Outbox() if window_frames is None else Outbox(window_frames=window_frames)
        self._machine = ClientMachine(outbox)
        self._subscriptions: dict[int, Subscription] = {}
        self._waiters: dict[int, asyncio.Future[None]] = {}
        self._tasks = TaskOwner()
        self._running = False
        self._closed: SyncError | None = None
        self._effects: deque[Effect] = deque()
        self._in_effects = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None

    # -- what callers use

    @property
    def connected(self) -> bool:
        """True while a socket is open."""
        return self._machine.connected

    @property
    def publish_retries(self) -> int:
        """How often the server put a publish off; order across frames may differ where not 0."""
        return self._machine.outbox.retries

    def subscribe(
        self,
        scope: str,
        on_envelope: OnEnvelope,
        since: int | None = None,
        *,
        epoch: str | None = None,
        on_snapshot_required: OnSnapshotRequired | None = None,
        on_error: OnError | None = None,
        on_caught_up: Callable[[int], object] | None = None,
        on_durable: Callable[[str, int], object] | None = None,
    ) -> Subscription:
        """Follow a scope; the value returned is called to stop.

        `since` is the cursor to go on from (None: from now). `on_envelope(envelope)` gets every
        envelope once, in order, and may answer "gap" to have it again; what it raises goes to
        `on_error`, and the stream goes on. `on_snapshot_required(scope, info)` returns (or awaits)
        the cursor to go on from, None to stop. `on_error` hears of refusals and of its own
        consumer's exceptions.
        """
        self._check_open()
        subscription = Subscription(
            self,
            scope,
            on_envelope=on_envelope,
            on_snapshot_required=on_snapshot_required,
            on_error=on_error,
            on_caught_up=on_caught_up,
            on_durable=on_durable,
        )
        durable = on_durable is not None
        subscription.id, effects = self._machine.subscribe(
            scope, since, epoch, clock.monotonic(), durable=durable
        )
        self._subscriptions[subscription.id] = subscription
        self._do(effects)
        self._start()
        return subscription

    async def publish(
        self, scope: str, *envelopes: Envelope, durable: bool = False, level: Level = "local"
    ) -> list[PublishResult]:
        """Append envelopes in order and wait for a result each.

        `level="replicated"` waits until the bucket has them, whatever the scope's own level is;
        `durable` adds `durable_seq` to the results. An envelope without `eventId` gets one.
        Repeated after a reconnect, and where the server is busy or the bucket in trouble (up to 10
        times); every other refusal is a result with a `code`, not an exception. Raises SyncError
        where the client ends before the answer.
        """
        self._check_open()
        ready = [env if "eventId" in env else {"eventId": ids.new_id(), **env} for env in envelopes]
        now = clock.monotonic()
        ticket, effects = self._machine.publish(scope, ready, now, durable=durable, level=level)
        self._do(effects)
        self._start()
        if not ticket.done:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters[id(ticket)] = waiter
            try:
                await waiter
            finally:
                self._waiters.pop(id(ticket), None)
        if self._closed is not None and any(
            r and r.code == self._closed.code for r in ticket.results
        ):
            raise self._closed
        return [result for result in ticket.results if result is not None]

    async def fetch_view(self, scope: str) -> ScopeView:
        """All entities of a scope at one position. Raises SyncError where the server refuses.

        Pages are followed; a view that expired between pages is read again.
        """
        for attempt in range(VIEW_ATTEMPTS_MAX):
            pages = ViewPages(scope)
            while (failure := await self._fetch_page(pages)) is None:
                if pages.next is None:
                    return pages.view()
            if not failure.retryable or attempt == VIEW_ATTEMPTS_MAX - 1:
                raise failure
            await asyncio.sleep((failure.retry_after_ms or 100 * 2**attempt) / 1000)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def close(self) -> None:
        """Stop; consumers and open publishes hear `closed`. Safe to repeat."""
        self._end(SyncError("the client was closed", code="closed"))
        await self._transport.drop()
        await self._tasks.aclose()
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # -- the connection

    def opened(self) -> None:
        """For the transport: a socket is open."""
        self._do(self._machine.opened(clock.monotonic()))

    def received(self, text: str) -> None:
        """For the transport: a frame came."""
        self._do(self._machine.received(text, clock.monotonic()))

    def gone(self, refusal: SyncError | None, close_code: int | None) -> float | None:
        """For the transport: the socket is closed; when to try again."""
        delay_s, effects = self._machine.disconnected(ids.random(), close_code)
        self._do(effects)
        if refusal is not None:
            self._end(refusal)
        return None if self._closed is not None else delay_s

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    def _start(self) -> None:
        if not self._running and self._closed is None and not self._machine.idle:
            self._running = True
            self._tasks.spawn(self._transport.run(self), name="client connection")

    async def _fetch_page(self, pages: ViewPages) -> SyncError | None:
        """Add the next page; the refusal where there is none."""
        try:
            url = view_url(self.url, pages.scope, pages.next)
            status, body = await self._transport.get_json(url)
        except SyncError as failure:
            return failure
        if status == 200:
            pages.add(body)
            return None
        return view_refusal(status, body)

    # -- effects

    def _do(self, effects: list[Effect]) -> None:
        """Carry out effects in order; callbacks that call back in are queued behind."""
        self._effects.extend(effects)
        if self._in_effects:
            return
        self._in_effects = True
        try:
            while self._effects:
                self._perform(self._effects.popleft())
        finally:
            self._in_effects = False
        self._arm()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(frame):
                self._transport.send(frame)
            case Deliver(consumer, envelopes):
                self._deliver(self._subscriptions.get(consumer), envelopes)
            case Answered(ticket):
                self._answer(ticket)
            case Drop(reason):
                log.info("connection dropped url=%s reason=%s", self.url, reason)
                self._tasks.spawn(self._transport.drop(), name="client drop")
            case _:
                if (subscription := self._subscriptions.get(effect.consumer)) is not None:
                    self._tell(subscription, effect)

    def _tell(
        self,
        subscription: Subscription,
        effect: CaughtUp | DurableMoved | SnapshotRequired | Failed,
    ) -> None:
        match effect:
            case CaughtUp(seq=seq):
                self._call(subscription, subscription.on_caught_up, seq)
            case DurableMoved(epoch=epoch, seq=seq):
                self._call(subscription, subscription.on_durable, epoch, seq)
            case SnapshotRequired(info=info):
                self._resync(subscription, info)
            case Failed(error=error):
                del self._subscriptions[subscription.id]
                self._call(subscription, subscription.failed, error)

    def _deliver(self, subscription: Subscription | None, envelopes: Any) -> None:
        for envelope in envelopes:
            if subscription is None or not self._machine.reads(subscription.id):
                return
            outcome: Outcome | None = None
            try:
                outcome = subscription.on_envelope(envelope)
            except (
                Exception
            ) as error:  # the consumer's own; its cursor has moved, the stream goes on
                self._call(subscription, subscription.failed, error)
            if outcome == GAP:
                now = clock.monotonic()
                self._do(self._machine.gap(subscription.id, envelope["seq"], now))
                return

    async def _bootstrap(self, subscription: Subscription, info: SnapshotInfo) -> None:
        """Ask the consumer for a new cursor; without one its subscription ends."""
        scope = subscription.scope
        error: Exception = SyncError(f"cursor lost: {info.reason}", code="snapshot_required")
        cursor: Cursor | None = None
        if subscription.on_snapshot_required is not None:
            try:
                answer = subscription.on_snapshot_required(scope, info)
                cursor = await answer if inspect.isawaitable(answer) else answer
            except Exception as failure:  # the consumer's own
                error = failure
        if cursor is not None:
            self._restart(subscription, cursor)
        elif subscription.id in self._subscriptions:
            self._unsubscribe(subscription)
            self._call(subscription, subscription.failed, error)

    def _call(
        self, subscription: Subscription, callback: Callable[..., object] | None, *args: Any
    ) -> None:
        try:
            if callback is not None:
                callback(*args)
        except Exception:  # a consumer's callback must not end the connection of the others
            log.exception("callback failed scope=%s", subscription.scope)

    def _answer(self, ticket: Ticket) -> None:
        waiter = self._waiters.get(id(ticket))
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _unsubscribe(self, subscription: Subscription) -> None:
        if self._subscriptions.pop(subscription.id, None) is not None:
            self._do(self._machine.unsubscribe(subscription.id, clock.monotonic()))

    def _restart(self, subscription: Subscription, cursor: Cursor) -> None:
        now = clock.monotonic()
        self._do(self._machine.restart(subscription.id, cursor.seq, cursor.epoch, now))

    def _resync(self, subscription: Subscription, info: SnapshotInfo) -> None:
        if self._closed is None and subscription.id in self._subscriptions:
            self._tasks.spawn(self._bootstrap(subscription, info), name="client bootstrap")

    def _end(self, error: SyncError) -> None:
        if self._closed is None:
            self._closed = error
            self._do(self._machine.refuse_all(error))

    def _arm(self) -> None:
        """One timer, for whatever the machine wants next."""
        at = None if self._closed is not None else self._machine.next_wakeup()
        if at == self._timer_at:
            return  # the usual case, for every frame: the next ping
        self._timer_at = at
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at is not None:
            delay_s = max(0.0, at - clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = self._timer_at = None
        self._do(self._machine.tick(clock.monotonic()))
