"""One host whose bucket is beyond a network that breaks, under load: a write waits, or is safe."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from infra.objects import open_store
from tests.support.load import Load, judged, load_on
from tests.support.namespaces import Network, Node
from tests.support.publisher import SERVE, Server
from tests.support.s3 import CREDENTIALS, S3Server, moto

pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.usefixtures("s3_credentials")]

SCOPES = ["run:1", "run:2"]
WRITES = 20  # acknowledged in each scope between two steps
STALL_S = 2
CUT_S = 4


@pytest.fixture
def host(network: Network) -> Node:
    return network.node("a")


@pytest.fixture
def s3(network: Network, tmp_path: Path) -> Iterator[S3Server]:
    node = network.node("s3")
    with moto(tmp_path / "moto.log", address=node.address, prefix=node.prefix) as server:
        yield server


def serving(host: Node, data: Path, bucket: str, *options: str) -> Server:
    command = [*host.prefix, *SERVE, "--host", host.address]
    return Server(data, "--bucket", bucket, "--max-stall-s", str(STALL_S), *options,
                  command=command, environ=dict(CREDENTIALS))  # fmt: skip


async def no_acknowledgement(load: Load, seconds: float) -> None:
    """Of what was sent before, something may still be under way in the first moments."""
    await asyncio.sleep(1)
    before = load.count
    await asyncio.sleep(seconds)
    assert load.count == before, f"{load.count - before} acknowledged without a bucket"


def check(load: Load, bucket: str, folder: Path) -> None:
    """Nothing lost, nobody astray, one owner."""
    with closing(open_store(bucket)) as store:
        verdicts = judged(load, store, folder)
    assert all(verdict.clean for verdict in verdicts.values()), verdicts
    print(load.summary())


@pytest.mark.parametrize("ways", ["both", "there", "back"])
async def test_while_the_bucket_is_cut_off_writes_wait(
    network: Network, host: Node, s3: S3Server, tmp_path: Path, ways: str
) -> None:
    bucket = s3.bucket_url()
    s3_node = network.node("s3")
    with serving(host, tmp_path / "data", bucket, "--durability", "replicated") as server:
        async with load_on([server.url], SCOPES) as load:
            await load.more(WRITES)
            if ways != "back":
                network.cut_one_way(host, s3_node)
            if ways != "there":  # requests arrive and count, their answers do not come
                network.cut_one_way(s3_node, host)
            await no_acknowledgement(load, CUT_S)
            assert load.refusals["try_later"]
            network.heal()
            await load.more(WRITES)
            await load.settled()
        assert load.closes == []
        check(load, bucket, tmp_path)


async def test_the_control_a_write_saved_here_alone_goes_with_the_disk(
    network: Network, host: Node, s3: S3Server, tmp_path: Path
) -> None:
    bucket = s3.bucket_url()
    data = tmp_path / "data"
    server = serving(host, data, bucket, "--durability", "local")
    with server:
        async with load_on([server.url], SCOPES) as load:
            await load.more(WRITES)
            await asyncio.sleep(3)  # this much is in the bucket
            network.cut(host, network.node("s3"))
            await load.more(WRITES)
            await load.settled()
        host.kill()
    shutil.rmtree(data)
    network.heal()
    with closing(open_store(bucket)) as store:
        verdicts = judged(load, store, tmp_path)
    assert all(verdict.lost and verdict.strayed for verdict in verdicts.values()), verdicts
