"""Durability levels as clients meet them: stalls, levels of one request, changes, evictions, hosts
that take over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import actors.replication
import infra.requests
from actors.host import Host
from actors.types import Address
from edge.server import Server
from infra.errors import TryLater
from infra.paths import ledger_path
from infra.replicator import ReplicaSettings
from tests.support.app import PATIENCE_S, Client, Json, patch, running, url_of
from tests.support.faulty_store import Fault, FaultyStore
from tests.support.hosts import (
    A,
    aside_files,
    bodies,
    closed,
    codes,
    crash,
    host_at,
    put,
    restored,
    seqs,
    shipped,
)
from tests.support.hosts import running as host_running
from tests.support.ledgers import FakeTap, check_file
from tests.support.memory_store import MemoryStore
from tests.support.processes import MODE

pytestmark = pytest.mark.e2e

S = A.scope
JUMP = 2**32
IMPATIENT = ReplicaSettings(put_interval_ms=0, max_stall_ms=200)
TRIES = 2_000


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket is asked again at once."""
    monkeypatch.setattr(infra.requests, "RETRY_FIRST_MS", 2)
    monkeypatch.setattr(infra.requests, "RETRY_MAX_MS", 20)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FaultyStore:
    """The bucket of whatever server is started next. It is this process's memory, where its faults
    are armed, and no other process has it.
    """
    if MODE:
        pytest.skip("the bucket is the memory of this process")
    faulty = FaultyStore(MemoryStore())
    monkeypatch.setattr(actors.replication, "open_store", lambda _url: faulty)
    return faulty


@asynccontextmanager
async def server_of(tmp_path: Path, level: str, **config: Any) -> AsyncIterator[Server]:
    """A server with a bucket, at once and impatient."""
    settings: dict[str, Any] = {
        "bucket": "file:memory",
        "durability": level,
        "put_interval_ms": 0,
    } | config
    async with running(tmp_path / "data", max_stall_s=1.0, **settings) as server:
        yield server


def away(store: FaultyStore) -> None:
    """The bucket takes nothing from now on."""
    store.arm("put", *[Fault.BEFORE] * 100_000)


def back(store: FaultyStore) -> None:
    """It does again."""
    store._armed.clear()


async def post(server: Server, envelope: Json, **more: Any) -> tuple[int, Json]:
    """Status and answer of one envelope by HTTP."""
    body = {"scope": S, "envelope": envelope, **more}
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(url_of(server, "/api/sync/publish"), json=body) as answer,
    ):
        return answer.status, await answer.json()


async def until_taken(client: Client, envelope: Json) -> Json:
    """Publish as clients do; the result."""
    for _ in range(TRIES):
        (result,) = (await client.publish(S, envelope))["results"]
        if "seq" in result:
            found: Json = result
            return found
        assert result["code"] == "try_later", result
        await asyncio.sleep(0.005)
    raise AssertionError("never acknowledged")


# -- the bucket stalls -----------------------------------------------------------------------------


async def test_writers_are_told_to_try_later_and_readers_go_on(
    tmp_path: Path, store: FaultyStore
) -> None:
    async with (
        server_of(tmp_path, "replicated") as server,
        await Client.connect(server) as writer,
        await Client.connect(server) as reader,
    ):
        await writer.publish(S, patch(event="one", n=1))
        await reader.send({"type": "sub", "scope": S, "since": 0})
        assert await reader.seqs(1) == [1]
        away(store)
        waiting = [patch(event=f"w{number}", n=number) for number in range(3)]
        for envelope in waiting:
            (result,) = (await writer.publish(S, envelope))["results"]
            assert result["code"] == "try_later" and result["retryAfterMs"] > 0, result
        status, problem = await post(server, patch(event="http", n=9))
        assert (status, problem["code"], problem["retryable"]) == (503, "try_later", True)
        # Whoever reads sees what was acknowledged, and nothing else.
        async with await Client.connect(server) as late:
            await late.send({"type": "sub", "scope": S, "since": 0})
            assert await late.seqs(1) == [1]
            assert (await late.until("caughtUp"))["seq"] == 1
        back(store)
        for envelope in waiting:
            await until_taken(writer, envelope)
        results = (await writer.publish(S, *waiting))["results"]
        assert sorted(result["seq"] for result in results) == [2, 3, 4], "each was taken once"
        assert await reader.seqs(4) == [2, 3, 4]
    causes = restored(store._store, A, tmp_path / "x.db")[1].causes
    assert {"one", "w0", "w1", "w2"} <= set(causes)


async def test_local_writers_do_not_notice(tmp_path: Path, store: FaultyStore) -> None:
    async with server_of(tmp_path, "local") as server, await Client.connect(server) as client:
        away(store)
        for number in range(5):
            answer = await client.publish(S, patch(n=number))
            assert answer["results"] == [{"seq": number + 1}]
        back(store)


# -- a level of one request ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["frame", "http"])
async def test_one_request_may_ask_for_more(tmp_path: Path, store: FaultyStore, how: str) -> None:
    memory = store._store
    async with server_of(tmp_path, "local") as server, await Client.connect(server) as client:
        await client.publish(S, patch(event="local", n=0))
        if how == "http":
            status, found = await post(server, patch(event="raised", n=1), level="replicated")
            assert (status, found["seq"]) == (200, 2)
        else:
            frame = {"type": "publish", "id": 1, "scope": S, "level": "replicated", "durable": True}
            answer = await client.ask({**frame, "envelopes": [patch(event="raised", n=1)]})
            assert answer["results"] == [{"seq": 2}] and answer["durableSeq"] >= 2
        assert restored(memory, A, tmp_path / "x.db")[1].causes == {"local": 1, "raised": 2}


async def test_a_raised_request_waits_and_the_others_do_not(
    tmp_path: Path, store: FaultyStore
) -> None:
    async with (
        server_of(tmp_path, "local") as server,
        await Client.connect(server) as raised,
        await Client.connect(server) as local,
    ):
        away(store)
        frame = {"type": "publish", "id": 1, "scope": S, "level": "replicated"}
        await raised.send({**frame, "envelopes": [patch(event="raised", n=1)]})
        await local.publish(S, patch(event="local", n=2))
        answer = await raised.frame()
        assert answer["results"][0]["code"] == "try_later"
        # Its entry is there for readers of a local scope; only the promise was not given.
        await local.send({"type": "sub", "scope": S, "since": 0})
        assert sorted(await local.seqs(2)) == [1, 2]
        back(store)
        for _ in range(TRIES):
            answer = await raised.ask({**frame, "envelopes": [patch(event="raised", n=1)]})
            if "seq" in answer["results"][0]:
                break
        assert answer["results"][0]["seq"] in (1, 2)


async def test_without_a_bucket_nothing_can_be_raised(tmp_path: Path) -> None:
    async with running(tmp_path) as server, await Client.connect(server) as client:
        frame = {"type": "publish", "id": 1, "scope": S, "level": "replicated"}
        answer = await client.ask({**frame, "envelopes": [patch(n=1)]})
        assert answer["results"][0]["code"] == "no_bucket"
        assert "retryAfterMs" not in answer["results"][0], "a repeat would not help"
        status, problem = await post(server, patch(n=1), level="replicated")
        assert (status, problem["code"], problem["retryable"]) == (400, "no_bucket", False)
        assert (await client.publish(S, patch(n=1)))["results"] == [{"seq": 1}]


# -- levels change ---------------------------------------------------------------------------------


async def test_from_local_to_replicated_and_back(tmp_path: Path) -> None:
    memory = MemoryStore()
    epochs = set()
    for number, level in enumerate(("local", "replicated", "local", "replicated")):
        async with host_running(host_at(tmp_path / "a", memory, level=level)) as host:
            assert seqs(await put(host, A, f"e{number}")) == [number + 1]
            if level == "replicated":
                found = restored(memory, A, tmp_path / "x.db")[1]
                assert found.causes[f"e{number}"] == number + 1
                assert found.header["level"] == "replicated"
            epochs.add((await host.bounds(A)).epoch)
            await host.aclose()
    assert len(epochs) == 1
    found = restored(memory, A, tmp_path / "x.db")[1]
    assert found.causes == {f"e{number}": number + 1 for number in range(4)}


async def test_a_level_is_lowered_when_the_bucket_knows(tmp_path: Path) -> None:
    # A restore must never take local acknowledgements for a history that is whole.
    memory = MemoryStore()
    store = FaultyStore(memory)
    async with host_running(host_at(tmp_path / "a", memory, level="replicated")) as host:
        await put(host, A, "one")
        await host.aclose()
    async with host_running(host_at(tmp_path / "a", store, replica=IMPATIENT)) as host:
        store.arm("put", *[Fault.BEFORE] * 100_000)
        assert codes(await put(host, A, "two")) == ["try_later"]
        assert restored(memory, A, tmp_path / "x.db")[1].header["level"] == "replicated"
        store._armed.clear()
        for _ in range(TRIES):
            if codes(await put_or_wait(host, "two")) == ["ok"]:
                break
        assert restored(memory, A, tmp_path / "x.db")[1].header["level"] == "local"
        store.arm("put", *[Fault.BEFORE] * 100_000)
        assert seqs(await put(host, A, "three")) == [3], "from here on nobody waits"
        before = await host.bounds(A)
        store._armed.clear()
    # The disk is lost with `three`, so the history is cut, and says so.
    memory_only = host_at(tmp_path / "b", memory)
    async with host_running(memory_only) as host:
        after = await host.bounds(A)
        assert after.epoch != before.epoch and after.floor >= JUMP


async def put_or_wait(host: Host, event_id: str) -> list[Any]:
    """The outcomes, or none where the scope still says that it has stalled."""
    try:
        return list(await put(host, A, event_id))
    except TryLater:
        await asyncio.sleep(0.002)
        return []


async def test_a_replicated_scope_keeps_its_epoch_on_an_empty_disk(tmp_path: Path) -> None:
    memory = MemoryStore()
    async with host_running(host_at(tmp_path / "a", memory, level="replicated")) as host:
        await put(host, A, "one", "two")
        before = await host.bounds(A)
    async with host_running(host_at(tmp_path / "b", memory, level="replicated")) as host:
        assert await host.bounds(A) == before
        assert seqs(await put(host, A, "two", "three")) == [2, 3]


# -- eviction --------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["local", "replicated"])
async def test_an_evicted_scope_wakes_as_it_was(tmp_path: Path, level: str) -> None:
    memory = MemoryStore()
    host = host_at(tmp_path / "a", memory, level=level, bucket={"evict_s": 0.01})
    async with host_running(host):
        path = ledger_path(host.directory, *A)
        await put(host, A, "one")
        before = await host.bounds(A)
        for number, event_id in enumerate(("two", "three"), start=2):
            await shipped(host, A)
            await closed(host, A)
            assert host.waking is not None
            for _ in range(TRIES):
                if host.index.is_evicted(A):
                    break
                await host.waking.evict()
                await asyncio.sleep(0.001)
            assert not path.exists()
            assert seqs(await put(host, A, event_id)) == [number]
            assert (await host.bounds(A)).epoch == before.epoch
        assert await bodies(host, A) == ["one", "two", "three"]
        await host.aclose()
    check_file(path)


async def test_a_local_scope_that_is_not_shipped_is_not_evicted(tmp_path: Path) -> None:
    memory = MemoryStore()
    store = FaultyStore(memory)
    host = host_at(tmp_path / "a", store, bucket={"evict_s": 0.01}, drain_s=0.1)
    async with host_running(host):
        store.arm("put", *[Fault.BEFORE] * 100_000)
        await put(host, A, "one")
        await host.aclose()
    async with host_running(host_at(tmp_path / "a", store, bucket={"evict_s": 0.01})) as host:
        assert host.waking is not None
        for _ in range(10):
            await host.waking.evict()
        assert ledger_path(host.directory, *A).exists()
        assert await bodies(host, A) == ["one"]


# -- two hosts -------------------------------------------------------------------------------------


async def test_followers_get_what_another_host_wrote(tmp_path: Path) -> None:
    # Replicated, and yet placed on one host at a time: the first was thought dead.
    memory = MemoryStore()
    async with (
        host_running(host_at(tmp_path / "a", memory, level="replicated")) as first,
        host_running(host_at(tmp_path / "b", memory, level="replicated")) as second,
    ):
        await put(first, A, "one")
        tap = FakeTap()
        await first.subscribe(A, tap)
        await put(second, A, "two", "three")
        assert codes(await put(first, A, "four")) == ["fenced"]
        for _ in range(TRIES):
            if tap.moves:
                break
            await asyncio.sleep(0.001)
        (moved,) = tap.moves
        assert moved.head == 3 and tap.resets == []
        assert await bodies(first, A, after=1) == ["two", "three"]
        assert seqs(await put(first, A, "four")) == [4]
        assert tap.seqs == [4]
        assert restored(memory, A, tmp_path / "x.db")[1].causes == {
            "one": 1, "two": 2, "three": 3, "four": 4,
        }  # fmt: skip


async def test_a_local_scope_that_another_host_took(tmp_path: Path) -> None:
    memory = MemoryStore()
    async with (
        host_running(host_at(tmp_path / "a", memory)) as first,
        host_running(host_at(tmp_path / "b", memory)) as second,
    ):
        await put(first, A, "one", replicated=True)
        await put(first, A, "only here")
        tap = FakeTap()
        before = await first.subscribe(A, tap)
        await put(second, A, "two", replicated=True)
        assert codes(await put(first, A, "three", replicated=True)) == ["fenced"]
        for _ in range(TRIES):
            if tap.resets:
                break
            await asyncio.sleep(0.001)
        (after,) = tap.resets
        assert after.epoch != before.epoch and after.floor > JUMP
        found = await bodies(first, A, after=after.floor)
        assert found == ["one", "two"]
        # What was acknowledged on this disk alone is kept for an operator, not thrown away.
        (aside,) = aside_files(first.directory, A)
        assert set(check_file(aside).causes) >= {"one", "only here"}
        assert min(seqs(await put(first, A, "only here", replicated=True))) > after.head


async def test_sockets_follow_a_scope_across_hosts(tmp_path: Path, store: FaultyStore) -> None:
    memory = store._store
    async with (
        server_of(tmp_path, "replicated") as server,
        await Client.connect(server) as reader,
        await Client.connect(server) as writer,
    ):
        await writer.publish(S, patch(event="one", n=1))
        await reader.send({"type": "sub", "scope": S, "since": 0})
        assert await reader.seqs(1) == [1]
        async with host_running(host_at(tmp_path / "b", memory, level="replicated")) as other:
            await put(other, A, "two", "three")
        result: Json = {}
        for _ in range(TRIES):
            (result,) = (await writer.publish(S, patch(event="four", n=4)))["results"]
            if "seq" in result:
                break
            assert result["code"] in ("fenced", "try_later", "unavailable"), result
        assert result["seq"] == 4
        assert await reader.seqs(4) == [2, 3, 4]


# -- a crash in between ----------------------------------------------------------------------------


async def test_durable_positions_are_never_promised_early(tmp_path: Path) -> None:
    memory = MemoryStore()
    store = FaultyStore(memory)
    async with host_running(host_at(tmp_path / "a", store)) as host:
        tap = FakeTap()
        await put(host, A, "one", replicated=True)
        assert (await host.subscribe(A, tap)).durable == 1
        store.arm("put", Fault.STALL)
        await put(host, A, "two")
        host.replicas[host.open_scopes[A]].hurry()
        await asyncio.to_thread(store.wait_stalled)
        assert (await host.bounds(A)).durable == 1
        await crash(host, tmp_path / "b")
    store.release()
    again = FaultyStore(memory)
    again.arm("list", *[Fault.BEFORE] * 20)
    address: Address = A
    async with host_running(host_at(tmp_path / "b", again)) as host:
        bounds = await host.bounds(address)
        assert (bounds.head, bounds.durable) == (2, 0), "unknown is not durable"
        await put(host, address, "two", replicated=True)
        assert (await host.bounds(address)).durable == 2
