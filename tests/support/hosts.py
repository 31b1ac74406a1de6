"""Hosts in this process over one bucket, to be crashed, put to sleep and met in any order.

`crash` leaves what a SIGKILL leaves: the files as they are, in a copy that the next host takes, and
requests that were under way, which may still land. Nothing of the old host answers any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from actors.alarms import AlarmHandler
from actors.host import Host
from actors.host_settings import HostSettings
from actors.replication import BucketSettings
from actors.reply import FutureReply
from actors.types import (
    Address,
    Appended,
    Draft,
    Duplicate,
    Outcome,
    Page,
    Rejected,
    ScopePolicy,
)  # fmt: skip
from infra import clock
from infra.objects import ObjectStore
from infra.paths import ledger_path
from infra.replicator import ReplicaSettings
from infra.restore import Restored, restore_to
from tests.support.ledgers import Checked, check_file, draft, envelope

A = Address("default", "run:r1")
B = Address("default", "run:r2")
WAIT_S = 30
BUCKET = "file:memory"
_FILES = ("-wal", "-shm")


def host_at(
    directory: Path,
    store: ObjectStore,
    *,
    level: str = "local",
    shared: bool = False,
    replica: ReplicaSettings | None = None,
    now_ms: Callable[[], int] = clock.now_ms,
    bucket: dict[str, Any] | None = None,
    on_alarm: AlarmHandler | None = None,
    **settings: Any,
) -> Host:
    """A host that ships at once; `bucket` are further settings of it, `settings` of the host."""
    replica = replica or ReplicaSettings(put_interval_ms=0)
    return Host(
        directory,
        HostSettings(
            bucket=BucketSettings(BUCKET, replica, shared=shared, **(bucket or {})),
            policy=lambda _: ScopePolicy(level="replicated" if shared else level),
            **settings,
        ),
        store=store,
        now_ms=now_ms,
        on_alarm=on_alarm,
    )


async def ask(
    host: Host, address: Address, drafts: list[Draft], *, replicated: bool = False
) -> list[Outcome]:
    """Append and wait for the answers; raises what `append` raises."""
    reply = FutureReply()
    host.append(address, drafts, reply, None, replicated=replicated)
    async with asyncio.timeout(WAIT_S):
        outcomes, _ = await reply.future
    return outcomes


async def put(
    host: Host, address: Address, *event_ids: str, replicated: bool = False
) -> list[Outcome]:
    """Publish these, one draft each."""
    wanted = [draft(envelope(event_id), address.scope) for event_id in event_ids]
    return await ask(host, address, wanted, replicated=replicated)


def seqs(outcomes: list[Outcome]) -> list[int]:
    """Of outcomes that are all acknowledgements."""
    found = []
    for outcome in outcomes:
        assert not isinstance(outcome, Rejected), outcome
        found.append(outcome.first if isinstance(outcome, Appended) else outcome.seq)
    return found


def codes(outcomes: list[Outcome]) -> list[str]:
    """The codes of refusals, `ok` for what was acknowledged."""
    return [
        "ok" if isinstance(outcome, Appended | Duplicate) else outcome.code for outcome in outcomes
    ]


async def bodies(host: Host, address: Address, after: int = 0) -> list[str]:
    """Event ids of what a reader sees."""
    async with asyncio.timeout(WAIT_S):
        page = await host.read(address, after, entries_max=512, bytes_max=1 << 20, joined=False)
    assert isinstance(page, Page), page
    return [msgspec.json.decode(body)["eventId"] for body in page.bodies]


async def closed(host: Host, address: Address) -> None:
    """Close the scope as the sweep would, and wait for it."""
    scope = host.open_scopes[address]
    async with asyncio.timeout(WAIT_S):
        while scope.busy:
            await asyncio.sleep(0)
            if scope.unsettled:
                await host.settled(address)
            elif scope in host.replicas:
                await host.replicas[scope].drained()
        host.close_scope(scope)
        if scope in host.returns:
            await asyncio.wait([host.returns[scope]])
    assert address not in host.open_scopes


async def shipped(host: Host, address: Address) -> None:
    """Wait until the bucket has everything of an open scope."""
    async with asyncio.timeout(WAIT_S):
        await host.replicas[host.open_scopes[address]].drained()


async def crash(host: Host, into: Path) -> None:
    """End the host as a SIGKILL would; `into` becomes the directory as it was at that moment."""
    while not _copied(host.directory, into):
        shutil.rmtree(into)  # a thread was moving files
    await abandon(host)


def _copied(source: Path, into: Path) -> bool:
    """Whether nothing came or went meanwhile. Logs first: a checkpoint may be under way, which
    empties them into the files. Commits are made by this thread alone.
    """
    found = sorted(source.rglob("*"), key=lambda path: (not path.name.endswith("-wal"), path))
    into.mkdir()
    try:
        for path in found:
            target = into / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                shutil.copyfile(path, target)
    except FileNotFoundError:
        return False
    return sorted(found) == sorted(source.rglob("*"))


async def abandon(host: Host) -> None:
    """Let go of everything a host holds, without a further word to anybody."""
    host.alarms.stop()
    await host.alarms.aclose()
    if host.waking is not None:
        for replica in host.replicas.values():
            replica.stop()
        await host.waking.replication.service.tasks.aclose()
    await host.tasks.aclose()
    await host.run(host.barrier.stop)
    for scope in host.open_scopes.values():
        with contextlib.suppress(Exception):
            await host.run(scope.ledger.close)
    host.index._db.close()
    host._pool.shutdown()
    os.close(host._lock_fd)
    host._started = False


@contextlib.asynccontextmanager
async def running(host: Host) -> AsyncIterator[Host]:
    """The host, started; at the end abandoned where the test has not ended it."""
    await host.start()
    try:
        yield host
    finally:
        if host._started:
            await abandon(host)


def prefix_of(address: Address, prefix: str = "") -> str:
    """Where the scope's replica lies in the bucket."""
    from infra.layout import scope_prefix

    return scope_prefix(prefix, *address)


def restored(
    store: ObjectStore, address: Address, target: Path, prefix: str = ""
) -> tuple[Restored, Checked]:
    """The scope out of the bucket alone, on a disk that has nothing else; its file checked."""
    found = restore_to(store, prefix_of(address, prefix), target)
    return found, check_file(target)


def aside_files(directory: Path, address: Address) -> list[Path]:
    """What was moved out of the way of another writer's history."""
    path = ledger_path(directory, *address)
    return sorted(
        found
        for found in path.parent.glob(f"{path.name}.aside-*")
        if not found.name.endswith(_FILES)
    )
