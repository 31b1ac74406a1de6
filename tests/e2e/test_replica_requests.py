"""What the bucket is asked for, counted: idle scopes, scopes written without pause, waking."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest

from actors.host import Host
from actors.types import Address
from infra.clock import monotonic
from infra.meter import Counts
from infra.pacing import Pace
from infra.process import raise_open_files_limit
from infra.replica_files import Files, Mark
from infra.replicator import ReplicaSettings
from tests.support.hosts import bodies, closed, host_at, put, running
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.e2e

IDLE_SCOPES = [300, pytest.param(10_000, marks=pytest.mark.soak)]
IDLE_S = {300: 1.5, 10_000: 60}
INTERVAL_MS = 100
BATCH_BYTES = [4096, 40_000, 4 << 20]  # few snapshots, some, one with every second batch
SECOND_MS, MINUTE_MS, HOUR_MS = 1_000, 60_000, 3_600_000
REAL_S = 2.0
SMALL = Address("default", "run:small")


def counts(host: Host) -> Counts:
    assert host.waking is not None
    return host.waking.replication.meter.counts


async def settled(host: Host) -> None:
    """Everything is in the bucket, and no replica has anything left to do."""
    async with asyncio.timeout(120):
        for replica in list(host.replicas.values()):
            await replica.drained()
    assert not any(replica.pending for replica in host.replicas.values())


@pytest.mark.parametrize("scopes", IDLE_SCOPES)
async def test_idle_scopes_ask_for_nothing(tmp_path: Path, scopes: int) -> None:
    addresses = [Address("default", f"run:{number}") for number in range(scopes)]
    memory = MemoryStore()
    # Some stay open; the others are closed, and leave the disk.
    open_max = raise_open_files_limit(min(1024, scopes // 2))
    host = host_at(tmp_path / "a", memory, open_max=open_max, bucket={"evict_s": 0.1})
    async with running(host):
        for at in range(0, scopes, 50):
            await asyncio.gather(*(put(host, address, "a") for address in addresses[at : at + 50]))
        await settled(host)
        while host._closing:
            await asyncio.wait(list(host.returns.values()))
        await settled(host)
        before = counts(host)
        assert before.put >= scopes
        tasks = len(host.tasks)
        await asyncio.sleep(IDLE_S[scopes])
        assert counts(host).since(before).requests == 0
        while host.returns:  # those idle for so long close now
            await asyncio.wait(list(host.returns.values()))
        assert len(host.tasks) <= tasks


def put_times(
    *, urgent: bool, for_ms: int, commit_every_ms: int = 1, batch_bytes: int = 4096
) -> list[int]:
    """When a scope that is written without pause sends batches and snapshots, on a virtual clock.

    Each batch has `batch_bytes`, each snapshot twice as many.
    """
    pace = Pace()
    files = Files()
    sent: list[int] = []
    dirty_since: int | None = None
    for now in range(0, for_ms, commit_every_ms):
        dirty_since = now if dirty_since is None else dirty_since
        due = pace.due_at(
            urgent=urgent, dirty_since=dirty_since, dirty_bytes=batch_bytes, now=now,
            interval_ms=INTERVAL_MS if urgent else 0,
        )  # fmt: skip
        if due <= now:
            pace.sent(now, urgent=urgent)
            sent.append(now)
            dirty_since = None
            snapshot = files.wants_snapshot(resting=False)
            files.shipped(files.head + 1, batch_bytes)
            if snapshot:
                pace.out_of_turn(now, INTERVAL_MS)
                sent.append(now)
                files.snapped(Mark(files.head, now, 2 * batch_bytes))
    return sent


def most_within(times: list[int], window_ms: int) -> int:
    """The fullest window of that length."""
    return max(sum(at <= other < at + window_ms for other in times) for at in times)


@pytest.mark.parametrize("batch_bytes", BATCH_BYTES)
def test_a_replicated_scope_makes_ten_puts_a_second_at_most(batch_bytes: int) -> None:
    sent = put_times(urgent=True, for_ms=10 * SECOND_MS, batch_bytes=batch_bytes)
    assert most_within(sent, SECOND_MS) <= 10 + 1, "a snapshot may share its batch's instant"
    assert len(sent) <= 10 * 10 + 1
    assert sent[0] == 0, "the first goes at once"
    assert len(sent) >= 95, "and the others as soon as they may"


@pytest.mark.parametrize("batch_bytes", BATCH_BYTES)
def test_a_local_scope_makes_a_put_every_four_seconds_at_most(batch_bytes: int) -> None:
    minutes = 10
    sent = put_times(
        urgent=False, for_ms=minutes * MINUTE_MS, commit_every_ms=10, batch_bytes=batch_bytes
    )
    assert len(sent) <= minutes * 15, "0.25 a second"
    assert most_within(sent, MINUTE_MS) <= 15 + 1, "in any minute, but for a snapshot at its edge"
    assert all(later - sooner <= 8_110 for sooner, later in pairwise(sent))


def test_an_idle_hour_between_commits_costs_one_put_each() -> None:
    sent = put_times(urgent=False, for_ms=24 * HOUR_MS, commit_every_ms=HOUR_MS)
    assert len(sent) <= 24


@pytest.mark.parametrize("level", ["local", "replicated"])
async def test_a_scope_written_without_pause(tmp_path: Path, level: str) -> None:
    memory = MemoryStore()
    replica = ReplicaSettings(put_interval_ms=INTERVAL_MS)
    async with running(host_at(tmp_path / "a", memory, level=level, replica=replica)) as host:
        before, began = counts(host), monotonic()
        number = 0
        while monotonic() - began < REAL_S:
            number += 4
            await asyncio.gather(*(put(host, SMALL, f"e{number + i}") for i in range(4)))
        made = counts(host).since(before)
        elapsed_s = monotonic() - began
    # A snapshot and its deletions ride along now and then; they keep to the same pace.
    most = 10 * elapsed_s + 2 if level == "replicated" else 2
    assert made.put <= most and made.get == 0 and made.list <= 1
    assert number > made.put, "there was more than one commit to a batch"


async def test_waking_a_small_scope_is_one_listing_and_its_files(tmp_path: Path) -> None:
    memory = MemoryStore()
    host = host_at(tmp_path / "a", memory, bucket={"evict_s": 0.01})
    async with running(host):
        for number in range(3):
            await put(host, SMALL, f"e{number}", replicated=True)
        await closed(host, SMALL)
        assert host.waking is not None
        while not host.index.is_evicted(SMALL):
            await host.waking.evict()
        before = counts(host)
        assert await bodies(host, SMALL) == ["e0", "e1", "e2"]
        made = counts(host).since(before)
        assert (made.list, made.put, made.delete) == (1, 0, 0) and 1 <= made.get <= 3
        assert await bodies(host, SMALL) == ["e0", "e1", "e2"]
        assert counts(host).since(before) == made, "and nothing more"


async def test_opening_and_closing_what_is_on_the_disk_asks_for_nothing(tmp_path: Path) -> None:
    memory = MemoryStore()
    async with running(host_at(tmp_path / "a", memory)) as host:
        await put(host, SMALL, "a", replicated=True)
        await closed(host, SMALL)
        before = counts(host)
        for _ in range(3):
            assert await bodies(host, SMALL) == ["a"]
            await closed(host, SMALL)
        assert counts(host).since(before).requests == 0
        await put(host, SMALL, "b", replicated=True)
        assert counts(host).since(before).requests == 1, "its place in the bucket is remembered"


async def test_readers_of_unknown_scopes_ask_for_nothing(tmp_path: Path) -> None:
    # A deployment that began with its bucket knows what is in it.
    async with running(host_at(tmp_path / "a", MemoryStore())) as host:
        before = counts(host)
        assert await bodies(host, SMALL) == []
        assert counts(host).since(before).requests == 0
