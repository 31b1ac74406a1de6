"""Three hosts under load while machines and the network between them break.

In all of it: no acknowledged write is lost, no follower sees a gap or a repeat, and the batches of
each owner in the bucket are one writer's and end before the next owner's begin. What each test says
besides is what clients notice. Placement is by NATS (a cluster of three) unless a test says `s3`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from infra.clock import monotonic
from tests.support.deployment import (
    NAMES,
    TTL_S,
    Deployment,
    nodes_of,
    scopes_of,
    under_load,
)
from tests.support.namespaces import Network
from tests.support.process import run_cli

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("s3_credentials")]
soak = pytest.mark.soak

WRITES = 10  # acknowledged in each scope after each step
PAUSE_S = 20
OTHERS = ("a", "b")


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
            deployment.power_on(victim)
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
            await load.more(WRITES)
            await deployment.settled()
            await load.more(WRITES)


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
            for leader in (
                deployment.nats.leader_of("KV_holdfast-hosts"), deployment.nats.until_led()
            ):  # fmt: skip
                began = monotonic()
                leader.kill()
                await load.more(WRITES)
                deployment.nats.until_led()
                await asyncio.sleep(15.0)  # in which what nobody renews expires
                await load.more(WRITES)
                leader.start()
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
            deployment.nats.start()
            await deployment.settled()
            await load.more(WRITES)
            assert load.closes == [] and not load.refusals, (load.closes, load.refusals)


@pytest.mark.parametrize(
    ("engine", "victim"),
    [("nats", "b"), pytest.param("nats", "c", marks=soak), pytest.param("s3", "b", marks=soak)],
)  # fmt: skip
async def test_a_drain_disconnects_nobody(
    network: Network, tmp_path: Path, engine: str, victim: str
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
            assert load.took(began)[1] < 2.0
            if victim not in OTHERS:  # else its clients would leave
                deployment.hosts[victim].signal(15)
                await deployment.until_sees(OTHERS, OTHERS)
                await load.more(WRITES)
                assert load.closes == []
