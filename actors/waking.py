"""Scopes that come out of the bucket and go back into it: waking, superseding, evicting.

Waking is single-flight for each scope and bounded for the host. Whoever writes to a scope that is
being looked for waits in a mailbox of its own; whoever reads waits for the answer. A failure is an
error for all of them, and no file is left behind that could be taken for an empty history.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from actors.gate import REPLICATED
from actors.mailbox import Mailbox, Request
from actors.replication import Fetched, Replication
from actors.scope import Scope
from actors.state import EMPTY
from actors.types import Address, Bounds
from actors.wakes import Why
from infra.errors import Fenced, HoldfastError, StorageError, TryLater, Unavailable
from infra.paths import ledger_path
from infra.replica import Replica

if TYPE_CHECKING:
    from actors.host import Host

log = logging.getLogger("holdfast.waking")

PARALLEL = 8  # fewer than the threads they wait for (infra/replicator.py)
EVICT_AT_ONCE = 64
CATCH_UP_AT_ONCE = 8
CATCH_UP_WAIT_S = 30.0
CATCH_UP_AGAIN_S = 30.0
LOOK_S = 0.05
SUPERSEDE_RETRY_S_MAX = 5.0

Woken = Scope | HoldfastError | None  # an error is a value: it may be that nobody waits for it


class Waking:
    """The part of a host that only exists where there is a bucket."""

    def __init__(self, host: Host, replication: Replication) -> None:
        self._host = host
        self.replication = replication
        self._fetching: dict[Address, asyncio.Task[Woken]] = {}
        self._parked: dict[Address, Mailbox] = {}
        self._turns = asyncio.Semaphore(PARALLEL)
        self._proving: dict[Scope, asyncio.Future[None]] = {}
        self._behind = asyncio.Event()
        self._left: dict[Address, Bounds] = {}  # where followers of superseded scopes stand

    # -- waking ------------------------------------------------------------------------------------

    def must_fetch(self, address: Address) -> bool:
        """Whether only the bucket can say what the scope holds."""
        if address in self._fetching:
            return True
        return self.replication.must_fetch(address, ledger_path(self._host.directory, *address))

    def park(self, address: Address, request: Request) -> None:
        """Keep the request until it is known whether the scope exists. Raises Busy."""
        mailbox = self._parked.get(address)
        if mailbox is None:
            mailbox = self._parked[address] = Mailbox()
        mailbox.put(request)
        self._begin(address, Why.COMMAND)

    def waking(self, address: Address) -> bool:
        """Whether the scope is being looked for just now."""
        return address in self._fetching

    async def fetch(self, address: Address, why: Why) -> Scope | None:
        """The scope, open; None where it exists nowhere. Raises Unavailable or TryLater."""
        return _scope_of(await asyncio.shield(self._begin(address, why)))

    def _begin(
        self, address: Address, why: Why, instead_of: Scope | None = None
    ) -> asyncio.Task[Woken]:
        task = self._fetching.get(address)
        if task is None:
            work = self._wake(address, why, instead_of)
            task = self._host.tasks.spawn(work, name=f"wake {address.scope[:40]}")
            self._fetching[address] = task
        return task

    async def _wake(self, address: Address, why: Why, instead_of: Scope | None) -> Woken:
        error: HoldfastError = Unavailable("waking was interrupted", retry_after_ms=1000)
        scope: Scope | None = None
        try:
            aside = None if instead_of is None else await self._put_aside(instead_of)
            if self._host.settings.claim is not None:
                await self._host.settings.claim(address, instead_of is not None)
            async with self._turns:
                scope = await self._find(address, why, aside)
            if scope is None and address in self._parked:
                scope = self._host.open(address, why, create=True)
            return scope
        except HoldfastError as found:
            error = _for_clients(address, found)
            return error
        finally:
            del self._fetching[address]
            mailbox = self._parked.pop(address, None)
            if mailbox is not None and scope is not None:
                self._host.resubmit(address, mailbox.drain())
            elif mailbox is not None:
                self._host.refuse(mailbox.drain(), error)

    async def _find(self, address: Address, why: Why, aside: Path | None) -> Scope | None:
        host, replication = self._host, self.replication
        path = ledger_path(host.directory, *address)
        run = replication.service.run
        fetched: Fetched | None = None
        if path.exists() and path.stat().st_size > 0:
            try:
                fetched = await run(lambda: replication.compare(address, path))
            except Fenced as error:
                log.warning("superseded scope=%s error=%s", address.scope, error)
                aside = await run(lambda: replication.set_aside(path))
        if fetched is None:
            fetched = await run(replication.fetching(address, path))
            if fetched is None:
                replication.not_there(address)
                return None
            host.index.add(address, path)
            if aside is not None:
                kept = aside
                await run(lambda: replication.drop_if_covered(kept, path))
        scope = host.open(address, why, create=False, fetched=fetched)
        assert scope is not None
        host.alarms.opened(scope)
        before = self._left.get(address, EMPTY if fetched.moved else None)
        if before is not None:
            host.tasks.spawn(self._announce(scope, before), name="announce")
        return scope

    # -- what a crash left unproven ----------------------------------------------------------------

    def prove(self, scope: Scope, replica: Replica) -> None:
        """The file of a `replicated` scope may hold what the bucket has not, and where others may
        own it, lack what they wrote: nobody may read it before the replica has shipped, found or
        claimed everything.
        """
        replicated = scope.ledger.header.level == REPLICATED or self.replication.settings.shared
        if replicated and replica.unproven:
            self._proving[scope] = asyncio.get_running_loop().create_future()
            replica.hurry()  # somebody is about to wait for it, at whatever level it is written

    def proven(self, scope: Scope, error: HoldfastError | None = None) -> None:
        """It has, or never will."""
        future = self._proving.pop(scope, None)
        if future is not None and not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
                future.exception()  # whoever waits gets it; nobody need wait

    async def until_proven(self, scope: Scope) -> None:
        """Raises TryLater where the bucket does not answer in time."""
        future = self._proving.get(scope)
        if future is None:
            return
        limit_s = self.replication.settings.replica.max_stall_ms / 1000
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.shield(future)
        except TimeoutError as error:
            raise TryLater("the bucket has not confirmed the scope yet") from error

    # -- superseding -------------------------------------------------------------------------------

    async def supersede(self, scope: Scope) -> None:
        """Another writer went on: put our file aside, and serve its history instead.

        Repeated for as long as somebody follows the scope.
        """
        address = scope.address
        self._left.setdefault(address, scope.bounds)
        # As a wake from the first step on: nobody may open the file in between.
        task = self._begin(address, Why.TAKEOVER, scope)
        delay_s = LOOK_S
        while True:
            try:
                _scope_of(await asyncio.shield(task))
                return
            except HoldfastError as found:
                log.warning("not woken after fencing scope=%s error=%s", address.scope, found)
            if not self._host.taps.get(address):
                return
            await asyncio.sleep(delay_s)
            delay_s = min(SUPERSEDE_RETRY_S_MAX, delay_s * 2)
            task = self._begin(address, Why.TAKEOVER)

    async def _announce(self, scope: Scope, before: Bounds) -> None:
        """Have followers read what they missed, as soon as it may be shown."""
        future = self._proving.get(scope)
        if future is not None:
            try:
                await asyncio.shield(future)
            except HoldfastError:
                return  # whoever comes after this scope announces it
        if self._host.open_scopes.get(scope.address) is scope:
            self._left.pop(scope.address, None)
            scope.announce(before)

    async def _put_aside(self, scope: Scope) -> Path | None:
        host, replication, address = self._host, self.replication, scope.address
        path = scope.ledger.path
        await host.discard(scope)
        host.index.closed(address, host.now_ms(), None)
        host.index.evict(address)
        return await replication.service.run(lambda: replication.set_aside(path))

    # -- leaving the disk, and the process ---------------------------------------------------------

    async def evict(self) -> None:
        """Delete the files of scopes that nobody has used for long and the bucket has whole."""
        settings, host = self.replication.settings, self._host
        if not settings.evict_s:
            return
        limit = host.now_ms() - int(settings.evict_s * 1000)
        found = [
            (address, name)
            for address, name in host.index.evictable(limit, EVICT_AT_ONCE)
            if address not in host.open_scopes and address not in self._fetching
        ]
        for address, _ in found:
            host.index.evict(address)
        if found:
            # A power cut must not take the word that they are in the bucket, and the files as well.
            await host.run(host.barrier.sync_all)
        for address, name in found:
            used = address in host.open_scopes or address in self._fetching
            if not used and host.index.is_evicted(address):
                # On the loop, though it is file work: nobody may open the file in between.
                (host.directory / name).unlink(missing_ok=True)

    async def drain(self, within_s: float) -> None:
        """Ship what there is, within the time for it. The rest is on this disk, for next time."""
        host = self._host
        for scope in host.open_scopes.values():
            if not scope.lent and scope.address not in host.failures:
                scope.fold_tails()
        tasks = [
            host.tasks.spawn(replica.drained(), name="drain") for replica in host.replicas.values()
        ]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=within_s)
            if late:
                log.warning("the bucket lacks commits scopes=%d", len(late))

    async def catch_up(self) -> None:
        """After an unclean end, or a bucket's first day: ship what nobody has opened yet. Then what
        was closed while the bucket was in trouble, a while later.

        Not where several hosts own the scopes in turn: there all are `replicated`, so nothing that
        was acknowledged can be missing, and most are another's by now.
        """
        if self._host.settings.claim is not None:
            return
        while True:
            self._behind.clear()
            await self._catch_up()
            await self._behind.wait()
            await asyncio.sleep(CATCH_UP_AGAIN_S)

    def leave_behind(self) -> None:
        """A scope was closed of which the bucket lacks something."""
        self._behind.set()

    async def _catch_up(self) -> None:
        host = self._host
        after: Address | None = None
        while found := host.index.unshipped(CATCH_UP_AT_ONCE, after):
            opened = []
            for address in found:
                try:
                    scope = await host.awake(address, Why.UPLOAD)
                except HoldfastError as error:
                    log.warning("not shipped scope=%s error=%s", address.scope, error)
                    continue
                if scope is not None:
                    opened.append(scope)
            await self._shipped(opened)
            after = found[-1]

    async def _shipped(self, scopes: list[Scope]) -> None:
        try:
            async with asyncio.timeout(CATCH_UP_WAIT_S):
                while any(scope.busy for scope in scopes):  # noqa: ASYNC110 - rare and short
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            return


def _for_clients(address: Address, error: HoldfastError) -> HoldfastError:
    if isinstance(error, StorageError) and error.retryable:
        return TryLater(f"the bucket does not answer: {error}", retry_after_ms=1000)
    if isinstance(error, StorageError):
        log.error("scope unavailable scope=%s error=%s", address.scope, error)
        return Unavailable(f"cannot be restored: {error}", retry_after_ms=60_000)
    return error


def _scope_of(woken: Woken) -> Scope | None:
    if isinstance(woken, HoldfastError):
        raise woken
    return woken
