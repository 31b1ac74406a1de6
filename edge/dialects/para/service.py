"""The running side of para-sync on one edge: what sockets, routes and the application's own calls
share.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, cast

from actors.port import StatePort
from actors.types import Address, Batch
from edge.auth import PublishLimits
from edge.dialects.para.authority import SyncedAuthority
from edge.dialects.para.declared import ParaDeclared
from edge.dialects.para.feed import ParaFeed
from edge.dialects.para.locks import KeyLocks
from edge.dialects.para.presence import Channels
from edge.dialects.para.publishing import Publisher
from edge.dialects.para.queries import Queries
from edge.dialects.para.sources import RunningSource
from edge.feed import Feeds
from edge.runtime import Runtime
from edge.wire import Frames
from infra.tasks import TaskOwner

if TYPE_CHECKING:
    from edge.dialects.para.connection import ParaConnection

FRAME_BYTES_MAX: Final = (1 << 20) + (64 << 10)  # a value of the largest size, with its frame


class ParaService:
    """Call `start` once the application has started, `aclose` before the port goes."""

    def __init__(self, declared: ParaDeclared, runtime: Runtime, frame_bytes_max: int) -> None:
        self.declared = declared
        self.runtime = runtime
        self.port: Any = runtime.port
        self.publish_limits: PublishLimits = runtime.publish_limits
        self.frame_bytes_max = max(frame_bytes_max, FRAME_BYTES_MAX)
        self.channels = Channels(cast(StatePort, runtime.port).ephemeral)
        self.connections: set[ParaConnection] = set()
        self.tasks = TaskOwner()
        self._feeds = Feeds(runtime.port, _unused, ParaFeed)
        self._locks = KeyLocks()
        transport = declared.transport
        self._publisher = None if transport is None else Publisher(runtime.port, transport)
        self._sources: list[RunningSource] = []
        self.leads: Callable[[Address], bool] = lambda _address: True  # of several, who runs them

    def authority(self, name: str, tenant: str = "default") -> SyncedAuthority:
        """The objects of a namespace. Raises ProtocolError for what cannot name one."""
        declared = self.declared
        return SyncedAuthority(
            self.runtime, declared.kinds, declared.scope_of, declared.authorize, name=name,
            tenant=tenant, locks=self._locks, publisher=self._publisher,
        )  # fmt: skip

    def queries(self, authority: SyncedAuthority) -> Queries:
        """The queries over the authority's objects."""
        return Queries(self, authority, self.declared.query)

    async def join(self, address: Address) -> ParaFeed:
        """The scope's feed, with one reader more; `leave` it once."""
        return cast(ParaFeed, await self._feeds.join(address))

    def leave(self, feed: ParaFeed) -> None:
        """One reader less."""
        self._feeds.leave(feed, None)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run it until it ends or the service does."""
        try:
            self.tasks.spawn(work, name=f"para-{name}")
        except RuntimeError:
            return  # closing: nobody is served any more

    def start(self) -> None:
        """Begin the sources."""
        for source in self.declared.sources:
            authority = self.authority(source.namespace)
            running = RunningSource(source, authority, self.tasks, self.leads)
            self._sources.append(running)
            running.start()

    def tick(self, now_ms: int) -> None:
        """Every second or so: take out peers that were silent for too long."""
        self.channels.expire(now_ms)

    async def aclose(self) -> None:
        """End what still runs."""
        for source in self._sources:
            source.stop()
        self._sources.clear()
        await self.tasks.aclose()
        if self._publisher is not None:
            self._publisher.close()


def _unused(scope: str, batch: Batch, batched: bool) -> Frames:
    raise AssertionError("ParaFeed builds its own frames")
