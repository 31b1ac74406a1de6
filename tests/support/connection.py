"""A Connection with everything around it made up: sink, port, hooks and clock."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from actors.port import Port
from actors.types import (
    Address,
    Appended,
    Batch,
    Bounds,
    Draft,
    Outcome,
    Page,
    Reply,
    Resync,
    Tap,
)  # fmt: skip
from edge.auth import Action, Principal, PublishLimits
from edge.dialects.asterql.connection import Connection, project
from edge.feed import Feeds
from edge.wire import Frames
from infra.errors import AuthError, HoldfastError
from infra.tasks import TaskOwner
from tests.support.app import Json

SCOPE = "run:r1"
NOW_MS = 1_795_200_000_000


class FakeSink:
    """Keeps decoded frames, or what it was closed with."""

    def __init__(self) -> None:
        self.congested = False
        self.frames: list[Json] = []
        self.ended: tuple[int, str] | None = None
        self.free = asyncio.Event()

    def send(self, texts: list[str]) -> None:
        if self.ended is None:
            self.frames += [json.loads(text) for text in texts]

    def send_shared(self, frames: Frames) -> None:
        self.send(frames.texts)

    async def drained(self) -> None:
        await self.free.wait()

    def close(self, code: int, reason: str) -> None:
        self.ended = (code, reason)

    @property
    def types(self) -> list[str]:
        return [frame["type"] for frame in self.frames]


class FakePort:
    """One list of bodies for each scope; answers at once unless `gate` is closed."""

    def __init__(self) -> None:
        self.bodies: dict[Address, list[str]] = {}
        self.taps: dict[Address, list[Tap]] = {}
        self.drafts: list[Draft] = []
        self.outcomes: list[Outcome] | None = None
        self.refuse: HoldfastError | None = None
        self.floor = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.reads = 0

    def at(self, address: Address) -> Bounds:
        head = len(self.bodies.get(address, []))
        return Bounds("E", head, self.floor, head)

    def append(
        self,
        address: Address,
        drafts: list[Draft],
        reply: Reply,
        tag: Any,
        *,
        replicated: bool = False,
    ) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.drafts += drafts
        held = self.bodies.setdefault(address, [])
        first = len(held) + 1
        bodies = [f'{{"seq":{first + n},{draft.body}' for n, draft in enumerate(drafts)]
        held += bodies
        outcomes = self.outcomes or [Appended(first + n, first + n) for n in range(len(drafts))]
        reply.settle(tag, outcomes, self.at(address))
        if bodies:
            batch = Batch(first, len(held), bodies, self.at(address))
            for tap in self.taps.get(address, []):
                tap.deliver(batch)
        reply.flush()

    async def read(
        self, address: Address, after: int, *, entries_max: int, bytes_max: int, joined: bool
    ) -> Page | Resync:
        self.reads += 1
        bounds = self.at(address)
        found = self.bodies.get(address, [])[after : after + entries_max]
        await self.gate.wait()
        if after < self.floor:
            return Resync("below_floor", bounds)
        last = after + len(found)
        return Page(after + 1, last, [] if joined else found, ",".join(found), bounds)

    async def bounds(self, address: Address) -> Bounds:
        return self.at(address)

    async def subscribe(self, address: Address, tap: Tap) -> Bounds:
        if self.refuse is not None:
            raise self.refuse
        self.taps.setdefault(address, []).append(tap)
        return self.at(address)

    def unsubscribe(self, address: Address, tap: Tap) -> None:
        self.taps[address].remove(tap)

    async def snapshot(self, address: Address, coll: str) -> None:
        return None

    async def clear(self, address: Address) -> Bounds:
        return self.at(address)

    async def run(self, work: Callable[[], Any]) -> Any:
        return work()


class FakeEnvironment:
    """`allow` is the authorize hook; `tokens` maps what authenticate knows."""

    def __init__(self) -> None:
        self.fake = FakePort()
        self.port: Port = self.fake
        self.feeds = Feeds(self.port, project)
        self.tasks = TaskOwner()
        self.publish_limits = PublishLimits()
        self.page_entries = 512
        self.now = 1000.0
        self.allow: Callable[[Principal, str, Action], bool | Awaitable[bool]]
        self.allow = lambda _principal, _scope, _action: True
        self.asked: list[tuple[str, Action]] = []
        self.tokens: dict[str, Principal] = {}

    def now_ms(self) -> int:
        return NOW_MS

    def monotonic(self) -> float:
        return self.now

    def authorize(self, principal: Principal, scope: str, action: Action) -> bool | Awaitable[bool]:
        self.asked.append((scope, action))
        return self.allow(principal, scope, action)

    async def authenticate(self, token: str, tenant: str | None) -> Principal:
        await asyncio.sleep(0)
        if token not in self.tokens:
            raise AuthError("unknown token", code="token_invalid")
        return self.tokens[token]


class Bench:
    """The connection under test with its surroundings."""

    def __init__(self, principal: Principal | None = None, *, anonymous: bool = False) -> None:
        self.env = FakeEnvironment()
        self.sink = FakeSink()
        who = None if anonymous else principal or Principal(id="u1")
        self.connection = Connection(self.env, self.sink, who)

    def send(self, *frames: Json | str | bytes) -> None:
        for frame in frames:
            self.connection.handle(json.dumps(frame) if isinstance(frame, dict) else frame)

    async def rest(self) -> list[Json]:
        """Let everything happen that can; the frames since the last call."""
        for _ in range(30):
            await asyncio.sleep(0)
        frames, self.sink.frames = self.sink.frames, []
        return frames

    async def ask(self, *frames: Json | str | bytes) -> list[Json]:
        self.send(*frames)
        return await self.rest()

    async def sub(self, scope: str = SCOPE, **members: Any) -> list[Json]:
        return await self.ask({"type": "sub", "scope": scope, **members})

    def other_publishes(self, *envelopes: Json, scope: str = SCOPE) -> None:
        """Another connection appends."""
        other = Connection(self.env, FakeSink(), Principal(id="other"))
        frame = {"type": "publish", "id": 1, "scope": scope, "envelopes": list(envelopes)}
        other.handle(json.dumps(frame))


def change(event: str, key: str = "a:1") -> Json:
    """A small good envelope."""
    patches = [{"op": "set", "path": "/n", "value": 1}]
    return {"eventId": event, "kind": "patch", "entities": [{"key": key, "patches": patches}]}
