"""Edge cases 23 and 24: random histories of publishing and joining, over both ledgers.

Every subscriber must get since+1 … head exactly once, whatever the delays of reads and sends, with
an outbound queue of 8 frames; under retention it may instead end with `snapshot_required`, after a
prefix without a gap.
"""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from actors.types import Address
from edge.dialects.asterql.hub import SyncHub
from infra.tasks import TaskOwner
from tests.support.app import PATIENCE_S, Json, envelopes_seqs, patch
from tests.support.hub import LEDGERS, S, fixed, hub_over

pytestmark = pytest.mark.e2e
PUBLISHES = 180
QUEUE = 8


async def pause(dice: random.Random, most: int) -> None:
    for _ in range(dice.randrange(most)):
        await asyncio.sleep(0)


def slow_reads(hub: SyncHub, dice: random.Random) -> None:
    """Let every read of the port take some turns of the loop."""
    read = hub.port.read

    async def later(address: Address, after: int, **limits: Any) -> Any:
        await pause(dice, 6)
        page = await read(address, after, **limits)
        await pause(dice, 6)
        return page

    hub.port.read = later  # type: ignore[method-assign]


class Slow:
    """A subscriber whose `send` takes a while; it repairs what a client would repair: nothing."""

    def __init__(self, hub: SyncHub, dice: random.Random, most: int, *, batch: bool) -> None:
        self.frames: list[Json] = []
        self.news = asyncio.Event()
        self.dice, self.most, self.batch = dice, most, batch
        self.connection = hub.connect(self.send)

    async def send(self, text: str) -> None:
        await pause(self.dice, self.most)
        self.frames.append(json.loads(text))
        self.news.set()

    def join(self, since: int | None) -> None:
        frame = {"type": "sub", "scope": S, "batch": self.batch}
        if since is not None:
            frame["since"] = since
        self.connection.handle_message(json.dumps(frame))

    @property
    def ended(self) -> bool:
        return any(frame["type"] == "scopeError" for frame in self.frames)

    async def reach(self, head: int) -> None:
        """Until the head has come, or the end."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.ended and (envelopes_seqs(self.frames) or [self.start])[-1] < head:
                self.news.clear()
                await self.news.wait()

    @property
    def start(self) -> int:
        found = [frame["since"] for frame in self.frames if frame["type"] == "subscribed"]
        return int(found[0]) if found else -1

    def check(self) -> None:
        seqs = envelopes_seqs(self.frames)
        assert seqs == list(range(self.start + 1, self.start + 1 + len(seqs)))
        types = [frame["type"] for frame in self.frames]
        assert types[0] in ("subscribed", "scopeError") and types.count("subscribed") <= 1


async def play(hub: SyncHub, seed: int, subscribers: int, most: int) -> list[Slow]:
    """One history: joins and publishes in random order. Returns all subscribers at rest."""
    dice = random.Random(seed)
    slow_reads(hub, dice)
    found: list[Slow] = []
    steps = ["publish"] * PUBLISHES + ["join"] * subscribers
    dice.shuffle(steps)
    async with TaskOwner() as tasks:
        under_way = []
        for number, step in enumerate(steps):
            if step == "publish":
                make = fixed(patch(event=f"e{number}", n=number))
                under_way.append(tasks.spawn(hub.publish(S, make), name="publish"))
            else:
                head = (await hub.ledger.bounds(S)).head
                one = Slow(hub, dice, dice.choice((1, most)), batch=dice.random() < 0.5)
                one.join(dice.choice((None, 0, head, dice.randint(0, head))))
                found.append(one)
            await pause(dice, 4)
        for task in under_way:
            await task
        for one in found:
            await one.reach(PUBLISHES)
    return found


@pytest.mark.parametrize("kind", LEDGERS)
@pytest.mark.parametrize("seed", range(6))
async def test_edge_23_every_subscriber_gets_everything_once(
    kind: str, seed: int, tmp_path: Path
) -> None:
    options = {"max_queue_frames": QUEUE, "page_size": 16}
    async with hub_over(kind, tmp_path, **options) as hub:
        found = await play(hub, seed, 9, 5)
        assert (await hub.ledger.bounds(S)).head == PUBLISHES
        for one in found:
            one.check()
            assert not one.ended
            assert len(envelopes_seqs(one.frames)) == PUBLISHES - one.start


@pytest.mark.parametrize("kind", LEDGERS)
@pytest.mark.parametrize("seed", range(4))
async def test_edge_24_retention_passes_a_slow_reader(kind: str, seed: int, tmp_path: Path) -> None:
    options = {"max_queue_frames": QUEUE, "page_size": 4}
    async with hub_over(kind, tmp_path, retain=30, **options) as hub:
        found = await play(hub, 100 + seed, 6, 4)
        stuck = Slow(hub, random.Random(seed), 1, batch=False)
        gate = asyncio.Event()

        async def held(text: str) -> None:
            if '"event"' in text:
                await gate.wait()
            stuck.frames.append(json.loads(text))
            stuck.news.set()

        stuck.connection._sink._send = held
        stuck.join(None)
        while not stuck.frames:
            await asyncio.sleep(0)
        for number in range(200):
            await hub.publish(S, fixed(patch(event=f"late{number}", n=number)))
        gate.set()
        await stuck.reach(2**53)
        for one in [*found, stuck]:
            one.check()
        last = stuck.frames[-1]
        assert (last["code"], last["reason"]) == ("snapshot_required", "below_floor")
        assert 1 <= len(envelopes_seqs(stuck.frames)) < 200
