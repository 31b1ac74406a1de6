"""Hosts that are all named in the configuration and taken for live, whatever happens.

There is no fail-over: while a host is away, its scopes are. Moving them is a change of the
configuration on every host.
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
        """Nothing ever changes."""

    def poke(self) -> None:
        """Nothing to look at."""

    async def start(self) -> None:
        """Nothing to join."""

    async def joined(self) -> None:
        """As above."""

    async def drain(self) -> None:
        """This host refuses what is new; the others are not told."""
        assert self.me is not None
        self.me = msgspec.structs.replace(self.me, state=HostState.DRAINING)

    async def aclose(self) -> None:
        """Nothing to leave."""
