"""Several hosts in this process, over one store and real links, whose views a test sets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from actors.hosts_port import HostsPort
from actors.reply import FutureReply
from actors.types import Address, Batch, Bounds, Draft, Outcome, Page
from infra.objects import ObjectStore
from infra.placement.hosts import HostInfo, HostState, View
from tests.support.hosts import WAIT_S, abandon, host_at
from tests.support.ledgers import draft, envelope

KEY = b"a key of thirty-two bytes or more"


class FakePlacement:
    """Fits infra.placement.placement.Placement; the test says what is seen."""

    def __init__(self, me: HostInfo) -> None:
        self.me: HostInfo | None = me
        self.view = View()
        self.lapses = 0
        self.superseded = False
        self.may = True
        self.pokes = 0
        self.on_poke: Callable[[], None] = lambda: None
        self._watchers: list[Callable[[View], None]] = []

    def may_claim(self) -> bool:
        return self.may and self.me is not None and self.me.state is HostState.UP

    def watch(self, changed: Callable[[View], None]) -> None:
        self._watchers.append(changed)

    def see(self, *hosts: HostInfo) -> None:
        """A new view."""
        self.view = View(hosts=hosts, fresh=True)
        self.tell()

    def tell(self) -> None:
        for changed in self._watchers:
            changed(self.view)

    def told(self, host: HostInfo) -> None:
        known = self.view.host(host.name)
        if known is not None:
            self.see(*(host if one is known else one for one in self.view.hosts))

    def poke(self) -> None:
        self.pokes += 1
        self.on_poke()

    async def start(self) -> None:
        """Nothing to join."""

    async def joined(self) -> None:
        """At once."""

    async def drain(self) -> None:
        assert self.me is not None
        self.me = msgspec.structs.replace(self.me, state=HostState.DRAINING)
        self.told(self.me)

    async def aclose(self) -> None:
        self._watchers.clear()


class Node:
    """One host: its port, and the placement the test moves."""

    def __init__(self, name: str, folder: Path, store: ObjectStore, **settings: Any) -> None:
        self.name = name
        self.placement: FakePlacement

        def join(place: str) -> FakePlacement:
            self.placement = FakePlacement(HostInfo(name=name, link=place, life=f"{name}1"))
            return self.placement

        self.port = HostsPort(name, KEY, spool_dir=folder, listen="tcp:127.0.0.1:0", join=join)
        self.host = host_at(
            folder / name, store, shared=True, claim=self.port.handing.claim, **settings
        )
        self.port.serve(self.host)

    @property
    def info(self) -> HostInfo:
        assert self.placement.me is not None
        return self.placement.me

    async def put(self, address: Address, *event_ids: str) -> list[Outcome]:
        """Publish from here, one draft each."""
        drafts = [draft(envelope(event_id), address.scope) for event_id in event_ids]
        return await self.ask(address, drafts)

    async def ask(self, address: Address, drafts: list[Draft]) -> list[Outcome]:
        reply = FutureReply()
        self.port.append(address, drafts, reply, None)
        async with asyncio.timeout(WAIT_S):
            outcomes, _ = await reply.future
        return outcomes

    async def events(self, address: Address) -> list[str]:
        """Event ids of what a reader here sees."""
        async with asyncio.timeout(WAIT_S):
            page = await self.port.read(
                address, 0, entries_max=512, bytes_max=1 << 20, joined=False
            )
        assert isinstance(page, Page), page
        return [msgspec.json.decode(body)["eventId"] for body in page.bodies]

    async def die(self) -> None:
        """As a SIGKILL: nothing is said to anybody, links end."""
        await self.port._listener.aclose()
        self.port.closed = True
        await self.port._tasks.aclose()
        for peer in self.port._peers.values():
            peer.dismiss()
        await self.port.serving._tasks.aclose()
        await abandon(self.host)


class Follower:
    """A tap that reads on where it is told to, as an edge's feed does; every entry once."""

    def __init__(self, node: Node, address: Address) -> None:
        self.node = node
        self.address = address
        self.seen: list[int] = []
        self.resets = 0
        self._news = asyncio.Event()
        self._known = 0

    async def start(self) -> None:
        bounds = await self.node.port.subscribe(self.address, self)
        self._known = bounds.head
        self._news.set()

    def deliver(self, batch: Batch) -> None:
        self._known = max(self._known, batch.last)
        self._news.set()

    def durable(self, bounds: Bounds) -> None:
        """Nothing to read."""

    def moved(self, bounds: Bounds) -> None:
        self._known = max(self._known, bounds.head)
        self._news.set()

    def reset(self, bounds: Bounds) -> None:
        self.resets += 1

    async def until(self, head: int) -> list[int]:
        """Read on until then; the seqs."""
        async with asyncio.timeout(WAIT_S):
            while len(self.seen) < head:
                await self._news.wait()
                self._news.clear()
                behind = self._known - len(self.seen)
                if not behind:
                    continue
                page = await self.node.port.read(
                    self.address,
                    len(self.seen),
                    entries_max=behind,
                    bytes_max=1 << 20,
                    joined=False,
                )
                assert isinstance(page, Page), page
                self.seen += range(page.first, page.last + 1)
        return self.seen


@contextlib.asynccontextmanager
async def nodes(
    folder: Path, store: ObjectStore, *names: str, **settings: Any
) -> AsyncIterator[dict[str, Node]]:
    """Started hosts that all see each other."""
    found = {name: Node(name, folder, store, **settings) for name in names}
    try:
        for node in found.values():
            await node.port.start()
        infos = [node.info for node in found.values()]
        for node in found.values():
            node.placement.see(*infos)
        for node in found.values():
            for name in names:
                if name != node.name:
                    peer = node.port.peer(name)
                    assert peer is not None
                    async with asyncio.timeout(WAIT_S):
                        await peer.up.wait()
        yield found
    finally:
        for node in found.values():
            if node.host._started:
                await node.port.aclose()


def owned_by(name: str, node: Node, count: int = 1) -> list[Address]:
    """Addresses that the node's view gives to that host."""
    found: list[Address] = []
    number = 0
    while len(found) < count:
        number += 1
        address = Address("default", f"run:{number}")
        owner = node.placement.view.owner(address)
        if owner is not None and owner.name == name:
            found.append(address)
    return found
