"""Who may write on: sleepers, silent claims, late requests, and clients that ask in between.

Each test is one order of events that once lost an acknowledged write, or showed what was not safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import infra.replica_files
import infra.requests
from actors.host import Host
from actors.replication import Replication
from actors.types import Address, Appended, Duplicate
from infra import clock
from infra.errors import HoldfastError, TryLater
from infra.replicator import ReplicaSettings
from tests.support.faulty_store import Fault, Faults, FaultyStore
from tests.support.hosts import (
    A,
    abandon,
    aside_files,
    bodies,
    codes,
    crash,
    host_at,
    put,
    restored,
    running,
    seqs,
    shipped,
)
from tests.support.ledgers import NOW, FakeTap
from tests.support.memory_store import MemoryStore

HISTORY_MS = 1_000
MAX_STALL_MS = 300
REPLICA = ReplicaSettings(put_interval_ms=0, history_ms=HISTORY_MS, max_stall_ms=MAX_STALL_MS)
PATIENT = ReplicaSettings(put_interval_ms=0, history_ms=HISTORY_MS, max_stall_ms=20_000)
TRIES = 400


class Clock:
    """Runs on by itself, and jumps when told."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        self.now += 1
        return self.now


class Bucket:
    """One bucket, the hosts over it, and what they acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.memory = MemoryStore()
        self.clock = Clock()
        self.acked: dict[str, int] = {}
        self._hosts: list[Host] = []

    async def host(
        self, name: str, *, shared: bool = True, level: str = "replicated", patient: bool = True
    ) -> tuple[Host, FaultyStore]:
        """A process life on the disk of that name. An impatient one has a real clock."""
        store = FaultyStore(self.memory)
        host = host_at(
            self.folder / name, store, shared=shared, level=level,
            now_ms=self.clock if patient else clock.now_ms,
            replica=PATIENT if patient else REPLICA,
        )  # fmt: skip
        await host.start()
        self._hosts.append(host)
        return host, store

    async def put(self, host: Host, *event_ids: str) -> list[str]:
        """Publish once; the codes."""
        try:
            outcomes = await put(host, A, *event_ids)
        except HoldfastError as error:
            return [error.code] * len(event_ids)
        for event_id, outcome in zip(event_ids, outcomes, strict=True):
            if isinstance(outcome, Appended | Duplicate):
                self.acked[event_id] = seqs([outcome])[0]
        return codes(outcomes)

    async def insist(self, host: Host, *event_ids: str) -> None:
        """Publish until it is acknowledged, as clients do."""
        for _ in range(TRIES):
            if set(await self.put(host, *event_ids)) == {"ok"}:
                return
            await asyncio.sleep(0.002)
        raise AssertionError(f"never taken: {event_ids}")

    async def outlast_retention(self, host: Host, name: str) -> None:
        """Write so much, for so long, that ordinary level 0 files of before are deleted."""
        for number in range(30):
            self.clock.now += HISTORY_MS // 5
            await self.insist(host, f"{name}{number}")
        await shipped(host, A)
        assert len([key for key in self.memory.objects if "/0000/" in key]) < 30

    def missing(self) -> set[str]:
        _, checked = restored(self.memory, A, self.folder / "restored.db")
        return {i for i, seq in self.acked.items() if checked.causes.get(i) != seq}

    async def aclose(self) -> None:
        for host in self._hosts:
            if host._started:
                await abandon(host)


@pytest.fixture
async def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    monkeypatch.setattr(infra.replica_files, "SNAPSHOT_FILES", 4)
    monkeypatch.setattr(infra.requests, "RETRY_FIRST_MS", 2)
    monkeypatch.setattr(infra.requests, "RETRY_MAX_MS", 20)
    made = Bucket(tmp_path)
    yield made
    await made.aclose()


# -- sleepers and retention ------------------------------------------------------------------------


async def test_a_sleeper_whose_successor_restored_within_its_own_life(bucket: Bucket) -> None:
    # B claims and sleeps before its first write. A is fenced, restores and goes on: the same
    # process, but an owner anew, so its first file must outlast B's sleep.
    a, _ = await bucket.host("a")
    b, _ = await bucket.host("b")
    await bucket.insist(a, "a")
    assert await bodies(b, A) == ["a"]
    await bucket.insist(a, "again")
    await bucket.outlast_retention(a, "a")
    await bucket.put(b, "b")
    assert bucket.missing() == set()


async def test_a_sleeper_whose_successor_wrote_nothing(bucket: Bucket) -> None:
    # A sleeps; B claims A's next slot and writes nothing; C goes on from there.
    a, _ = await bucket.host("a")
    b, _ = await bucket.host("b")
    c, _ = await bucket.host("c")
    await bucket.insist(a, "a")
    assert await bodies(b, A) == ["a"]
    await bucket.insist(c, "c")
    await bucket.outlast_retention(c, "c")
    await bucket.put(a, "late")
    assert bucket.missing() == set()


async def test_several_silent_owners_in_a_row(bucket: Bucket) -> None:
    hosts = [(await bucket.host(f"h{number}"))[0] for number in range(4)]
    await bucket.insist(hosts[0], "a")
    for host in hosts[1:3]:
        assert await bodies(host, A) == ["a"]
    await bucket.insist(hosts[3], "c")
    await bucket.outlast_retention(hosts[3], "c")
    for number, host in enumerate(hosts[:3]):
        await bucket.put(host, f"late{number}")
    assert bucket.missing() == set()


async def test_a_sleep_between_restore_and_claim(bucket: Bucket) -> None:
    # B has restored A's state; its claim waits in the network until its slot, an ordinary file of
    # A's meanwhile, has been deleted again.
    a, _ = await bucket.host("a")
    b, store = await bucket.host("b")
    await bucket.insist(a, "a", "b")
    store.arm("put", Fault.STALL)
    sleeper = asyncio.ensure_future(bucket.put(b, "late"))
    await asyncio.to_thread(store.wait_stalled)
    await bucket.outlast_retention(a, "a")
    store.release()
    await sleeper
    assert bucket.missing() == set()
    await bucket.insist(b, "late")
    assert bucket.missing() == set()


async def test_without_conditions_the_sleeper_would_win(bucket: Bucket) -> None:
    # The control of this file: it can see a loss.
    a, first = await bucket.host("a")
    b, second = await bucket.host("b")
    first.faults = second.faults = Faults(plain_put=True)
    await bucket.insist(a, "a")
    await bucket.insist(b, "b")
    assert await bucket.put(a, "lost") == ["ok"]
    assert bucket.missing() != set()


# -- late requests of one's own earlier life -------------------------------------------------------


@pytest.mark.parametrize("level", ["local", "replicated"])
async def test_a_request_of_an_earlier_life_lands_after_the_listing(
    bucket: Bucket, level: str
) -> None:
    host, store = await bucket.host("a", shared=False, level=level)
    await bucket.insist(host, "one")
    await shipped(host, A)
    store.arm("put", Fault.LATE, *[Fault.BEFORE] * 1000)
    unheard = asyncio.ensure_future(bucket.put(host, "two"))
    while not store.counts["put.late"]:
        await asyncio.sleep(0)
        if level == "local":  # nobody waits for the bucket
            host.replicas[host.open_scopes[A]].hurry()
    await crash(host, bucket.folder / "b")
    unheard.cancel()
    host, later = await bucket.host("b", shared=False, level=level)
    later.arm("put", Fault.STALL)  # it has looked, and is about to take the slot
    task = asyncio.ensure_future(bucket.insist(host, "three"))
    while A not in host.open_scopes:
        await asyncio.sleep(0)
    host.replicas[host.open_scopes[A]].hurry()
    await asyncio.to_thread(later.wait_stalled)
    store._armed.clear()
    assert store.land() == 1
    later.release()
    await task
    assert await bodies(host, A) == ["one", "two", "three"]
    await shipped(host, A)
    assert set(bucket.acked) <= {"one", "two", "three"} and bucket.missing() == set()
    assert aside_files(host.directory, A) == []


async def test_the_same_when_that_life_was_killed_too(bucket: Bucket) -> None:
    # The second life has named the slot its own, and dies before it knows better.
    host, store = await bucket.host("a", shared=False, level="local")
    await bucket.insist(host, "one")
    await shipped(host, A)
    store.arm("put", Fault.LATE, *[Fault.BEFORE] * 1000)
    await bucket.insist(host, "two")
    host.replicas[host.open_scopes[A]].hurry()
    while not store.counts["put.late"]:
        await asyncio.sleep(0)
    await crash(host, bucket.folder / "b")
    host, later = await bucket.host("b", shared=False, level="local")
    later.arm("put", Fault.STALL)
    await bucket.insist(host, "three")
    host.replicas[host.open_scopes[A]].hurry()
    await asyncio.to_thread(later.wait_stalled)
    await crash(host, bucket.folder / "c")
    store._armed.clear()
    assert store.land() == 1
    later.release()
    host, _ = await bucket.host("c", shared=False, level="local")
    await bucket.insist(host, "four")
    await shipped(host, A)
    assert await bodies(host, A) == ["one", "two", "three", "four"]
    assert bucket.missing() == set() and aside_files(host.directory, A) == []


# -- what is shown before it is safe ---------------------------------------------------------------


async def crashed_with_unshipped(bucket: Bucket, *, shared: bool) -> None:
    """Disk `b` holds entry `two` that the bucket never got; its client heard nothing."""
    host, store = await bucket.host("a", shared=shared)
    await bucket.insist(host, "one")
    store.arm("put", Fault.BEFORE, *[Fault.BEFORE] * 1000)
    task = asyncio.ensure_future(bucket.put(host, "two"))
    while not store.counts["put.before"]:
        await asyncio.sleep(0)
    await crash(host, bucket.folder / "b")
    task.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
async def test_a_repeat_is_not_answered_from_the_disk_alone(bucket: Bucket, shared: bool) -> None:
    await crashed_with_unshipped(bucket, shared=shared)
    host, store = await bucket.host("b", shared=shared, patient=False)
    store.arm("put", *[Fault.BEFORE] * 1000)
    assert await bucket.put(host, "two") == ["try_later"]
    store._armed.clear()
    await bucket.insist(host, "two")
    assert bucket.acked["two"] == 2 and bucket.missing() == set()


async def test_a_raised_repeat_neither(bucket: Bucket) -> None:
    await crashed_with_unshipped(bucket, shared=False)
    host, store = await bucket.host("b", shared=False, level="local", patient=False)
    store.arm("put", *[Fault.BEFORE] * 1000)
    outcomes = await put(host, A, "two", replicated=True)
    assert codes(outcomes) == ["try_later"]


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
async def test_a_reader_is_not_shown_what_the_bucket_may_lack(bucket: Bucket, shared: bool) -> None:
    await crashed_with_unshipped(bucket, shared=shared)
    host, store = await bucket.host("b", shared=shared, patient=False)
    store.arm("put", *[Fault.BEFORE] * 1000)
    with pytest.raises(TryLater):
        await bodies(host, A)
    store._armed.clear()
    assert await _bodies_at_last(host) == ["one", "two"]


async def _bodies_at_last(host: Host) -> list[str]:
    for _ in range(TRIES):
        try:
            return await bodies(host, A)
        except TryLater:
            continue
    raise AssertionError("the bucket is back, and nobody may read")


# -- claims, and clients that do not wait ----------------------------------------------------------


async def test_writes_that_come_during_the_claim(bucket: Bucket) -> None:
    a, _ = await bucket.host("a")
    await bucket.insist(a, "a")
    await a.aclose()
    b, store = await bucket.host("b")
    store.arm("put", Fault.STALL)  # the claim
    tasks = [asyncio.ensure_future(bucket.put(b, "b1"))]
    await asyncio.to_thread(store.wait_stalled)
    tasks.append(asyncio.ensure_future(bucket.put(b, "b2")))
    reader = asyncio.ensure_future(bodies(b, A))
    store.release()
    assert [await task for task in tasks] == [["ok"], ["ok"]]
    assert (await reader)[0] == "a"
    assert bucket.missing() == set() and aside_files(b.directory, A) == []


@pytest.mark.slow
async def test_a_claim_that_is_not_answered_holds_up_nobody_for_long(bucket: Bucket) -> None:
    addresses = [Address("default", f"run:{number}") for number in range(12)]
    a, _ = await bucket.host("a")
    for address in addresses:
        await put(a, address, "a")
    await a.aclose()
    b, store = await bucket.host("b", patient=False)
    store.faults = Faults(before=0.0)
    store.arm("put", *[Fault.BEFORE] * 10_000)
    readers = [asyncio.ensure_future(bodies(b, address)) for address in addresses]
    await asyncio.wait(readers)
    assert {type(reader.exception()) for reader in readers} == {TryLater}
    store._armed.clear()
    for address in addresses:
        while True:
            try:
                assert await bodies(b, address) == ["a"]
                break
            except TryLater:
                continue


async def test_nobody_opens_a_file_that_is_being_put_aside(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A `local` scope goes on taking writes; those after the fence must reach the new history.
    a, _ = await bucket.host("a", shared=False, level="local")
    b, _ = await bucket.host("b", shared=False, level="local")
    for host, event_id in ((a, "a"), (b, "b")):
        await put(host, A, event_id, replicated=True)
    reached = asyncio.Event()
    going = asyncio.Event()
    loop = asyncio.get_running_loop()
    real = Replication.set_aside

    def slow(self: Replication, path: Path) -> Path | None:
        loop.call_soon_threadsafe(reached.set)
        asyncio.run_coroutine_threadsafe(going.wait(), loop).result(20)
        return real(self, path)

    monkeypatch.setattr(Replication, "set_aside", slow)
    tap = FakeTap()
    await a.subscribe(A, tap)
    fenced = asyncio.ensure_future(put(a, A, "fenced", replicated=True))
    await reached.wait()
    after = asyncio.ensure_future(put(a, A, "after"))
    reader = asyncio.ensure_future(a.bounds(A))
    await asyncio.sleep(0)
    going.set()
    assert codes(await fenced) == ["fenced"]
    assert codes(await after) == ["ok"]
    assert (await reader).epoch == (await a.bounds(A)).epoch
    await shipped(a, A)
    found = restored(bucket.memory, A, bucket.folder / "restored.db")[1].causes
    assert {"a", "b", "after"} <= set(found) and len(a.replicas) == 1
    assert tap.resets, "its followers are told of the new epoch"


async def test_the_host_that_is_fenced_can_be_asked_at_once(bucket: Bucket) -> None:
    # The barrier may be about to sync a log that went with the fenced file.
    a, _ = await bucket.host("a")
    b, _ = await bucket.host("b")
    for number in range(12):
        await bucket.insist((a, b)[number % 2], f"e{number}")
        for host in (a, b):
            assert host.failures == {}
    assert bucket.missing() == set()


async def test_a_follower_of_a_fenced_scope_is_brought_on(bucket: Bucket) -> None:
    a, store = await bucket.host("a")
    b, _ = await bucket.host("b")
    await bucket.insist(a, "a")
    tap = FakeTap()
    await a.subscribe(A, tap)
    await bucket.insist(b, "b")
    store.arm("list", Fault.BEFORE, Fault.BEFORE)  # the first attempts at restoring fail
    assert await bucket.put(a, "c") == ["fenced"]
    for _ in range(TRIES):
        if tap.moves:
            break
        await asyncio.sleep(0.005)
    assert [bounds.head for bounds in tap.moves] == [2] and tap.resets == []
    await bucket.insist(a, "c")
    assert tap.seqs[-1] == 3


async def test_hosts_can_be_run_side_by_side(tmp_path: Path) -> None:
    memory = MemoryStore()
    async with (
        running(host_at(tmp_path / "a", memory, shared=True)) as a,
        running(host_at(tmp_path / "b", memory, shared=True)) as b,
    ):
        assert codes(await put(a, A, "a")) == ["ok"]
        assert await bodies(b, A) == ["a"]
