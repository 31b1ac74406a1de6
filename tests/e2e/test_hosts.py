"""Three hosts on one bucket: one is killed, paused or drained under load. Nothing acknowledged is
lost, followers see no gap and no repeat, and one owner commits at a time.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from tests.support.host_processes import TTL_S, Cluster, Reader, Writer, check
from tests.support.process import run_cli

pytestmark = pytest.mark.e2e

NAMES = "abcdef"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("hosts"), "a", "b", "c") as cluster:
        yield cluster


@pytest.fixture
async def cluster(started: Cluster) -> Cluster:
    """All three hosts, those started again that a test before has ended."""
    for host in started.hosts.values():
        if not host.alive:
            host.start()
    await started.settled()
    return started


@asynccontextmanager
async def under_load(
    cluster: Cluster, scopes: Sequence[str], *, pace_s: float = 0.01
) -> AsyncIterator[tuple[list[Writer], list[Reader]]]:
    """A writer and two readers for each scope, at different hosts. Checked at the end."""
    urls = [host.url for host in cluster.hosts.values()]

    def from_host(at: int) -> list[str]:
        return urls[at % len(urls) :] + urls[: at % len(urls)]

    writers = [Writer(from_host(at), scope, pace_s) for at, scope in enumerate(scopes)]
    readers = [
        Reader(from_host(at + more), scope) for at, scope in enumerate(scopes) for more in (0, 1)
    ]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one.run()) for one in (*writers, *readers)]
        try:
            async with asyncio.TaskGroup() as begun:
                for writer in writers:
                    begun.create_task(writer.until(5))
            yield writers, readers
            for writer in writers:
                await writer.stop()
            for reader in readers:
                writer = next(one for one in writers if one.scope == reader.scope)
                await reader.until(max(writer.acked.values()))
        finally:
            for task in tasks:
                task.cancel()
    check(cluster, writers, readers)


def scopes_of(test: str) -> list[str]:
    return [f"run:{test}-{name}" for name in NAMES]


async def all_go_on(writers: Sequence[Writer], count: int = 10) -> None:
    async with asyncio.TaskGroup() as group:
        for writer in writers:
            group.create_task(writer.more(count))


async def test_a_host_is_killed_under_load(cluster: Cluster) -> None:
    async with under_load(cluster, scopes_of("killed")) as (writers, _):
        cluster.hosts["b"].stop(signal.SIGKILL)
        await cluster.until("a", lambda found: set(found) == {"a", "c"})
        await all_go_on(writers)


async def test_a_host_is_paused_beyond_its_time_and_resumed(cluster: Cluster) -> None:
    scopes = scopes_of("paused")
    async with under_load(cluster, scopes) as (writers, _):
        os.kill(cluster.hosts["b"].pid, signal.SIGSTOP)
        try:
            await cluster.until("a", lambda found: set(found) == {"a", "c"})
            # Those that are not connected to the paused host go on without it.
            await all_go_on([writer for at, writer in enumerate(writers) if at % 3 != 1])
        finally:
            os.kill(cluster.hosts["b"].pid, signal.SIGCONT)
        await cluster.settled()
        await all_go_on(writers)
    assert "silent too long" in cluster.log("b")
    assert sum(one_owner_at_a_time(cluster, scope) for scope in scopes) > len(scopes)


def one_owner_at_a_time(cluster: Cluster, scope: str) -> int:
    """Each owner's batches end before the next one's begin, in one epoch; how many there were."""
    owners = cluster.owners(scope)
    numbers = [owner for owner, _ in owners]
    firsts = [txid for _, txid in owners]
    assert numbers == sorted(set(numbers)), (scope, owners)
    assert firsts == sorted(set(firsts)), (scope, owners)
    assert cluster.restored(scope).header["jump"] == 0, "no history was cut"
    return len(owners)


async def test_a_host_is_drained_under_load_and_nobody_is_disconnected(cluster: Cluster) -> None:
    async with under_load(cluster, scopes_of("drained")) as (writers, readers):
        drain = ("hosts", "drain", "b", "--wait", "--url", cluster.url("a"))
        drained = await asyncio.to_thread(run_cli, *drain)
        assert (drained.returncode, drained.stdout) == (0, b"b: draining, 0 scopes open\n")
        await all_go_on(writers)
        assert not any(client.disconnects for client in (*writers, *readers))
        assert not any(writer.refused for writer in writers)
        listed = await asyncio.to_thread(run_cli, "hosts", "ls", "--url", cluster.url("c"))
        assert b"draining" in listed.stdout
        assert await asyncio.to_thread(cluster.hosts["b"].stop) == 0
        await all_go_on(writers)


async def test_any_host_tells_which_scopes_are_awake_on_all(cluster: Cluster) -> None:
    scopes = scopes_of("awake")
    async with under_load(cluster, scopes) as (writers, _readers):
        await all_go_on(writers)
    tell = ("actors", "ls", "--prefix", scopes[0][:-1], "--json", "--url", cluster.url("a"))
    told = json.loads((await asyncio.to_thread(run_cli, *tell)).stdout)
    assert [one["scope"] for one in told["scopes"]] == sorted(scopes)
    owners = {one["scope"]: one["process"] for one in told["scopes"]}
    assert len(set(owners.values())) > 1, "more than one host has them"
    away = next(scope for scope in scopes if owners[scope] != "a")
    asleep = await asyncio.to_thread(
        run_cli, "actors", "sleep", away, "--json", "--url", cluster.url("a")
    )
    found = json.loads(asleep.stdout)
    assert (found["state"], found["process"]) == ("asleep", owners[away])


@pytest.mark.soak
async def test_whatever_happens_to_hosts_at_random(cluster: Cluster) -> None:
    seed = int(os.environ.get("HOLDFAST_SEED", "7"))
    draw = random.Random(seed)
    end = time.monotonic() + float(os.environ.get("HOLDFAST_TEST_SOAK_S", "120"))
    done: list[str] = []
    async with under_load(cluster, scopes_of(f"soak{seed}")) as (writers, _):
        while time.monotonic() < end:
            name, what = draw.choice("abc"), draw.choice(["kill", "pause", "drain", "stop"])
            done.append(f"{what} {name}")
            host = cluster.hosts[name]
            if what == "pause":
                os.kill(host.pid, signal.SIGSTOP)
                await asyncio.sleep(draw.uniform(0.5, 2.5 * TTL_S))
                os.kill(host.pid, signal.SIGCONT)
            elif what == "kill":
                host.stop(signal.SIGKILL)
                await asyncio.sleep(draw.uniform(0, 2 * TTL_S))
            elif what == "stop":
                await asyncio.to_thread(host.stop)
            else:
                await cluster.get(name, f"/v1/hosts/{name}/drain", "POST")
                await asyncio.sleep(draw.uniform(0, 2))
                await asyncio.to_thread(host.stop)
            if not host.alive:
                await asyncio.to_thread(host.start)
            if draw.random() < 0.7:
                await cluster.settled()
                await all_go_on(writers, 3)
        await cluster.settled()
        await all_go_on(writers)
    print(f"seed {seed}: {len(done)} events, {sum(len(w.acked) for w in writers)} acknowledged")


async def test_scopes_are_forked_exported_and_imported_at_any_host(cluster: Cluster) -> None:
    text = "x" * 50_000
    async with ClientSession() as session:

        async def asked(host: str, method: str, path: str, **options: Any) -> tuple[int, bytes]:
            url = f"{cluster.url(host)}/v1/scopes/default/{path}"
            async with session.request(method, url, **options) as answer:
                return answer.status, await answer.read()

        source = cluster.hosts["a"]
        for number in range(8):
            source.publish("run:first", f"message:m{number}", {"text": text, "n": number})
        first = json.loads((await asked("b", "GET", "run:first"))[1])
        made = []
        for host in cluster.hosts:
            for number in range(3):  # some are its own, some another's
                name = f"run:fork-{host}{number}"
                body = {"from": "run:first"} | ({"at": "seq:3"} if number == 2 else {})
                status, told = await asked(host, "POST", f"{name}/fork", json=body)
                assert status == 201, told
                made.append((name, 3 if number == 2 else 8))
            status, data = await asked(host, "GET", "run:first/export?format=ndjson")
            assert status == 200 and len(data) > 8 * len(text)
            for number in range(3):
                name = f"run:import-{host}{number}"
                status, told = await asked(host, "POST", f"{name}/import", data=data)
                assert status == 201, told
                made.append((name, 8))
                status, told = await asked(host, "POST", f"{name}/import", data=data)
                assert (status, json.loads(told)["code"]) == (409, "conflict")
        for name, head in made:
            for host in cluster.hosts:
                status, told = await asked(host, "GET", name)
                shown = json.loads(told)
                assert (status, shown["head"]) == (200, head), (name, shown)
                assert shown["epoch"] != first["epoch"]
            assert source.publish(name, "message:new", {"n": 1}) == head + 1
            assert len(cluster.restored(name).rows) == head + 1, "the bucket has it"


async def test_a_proxy_is_told_which_host_has_a_room(tmp_path: Path) -> None:
    with Cluster(tmp_path, "a", "b", instances=True) as two:
        await two.settled()
        seen = set()
        async with ClientSession() as session:
            for number in range(12):
                for name, other in (("a", "b"), ("b", "a")):
                    url = f"{two.url(name)}/api/sync/events?scope=run:{number}"
                    async with session.get(url) as answer:
                        replayed = answer.headers.get("fly-replay", "")
                    assert replayed.partition(";")[0] in ("", f"instance=machine-{other}")
                    seen.add((name, number, bool(replayed)))
        # Of each scope one host sends requests away, and the other serves them; both have some.
        assert len({(number, replayed) for _, number, replayed in seen}) == 24
        assert {(name, replayed) for name, _, replayed in seen} == {
            (name, replayed) for name in "ab" for replayed in (False, True)
        }
