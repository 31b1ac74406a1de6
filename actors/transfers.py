"""Whole scopes into and out of a running host: fork, export, import.

All work is on scratch files of the data directory, in one thread, so a transfer holds up neither
checkpoints nor other transfers for long; what is not installed in the end leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple, Protocol, TypeVar

from actors.check import check_ledger
from actors.history import restore_state
from actors.host import Host
from actors.identity import copy_database, take_identity, whose
from actors.installing import ScopeExists, install, shipped
from actors.line_files import is_sqlite, read_database, read_lines, write_lines
from actors.lines import BadImport
from actors.moment import At
from actors.scope import Scope
from actors.types import Address, Bounds
from actors.wakes import Why
from infra import ids
from infra.errors import Busy, FileRefused, NoBucket, ScopeError, StorageError

T = TypeVar("T")
Format = Literal["ndjson", "sqlite"]

SCRATCH = "transfer-"
WAITING_MAX = 8
UPLOAD_BYTES_MAX = 64 << 30
_BESIDE = ("", "-wal", "-shm", "-journal", ".probe", ".up")


class Export(NamedTuple):
    """A file to send and close; it has no name any more. `seq` is the head it holds."""

    file: IO[bytes]
    size: int
    seq: int


class Made(Protocol):
    """A scope that has come to be."""

    @property
    def bounds(self) -> Bounds:
        """Where its history stands."""


class Transferring(Protocol):
    """Fits one host, and many of them behind links. Errors are those of Transfers."""

    async def fork(self, source: Address, target: Address, at: At | None) -> Made:
        """A new scope with the state of another."""

    async def export(self, address: Address, form: Format) -> Export:
        """The scope at one released seq."""

    async def accept(
        self, address: Address, chunks: AsyncIterator[bytes], *, keep_epoch: bool
    ) -> Made:
        """A new scope out of an export."""

    def close(self) -> None:
        """Before the port."""


class NotThere(ScopeError):
    """The scope that is asked for exists nowhere."""

    code = "not_found"


class Transfers:
    """One for each host, made once it has started; `close` it before the host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="holdfast-transfer")
        self._under_way = 0
        for left in host.own_directory.glob(f"{SCRATCH}*"):  # by a crash
            left.unlink(missing_ok=True)

    async def fork(self, source: Address, target: Address, at: At | None) -> Scope:
        """A new scope with the state of another: the present one, or an earlier one that the bucket
        has. Its history has an epoch of its own; alarms stay with the first.

        Raises ScopeExists, NotThere, NoBackup, NoBucket, and what installing raises.
        """
        with self._scratch() as scratch:
            await self._absent(target)
            await self._take(source, scratch, at)
            return await self._begin(target, scratch, ids.new_id())

    async def state(self, source: Address, at: At | None) -> Export:
        """The first half of `fork`: a state of the scope as a SQLite file, for `begin`."""
        with self._scratch() as scratch:
            await self._take(source, scratch, at)

            def build() -> Export:
                seq = whose(scratch).header.head
                return Export(scratch.open("rb"), scratch.stat().st_size, seq)

            return await self._run(_disk_errors(build))

    async def begin(self, target: Address, chunks: AsyncIterator[bytes], epoch: str) -> Scope:
        """The second half of `fork`: a new scope with a state that may come from elsewhere."""
        with self._scratch() as scratch:
            await self._absent(target)
            await self._receive(chunks, scratch)
            return await self._begin(target, scratch, epoch)

    async def _take(self, source: Address, scratch: Path, at: At | None) -> None:
        host = self._host
        if at is None:
            await self._copy(source, scratch)
            return
        if host.waking is None:
            raise NoBucket(
                "an earlier state comes out of the bucket, and this server has none: fork the"
                " present state, without `at`"
            )
        replication = host.waking.replication
        await shipped(host, source)  # else the newest seqs would not be found
        store, prefix = replication.service.store, replication.prefix_of(source)
        await self._run(lambda: restore_state(store, prefix, scratch, at))

    async def _begin(self, target: Address, scratch: Path, epoch: str) -> Scope:
        host = self._host
        now, level = host.now_ms(), host.settings.policy(target).level
        await self._run(
            lambda: take_identity(scratch, target, epoch=epoch, level=level, forked_at=now)
        )
        return await install(host, target, scratch)

    async def export(self, address: Address, form: Format) -> Export:
        """The scope at one released seq, as lines (actors/lines.py) or as its SQLite file."""
        with self._scratch() as scratch:
            seq = await self._copy(address, scratch)

            def build() -> Export:
                if form == "sqlite":
                    file: IO[bytes] = scratch.open("rb")
                    return Export(file, scratch.stat().st_size, seq)
                file = tempfile.TemporaryFile(dir=self._host.directory)  # noqa: SIM115 - returned
                try:
                    size = write_lines(scratch, file)
                    file.seek(0)
                except BaseException:
                    file.close()
                    raise
                return Export(file, size, seq)

            return await self._run(_disk_errors(build))

    async def accept(
        self, address: Address, chunks: AsyncIterator[bytes], *, keep_epoch: bool,
        new_epoch: str = "",
    ) -> Scope:  # fmt: skip
        """A new scope out of an export, or of any whole ledger file. Everything in it is checked
        first. Its epoch is new, unless the history is known to go on nowhere else.

        Raises BadImport with what is wrong, ScopeExists, and what installing raises.
        """
        host = self._host
        with self._scratch() as scratch:
            await self._absent(address)
            upload = scratch.with_name(scratch.name + ".up")
            await self._receive(chunks, upload)
            epoch = None if keep_epoch else new_epoch or ids.new_id()
            level = host.settings.policy(address).level

            def build() -> None:
                with upload.open("rb") as file:
                    database = is_sqlite(file.read(16))
                    file.seek(0)
                    if not database:
                        read_lines(file, scratch)
                if database:
                    read_database(upload, scratch)
                upload.unlink()
                _check_sound(scratch)
                take_identity(scratch, address, epoch=epoch, level=level)

            await self._run(_disk_errors(build))
            return await install(host, address, scratch)

    async def _absent(self, address: Address) -> None:
        """Before anything is copied: raises ScopeExists."""
        if await self._host.awake(address, Why.TRANSFER) is not None:
            raise ScopeExists(f"scope {address.scope!r} exists; choose another name")

    async def _copy(self, source: Address, scratch: Path) -> int:
        """The scope as of one commit, all of it released on return; its head."""
        host = self._host
        scope = await host.awake(source, Why.TRANSFER)
        if scope is None:
            raise NotThere(f"no scope {source.scope!r} in tenant {source.tenant!r}")
        path = scope.ledger.path
        await self._run(_disk_errors(lambda: copy_database(path, scratch)))
        header = (await self._run(lambda: whose(scratch))).header
        await host.settled(source)
        bounds = await host.bounds(source)
        if bounds.epoch != header.epoch or bounds.head < header.head:
            raise Busy(f"{source.scope!r} was cut while it was copied", retry_after_ms=1000)
        return header.head

    async def _receive(self, chunks: AsyncIterator[bytes], upload: Path) -> None:
        size = 0
        with upload.open("wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > UPLOAD_BYTES_MAX:
                    raise BadImport(f"more than {UPLOAD_BYTES_MAX} bytes")
                await self._run(_disk_errors(lambda data=chunk: file.write(data)))  # type: ignore[misc]

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A name in the data directory; whatever stands there in the end goes."""
        if self._under_way >= WAITING_MAX:
            raise Busy(f"{WAITING_MAX} transfers are under way", retry_after_ms=5000)
        self._under_way += 1
        scratch = self._host.own_directory / f"{SCRATCH}{ids.new_id()}"
        try:
            yield scratch
        finally:
            self._under_way -= 1
            try:  # behind the work that a cancelled caller has left in the thread
                self._pool.submit(_remove, scratch)
            except RuntimeError:  # closed
                _remove(scratch)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Wait for the piece of work under way."""
        self._pool.shutdown()


def _check_sound(file: Path) -> None:
    try:
        problems = check_ledger(file).problems
    except FileRefused as error:  # a dialect that nobody knows, say
        raise BadImport(f"not a sound ledger: {error}") from error
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BadImport(f"not a sound ledger: {problems[0]}{more}")


def _remove(scratch: Path) -> None:
    for suffix in _BESIDE:
        scratch.with_name(scratch.name + suffix).unlink(missing_ok=True)


def _disk_errors(work: Callable[[], T]) -> Callable[[], T]:
    def guarded() -> T:
        try:
            return work()
        except OSError as error:
            full = error.errno == errno.ENOSPC
            message = "the disk is full" if full else f"the disk: {error.strerror}"
            raise StorageError(message, code="disk_full" if full else "storage") from error

    return guarded
