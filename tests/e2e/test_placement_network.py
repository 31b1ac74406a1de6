"""Who believes whom to be live, on a network that breaks: three hosts, three NATS servers, S3.

Times to live are a few seconds; what is waited for is a state, not a moment.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.namespaces import Network, Node
from tests.support.nats import NatsCluster, nats_cluster
from tests.support.s3 import moto
from tests.support.watcher import Seen, Watcher, watchers

pytestmark = [pytest.mark.e2e, pytest.mark.soak]
TTL_S = 3.0
STREAM = "KV_holdfast-test"
ALL = ["a:up", "b:up", "c:up"]


@pytest.fixture
def hosts(network: Network) -> list[Node]:
    return [network.node(name) for name in "abc"]


@pytest.fixture
def cluster(network: Network, tmp_path: Path) -> Iterator[NatsCluster]:
    with nats_cluster(tmp_path, [network.node(f"nats{n}") for n in (1, 2, 3)]) as cluster:
        yield cluster


def joined(found: list[Watcher]) -> None:
    for watcher in found:
        watcher.until_sees(*ALL)


def never_alone(watcher: Watcher, since: int = 0) -> bool:
    """Since a time, it took nobody for dead."""
    return all(seen.hosts == ALL for seen in watcher.seen[since:])


def test_one_host_cut_off_is_taken_for_dead_and_stops_to_claim(
    network: Network, hosts: list[Node], cluster: NatsCluster
) -> None:
    with watchers(hosts, TTL_S, cluster.urls) as (a, b, c):
        joined([a, b, c])
        network.cut(hosts[0], *cluster.nodes)
        b.until_sees("b:up", "c:up")
        c.until_sees("b:up", "c:up")
        # Who sees nothing takes nobody for dead, and nothing over.
        a.until_sees(*ALL, fresh=False, claims=False)
        network.heal()
        joined([a, b, c])
        assert never_alone(a, a.seen.index(Seen(ALL, True, True)))


def test_a_host_that_is_heard_but_hears_nothing_claims_nothing(
    network: Network, hosts: list[Node], cluster: NatsCluster
) -> None:
    with watchers(hosts, TTL_S, cluster.urls) as (a, b, c):
        joined([a, b, c])
        for server in cluster.nodes:
            network.cut_one_way(server, hosts[0])
        a.until_sees(*ALL, fresh=False, claims=False)
        b.until_sees("b:up", "c:up")
        network.heal()
        joined([a, b, c])


def test_the_leader_is_killed_and_nobody_taken_for_dead(
    hosts: list[Node], cluster: NatsCluster
) -> None:
    # An election takes NATS some seconds; the default time to live is above it.
    with watchers(hosts, 15.0, cluster.urls) as found:
        joined(found)
        first = [len(watcher.seen) for watcher in found]
        for leader in (cluster.leader_of(STREAM), cluster.until_led()):
            leader.kill()
            cluster.until_led()
            time.sleep(15.0)  # in which a record that nobody renews expires
            joined(found)
            leader.start()
        assert all(map(never_alone, found, first))


def test_all_of_nats_stops_and_comes_back(hosts: list[Node], cluster: NatsCluster) -> None:
    with watchers(hosts, TTL_S, cluster.urls) as found:
        joined(found)
        first = [len(watcher.seen) for watcher in found]
        cluster.kill()
        for watcher in found:
            watcher.until_sees(*ALL, fresh=False, claims=False)
        cluster.start()
        joined(found)
        # Every record had expired meanwhile.
        assert all(map(never_alone, found, first))


def test_hosts_by_the_bucket_alone(network: Network, hosts: list[Node], tmp_path: Path) -> None:
    s3 = network.node("s3")
    with (
        moto(tmp_path / "moto.log", address=s3.address, prefix=s3.prefix) as server,
        watchers(hosts, TTL_S, [server.bucket_url("p")]) as (a, b, c),
    ):
        joined([a, b, c])
        hosts[1].pause()
        a.until_sees("a:up", "c:up")
        hosts[1].resume()
        joined([a, b, c])
        network.cut(hosts[0], s3)
        c.until_sees("b:up", "c:up")
        a.until_sees(*ALL, fresh=False, claims=False)
        network.heal()
        joined([a, b, c])
        c.drain()
        a.until_sees("a:up", "b:up", "c:draining")
        c.stop()
        a.until_sees("a:up", "b:up")
