"""AsterQL connections without a loop or a socket: coroutines that a test steps by hand.

`Steps` stands in for the task owner and the event loop, `ScopePort` for the host, `Follower` for a
client that checks every frame it gets: events ascend from `since` without gap or repeat, or the
subscription ends with `snapshot_required`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, cast

from actors.port import Port
from actors.scope import Scope
from actors.types import Address, Bounds, Page, Resync, Tap
from edge.auth import Action, Principal, PublishLimits
from edge.dialects.asterql.connection import Connection, project
from edge.feed import Feeds
from edge.wire import Frames

PRINCIPAL = Principal(id="ada")


class Pause:
    """`await Pause()` suspends for one step."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Steps:
    """Fits what connections use of infra.tasks.TaskOwner."""

    def __init__(self) -> None:
        self.waiting: list[Coroutine[Any, Any, Any]] = []

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str) -> None:
        self.waiting.append(coro)

    def step(self, index: int) -> None:
        """Run one coroutine to its next suspension."""
        coro = self.waiting.pop(index % len(self.waiting))
        try:
            coro.send(None)
        except StopIteration:
            return
        self.waiting.append(coro)

    def drop(self) -> None:
        for coro in self.waiting:
            inner = inspect.getcoroutinelocals(coro).get("work")
            coro.close()
            if inspect.iscoroutine(inner):
                inner.close()  # handed over but never begun
        self.waiting.clear()


class ScopePort:
    """The part of actors.port.Port that subscriptions use, over one scope.
    `delays` are in steps.
    """

    def __init__(self, scope: Scope, delays: Callable[[], int]) -> None:
        self.scope = scope
        self._delays = delays

    async def read(self, address: Address, after: int, **options: Any) -> Page | Resync:
        await self._wait()
        page = self.scope.read(after, **options)
        for _ in range(self._delays()):  # as a link to another process would take
            await Pause()
        return page

    async def bounds(self, address: Address) -> Bounds:
        await self._wait()
        return self.scope.bounds

    async def subscribe(self, address: Address, tap: Tap) -> Bounds:
        await self._wait()
        self.scope.taps.append(tap)
        return self.scope.bounds

    def unsubscribe(self, address: Address, tap: Tap) -> None:
        if tap in self.scope.taps:
            self.scope.taps.remove(tap)

    async def _wait(self) -> None:
        for _ in range(self._delays()):
            await Pause()
        while self.scope.lent:
            await Pause()


class Edge:
    """Fits edge.dialects.asterql.connection.Environment."""

    def __init__(self, scope: Scope, *, page_entries: int, delays: Callable[[], int]) -> None:
        self.port: Any = ScopePort(scope, delays)  # all of a Port that subscribing needs
        self.feeds = Feeds(cast(Port, self.port), project)
        self.tasks: Any = Steps()
        self.publish_limits = PublishLimits()
        self.page_entries = page_entries

    def now_ms(self) -> int:
        return 0

    def monotonic(self) -> float:
        return 0.0

    def authorize(self, principal: Principal, scope: str, action: Action) -> bool | Awaitable[bool]:
        return True

    async def authenticate(self, token: str, tenant: str | None) -> Principal:
        return PRINCIPAL


class Follower:
    """One subscription on one connection, and its client's judgement. Fits the dialect's Sink."""

    def __init__(self, edge: Edge, scope: str, released: Callable[[], int]) -> None:
        self.congested = False
        self.cursor: int | None = None
        self.seen: dict[int, str] = {}
        self.live = False
        self.ended: str | None = None
        self.accepted = 0
        self._scope = scope
        self._released = released
        self.connection = Connection(edge, self, PRINCIPAL)

    def ask(self, kind: str, **members: Any) -> None:
        frame = {"type": kind, "scope": self._scope, **members}
        self.connection.handle(json.dumps(frame))

    # -- Sink
    # ----------------------------------------------------------------------------------------

    def send(self, texts: list[str]) -> None:
        for text in texts:
            self._judge(json.loads(text))

    def send_shared(self, frames: Frames) -> None:
        assert not self.congested, "a live batch was queued to a congested socket"
        self.send(frames.texts)

    async def drained(self) -> None:
        while self.congested and not self.connection.closed:
            await Pause()

    def close(self, code: int, reason: str) -> None:
        raise AssertionError(f"closed with {code} {reason}")

    def _judge(self, frame: dict[str, Any]) -> None:
        kind = frame["type"]
        if kind == "subscribed":
            assert frame["head"] <= self._released() and frame["floor"] <= frame["since"]
            self.cursor, self.live, self.ended = frame["since"], False, None
            self.accepted += 1
        elif kind == "event":
            self._take(frame["envelope"])
        elif kind == "events":
            for envelope in frame["envelopes"]:
                self._take(envelope)
        elif kind == "caughtUp":
            assert self.cursor == frame["seq"] and not self.live, "caughtUp comes once, at the end"
            self.live = True
        elif kind == "scopeError":
            self.ended, self.live = frame.get("reason", frame["code"]), False
            self.cursor = None
        elif kind == "unsubscribed":
            self.cursor, self.live, self.ended = None, False, "unsubscribed"
        else:
            raise AssertionError(frame)

    def _take(self, envelope: dict[str, Any]) -> None:
        seq = envelope["seq"]
        assert self.cursor is not None, f"event {seq} without a subscription"
        assert seq == self.cursor + 1, f"event {seq} after {self.cursor}"
        assert seq <= self._released(), f"event {seq} was shown before its release"
        self.cursor = seq
        self.seen[seq] = envelope["eventId"]
