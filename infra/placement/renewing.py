"""The shell around `Membership`: renews this host's record, looks at all, tells who watches.

One task does both, in turns, so an engine that does not answer has one request of ours at a time.
Errors are told once when they begin and once when they end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Protocol

from infra import clock, ids
from infra.errors import StorageError
from infra.placement.hosts import HostInfo, View
from infra.placement.membership import Membership, Record
from infra.placement.placement import NameTaken
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.placement")

POKE_S = 0.2  # least time between two rounds that were asked for
JITTER = 0.1
LEAVE_WAIT_S = 2.0


class Engine(Protocol):
    """Where records are kept. Every call raises EngineUnavailable and other StorageErrors."""

    async def open(self, changed: Callable[[], None]) -> None:
        """Connect, without waiting for an engine that is away. `changed`: look now."""

    async def renew(self, host: HostInfo) -> int:
        """Store our record; its mark. Raises NameTaken where a later life of the name is there."""

    async def look(self) -> list[Record]:
        """Every record there is."""

    async def leave(self, host: HostInfo) -> None:
        """Remove our record, if it is still ours."""

    async def close(self) -> None:
        """Give up connections."""


class RenewingPlacement:
    """`Placement` by records that are renewed. `me` None: a process that only watches."""

    def __init__(
        self,
        engine: Engine,
        me: HostInfo | None,
        *,
        ttl_s: float,
        monotonic: Callable[[], float] = clock.monotonic,
    ) -> None:
        self._engine = engine
        self._monotonic = monotonic
        self._membership = Membership(me, ttl_s=ttl_s)
        self._view = View()
        self._watchers: list[Callable[[View], None]] = []
        self._tasks = TaskOwner()
        self._poked = asyncio.Event()
        self._trouble = ""
        self._told = (0, False)  # lapses and superseded, as watchers know them
        self._closing = False
        self._joined = asyncio.Event()

    @property
    def view(self) -> View:
        return self._view

    @property
    def me(self) -> HostInfo | None:
        return self._membership.me

    @property
    def lapses(self) -> int:
        return self._membership.lapses

    @property
    def superseded(self) -> bool:
        return self._membership.superseded

    def may_claim(self) -> bool:
        return self._membership.may_claim(self._monotonic())

    def watch(self, changed: Callable[[View], None]) -> None:
        self._watchers.append(changed)

    def poke(self) -> None:
        self._poked.set()

    def told(self, host: HostInfo) -> None:
        self._membership.told(host)
        self._tell()

    async def start(self) -> None:
        await self._engine.open(self.poke)
        self._tasks.spawn(self._rounds(), name="placement")

    async def joined(self) -> None:
        """Wait until this host's record is stored and the others' were seen once."""
        await self._joined.wait()

    async def drain(self) -> None:
        self._membership.drain()
        self._tell()
        self.poke()

    async def aclose(self) -> None:
        self._closing = True
        await self._tasks.aclose()
        me = self._membership.me
        if me is not None and not self._membership.superseded:
            with contextlib.suppress(StorageError, TimeoutError):
                async with asyncio.timeout(LEAVE_WAIT_S):
                    await self._engine.leave(me)
        self._watchers.clear()
        await self._engine.close()

    async def _rounds(self) -> None:
        # A flag besides: the NATS client swallows a cancellation that meets it while it flushes.
        while not self._closing:
            self._poked.clear()
            await self._round()
            await asyncio.sleep(POKE_S)
            # Spread, so that hosts started together do not ask together for ever.
            rest_s = self._membership.renew_s * (1 - JITTER * ids.random()) - POKE_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, rest_s)):
                    await self._poked.wait()

    async def _round(self) -> None:
        trouble = ""
        membership = self._membership
        try:
            if membership.me is not None and not membership.superseded:
                sent_at = self._monotonic()
                mark = await self._engine.renew(membership.me)
                membership.renewed(sent_at, mark, self._monotonic())
        except NameTaken as error:
            membership.taken()
            log.error("superseded: this host takes no more scopes error=%s", error)
        except StorageError as error:
            trouble = str(error)
        try:
            membership.shown(self._monotonic(), await self._engine.look())
            if not trouble:
                self._joined.set()
        except StorageError as error:
            trouble = trouble or str(error)
        self._note(trouble)
        self._tell()

    def _note(self, trouble: str) -> None:
        if trouble and not self._trouble:
            log.warning("hosts are not seen: the view stays as it is error=%s", trouble)
        elif self._trouble and not trouble:
            log.info("hosts are seen again")
        self._trouble = trouble

    def _tell(self) -> None:
        view = self._membership.view(self._monotonic())
        told = (self.lapses, self.superseded)
        if view == self._view and told == self._told:
            return
        if view != self._view:
            self._view = view
            log.info("hosts %s fresh=%s", ",".join(
                f"{host.name}:{host.state.value}" for host in view.hosts), view.fresh)  # fmt: skip
        self._told = told
        for changed in list(self._watchers):
            changed(view)
