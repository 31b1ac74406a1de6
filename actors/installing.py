"""A prepared ledger file becomes a scope of a running host: forks and imports.

The scope must exist nowhere: not on this disk, and where there is a bucket, not there either. What
stands at its place in the end is the whole file or nothing.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from actors.host import Host
from actors.identity import whose
from actors.replication import Fetched
from actors.scope import Scope
from actors.state import EMPTY
from actors.types import Address
from actors.wakes import Why
from infra.errors import ScopeError, StorageError
from infra.paths import ledger_path
from infra.replica_files import Files

SHIP_WAIT_S = 30.0


class ScopeExists(ScopeError):
    """The scope is there already, here or in the bucket. Nothing was changed."""

    code = "conflict"


async def install(host: Host, address: Address, file: Path) -> Scope:
    """Move `file` (whole, without a log, on the host's file system) into the scope's place.

    On return it is on this disk for good, open, in the index and, where there is a bucket, being
    replicated; a scope of level `replicated` is in the bucket. Raises ScopeExists, FileRefused for
    a file that is not this scope's, what waking raises where the bucket does not answer, and
    TryLater where it has not taken the file in time: then the scope exists all the same. `file` is
    left alone where the scope was not made.
    """
    path = ledger_path(host.directory, *address)
    owned = await host.run(lambda: _prepare(file, path.parent, host.directory))
    if owned != address:
        raise ScopeError(f"the file is {owned.scope!r}'s, not {address.scope!r}'s", code="conflict")
    if await host.awake(address, Why.TRANSFER) is not None:
        raise ScopeExists(f"scope {address.scope!r} exists; choose another name")
    scope = _place(host, address, path, file)
    await host.run(lambda: _sync(path.parent))
    await host.settled(address)
    if host.open_scopes.get(address) is scope:
        scope.announce(EMPTY)  # to whoever followed the scope before it existed
    return scope


def _place(host: Host, address: Address, path: Path, file: Path) -> Scope:
    """Without a suspension, so that nobody else makes the scope in between."""
    if address in host.open_scopes or (path.exists() and path.stat().st_size > 0):
        raise ScopeExists(f"scope {address.scope!r} was made meanwhile")
    for suffix in ("-wal", "-shm"):  # of a file that is gone; SQLite would play it back
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    file.replace(path)
    # The bucket has nothing of it, which is known, and so it must have all of it before anybody may
    # see a scope of level `replicated`.
    nothing = None if host.waking is None else Fetched(Files(), whole=True)
    try:
        scope = host.open(address, Why.TRANSFER, create=False, fetched=nothing)
        assert scope is not None, "a ledger with a scope row opens"
    except BaseException:
        path.replace(file)
        raise
    host.index.add(address, path)
    host.barrier.mark(host.index)
    due_at = min((due for _, due, _, _ in scope.ledger.alarms()), default=None)
    if due_at is not None:
        host.index.set_due(address, due_at)
        host.alarms.look()
    return scope


async def shipped(host: Host, address: Address) -> None:
    """Wait, for SHIP_WAIT_S at most, until the bucket has what the scope holds by now."""
    scope = host.open_scopes.get(address)
    replica = host.replicas.get(scope) if scope is not None else None
    if replica is not None:
        try:
            async with asyncio.timeout(SHIP_WAIT_S):
                await replica.drained()
        except TimeoutError:
            return  # what the bucket has is what can be had


def _prepare(file: Path, folder: Path, root: Path) -> Address:
    """Make the bytes and the folder durable before the name; whose file it is."""
    try:
        owned = whose(file)
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        folder.mkdir(parents=True, exist_ok=True)
        for directory in (folder, *folder.parents):
            _sync(directory)
            if directory == root:
                break
    except OSError as error:
        raise StorageError(f"{file.name}: {error.strerror}") from error
    return owned.address


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
