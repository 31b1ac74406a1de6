"""Hosts in the test's own loop that see each other as the test says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from actors.host import Host
from actors.hosts_port import HostsPort
from actors.types import Address
from infra.placement.hosts import HostInfo, View
from infra.placement.placement import Placement
from tests.support.edges import KEY, until


class AsTold:
    """Fits infra.placement.placement.Placement: what the test says is so."""

    def __init__(self, me: HostInfo) -> None:
        self.me: HostInfo | None = me
        self.view = View(hosts=(me,), fresh=True)
        self.lapses = 0
        self.superseded = False
        self._changed: Callable[[View], None] = lambda _view: None

    def tell(self, *hosts: HostInfo) -> None:
        """These are live."""
        self.view = View(hosts=tuple(sorted(hosts, key=lambda host: host.name)), fresh=True)
        self._changed(self.view)

    def may_claim(self) -> bool:
        return True

    def watch(self, changed: Callable[[View], None]) -> None:
        self._changed = changed

    def poke(self) -> None:
        """The test tells."""

    def told(self, host: HostInfo) -> None:
        """As above."""

    async def start(self) -> None:
        """Nothing to join."""

    async def joined(self) -> None:
        """As above."""

    async def drain(self) -> None:
        """The test tells."""

    async def aclose(self) -> None:
        """Nothing to leave."""


class Placed:
    """Use as `async with`. Hosts a, b, c of which `see` says who is live."""

    def __init__(self, directory: Path, names: str = "abc") -> None:
        self._directory = directory
        self._names = names
        self.ports: dict[str, HostsPort] = {}
        self.told: dict[str, AsTold] = {}

    async def __aenter__(self) -> Self:
        for name in self._names:

            def join(place: str, name: str = name) -> Placement:
                self.told[name] = AsTold(HostInfo(name=name, link=place, life=name))
                return self.told[name]

            spool = self._directory / name
            spool.mkdir()
            port = HostsPort(name, KEY, spool_dir=spool, listen="tcp:127.0.0.1:0", join=join)
            port.serve(Host(spool / "data"))
            self.ports[name] = port
            await port.start()
        await self.see(self._names)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        for port in self.ports.values():
            await port.aclose()

    async def see(self, names: str) -> None:
        """These hosts see each other, and the links between them are there."""
        live = [told.me for name, told in self.told.items() if name in names and told.me]
        for name in names:
            self.told[name].tell(*live)
        await until(lambda: all(self._linked(name, names) for name in names))

    def _linked(self, name: str, names: str) -> bool:
        others = [self.ports[name].peer(other) for other in names if other != name]
        return all(peer is not None and peer.link is not None for peer in others)

    def address_of(self, owner: str, kind: str = "rtc") -> Address:
        """A scope that the host has, as long as all are live."""
        view = self.told[owner].view
        for number in range(1000):
            address = Address("default", f"{kind}:r{number}")
            host = view.owner(address)
            if host is not None and host.name == owner:
                return address
        raise AssertionError("no scope is this host's")
