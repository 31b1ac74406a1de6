"""Several edges over one process that has the scopes, all in the test's own loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from actors.ephemeral import Said
from actors.host import Host
from actors.link_wire import encode
from actors.remote import RemotePort
from actors.serving import Serving
from infra.link.connection import Answerer, Link
from infra.link.sockets import Listener

KEY = b"k" * 32
WAIT_S = 20


class Ears:
    """A party that remembers. `present`: what it knows others to keep."""

    def __init__(self) -> None:
        self.heard_all: list[Said] = []
        self.withdrawn_all: list[Said] = []
        self.present: dict[tuple[str, str], str] = {}

    def heard(self, said: Said) -> None:
        self.heard_all.append(said)
        if said.kept:
            self.present[said.key] = said.body

    def withdrawn(self, said: Said) -> None:
        self.withdrawn_all.append(said)
        self.present.pop(said.key, None)

    @property
    def bodies(self) -> list[str]:
        return [said.body for said in self.heard_all]


class _Agrees:
    """Fits infra.link.connection.Service: whatever a process asks, it may."""

    def opened(
        self, link: Link, stream: int, method: str, payload: msgspec.Raw, deadline_ms: int
    ) -> Answerer | None:
        link.done(stream, encode(True))
        return None

    def lost(self, link: Link) -> None:
        """Nothing to let go of."""


class Edges:
    """Use as `async with`. `edge()` makes one more; each dials as soon as it is made."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ports: list[RemotePort] = []
        self._place = f"unix:{directory}/s"

    async def __aenter__(self) -> Self:
        self.host = Host(self._directory / "data")
        await self.host.start()
        await self.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        for port in self._ports:
            await port.aclose()
        await self.end()
        await self.host.aclose()

    async def begin(self) -> None:
        """Listen."""
        self.serving = Serving(self.host)
        self.listener = Listener("actor-0", KEY, self.serving, self.serving.greeted)
        await self.listener.listen(self._place)

    async def end(self) -> None:
        """Listen no more, as a process that ends: it forgets what was said."""
        await self.serving.aclose()
        await self.listener.aclose()

    async def tenant_edge(self, started: Callable[[str], None]) -> RemotePort:
        """One more, for which each tenant has a process; `started` is called with the tenant
        whenever it wants that.
        """
        name = f"edge-{len(self._ports)}"

        async def find(tenant: str) -> str:
            started(tenant)
            return self._place

        port = RemotePort({}, KEY, name, spool_dir=self._directory, service=_Agrees(), find=find)
        port.beside.wakes = True
        self._ports.append(port)
        await port.start()
        return port

    async def edge(self, name: str = "") -> RemotePort:
        """One more, with its link."""
        name = name or f"edge-{len(self._ports)}"
        spool = self._directory / name
        spool.mkdir(exist_ok=True)
        members = {"actor-0": self._place}
        port = RemotePort(members, KEY, name, spool_dir=spool, service=_Agrees())
        self._ports.append(port)
        await port.start()
        await until(lambda: all(peer.link is not None for peer in port._peers.values()))
        return port


async def until(true: Callable[[], object]) -> None:
    """Return once it is. Raises TimeoutError."""
    async with asyncio.timeout(WAIT_S):
        while not true():
            await asyncio.sleep(0.01)
