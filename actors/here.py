"""A scope of this process's own host, followed as one of another process would be."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from actors.followed import Followed
from actors.types import Batch, Bounds
from infra.errors import HoldfastError

if TYPE_CHECKING:
    from actors.host import Host


class HereStream:
    """Fits actors.followed.Stream and actors.types.Tap."""

    def __init__(self, followed: Followed, host: Host, source: str) -> None:
        self.source = source
        self._followed = followed
        self._host = host
        self._joined = False

    @property
    def _current(self) -> bool:
        return self._followed.stream is self

    async def begin(self) -> None:
        """Join, waking the scope."""
        followed = self._followed
        try:
            bounds = await self._host.subscribe(followed.address, self)
        except HoldfastError as error:
            followed.ended(self, error)
            return
        self._joined = True
        if self._current:
            followed.began(bounds)
        else:
            self.leave()

    def leave(self) -> None:
        """Follow no longer."""
        if self._joined:
            self._joined = False
            self._host.unsubscribe(self._followed.address, self)

    def end(self, error: HoldfastError) -> None:
        """The scope leaves this host."""
        self.leave()
        self._followed.ended(self, error)

    # -- actors.types.Tap --------------------------------------------------------------------------

    def deliver(self, batch: Batch) -> None:
        self._tell(batch.bounds, lambda tap: tap.deliver(batch))

    def durable(self, bounds: Bounds) -> None:
        self._tell(bounds, lambda tap: tap.durable(bounds))

    def moved(self, bounds: Bounds) -> None:
        self._tell(bounds, lambda tap: tap.moved(bounds))

    def reset(self, bounds: Bounds) -> None:
        self._tell(bounds, lambda tap: tap.reset(bounds))

    def _tell(self, bounds: Bounds, act: Callable[..., None]) -> None:
        if self._current:
            self._followed.bounds = bounds
            for tap in tuple(self._followed.taps):
                act(tap)
