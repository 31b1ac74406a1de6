"""Server sources: an object that a function of the server keeps up to date.

Exactly one of: `every` so many seconds, `on` a trigger, `once` at the start. Runs of one source are
serialised; triggers during a run coalesce into one trailing run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from actors.types import Address
from edge.auth import resolve
from edge.dialects.para.authority import SyncedAuthority
from edge.dialects.para.coalesce import Coalesced
from infra.errors import ConfigError
from infra.tasks import TaskOwner

EVERY_LEAST_S: Final = 0.01
Compute = Callable[[], "Awaitable[Any] | Any"]
On = Callable[[Callable[[], None]], Callable[[], None] | None]
"""`on(trigger)` begins to call `trigger` whenever the value may have changed; it returns what ends
that.
"""


@dataclass(frozen=True, slots=True)
class Source:
    """One declared source. Raises ConfigError unless exactly one of every, on, once is given."""

    key: str
    compute: Compute
    every: float | None = None
    on: On | None = None
    once: bool = False
    namespace: str = "default"

    def __post_init__(self) -> None:
        if (self.every is not None) + (self.on is not None) + self.once != 1:
            raise ConfigError(f"source {self.key!r}: exactly one of every, on, once")
        if self.every is not None and self.every < EVERY_LEAST_S:
            raise ConfigError(f"source {self.key!r}: every is at least {EVERY_LEAST_S} seconds")


class RunningSource:
    """A source at work; `stop` ends it. Of several processes with the same sources the one that
    `leads` the object's scope runs them.
    """

    def __init__(
        self, source: Source, authority: SyncedAuthority, tasks: TaskOwner,
        leads: Callable[[Address], bool] = lambda _address: True,
    ) -> None:  # fmt: skip
        self._source = source
        self._leads = leads
        self._authority = authority
        self._off: Callable[[], None] | None = None
        self.work = Coalesced(self._compute, tasks, f"para source {source.key}")
        self._tasks = tasks

    def start(self) -> None:
        """Begin; the first run is at once, but for `on`, which waits for its trigger."""
        source = self._source
        if source.on is not None:
            self._off = source.on(self.work.trigger)
        elif source.every is not None:
            self._tasks.spawn(self._tick(source.every), name=f"para every {source.key}")
        else:
            self.work.trigger()

    def stop(self) -> None:
        """No further runs."""
        self.work.stop()
        off, self._off = self._off, None
        if off is not None:
            off()

    async def _tick(self, every_s: float) -> None:
        while not self.work.stopped:
            self.work.trigger()
            await asyncio.sleep(every_s)

    async def _compute(self) -> None:
        if not self._leads(self._authority.address(self._source.key)):
            return  # another process of this deployment does it
        value = await resolve(self._source.compute())
        await self._authority.put(self._source.key, value)
