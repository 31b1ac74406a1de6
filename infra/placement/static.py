"""Hosts that are all named in the configuration and taken for live, whatever happens.

There is no fail-over: while a host is away, its scopes are, unless it was drained before. Moving
them for good is a change of the configuration on every host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from infra.errors import ConfigError
from infra.placement.hosts import HostInfo, HostState, View


class StaticPlacement:
    """The hosts of the configuration; `name` is which of them this one is."""

    def __init__(self, hosts: Sequence[HostInfo], name: str) -> None:
        by_name = {host.name: host for host in hosts}
        if len(by_name) != len(hosts):
            raise ConfigError("a host is named twice")
        if name not in by_name:
            raise ConfigError(f"this host, {name!r}, is not among {', '.join(sorted(by_name))}")
        self.me: HostInfo | None = by_name[name]
        self._watchers: list[Callable[[View], None]] = []
        self.view = View(hosts=tuple(by_name[name] for name in sorted(by_name)), fresh=True)

    @property
    def lapses(self) -> int:
        """Never: nobody is taken for dead."""
        return 0

    @property
    def superseded(self) -> bool:
        """Nobody would notice."""
        return False

    def may_claim(self) -> bool:
        """Until it drains: nobody else takes its scopes."""
        return self.me is not None and self.me.state is HostState.UP

    def watch(self, changed: Callable[[View], None]) -> None:
        """Only when a host drains, or is back: they tell each other over their links."""
        self._watchers.append(changed)

    def told(self, host: HostInfo) -> None:
        """Whether it drains; where it is and what it weighs is the configuration's."""
        known = self.view.host(host.name)
        if known is None or known.state is host.state:
            return
        now = msgspec.structs.replace(known, state=host.state)
        hosts = tuple(now if one is known else one for one in self.view.hosts)
        self.view = View(hosts=hosts, fresh=True)
        for changed in list(self._watchers):
            changed(self.view)

    def poke(self) -> None:
        """Nothing to look at."""

    async def start(self) -> None:
        """Nothing to join."""

    async def joined(self) -> None:
        """As above."""

    async def drain(self) -> None:
        """This host takes nothing new; it tells the others itself."""
        assert self.me is not None
        self.me = msgspec.structs.replace(self.me, state=HostState.DRAINING)
        self.told(self.me)

    async def aclose(self) -> None:
        """Nothing to leave."""
        self._watchers.clear()
