"""Which scopes one connection reads, for whom, from where: the subscribing half of the machine.

Pure; effects and control frames are appended to the two queues it is given. Always true:
- a consumer is handed contiguous envelopes only; what is ahead of its cursor asks for a replay;
- the connection reads each scope once, at the lowest cursor of its consumers, and drops for each
  consumer what it has had;
- while a `sub` or `replay` is unanswered, no other replay is asked for that scope.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from edge.client.effects import (
    CaughtUp,
    Deliver,
    DurableMoved,
    Effect,
    Failed,
    SnapshotInfo,
    SnapshotRequired,
    SyncError,
)

DELAY_FIRST_S: Final = 0.5
DELAY_MAX_S: Final = 30.0
GAPS_MAX: Final = 3  # replays from one cursor that brought nothing; then a snapshot is needed
RETRY_SCOPE_CODES: Final = frozenset({"moved", "internal", "busy", "rate_limited", "storage"})

_encode = msgspec.json.Encoder().encode


def reconnect_delay(attempt: int, random: float) -> float:
    """Seconds to wait before attempt `attempt` (from 0); `random` in [0, 1) spreads the crowd."""
    return min(DELAY_MAX_S, DELAY_FIRST_S * 2.0 ** min(attempt, 16)) * (0.5 + random / 2)


@dataclass(slots=True)
class Consumer:
    """One reader of one scope."""

    id: int
    scope: str
    cursor: int | None  # None: live from now, not told yet where that is
    epoch: str | None
    durable: bool
    resting: bool = False  # waits for `restart`
    gap_at: int = -1
    gaps: int = 0


@dataclass(slots=True)
class Scope:
    """What this connection reads of one scope, and for whom."""

    name: str
    consumers: dict[int, Consumer] = field(default_factory=dict)
    unanswered: int = 0  # `sub` and `replay` frames the server has not answered with `subscribed`
    subscribed: bool = False
    live: bool = False
    position: int = 0  # the last seq this connection was sent
    epoch: str | None = None
    failures: int = 0
    durable: bool = False  # durable positions were asked for

    def active(self) -> list[Consumer]:
        """Consumers that are not waiting for a snapshot."""
        return [consumer for consumer in self.consumers.values() if not consumer.resting]


class Subscriptions:
    """Scopes and consumers of one client, over all of its connections."""

    def __init__(self, out: list[Effect], control: deque[bytes]) -> None:
        self.connected = False
        self.scopes: dict[str, Scope] = {}
        self.consumers: dict[int, Consumer] = {}
        self.retry_at: dict[str, float] = {}
        self._last_consumer = 0
        self._out = out
        self._control = control

    def opened(self) -> None:
        """Subscribe everything again."""
        self.connected = True
        for scope in self.scopes.values():
            self.subscribe_scope(scope)

    def disconnected(self) -> None:
        """Nothing is subscribed any more; cursors stay."""
        self.connected = False
        self.retry_at.clear()
        for scope in self.scopes.values():
            scope.unanswered, scope.subscribed, scope.live = 0, False, False

    def retry_due(self, now: float) -> None:
        """Ask again for scopes whose refusal was for a while."""
        for name in [name for name, at in self.retry_at.items() if at <= now]:
            del self.retry_at[name]
            self.subscribe_scope(self.scopes[name])

    def add(self, name: str, since: int | None, epoch: str | None, durable: bool) -> int:
        """A new consumer's id."""
        self._last_consumer += 1
        consumer = Consumer(self._last_consumer, name, since, epoch, durable)
        self.consumers[consumer.id] = consumer
        scope = self.scopes.get(name)
        if scope is None:
            scope = self.scopes[name] = Scope(name)
        scope.consumers[consumer.id] = consumer
        self.join(scope, consumer)
        return consumer.id

    def remove(self, consumer_id: int) -> None:
        """The last consumer of a scope ends its subscription. Safe to repeat."""
        consumer = self.consumers.pop(consumer_id, None)
        if consumer is None:
            return
        scope = self.scopes[consumer.scope]
        del scope.consumers[consumer_id]
        if not scope.consumers:
            self.forget(scope)

    def restart(self, consumer_id: int, seq: int, epoch: str | None) -> None:
        """Put a consumer at a cursor and read on from there."""
        consumer = self.consumers.get(consumer_id)
        if consumer is not None:
            consumer.cursor, consumer.epoch, consumer.resting = seq, epoch, False
            self.join(self.scopes[consumer.scope], consumer)

    def refused(self, consumer_id: int, seq: int) -> None:
        """The consumer itself found the envelope `seq` to be ahead of it."""
        consumer = self.consumers.get(consumer_id)
        if consumer is not None and not consumer.resting:
            consumer.cursor = seq - 1
            self.gap(self.scopes[consumer.scope], consumer)

    def events(self, name: str, envelopes: Sequence[Mapping[str, Any]]) -> None:
        """Ascending envelopes of one scope."""
        scope = self.scopes.get(name)
        if scope is None or not envelopes:
            return  # left just now; the server had these under way
        scope.position = envelopes[-1]["seq"]
        for consumer in scope.active():
            if consumer.cursor is not None:
                self._offer(scope, consumer, envelopes)

    def _offer(
        self, scope: Scope, consumer: Consumer, envelopes: Sequence[Mapping[str, Any]]
    ) -> None:
        cursor = consumer.cursor
        assert cursor is not None
        run: list[Mapping[str, Any]] = []
        gap = False
        for envelope in envelopes:
            seq = envelope["seq"]
            if seq == cursor + 1:
                run.append(envelope)
                cursor = seq
            elif seq > cursor:
                gap = True
                break
        if run:
            consumer.cursor = cursor
            self._out.append(Deliver(consumer.id, run))
        if gap:
            self.gap(scope, consumer)

    def subscribed(self, frame: Mapping[str, Any]) -> None:
        """The server reads the scope from `since` on; a rested consumer may come out of it."""
        scope = self.scopes.get(frame["scope"])
        if scope is None:
            return
        scope.unanswered = max(0, scope.unanswered - 1)
        scope.subscribed, scope.live, scope.failures = True, False, 0
        scope.position, scope.epoch = frame["since"], frame["epoch"]
        for consumer in scope.active():
            reason = self._settle(consumer, frame)
            if reason is not None:
                self._rest(consumer, _info(reason, frame))

    def _settle(self, consumer: Consumer, frame: Mapping[str, Any]) -> str | None:
        """Fit one consumer to the history the server reads from; the reason where it cannot be."""
        if consumer.cursor is None:
            consumer.cursor, consumer.epoch = frame["head"], frame["epoch"]
        if consumer.epoch is not None and consumer.epoch != frame["epoch"]:
            return "epoch_changed"
        if consumer.cursor > frame["head"]:
            return "ahead_of_head"
        consumer.epoch = frame["epoch"]
        return None

    def caught_up(self, name: str, seq: int) -> None:
        """Replay ended at `seq`; what a consumer lacks up to there was lost on the way."""
        scope = self.scopes.get(name)
        if scope is None or scope.unanswered:
            return
        scope.live = True
        scope.position = max(scope.position, seq)
        for consumer in scope.active():
            if consumer.cursor is not None and consumer.cursor < seq:
                self.gap(scope, consumer)
            else:
                self._out.append(CaughtUp(consumer.id, seq))

    def durable(self, frame: Mapping[str, Any]) -> None:
        """The durable position moved."""
        scope = self.scopes.get(frame["scope"])
        for consumer in scope.active() if scope else ():
            if consumer.durable:
                self._out.append(DurableMoved(consumer.id, frame["epoch"], frame["seq"]))

    def scope_error(self, frame: Mapping[str, Any], now: float) -> None:
        """The subscription does not exist (any more): rest, ask again later, or fail."""
        scope = self.scopes.get(frame["scope"])
        if scope is None:
            return
        code, wait_ms = frame["code"], frame.get("retryAfterMs")
        scope.unanswered = max(0, scope.unanswered - 1)
        scope.subscribed = scope.live = False
        if code == "snapshot_required":
            for consumer in _behind(scope, frame):
                self._rest(consumer, _info(frame.get("reason", ""), frame))
            if not scope.unanswered:
                self.subscribe_scope(scope)
        elif wait_ms is not None or code in RETRY_SCOPE_CODES:
            backoff_s = reconnect_delay(scope.failures, 1.0)
            scope.failures += 1
            self.retry_at[scope.name] = now + max(backoff_s, (wait_ms or 0) / 1000)
        else:
            self.fail(scope, SyncError(frame.get("message") or code, code=code))

    def join(self, scope: Scope, consumer: Consumer) -> None:
        """Make the connection read from the consumer's cursor, or put it where the scope is."""
        if not self.connected or scope.name in self.retry_at:
            return
        settled = scope.subscribed and not scope.unanswered
        if settled and consumer.cursor is None:
            consumer.cursor, consumer.epoch = scope.position, scope.epoch
        here = consumer.cursor == scope.position and consumer.epoch in (None, scope.epoch)
        if settled and here and (scope.durable or not consumer.durable):
            consumer.epoch = scope.epoch
            if scope.live:
                self._out.append(CaughtUp(consumer.id, scope.position))
        elif consumer.cursor is not None or not scope.unanswered:
            self.subscribe_scope(scope)

    def subscribe_scope(self, scope: Scope) -> None:
        """Send `sub` at the lowest cursor; nothing where no consumer can read."""
        known = [c for c in scope.active() if c.cursor is not None]
        if not self.connected or not scope.active():
            return
        frame: dict[str, Any] = {"type": "sub", "scope": scope.name, "batch": True}
        if known:
            lowest = min(known, key=lambda consumer: consumer.cursor or 0)
            frame["since"] = lowest.cursor
            if lowest.epoch is not None:
                frame["epoch"] = lowest.epoch
        scope.durable = any(consumer.durable for consumer in scope.consumers.values())
        if scope.durable:
            frame["durable"] = True
        scope.unanswered += 1
        self._control.append(_encode(frame))

    def gap(self, scope: Scope, consumer: Consumer) -> None:
        """Ask to read again from the lowest cursor, a bounded number of times in vain."""
        if scope.unanswered or not scope.subscribed:
            return  # a replay is under way; what came is from before it
        assert consumer.cursor is not None
        if consumer.gap_at != consumer.cursor:
            consumer.gap_at, consumer.gaps = consumer.cursor, 0
        consumer.gaps += 1
        if consumer.gaps > GAPS_MAX:
            self._rest(consumer, SnapshotInfo("gap", scope.epoch))
            return
        since = min(c.cursor for c in scope.active() if c.cursor is not None)
        scope.unanswered += 1
        self._control.append(_encode({"type": "replay", "scope": scope.name, "since": since}))

    def _rest(self, consumer: Consumer, info: SnapshotInfo) -> None:
        consumer.resting = True
        consumer.gap_at, consumer.gaps = -1, 0
        self._out.append(SnapshotRequired(consumer.id, consumer.scope, info))

    def fail(self, scope: Scope, error: SyncError) -> None:
        """Drop the scope; its consumers hear why."""
        for consumer in list(scope.consumers.values()):
            self.consumers.pop(consumer.id, None)
            self._out.append(Failed(consumer.id, scope.name, error))
        scope.consumers.clear()
        self.scopes.pop(scope.name, None)
        self.retry_at.pop(scope.name, None)

    def forget(self, scope: Scope) -> None:
        """The last consumer left."""
        del self.scopes[scope.name]
        self.retry_at.pop(scope.name, None)
        if self.connected and (scope.subscribed or scope.unanswered):
            self._control.append(_encode({"type": "unsub", "scope": scope.name}))


def _behind(scope: Scope, frame: Mapping[str, Any]) -> list[Consumer]:
    """Whom `snapshot_required` is about: one bad cursor refuses the subscription of all."""
    epoch, head, floor = frame.get("epoch"), frame.get("head"), frame.get("floor")
    active = [consumer for consumer in scope.active() if consumer.cursor is not None]
    behind = []
    for consumer in active:
        assert consumer.cursor is not None
        other = epoch is not None and consumer.epoch not in (None, epoch)
        low = floor is not None and consumer.cursor < floor
        high = head is not None and consumer.cursor > head
        if other or low or high:
            behind.append(consumer)
    rested = any(consumer.resting for consumer in scope.consumers.values())
    # Where one rests, an earlier and equal answer took those it was about.
    return behind if behind or rested else active


def _info(reason: str, frame: Mapping[str, Any]) -> SnapshotInfo:
    return SnapshotInfo(reason, frame.get("epoch"), frame.get("head"), frame.get("floor"))
