"""Hubs over both ledgers, and a client of one that only keeps what it was sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from edge.dialects.asterql.hub import SyncHub
from edge.dialects.asterql.ledgers import InMemorySyncLedger, SqliteSyncLedger
from tests.support.app import PATIENCE_S, Json, envelopes_seqs

LEDGERS = ("memory", "sqlite")
S = "run:r1"


@asynccontextmanager
async def hub_over(
    kind: str, directory: Path, *, retain: int = 10_000, **options: Any
) -> AsyncIterator[SyncHub]:
    """A started hub over the named ledger."""
    ledger: Any
    ledger = SqliteSyncLedger(directory, retain) if kind == "sqlite" else InMemorySyncLedger(retain)
    async with SyncHub(ledger=ledger, **options) as hub:
        yield hub


class Peer:
    """A connection whose frames gather in `seen`."""

    def __init__(self, hub: SyncHub, user: Any = "u") -> None:
        self.seen: list[Json] = []
        self._news = asyncio.Event()
        self._read = 0
        self.connection = hub.connect(self.take, user)

    def take(self, text: str) -> None:
        self.seen.append(json.loads(text))
        self._news.set()

    def send(self, *frames: Json | str) -> None:
        for frame in frames:
            text = frame if isinstance(frame, str) else json.dumps(frame)
            self.connection.handle_message(text)

    async def until(self, wanted: str | Callable[[Json], bool]) -> Json:
        """The first unread frame of the type, or that the function takes."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                while self._read < len(self.seen):
                    frame = self.seen[self._read]
                    self._read += 1
                    if frame["type"] == wanted or (callable(wanted) and wanted(frame)):
                        return frame
                self._news.clear()
                await self._news.wait()

    async def sub(self, scope: str = S, **members: Any) -> list[Json]:
        """Subscribe; the frames up to `caughtUp` or the refusal."""
        start = len(self.seen)
        self.send({"type": "sub", "scope": scope, **members})
        await self.until(lambda frame: frame["type"] in ("caughtUp", "scopeError"))
        return self.seen[start:]

    async def seq(self, seq: int) -> None:
        """Wait for the event of that number."""
        await self.until(lambda frame: seq in envelopes_seqs([frame]))

    @property
    def seqs(self) -> list[int]:
        """Every seq received, in order of arrival."""
        return envelopes_seqs(self.seen)

    @property
    def types(self) -> list[str]:
        return [frame["type"] for frame in self.seen]


def fixed(envelope: Json) -> Callable[[int], Json]:
    """A factory that always makes this envelope."""
    return lambda _seq: envelope


async def fill(hub: SyncHub, count: int, scope: str = S) -> None:
    """Publish `count` small envelopes."""
    for number in range(count):
        envelope = {
            "eventId": f"fill-{number}",
            "kind": "patch",
            "entities": [{"key": "a:1", "patches": [{"op": "increment", "path": "/n"}]}],
        }
        await hub.publish(scope, fixed(envelope))
