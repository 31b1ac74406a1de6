"""Three hosts under load while machines and the network between them break.

In all of it: no acknowledged write is lost, no follower sees a gap or a repeat, and the batches of
each owner in the bucket are one writer's and end before the next owner's begin. What each test says
besides is what clients notice. Placement is by NATS (a cluster of three) unless a test says `s3`.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from infra.clock import monotonic
from infra.errors import HoldfastError
from infra.objects import open_store
from tests.support.deployment import (
    NAMES,
    TTL_S,
    Deployment,
    nodes_of,
    scopes_of,
    under_load,
)
from tests.support.load import judged, load_on
from tests.support.namespaces import Network
from tests.support.nats import NatsCluster
from tests.support.process import run_cli
from tests.support.serve_faulty import Trouble, environment

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("s3_credentials")]
soak = pytest.mark.soak

WRITES = 10  # acknowledged in each scope after each step
PAUSE_S = 20
OTHERS = ("a", "b")
FAULTS_IN_A_ROW = 20
CARELESS = [sys.executable, "-m", "tests.support.serve_faulty", "serve"]


@pytest.mark.parametrize("engine", ["nats", pytest.param("s3", marks=soak)])
@pytest.mark.parametrize("victim", ["c", pytest.param("a", marks=soak)])
async def test_a_host_loses_power_and_comes_back(
    network: Network, tmp_path: Path, engine: str, victim: str
) -> None:
    others = [name for name in NAMES if name != victim]
    with Deployment(network, tmp_path, engine) as deployment:
        async with under_load(deployment, tmp_path) as load:
            deployment.power_off(victim)
            await load.more(WRITES)  # in its scopes too: others have taken them
            await deployment.until_sees(others, others)
            await deployment.power_on(victim)
            await deployment.settled()
            await load.more(WRITES)


@soak
@pytest.mark.parametrize("engine", ["nats", "s3"])
@pytest.mark.parametrize("victim", ["c", "a"])
async def test_a_host_is_paused_for_long_and_resumed(
    network: Network, tmp_path: Path, engine: str, victim: str
) -> None:
    with Deployment(network, tmp_path, engine) as deployment:
        async with under_load(deployment, tmp_path) as load:
            deployment.nodes[victim].pause()
            resumes_at = monotonic() + PAUSE_S
            await load.more(WRITES)
            await asyncio.sleep(resumes_at - monotonic())
            deployment.nodes[victim].resume()
            # Until its record is renewed, some hundredths of a second, it takes itself for up to
            # date: who comes to it then, knowing more, may be sent to the view of the scope.
            print(f"newcomers: {dict(await load.newcomers(deployment.url(victim), TTL_S))}")
            await deployment.settled()
            await load.more(WRITES)
            told = await load.newcomers(deployment.url(victim), 1)
            assert told["subscribed"] and set(told) == {"subscribed"}, told


@soak
@pytest.mark.parametrize("ways", ["both", "there", "back"])
async def test_a_host_is_cut_off_from_nats(network: Network, tmp_path: Path, ways: str) -> None:
    with Deployment(network, tmp_path, "nats") as deployment:
        async with under_load(deployment, tmp_path) as load:
            for server in nodes_of(deployment):
                if ways != "back":
                    network.cut_one_way(deployment.nodes["c"], server)
                if ways != "there":
                    network.cut_one_way(server, deployment.nodes["c"])
            await deployment.until_sees(OTHERS, OTHERS)
            await load.more(WRITES)
            network.heal()
            await deployment.settled()
            await load.more(WRITES)
        assert load.closes == []


@soak
@pytest.mark.parametrize("ways", ["both", "there", "back"])
async def test_a_host_is_cut_off_from_the_bucket(
    network: Network, tmp_path: Path, ways: str
) -> None:
    scopes = scopes_of()
    with Deployment(network, tmp_path, "nats") as deployment:
        async with under_load(deployment, tmp_path) as load:
            if ways != "back":
                network.cut_one_way(deployment.nodes["c"], deployment.s3_node)
            if ways != "there":
                network.cut_one_way(deployment.s3_node, deployment.nodes["c"])
            # Those of the others do not notice.
            await load.more(WRITES, scopes["a"] + scopes["b"])
            await asyncio.sleep(2 * TTL_S)
            network.heal()
            await load.more(WRITES)
        assert load.closes == []


@soak
@pytest.mark.parametrize("ways", ["both", "there", "back"])
async def test_two_hosts_are_cut_off_from_each_other(
    network: Network, tmp_path: Path, ways: str
) -> None:
    scopes = scopes_of()
    with Deployment(network, tmp_path, "nats") as deployment:
        async with under_load(deployment, tmp_path) as load:
            a, c = deployment.nodes["a"], deployment.nodes["c"]
            if ways != "back":
                network.cut_one_way(a, c)
            if ways != "there":
                network.cut_one_way(c, a)
            await load.more(WRITES, scopes["a"] + scopes["b"])
            await asyncio.sleep(2 * TTL_S)
            network.heal()
            await load.more(WRITES)
        assert load.closes == []


@soak
async def test_the_leader_of_nats_is_killed(network: Network, tmp_path: Path) -> None:
    with Deployment(network, tmp_path, "nats", ttl_s=15.0) as deployment:
        assert deployment.nats is not None
        async with under_load(deployment, tmp_path) as load:
            for find in (lambda nats: nats.leader_of("KV_holdfast-hosts"), NatsCluster.until_led):
                leader = await asyncio.to_thread(find, deployment.nats)
                began = monotonic()
                leader.kill()
                await load.more(WRITES)
                await asyncio.to_thread(deployment.nats.until_led)
                await asyncio.sleep(15.0)  # in which what nobody renews expires
                await load.more(WRITES)
                await asyncio.to_thread(leader.start)
                await deployment.settled()
                print(f"leader {leader.name} killed: {load.summary(began)}")
            assert load.closes == [] and not load.refusals, (load.closes, load.refusals)
        for name in NAMES:
            assert "settled anew" not in deployment.log(name)


@pytest.mark.parametrize("length", [pytest.param(20, marks=soak)])
async def test_all_of_nats_stops_and_settled_scopes_are_served(
    network: Network, tmp_path: Path, length: int
) -> None:
    with Deployment(network, tmp_path, "nats") as deployment:
        assert deployment.nats is not None
        async with under_load(deployment, tmp_path) as load:
            began = monotonic()
            deployment.nats.kill()
            end = monotonic() + length
            while monotonic() < end:
                await load.more(WRITES)
            print(f"without NATS: {load.summary(began)}")
            await asyncio.to_thread(deployment.nats.start)
            await deployment.settled()
            await load.more(WRITES)
            assert load.closes == [] and not load.refusals, (load.closes, load.refusals)


@pytest.mark.parametrize(
    ("engine", "victim", "p99_s"),
    [("nats", "b", 10.0),  # a machine that does much else beside
     pytest.param("nats", "b", 2.0, marks=soak), pytest.param("nats", "c", 2.0, marks=soak),
     pytest.param("s3", "b", 2.0, marks=soak)],
)  # fmt: skip
async def test_a_drain_disconnects_nobody(
    network: Network, tmp_path: Path, engine: str, victim: str, p99_s: float
) -> None:
    with Deployment(network, tmp_path, engine) as deployment:
        async with under_load(deployment, tmp_path) as load:
            began = monotonic()
            drained = await asyncio.to_thread(
                run_cli, "hosts", "drain", victim, "--wait", "--url", deployment.url("a")
            )
            assert drained.returncode == 0, drained
            await load.more(WRITES)
            assert load.closes == [] and not load.refusals, (load.closes, load.refusals)
            print(f"drain: {load.summary(began)}")
            assert load.took(began)[1] < p99_s
            if victim not in OTHERS:  # else its clients would leave
                deployment.hosts[victim].signal(15)
                await deployment.until_sees(OTHERS, OTHERS)
                await load.more(WRITES)
                assert load.closes == []


FAULTS = ("power", "pause", "nats", "bucket", "pair", "server", "servers")


async def one_fault(deployment: Deployment, draw: random.Random, kind: str) -> str:
    """Break something for some seconds, and mend it; what it was."""
    network, nats = deployment.network, deployment.nats
    assert nats is not None
    name, other = draw.sample(NAMES, 2)
    node = deployment.nodes[name]
    ways = draw.choice(("both", "there", "back"))
    length_s = draw.uniform(0.5, 3 * TTL_S)
    targets = {"nats": nats.nodes, "bucket": [deployment.s3_node],
               "pair": [deployment.nodes[other]]}.get(kind, [])  # fmt: skip
    for target in targets:
        if ways != "back":
            network.cut_one_way(node, target)
        if ways != "there":
            network.cut_one_way(target, node)
    dying = {"server": draw.sample(nats.servers, 1), "servers": nats.servers}.get(kind, [])
    for server in dying:
        server.kill()
    if kind == "power":
        deployment.power_off(name)
    if kind == "pause":
        node.pause()
    await asyncio.sleep(length_s)
    node.resume()
    for server in dying:
        server.start(wait=False)
    if kind == "power":
        await deployment.power_on(name)
    network.heal()
    return (
        f"{kind} {name}{other if kind == 'pair' else ''} {ways if targets else ''} {length_s:.1f}"
    )


@soak
@pytest.mark.parametrize("seed", [int(os.environ.get("HOLDFAST_SEED", "7"))])
async def test_one_fault_after_the_other(network: Network, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    print(f"HOLDFAST_SEED={seed}")
    with Deployment(network, tmp_path, "nats") as deployment:
        async with under_load(deployment, tmp_path) as load:
            for _ in range(FAULTS_IN_A_ROW):
                print(await one_fault(deployment, draw, draw.choice(FAULTS)))
                await asyncio.sleep(draw.uniform(0.0, TTL_S))  # at times the next comes too soon
                if draw.random() < 0.5:
                    await load.more(3)
            await deployment.settled()
            await load.more(WRITES)


@soak
async def test_the_control_a_bucket_without_conditions_loses(
    network: Network, tmp_path: Path
) -> None:
    late = tmp_path / "late"
    late.mkdir()
    trouble = environment(Trouble(late_folder=str(late), careless=True))
    with Deployment(network, tmp_path, "nats", command=CARELESS, environ=trouble) as deployment:
        scopes = [scope for each in scopes_of().values() for scope in each]
        await deployment.settled()
        urls = [deployment.url(name) for name in NAMES]
        async with load_on(urls, scopes, writers=4) as load:
            for _ in range(4):  # in each it is a matter of milliseconds
                deployment.nodes["c"].pause()
                await load.more(1)
                deployment.nodes["c"].resume()  # to what its clients had sent meanwhile
                await asyncio.sleep(2 * TTL_S)  # it may not get back to where all of it goes on
        with closing(open_store(deployment.bucket)) as store:
            try:
                verdicts = judged(load, store, tmp_path)
            except (HoldfastError, AssertionError, sqlite3.Error) as error:
                print(f"nothing that could be restored: {error}")
                return
        lost = {scope: len(verdict.lost) for scope, verdict in verdicts.items() if verdict.lost}
        print(f"lost by scope: {lost}")
        assert lost, verdicts
