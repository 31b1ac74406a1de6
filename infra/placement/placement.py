"""Placement as the rest of Holdfast sees it: which hosts are live, and who owns an address.

Everything a request needs is a local computation on the last view. What the network is asked for
happens beside, in the shell that keeps the view (`infra/placement/renewing.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from infra.errors import StorageError
from infra.placement.hosts import HostInfo, View


class NameTaken(StorageError):
    """Another process runs under this host's name, and began later."""

    code = "fenced"
    retryable = False


class EngineUnavailable(StorageError):
    """The engine did not answer, or not in time. Whether a renewal was stored is unknown."""

    code = "placement_unavailable"
    retryable = True


class Placement(Protocol):
    """The hosts of one deployment, as this process believes them to be."""

    @property
    def view(self) -> View:
        """The live hosts. The same object until something has changed."""

    @property
    def me(self) -> HostInfo | None:
        """This host; None for a process that owns nothing."""

    @property
    def lapses(self) -> int:
        """How often this host was silent for so long that others may have its scopes."""

    @property
    def superseded(self) -> bool:
        """Whether another process goes on under this host's name."""

    def may_claim(self) -> bool:
        """Whether this host may take a scope that it has not settled yet."""

    def watch(self, changed: Callable[[View], None]) -> None:
        """Have `changed` called on the loop with each new view and after lapses, until `aclose`."""

    def poke(self) -> None:
        """Something contradicts the view: look again soon."""

    def told(self, host: HostInfo) -> None:
        """A host that is known says itself how it is, before the engine shows it."""

    async def start(self) -> None:
        """Join. Raises ConfigError or StorageError where that cannot work; a silent engine is
        waited for in the background.
        """

    async def joined(self) -> None:
        """Wait until this host is known to the engine and has seen the others."""

    async def drain(self) -> None:
        """Tell everybody that this host takes nothing new. Returns when it is known here; the
        engine hears of it within a renewal, or when it is back.
        """

    async def aclose(self) -> None:
        """Leave."""
