"""Three hosts of one deployment on a network that breaks, and what they need, each on its own node.

The nodes: hosts `a`, `b` and `c`, the bucket `s3`, where placement is by NATS its servers `nats1`
to `nats3`, and `clients`, where the test itself is. Clients connect to `a` and `b`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any, Self

from aiohttp import ClientSession

from infra.objects import open_store
from infra.placement.rendezvous import Member, owner
from tests.support.load import Load, judged, load_on
from tests.support.namespaces import Network, Node
from tests.support.nats import NatsCluster, nats_cluster
from tests.support.publisher import SERVE, Server
from tests.support.s3 import CREDENTIALS, S3Server, moto

NAMES = ("a", "b", "c")
FRONT = ("a", "b")  # clients connect to these
TTL_S = 3.0
STALL_S = 5
WAIT_S = 90
PORT = 8420  # a host that comes back is where clients knew it
LINK_PORT = 8421
KEY = "a link key of well over thirty-two bytes"


class Deployment:
    """Use as `with`. `nats` is None where hosts find each other by the bucket alone."""

    def __init__(
        self, network: Network, folder: Path, engine: str, *, ttl_s: float = TTL_S,
        command: Sequence[str] = SERVE, environ: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.network = network
        self.nodes = {name: network.node(name) for name in NAMES}
        self.s3_node = network.node("s3")
        self.nats: NatsCluster | None = None
        self.hosts: dict[str, Server] = {}
        self.bucket = ""
        self._folder = folder
        self._engine = engine
        self._ttl_s = ttl_s
        self._command = command
        self._environ = environ or {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            node = self.s3_node
            log = self._folder / "moto.log"
            s3: S3Server = stack.enter_context(moto(log, address=node.address, prefix=node.prefix))
            self.bucket = s3.bucket_url()
            engine = ["--hosts", self._engine]
            if self._engine == "nats":
                servers = [self.network.node(f"nats{number}") for number in (1, 2, 3)]
                self.nats = stack.enter_context(nats_cluster(self._folder, servers))
                engine += [part for url in self.nats.urls for part in ("--nats-url", url)]
            for name in NAMES:
                self.hosts[name] = stack.enter_context(self._host(name, engine))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self.network.heal()
        for node in self.nodes.values():
            node.resume()
        self._stack.close()

    def _host(self, name: str, engine: list[str]) -> Server:
        node = self.nodes[name]
        return Server(
            self._folder / name, *engine, "--host-name", name, "--bucket", self.bucket,
            "--port", str(PORT), "--put-interval-ms", "20", "--max-stall-s", str(STALL_S),
            "--link-listen", f"tcp:{node.address}:{LINK_PORT}", "--hosts-ttl-s", str(self._ttl_s),
            command=[*node.prefix, *self._command, "--host", node.address],
            environ={**CREDENTIALS, "HOLDFAST_LINK_KEY": KEY, **self._environ},
        )  # fmt: skip

    # -- what is done to it ------------------------------------------------------------------------

    def power_off(self, name: str) -> None:
        """As a machine that loses its power: nobody hears of it any more, not even a reset."""
        self.network.cut_off(self.nodes[name])
        self.nodes[name].kill()
        self.hosts[name].kill()

    async def power_on(self, name: str) -> None:
        """With the disk as it was."""
        self.network.heal()
        await asyncio.to_thread(self.hosts[name].__enter__)

    # -- what it says ------------------------------------------------------------------------------

    def url(self, name: str) -> str:
        return self.hosts[name].url

    def log(self, name: str) -> str:
        return self.hosts[name].log.read_text()

    async def until(self, name: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until a host sees the hosts, by name, so."""
        async with asyncio.timeout(WAIT_S), ClientSession() as session:
            while True:
                with contextlib.suppress(OSError):
                    async with session.get(f"{self.url(name)}/v1/hosts") as answer:
                        hosts = json.loads(await answer.read())["hosts"]
                        if wanted({host["name"]: host for host in hosts}):
                            return
                await asyncio.sleep(0.1)

    async def until_sees(self, observers: Iterable[str], hosts: Iterable[str]) -> None:
        """Until each observer sees exactly these hosts, and has a link to each."""
        names = set(hosts)
        for observer in observers:
            await self.until(
                observer,
                lambda found: set(found) == names and all(h["linked"] for h in found.values()),
            )

    async def settled(self) -> None:
        """Until every host sees and reaches every other."""
        await self.until_sees(NAMES, NAMES)


def scopes_of(*, each: int = 2) -> dict[str, list[str]]:
    """Some scopes of every host, by the host that owns them while all three are up."""
    found: dict[str, list[str]] = {name: [] for name in NAMES}
    number = 0
    while any(len(scopes) < each for scopes in found.values()):
        number += 1
        name = owner(("default", f"run:{number}"), [Member(name) for name in NAMES])
        assert name is not None
        if len(found[name]) < each:
            found[name].append(f"run:{number}")
    return found


@asynccontextmanager
async def under_load(
    deployment: Deployment, folder: Path, *, first: int = 5
) -> AsyncIterator[Load]:
    """Writers and followers of two scopes of each host, at both hosts that clients connect to.

    At the end all of them must have gone on, and what they were told is held against the bucket:
    nothing is lost, no follower astray, and one owner writes at a time.
    """
    await deployment.settled()
    scopes = [scope for each in scopes_of().values() for scope in each]
    async with load_on([deployment.url(name) for name in FRONT], scopes) as load:
        await load.more(first)
        yield load
        await load.settled()
    print(load.summary())
    with closing(open_store(deployment.bucket)) as store:
        verdicts = judged(load, store, folder)
    assert all(verdict.clean for verdict in verdicts.values()), verdicts


def nodes_of(deployment: Deployment) -> list[Node]:
    """Of the NATS servers."""
    assert deployment.nats is not None
    return deployment.nats.nodes
