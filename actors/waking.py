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
from actors.reply import FutureReply
from actors.scope import Scope
from actors.types import Address
from infra import ids
from infra.errors import Fenced, HoldfastError, StorageError, TryLater, Unavailable
from infra.paths import ledger_path

if TYPE_CHECKING:
    from actors.host import Host

log = logging.getLogger("holdfast.waking")

PARALLEL = 8  # fewer than the threads they wait for (infra/replicator.py)
RESTORE_JUMP = 2**32  # I6: no number that a cut history has shown is used again
EVICT_AT_ONCE = 64
CATCH_UP_AT_ONCE = 8
CATCH_UP_WAIT_S = 30.0
LOOK_S = 0.05


class Waking:
    """The part of a host that only exists where there is a bucket."""

    def __init__(self, host: Host, replication: Replication) -> None:
        self._host = host
        self.replication = replication
        self._fetching: dict[Address, asyncio.Task[Scope | None]] = {}
        self._parked: dict[Address, Mailbox] = {}
        self._turns = asyncio.Semaphore(PARALLEL)
        self._proving: dict[Scope, asyncio.Future[None]] = {}

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
        self._begin(address)

    async def fetch(self, address: Address) -> Scope | None:
        """The scope, open; None where it exists nowhere. Raises Unavailable or TryLater."""
        return await asyncio.shield(self._begin(address))

    def _begin(
        self, address: Address, instead_of: Scope | None = None
    ) -> asyncio.Task[Scope | None]:
        task = self._fetching.get(address)
        if task is None:
            work = self._wake(address, instead_of)
            task = self._host.tasks.spawn(work, name=f"wake {address.scope[:40]}")
            task.add_done_callback(_consumed)
            self._fetching[address] = task
        return task

    async def _wake(self, address: Address, instead_of: Scope | None) -> Scope | None:
        error: HoldfastError = Unavailable("waking was interrupted", retry_after_ms=1000)
        scope: Scope | None = None
        try:
            aside = None if instead_of is None else await self._put_aside(instead_of)
            async with self._turns:
                scope = await self._find(address, aside)
            if scope is None and address in self._parked:
                scope = self._host.open(address, create=True)
            return scope
        except HoldfastError as found:
            error = _for_clients(address, found)
            raise error from found
        finally:
            del self._fetching[address]
            mailbox = self._parked.pop(address, None)
            if mailbox is not None and scope is not None:
                self._host.resubmit(address, mailbox.drain())
            elif mailbox is not None:
                self._host.refuse(mailbox.drain(), error)

    async def _find(self, address: Address, aside: Path | None) -> Scope | None:
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
            fetched = await run(lambda: replication.fetch(address, path))
            if fetched is None:
                replication.not_there(address)
                return None
            host.index.add(address, path)
            if aside is not None:
                kept = aside
                await run(lambda: replication.drop_if_covered(kept, path))
        scope = host.open(address, create=False, fetched=fetched)
        assert scope is not None
        if scope.ledger.header.level != REPLICATED and not fetched.same_history:
            scope.move_epoch(ids.new_id(), RESTORE_JUMP)
            shown = FutureReply()
            scope.append(Request([], shown, None))
            await shown.taken()
        replica = host.replicas[scope]
        if replication.settings.shared and not fetched.whole:
            await replica.claim_now()
        return scope

    # -- what a crash left unproven ----------------------------------------------------------------

    def prove(self, scope: Scope) -> None:
        """The file of a `replicated` scope may hold what the bucket has not: nobody may read it
        before the replica has shipped or found everything.
        """
        self._proving[scope] = asyncio.get_running_loop().create_future()

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
        """Another writer went on: put our file aside, and serve its history instead."""
        before = scope.bounds
        try:
            # As a wake from the first step on: nobody may open the file in between.
            woken = await asyncio.shield(self._begin(scope.address, scope))
        except HoldfastError as found:
            log.error("not woken after fencing scope=%s error=%s", scope.address.scope, found)
            return
        if woken is not None:
            woken.announce(before)

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
        for address, name in host.index.evictable(limit, EVICT_AT_ONCE):
            if address in host.open_scopes or address in self._fetching:
                continue
            host.index.evict(address)  # first: a crash in between leaves a file that is as good
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
        """After an unclean end, or a bucket's first day: ship what nobody has opened yet."""
        host = self._host
        after: Address | None = None
        while found := host.index.unshipped(CATCH_UP_AT_ONCE, after):
            opened = []
            for address in found:
                try:
                    scope = await host.awake(address)
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


def _consumed(task: asyncio.Task[Scope | None]) -> None:
    if not task.cancelled():
        task.exception()  # whoever asked has it; a parked request was refused with it
