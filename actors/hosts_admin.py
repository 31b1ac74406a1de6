"""What an operator asks of any of several hosts: who is there, and that one of them drains."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from actors import hosts_wire as hw
from actors import link_wire as w
from infra.errors import HoldfastError, TryLater
from infra.link.connection import Link
from infra.tasks import TaskOwner

if TYPE_CHECKING:
    from actors.hosts_port import HostsPort
    from actors.peer import Peer
    from actors.serving import Method, Serving

REPORT_WAIT_S: Final = 2.0


class HostsAdmin:
    """Of one host; `methods` are what the others ask of it."""

    def __init__(self, port: HostsPort) -> None:
        self._port = port
        self.methods: dict[str, Method] = {
            "host": self._standing, "drain": self._drain, "news": self._news,
        }  # fmt: skip

    async def hosts(self) -> list[dict[str, Any]]:
        """Every live host by name, as this one sees it; what only it knows is None where it does
        not answer.
        """
        found = []
        for host in self._port.own.view.hosts:
            here = host.name == self._port.name
            standing = self._own() if here else await self._ask(host.name)
            found.append({
                "name": host.name, "state": host.state.value, "link": host.link,
                "weight": host.weight, "here": here, "linked": standing is not None,
                "scopes_open": None if standing is None else standing.scopes_open,
                "may_claim": None if standing is None else standing.may_claim,
            })  # fmt: skip
        return found

    async def drain(self, name: str) -> None:
        """Have a host drain; returns once it has begun. Raises HoldfastError `not_found`."""
        if name == self._port.name:
            self._port.begin_drain()
            return
        peer = self._port.peer(name)
        if peer is None:
            raise HoldfastError(f"no live host {name!r}", code="not_found")
        if peer.link is None:
            raise TryLater(f"host {name} does not answer", retry_after_ms=1000)
        await peer.link.call("drain", w.encode(True), within_s=REPORT_WAIT_S)

    async def tell(self, peers: Sequence[Peer]) -> None:
        """Say how this host is to those that are linked."""
        me = None if self._port.placement is None else self._port.placement.me
        if me is None:
            return
        payload = w.encode(hw.News(me))
        links = [peer.link for peer in peers if peer.link is not None]
        async with TaskOwner() as tasks:
            calls = [
                tasks.spawn(self._tell(link, payload), name=f"tell {link.peer}") for link in links
            ]
            if calls:
                await asyncio.wait(calls)

    async def _tell(self, link: Link, payload: msgspec.Raw) -> None:
        with contextlib.suppress(HoldfastError):  # it will see for itself
            await link.call("news", payload, within_s=REPORT_WAIT_S)

    def _own(self) -> hw.Standing:
        port = self._port
        may = port.placement is not None and port.placement.may_claim()
        return hw.Standing(len(port.host.open_scopes), may)

    async def _ask(self, name: str) -> hw.Standing | None:
        peer = self._port.peer(name)
        if peer is None or peer.link is None:
            return None
        try:
            answer = await peer.link.call("host", w.encode(True), within_s=REPORT_WAIT_S)
            standing: hw.Standing = hw.decode_standing(answer)
        except HoldfastError:
            return None
        return standing

    # -- methods of actors.serving.Serving ---------------------------------------------------------

    async def _standing(self, _s: Serving, _l: Link, _n: int, _asked: msgspec.Raw) -> msgspec.Raw:
        return w.encode(self._own())

    async def _news(self, _s: Serving, _l: Link, _n: int, asked: msgspec.Raw) -> msgspec.Raw:
        news: hw.News = hw.decode_news(asked)
        if self._port.placement is not None and news.host.name != self._port.name:
            self._port.placement.told(news.host)
        return w.encode(True)

    async def _drain(self, _s: Serving, _l: Link, _n: int, _asked: msgspec.Raw) -> msgspec.Raw:
        self._port.begin_drain()
        return w.encode(True)
