"""How scopes of a host go to sleep: when nobody has used them for a while, when others need their
place, and when their history has become another's.

The part of a host that closes files; `Host` is made on it. Always true: a scope that is being
closed is lent, so that whoever wants it waits and finds the one that is opened after it; requests
that came meanwhile go to that one.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from actors.mailbox import Request
from actors.scope import Scope
from actors.state import EMPTY
from actors.types import Address, Bounds, Rejected, Tap
from infra.barrier import Barrier
from infra.errors import Busy, HoldfastError
from infra.process import trim_memory
from infra.replica import Replica
from infra.tasks import TaskOwner

if TYPE_CHECKING:
    from actors.alarms import Alarms
    from actors.host_settings import HostSettings
    from actors.index import Index
    from actors.wakes import Wakes
    from actors.waking import Waking

OPEN_SLACK = 256  # scopes that may be open above the cap while others are being closed
LOOK_S = 0.02
TRIM_SCOPES_MIN = 256  # files closed until their memory is given back


class Closing(ABC):
    """The part of a host that closes files."""

    settings: HostSettings
    open_scopes: dict[Address, Scope]
    taps: dict[Address, list[Tap]]
    resting: dict[Address, Bounds]
    replicas: dict[Scope, Replica]
    failures: dict[Address, HoldfastError]
    waking: Waking | None
    wakes: Wakes
    alarms: Alarms
    index: Index
    barrier: Barrier
    tasks: TaskOwner
    now_ms: Callable[[], int]
    _loop: asyncio.AbstractEventLoop
    _stopping: bool
    _noted: set[Scope]
    returns: dict[Scope, asyncio.Future[None]]
    _closing: set[Scope]
    _closed_files: int

    @abstractmethod
    def submit(self, address: Address, request: Request) -> None: ...

    @abstractmethod
    async def settled(self, address: Address) -> None: ...

    @abstractmethod
    async def run(self, work: Callable[[], Any]) -> Any: ...

    def _make_room(self) -> None:
        over = len(self.open_scopes) - len(self._closing) - self.settings.open_max + 1
        if over <= 0:
            return
        if len(self.open_scopes) > self.settings.open_max + OPEN_SLACK:
            raise Busy("too many scopes are open at once", retry_after_ms=200)
        idle = [scope for scope in self.open_scopes.values() if not scope.busy]
        for scope in sorted(idle, key=lambda scope: scope.used_at)[: max(over, 8)]:
            self.close_scope(scope)

    async def _sweep(self) -> None:
        """Close what nobody has used for `idle_s`, a few at a time."""
        idle_ms = self.settings.idle_s * 1000
        while True:
            await asyncio.sleep(max(0.05, min(5.0, self.settings.idle_s / 4)))
            limit = self.now_ms() - idle_ms
            idle = [s for s in self.open_scopes.values() if s.used_at <= limit and not s.busy]
            soon = self.alarms.soon(int(idle_ms)) if idle else set()
            for scope in idle:
                if scope.address not in soon:
                    self.close_scope(scope)
            if self.waking is not None:
                await self.waking.evict()
            closed = self._closed_files
            if closed >= TRIM_SCOPES_MIN or (closed and not self.open_scopes):
                self._closed_files = 0
                trim_memory()

    async def sleep(self, scope: Scope) -> None:
        """Close a scope as soon as nothing is under way in it. Whoever wants it wakes it again."""
        address = scope.address
        while self.open_scopes.get(address) is scope:
            if scope in self.returns:
                await asyncio.shield(self.returns[scope])
            elif scope.unsettled:
                await self.settled(address)
                await asyncio.sleep(0)
            elif scope.busy:  # the bucket lacks something
                await self.replicas[scope].drained()
                await asyncio.sleep(LOOK_S)
            else:
                self.close_scope(scope)

    def close_scope(self, scope: Scope) -> None:
        if scope in self._closing:
            return
        if scope.address not in self.failures:
            scope.fold_tails()
            if scope.busy and not self._stopping:
                return  # the replica ships that first
        self._begin_closing(scope)
        self.tasks.spawn(self._closed(scope), name=f"close {scope.address.scope[:40]}")

    @property
    def _shared(self) -> bool:
        """Whether others may go on with a history while it sleeps here."""
        return self.waking is not None and self.waking.replication.settings.shared

    def _begin_closing(self, scope: Scope) -> None:
        self._closing.add(scope)
        scope.lent = True
        self.returns[scope] = self._loop.create_future()

    async def discard(self, scope: Scope) -> None:
        """Close a scope whose history is another's now."""
        while scope.lent and scope in self.returns:
            await asyncio.shield(self.returns[scope])
        if scope not in self._closing:
            self._begin_closing(scope)
            await self._closed(scope)

    async def _closed(self, scope: Scope) -> None:
        self.barrier.forget(scope)
        address = scope.address
        replica = self.replicas.get(scope)
        record = None
        try:
            if replica is not None and self.waking is not None:
                await replica.rest()
                replica.stop()
                await replica.landed()
                record = self.waking.replication.record(replica, scope.ledger)
            await self.run(scope.ledger.close)
        finally:
            if self.open_scopes.get(address) is scope:
                del self.open_scopes[address]
                self.wakes.ended(address, self.now_ms())
            if replica is not None:
                del self.replicas[scope]
                self._noted.discard(scope)
                self.index.closed(address, self.now_ms(), record)
                if record is None and self.waking is not None:
                    self.waking.leave_behind()
            if not scope.taps:
                self.taps.pop(address, None)
            elif scope.sound and address not in self.open_scopes and not self._shared:
                self.resting[address] = scope.bounds
            self._closing.discard(scope)
            self._closed_files += 1
            self.resubmit(address, scope.drain())
            self.returns.pop(scope).set_result(None)

    def resubmit(self, address: Address, requests: list[Request]) -> None:
        """Requests that came while the file was not at hand go to the scope that follows."""
        for request in requests:
            try:
                self.submit(address, request)
            except HoldfastError as error:
                self.refuse([request], error)

    def refuse(self, requests: list[Request], error: HoldfastError) -> None:
        """Tell whoever waits that nothing was taken."""
        rejected = Rejected(error.code, str(error), retry_after_ms=error.retry_after_ms)
        for request in requests:
            request.reply.settle(request.tag, [rejected] * max(1, len(request.drafts)), EMPTY)
            request.reply.flush()
