"""The scopes of one directory: opening, closing, the durability barrier, and the port into them.

Always true: one process holds the directory (a lock file); a scope has at most one `Scope` object;
nothing an edge sees comes from a commit that the barrier has not passed; reading creates no file.
A scope that is closed costs an index row on disk and nothing in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from actors.alarms import AlarmHandler, Alarms
from actors.dialects import Dialect, dialect_named
from actors.dialects.kinds import dialect_name_of
from actors.header import Unfinished
from actors.index import Index, scan
from actors.ledger import Ledger
from actors.mailbox import Request
from actors.reply import FutureReply
from actors.scope import Scope
from actors.state import EMPTY, StateReads
from actors.types import Address, Bounds, Draft, Page, Rejected, Reply, Resync, ScopePolicy, Tap
from infra import clock, ids, limits
from infra.barrier import Barrier, Released
from infra.errors import Busy, Closed, ConfigError, HoldfastError, StorageError, Unavailable
from infra.paths import ledger_path
from infra.tasks import TaskOwner

log = logging.getLogger("holdfast.host")

CLEAR_JUMP = 2**20
OPEN_SLACK = 256  # scopes that may be open above the cap while others are being closed
THREADS = 2
TRIM_SCOPES_MIN = 256  # files closed until their memory is given back


class Counts:
    """Totals since start, for metrics."""

    __slots__ = (
        "commits", "duplicates", "entries", "opens", "passes", "refused", "release_wait_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self.commits = self.entries = self.refused = self.duplicates = 0
        self.opens = self.passes = 0
        self.release_wait_s = 0.0


class HostSettings:
    """Times in seconds. `open_max` is lowered to what the process may have open.

    `dialects` are those an application has configured, by name; the registry has the others.
    """

    def __init__(
        self,
        *,
        policy: Callable[[Address], ScopePolicy] = lambda _address: ScopePolicy(),
        idle_s: float = 60.0,
        open_max: int = 1024,
        dialects: Mapping[str, Dialect] | None = None,
    ) -> None:
        self.policy = policy
        self.dialects = dialects or {}
        self.idle_s = idle_s
        self.open_max = open_max


class Host(StateReads):
    """The port of an embedded server. Use as `async with`."""

    def __init__(
        self,
        directory: Path,
        settings: HostSettings | None = None,
        *,
        on_alarm: AlarmHandler | None = None,
        now_ms: Callable[[], int] = clock.now_ms,
    ) -> None:
        self.directory = directory
        self.settings = settings or HostSettings()
        self.now_ms = now_ms
        self.open_scopes: dict[Address, Scope] = {}
        self.taps: dict[Address, list[Tap]] = {}
        self.counts = Counts()
        self._failed: dict[Address, HoldfastError] = {}
        self._returns: dict[Scope, asyncio.Future[None]] = {}
        self._closing: set[Scope] = set()
        self._closed_files = 0  # since memory was last given back
        self._dirty: dict[Scope, None] = {}  # committed in this loop round
        self._tasks = TaskOwner()
        self._alarms = Alarms(self, on_alarm)
        self._lock_fd = -1
        self._started = self._stopping = False

    # -- start and stop --------------------------------------------------------------------------

    async def start(self) -> None:
        """Take the directory. Raises ConfigError where another process has it."""
        self._loop = asyncio.get_running_loop()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock_fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock_fd)
            raise ConfigError(f"{self.directory}: another Holdfast process uses it") from error
        except OSError as error:
            raise ConfigError(
                f"{self.directory}: {error.strerror}; choose another data_dir"
            ) from error
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="holdfast-io")
        self.index = Index(self.directory)
        self._barrier = Barrier(self.directory, self._report)
        self._barrier.start()
        self._started = True
        if self.index.must_rebuild:
            # A killed process may have committed what no barrier passed; it is shown from now on.
            await self.run(self._barrier.sync_all)
            found = await self.run(lambda: list(scan(self.directory)))
            self.index.replace(found)
            self._barrier.mark(self.index)
        self._tasks.spawn(self._sweep(), name="host-sweep")
        self._alarms.look()

    async def aclose(self) -> None:
        """Let commits reach the disk and their answers out, then close every file."""
        if not self._started or self._stopping:
            return
        self._stopping = True
        self._alarms.stop()
        await self._alarms.aclose()
        for address in [scope.address for scope in self.open_scopes.values() if scope.busy]:
            with contextlib.suppress(HoldfastError):  # a failed scope has nobody waiting
                await self.settled(address)
        while lent := [self._returns[s] for s in self.open_scopes.values() if s.lent]:
            await asyncio.wait(lent)  # a checkpoint has the handle
        for scope in list(self.open_scopes.values()):
            self._close_scope(scope)
        while self._returns:
            await asyncio.wait(list(self._returns.values()))
        await self._tasks.aclose()
        await self.run(self._barrier.stop)
        self.index.close()
        self._pool.shutdown()
        self.end_scans()
        os.close(self._lock_fd)
        self._started = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    # -- the port --------------------------------------------------------------------------------

    def append(self, address: Address, drafts: list[Draft], reply: Reply, tag: Any) -> None:
        self.submit(address, Request(drafts, reply, tag))

    def submit(self, address: Address, request: Request) -> None:
        """`append` for requests that may also set alarms."""
        scope = self.open_scopes.get(address)
        if scope is None:
            if self._stopping:
                raise Closed("the server is closing", retry_after_ms=1000)
            scope = self._open(address, create=True)
            assert scope is not None
        scope.append(request)

    async def read(
        self, address: Address, after: int, *, entries_max: int, bytes_max: int, joined: bool
    ) -> Page | Resync:
        scope = await self._awake(address)
        if scope is None:
            return Page(1, 0, [], "", EMPTY) if after == 0 else Resync("ahead_of_head", EMPTY)
        return scope.read(after, entries_max=entries_max, bytes_max=bytes_max, joined=joined)

    async def bounds(self, address: Address) -> Bounds:
        scope = await self._awake(address)
        return EMPTY if scope is None else scope.bounds

    async def subscribe(self, address: Address, tap: Tap) -> Bounds:
        scope = await self._awake(address)
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

    async def settled(self, address: Address) -> None:
        """Wait until everything committed so far is released."""
        reply = FutureReply()
        self.submit(address, Request([], reply, None))
        await _taken(reply)

    async def clear(self, address: Address) -> Bounds:
        while True:
            scope = await self._awake(address)  # each time: it may have been closed meanwhile
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

    async def set_alarm(
        self, address: Address, name: str, due_at_ms: int, payload: str | None
    ) -> None:
        """Durable on return: the handler runs at `due_at_ms` or later, at least once."""
        await _taken(self.submit_alarm(address, [(name, due_at_ms, payload, 0)], []))
        # Again: an alarm run that read the rows before this commit may have set a later time.
        self.index.lower_due(address, due_at_ms)
        self._alarms.look()

    async def cancel_alarm(self, address: Address, name: str) -> bool:
        """Take an alarm back; whether there was one."""
        found = [(name, alarm[1]) for alarm in await self.alarms_of(address) if alarm[0] == name]
        if found:
            await _taken(self.submit_alarm(address, [], found))
        return bool(found)

    def submit_alarm(
        self,
        address: Address,
        alarms: list[tuple[str, int, str | None, int]],
        done: list[tuple[str, int]],
    ) -> FutureReply:
        """Set and end alarms in the scope's next commit; its reply comes when they are durable."""
        reply = FutureReply()
        self.submit(address, Request([], reply, None, alarms=alarms, alarms_done=done))
        for _, due_at, _, _ in alarms:
            self.index.lower_due(address, due_at)
            self._barrier.mark(self.index)
        return reply

    async def alarms_of(self, address: Address) -> list[tuple[str, int, str | None, int]]:
        """(name, due_at, payload, attempts) of the scope's alarms, soonest first."""
        scope = await self._awake(address)
        return [] if scope is None else scope.ledger.alarms()

    # -- opening ---------------------------------------------------------------------------------

    async def _awake(self, address: Address) -> Scope | None:
        """The scope with its file at hand; None where there is no file."""
        while True:
            scope = self.open_scopes.get(address)
            if scope is None:
                return self._open(address, create=False)
            if not scope.lent:
                return scope
            await asyncio.shield(self._returns[scope])  # others wait for the same future

    def _open(self, address: Address, *, create: bool) -> Scope | None:
        if (error := self._failed.get(address)) is not None:
            raise Unavailable(str(error), retry_after_ms=60_000)
        path = ledger_path(self.directory, *address)
        policy = self.settings.policy(address)
        ledger = self._open_ledger(path, address)
        if ledger is None:
            if not create:
                return None
            ledger = self._create_ledger(path, address, policy)
        dialect = self._dialect_named(ledger.header.dialect)
        scope = Scope(address, ledger, policy, self, self.taps.get(address, []), dialect)
        if create or address in self.taps:
            self.taps[address] = scope.taps
        self.open_scopes[address] = scope
        self.counts.opens += 1
        return scope

    def _open_ledger(self, path: Path, address: Address) -> Ledger | None:
        if not path.exists() or path.stat().st_size == 0:
            return None
        self._make_room()
        try:
            return Ledger.open(path, address)
        except Unfinished:
            return None

    def _dialect_named(self, name: str) -> Dialect:
        return self.settings.dialects.get(name) or dialect_named(name)

    def _create_ledger(self, path: Path, address: Address, policy: ScopePolicy) -> Ledger:
        self._make_room()
        self.index.add(address, path)
        self._barrier.mark(self.index)
        dialect = self._dialect_named(dialect_name_of(address.scope))
        return Ledger.create(
            path, address, dialect=dialect.name, epoch=ids.new_id(), at=self.now_ms(),
            materialize=policy.materialize or dialect.needs_rows,
            sync=not self._barrier.whole_filesystem,
        )  # fmt: skip

    def _make_room(self) -> None:
        over = len(self.open_scopes) - len(self._closing) - self.settings.open_max + 1
        if over <= 0:
            return
        if len(self.open_scopes) > self.settings.open_max + OPEN_SLACK:
            raise Busy("too many scopes are open at once", retry_after_ms=200)
        idle = [scope for scope in self.open_scopes.values() if not scope.busy]
        for scope in sorted(idle, key=lambda scope: scope.used_at)[: max(over, 8)]:
            self._close_scope(scope)

    # -- what scopes ask of their host (actors.scope.Shell) --------------------------------------

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._loop.call_soon(callback)

    def mark(self, scope: Scope) -> None:
        if not self._dirty:
            self._loop.call_soon(self._sync_dirty)
        self._dirty[scope] = None

    def _sync_dirty(self) -> None:
        """After the turns of one loop round: one pass for all they have committed."""
        dirty, self._dirty = self._dirty, {}
        if len(dirty) == 1:
            (scope,) = dirty
            if self._barrier.quick(scope):
                self._release(self._barrier.sync_now(scope))
                return
        for scope in dirty:
            self._barrier.mark(scope)

    def lend(self, scope: Scope, work: Callable[[], None]) -> None:
        self._returns[scope] = self._loop.create_future()
        self._tasks.spawn(self._lent(scope, work), name=f"lent {scope.address.scope[:40]}")

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
            self._returns.pop(scope).set_result(None)

    def failed(self, scope: Scope, error: HoldfastError) -> None:
        """Take the scope out of service; its file stays as it is for an operator."""
        log.error("scope unavailable scope=%s error=%s", scope.address.scope, error)
        self._failed[scope.address] = error
        for reply in scope.fail(error):
            reply.flush()

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
                self.failed(item, StorageError(f"the disk did not take it: {error}"))
                continue
            for reply in item.release(position):
                touched[reply] = None
        for reply in touched:
            reply.flush()

    # -- closing ---------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        """Close what nobody has used for `idle_s`, a few at a time."""
        idle_ms = self.settings.idle_s * 1000
        while True:
            await asyncio.sleep(max(0.05, min(5.0, self.settings.idle_s / 4)))
            limit = self.now_ms() - idle_ms
            idle = [s for s in self.open_scopes.values() if s.used_at <= limit and not s.busy]
            for scope in idle:
                self._close_scope(scope)
            closed = self._closed_files
            if closed >= TRIM_SCOPES_MIN or (closed and not self.open_scopes):
                self._closed_files = 0
                _trim_memory()

    def _close_scope(self, scope: Scope) -> None:
        if scope in self._closing:
            return
        self._closing.add(scope)
        try:
            if scope.address not in self._failed:
                scope.fold_tails()
        except HoldfastError as error:  # the tails stay recoverable from the entries
            log.warning("close without fold scope=%s error=%s", scope.address.scope, error)
        scope.lent = True
        self._returns[scope] = self._loop.create_future()
        self._tasks.spawn(self._closed(scope), name=f"close {scope.address.scope[:40]}")

    async def _closed(self, scope: Scope) -> None:
        self._barrier.forget(scope)
        try:
            await self.run(scope.ledger.close)
        finally:
            address = scope.address
            if self.open_scopes.get(address) is scope:
                del self.open_scopes[address]
            if not scope.taps:
                self.taps.pop(address, None)
            self._closing.discard(scope)
            self._closed_files += 1
            self._reopen_for(address, scope.drain())
            self._returns.pop(scope).set_result(None)

    def _reopen_for(self, address: Address, requests: list[Request]) -> None:
        """Requests that came while the file was closing go to the scope that follows."""
        for request in requests:
            try:
                self.submit(address, request)
            except HoldfastError as error:
                rejected = Rejected(error.code, str(error), retry_after_ms=error.retry_after_ms)
                request.reply.settle(request.tag, [rejected] * max(1, len(request.drafts)), EMPTY)
                request.reply.flush()


async def _taken(reply: FutureReply) -> None:
    """Wait for a request without drafts; its only possible outcome is that it was refused."""
    outcomes, _ = await reply.future
    for outcome in outcomes:
        if isinstance(outcome, Rejected):
            raise StorageError(
                outcome.message, code=outcome.code, retry_after_ms=outcome.retry_after_ms
            )


def _trim_memory() -> None:
    """Give the C library's free pages back: many closed files leave many behind."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def raise_open_files_limit(open_max: int) -> int:
    """Let the process have the files it may need; how many scopes may be open at once."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = open_max * 4 + limits.CONNECTIONS_MAX + 256
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(16, min(open_max, (soft - 256) // 8))
