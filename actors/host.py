"""The scopes of one directory: opening, closing, the durability barrier, and the port into them.

Always true: one process holds the directory (a lock file); a scope has at most one `Scope` object;
nothing an edge sees comes from a commit that the barrier has not passed; reading creates no file.
A scope that is closed costs an index row on disk and nothing in memory, unless it is followed: then
where it stands is kept in `resting`, so that heartbeats and followers who are up to date are
answered without waking it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from actors.alarms import AlarmHandler, Alarms
from actors.closing import Closing
from actors.dialects import Dialect, dialect_named
from actors.dialects.kinds import dialect_name_of
from actors.ephemeral import Ephemera
from actors.header import Unfinished
from actors.host_settings import Counts, HostSettings
from actors.index import Index, scan
from actors.layout_stamp import claim_layout
from actors.ledger import Ledger
from actors.mailbox import Request
from actors.replicating import ScopeSource
from actors.replication import BucketSettings, Fetched, Replication
from actors.reply import FutureReply
from actors.scope import Scope
from actors.state import EMPTY, StateReads
from actors.types import Address, Bounds, Draft, Page, Reply, Resync, ScopePolicy, Tap
from actors.wakes import Wakes, Why
from actors.waking import Waking
from infra import clock, ids
from infra.barrier import Barrier, Released
from infra.errors import Closed, ConfigError, Fenced, HoldfastError, StorageError, Unavailable
from infra.objects import ObjectStore
from infra.paths import ledger_path
from infra.replica import Replica
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.host")

CLEAR_JUMP = 2**20
THREADS = 2


class Host(StateReads, Closing):
    """The port of an embedded server. Use as `async with`."""

    def __init__(
        self,
        directory: Path,
        settings: HostSettings | None = None,
        *,
        on_alarm: AlarmHandler | None = None,
        now_ms: Callable[[], int] = clock.now_ms,
        store: ObjectStore | None = None,
    ) -> None:
        self.directory = directory
        self.settings = settings or HostSettings()
        self.now_ms = now_ms
        self.open_scopes: dict[Address, Scope] = {}
        self.taps: dict[Address, list[Tap]] = {}
        self.resting: dict[Address, Bounds] = {}
        self.counts = Counts()
        self.wakes = Wakes()
        self.replicas: dict[Scope, Replica] = {}
        self.waking: Waking | None = None
        self.tasks = TaskOwner()
        self._store = store
        self._nonce = ids.new_nonce()
        self._noted: set[Scope] = set()  # the index knows that they are being written
        self.failures: dict[Address, HoldfastError] = {}
        self.returns: dict[Scope, asyncio.Future[None]] = {}
        self._closing: set[Scope] = set()
        self._closed_files = 0  # since memory was last given back
        self._dirty: dict[Scope, None] = {}  # committed in this loop round
        self.alarms = Alarms(self, on_alarm)
        self.ephemera = Ephemera(ids.new_id(), now_ms)
        self._lock_fd = -1
        self._started = self._stopping = False

    @property
    def own_directory(self) -> Path:
        """What no other process writes to."""
        return self.directory / self.settings.process

    # -- start and stop --------------------------------------------------------------------------

    async def start(self) -> None:
        """Take the directory. Raises ConfigError where another process has it."""
        self._loop = asyncio.get_running_loop()
        try:
            own = self.own_directory
            own.mkdir(parents=True, exist_ok=True)
            self._lock_fd = os.open(own / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock_fd)
            raise ConfigError(f"{self.directory}: another Holdfast process uses it") from error
        except OSError as error:
            where = f"{self.directory}: {error.strerror}"
            raise ConfigError(f"{where}; choose another data_dir") from error
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="holdfast-io")
        if not self.settings.process:
            claim_layout(self.directory, "")
        self.index = Index(self.directory, own)
        if self.settings.bucket is not None:
            await self._join_bucket(self.settings.bucket)
        self.barrier = Barrier(self.directory, self._report)
        self.barrier.start()
        self._started = True
        if self.index.must_rebuild:
            # A killed process may have committed what no barrier passed; it is shown from now on.
            await self.run(self.barrier.sync_all)
            found = await self.run(lambda: list(scan(self.directory, self.settings.home)))
            self.index.replace([one for one in found if self.settings.owns(one[0])])
            self.barrier.mark(self.index)
        self.tasks.spawn(self._sweep(), name="host-sweep")
        if self.waking is not None:
            self.tasks.spawn(self.waking.catch_up(), name="host-catch-up")
        self.alarms.look()

    async def _join_bucket(self, bucket: BucketSettings) -> None:
        replication = Replication(
            self.directory, bucket, self.index, self.now_ms, nonce=self._nonce, store=self._store
        )
        try:
            await self.run(replication.prepare)
        except BaseException:
            self._let_go()
            raise
        replication.begin()
        self.waking = Waking(self, replication)

    async def aclose(self) -> None:
        """Let commits reach the disk and their answers out, then close every file."""
        if not self._started or self._stopping:
            return
        self._stopping = True
        self.alarms.stop()
        await self.alarms.aclose()
        for address in [scope.address for scope in self.open_scopes.values() if scope.busy]:
            with contextlib.suppress(HoldfastError):  # a failed scope has nobody waiting
                await self.settled(address)
        if self.waking is not None:
            await self.waking.drain(self.settings.drain_s)
        while lent := [self.returns[s] for s in self.open_scopes.values() if s.lent]:
            await asyncio.wait(lent)  # a checkpoint has the handle
        for scope in list(self.open_scopes.values()):
            self.close_scope(scope)
        while self.returns:
            await asyncio.wait(list(self.returns.values()))
        await self.tasks.aclose()
        if self.waking is not None:
            await self.waking.replication.aclose()
        await self.run(self.barrier.stop)
        self._let_go()
        self._started = False

    def _let_go(self) -> None:
        self.index.close()
        self._pool.shutdown()
        self.end_scans()
        os.close(self._lock_fd)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    # -- the port --------------------------------------------------------------------------------

    def append(
        self, address: Address, drafts: list[Draft], reply: Reply, tag: Any,
        *, replicated: bool = False,
    ) -> None:  # fmt: skip
        self.submit(address, Request(drafts, reply, tag, replicated=replicated))

    def submit(self, address: Address, request: Request) -> None:
        """`append` for requests that may also set alarms."""
        scope = self.open_scopes.get(address)
        if scope is None:
            if self._stopping:
                raise Closed("the server is closing", retry_after_ms=1000)
            if self.waking is not None and self.waking.must_fetch(address):
                self.waking.park(address, request)
                return
            scope = self.open(address, Why.COMMAND, create=True)
            assert scope is not None
        scope.append(request)

    async def read(
        self, address: Address, after: int, *, entries_max: int, bytes_max: int, joined: bool
    ) -> Page | Resync:
        known = self.resting.get(address)
        if known is not None and after == known.head:
            return Page(after + 1, after, [], "", known)
        scope = await self.awake(address, Why.REPLAY)
        if scope is None:
            return Page(1, 0, [], "", EMPTY) if after == 0 else Resync("ahead_of_head", EMPTY)
        return scope.read(after, entries_max=entries_max, bytes_max=bytes_max, joined=joined)

    async def bounds(self, address: Address) -> Bounds:
        if (known := self.resting.get(address)) is not None:
            return known
        scope = await self.awake(address)
        return EMPTY if scope is None else scope.bounds

    async def subscribe(self, address: Address, tap: Tap) -> Bounds:
        if (known := self.resting.get(address)) is not None:
            self.taps[address].append(tap)
            return known
        scope = await self.awake(address, Why.SUBSCRIBE)
        # No suspension from here on: the head returned and the tap's first entry must meet.
        taps = self.taps.setdefault(address, [])
        if scope is not None:
            scope.taps = taps
        taps.append(tap)
        return EMPTY if scope is None else scope.bounds

    def unsubscribe(self, address: Address, tap: Tap) -> None:
        taps = self.taps.get(address)
        if taps and tap in taps:
            taps.remove(tap)
            if not taps and address not in self.open_scopes:
                del self.taps[address]
                self.resting.pop(address, None)

    async def settled(self, address: Address) -> None:
        """Wait until everything committed so far is released."""
        reply = FutureReply()
        self.submit(address, Request([], reply, None))
        await reply.taken()

    async def clear(self, address: Address) -> Bounds:
        while True:
            scope = await self.awake(
                address, Why.ADMIN
            )  # each time: it may have been closed meanwhile
            if scope is None:
                return EMPTY
            if not scope.busy:
                break
            await self.settled(address)
        scope.begin_epoch(ids.new_id(), CLEAR_JUMP)
        await self.settled(address)
        return scope.bounds

    async def run(self, work: Callable[[], Any]) -> Any:
        return await self._loop.run_in_executor(self._pool, work)

    # -- opening ---------------------------------------------------------------------------------

    async def awake(self, address: Address, why: Why = Why.READ) -> Scope | None:
        """The scope with its file at hand; None where there is no file. `why` is what to note of
        a wake.
        """
        while True:
            scope = self.open_scopes.get(address)
            if scope is None:
                if self.waking is not None and self.waking.must_fetch(address):
                    scope = await self.waking.fetch(address, why)
                else:
                    scope = self.open(address, why, create=False)
                if scope is None:
                    return None
            if self.waking is not None:
                await self.waking.until_proven(scope)
            if not scope.lent:
                return scope
            await asyncio.shield(self.returns[scope])  # others wait for the same future

    def open(
        self, address: Address, why: Why, *, create: bool, fetched: Fetched | None = None
    ) -> Scope | None:
        """Open the local file, or make one. `fetched`: it was just matched with the bucket."""
        if (error := self.failures.get(address)) is not None:
            raise Unavailable(str(error), retry_after_ms=60_000)
        if not self.settings.owns(address):  # whatever asks for it: another process has the file
            raise Closed("the scope is another process's", code="moved", retry_after_ms=50)
        path = ledger_path(self.directory, *address)
        policy = self.settings.policy(address)
        ledger = self._open_ledger(path, address)
        if ledger is None:
            if not create:
                return None
            ledger = self._create_ledger(path, address, policy)
        replica = None
        if self.waking is not None:
            replica = self.waking.replication.replica_for(ledger, address, fetched)
        taps = self.taps.get(address, [])
        dialect = self._dialect_named(ledger.header.dialect)
        scope = Scope(address, ledger, policy, self, taps, dialect, replica)
        if replica is not None and self.waking is not None:
            self.replicas[scope] = replica
            self.waking.prove(scope, replica)
            replica.bind(ScopeSource(scope, self.give_up, self.waking.proven))
        if create or address in self.taps:
            self.taps[address] = scope.taps
        self.open_scopes[address] = scope
        self.resting.pop(address, None)
        self.counts.opens += 1
        self.wakes.began(address, why, self.now_ms())
        return scope

    def _open_ledger(self, path: Path, address: Address) -> Ledger | None:
        if not path.exists() or path.stat().st_size == 0:
            return None
        self._make_room()
        try:
            return Ledger.open(path, address, nonce=self._nonce, tracked=self.waking is not None)
        except Unfinished:
            return None

    def _dialect_named(self, name: str) -> Dialect:
        return self.settings.dialects.get(name) or dialect_named(name)

    def _create_ledger(self, path: Path, address: Address, policy: ScopePolicy) -> Ledger:
        self._make_room()
        self.index.add(address, path)
        self.barrier.mark(self.index)
        dialect = self._dialect_named(dialect_name_of(address.scope))
        return Ledger.create(
            path, address, dialect=dialect.name, epoch=ids.new_id(), at=self.now_ms(),
            materialize=policy.materialize or dialect.needs_rows, level=policy.level,
            sync=not self.barrier.whole_filesystem, nonce=self._nonce, tracked=bool(self.waking),
        )  # fmt: skip

    # -- what scopes ask of their host (actors.shell.Shell) --------------------------------------

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._loop.call_soon(callback)

    def mark(self, scope: Scope) -> None:
        if not self._dirty:
            self._loop.call_soon(self._sync_dirty)
        self._dirty[scope] = None
        if self.waking is not None and scope not in self._noted:
            self._noted.add(scope)
            self.index.opened(scope.address)
            self.barrier.mark(self.index)

    def _sync_dirty(self) -> None:
        """After the turns of one loop round: one pass for all they have committed."""
        dirty, self._dirty = self._dirty, {}
        if len(dirty) == 1:
            (scope,) = dirty
            if self.barrier.quick(scope):
                self._release(self.barrier.sync_now(scope))
                return
        for scope in dirty:
            self.barrier.mark(scope)

    def lend(self, scope: Scope, work: Callable[[], None]) -> None:
        self.returns[scope] = self._loop.create_future()
        self.tasks.spawn(self._lent(scope, work), name=f"lent {scope.address.scope[:40]}")

    async def _lent(self, scope: Scope, work: Callable[[], None]) -> None:
        try:
            await self.run(work)
        except HoldfastError as error:
            if not error.retryable:
                self.failed(scope, error)
            else:
                log.warning("file work failed scope=%s error=%s", scope.address.scope, error)
                scope.lend_failed(error)
        finally:
            scope.returned()
            self.returns.pop(scope).set_result(None)

    def failed(self, scope: Scope, error: HoldfastError) -> None:
        """Take the scope out of service; its file stays as it is for an operator."""
        log.error("scope unavailable scope=%s error=%s", scope.address.scope, error)
        self.failures[scope.address] = error
        if scope in self.replicas:
            self.replicas[scope].stop()
        if self.waking is not None:
            self.waking.proven(scope, error)
        for reply in scope.fail(error):
            reply.flush()

    def give_up(self, scope: Scope, error: HoldfastError) -> None:
        """The replica cannot go on: fenced, or its files are damaged."""
        if self.waking is None or not isinstance(error, Fenced):
            self.failed(scope, error)
            return
        log.warning("fenced scope=%s error=%s", scope.address.scope, error)
        self.counts.fenced += 1
        self.waking.proven(scope, error)
        for reply in scope.fail(error):
            reply.flush()
        if not self._stopping:
            self.tasks.spawn(self.waking.supersede(scope), name="supersede")

    # -- release ---------------------------------------------------------------------------------

    def _report(self, passed: list[Released]) -> None:
        """In the barrier's thread."""
        self._loop.call_soon_threadsafe(self._release, passed)

    def _release(self, passed: list[Released]) -> None:
        touched: dict[Reply, None] = {}
        self.counts.passes += 1
        for item, position, error in passed:
            if not isinstance(item, Scope):
                continue
            if error is not None:
                closed = item in self._closing or self.open_scopes.get(item.address) is not item
                if not (closed and isinstance(error, FileNotFoundError)):  # it took its WAL along
                    self.failed(item, StorageError(f"the disk did not take it: {error}"))
                continue
            for reply in item.release(position):
                touched[reply] = None
        for reply in touched:
            reply.flush()
