"""What may be asked of a space: exchanges, namespaces, files, collecting what nobody refers to.

A space is a scope of this dialect; its bytes lie in an object store, below the space's own prefix.
Always true: bytes are stored before a key maps to them (which of a key's contents it shows:
actors/dialects/starkeep/blobs.py); what an exchange answers is released; nothing is deleted that a
key maps to, nor a key that somebody has asked for within the grace.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from actors.dialects.starkeep.blobs import BlobChange, shown
from actors.dialects.starkeep.channels import BLOBS, NAMESPACES, Channel
from actors.dialects.starkeep.delta import Held
from actors.dialects.starkeep.fold import value_of
from actors.dialects.starkeep.namespaces import Namespace, check_namespace
from actors.dialects.starkeep.naming import check_object_key
from actors.dialects.starkeep.plan import (
    blob_draft,
    declare_draft,
    exchange_draft,
    withdraw_draft,
    wrong_mode,
)
from actors.dialects.starkeep.reads import (
    ExchangeWork,
    Mapped,
    MappedWork,
    NamespacesWork,
    UnusedWork,
)  # fmt: skip
from actors.dialects.starkeep.wire import Exchange, check_drift, decode_exchange, encode_answer
from actors.port import StatePort
from actors.reply import FutureReply
from actors.types import Address, Draft, Rejected
from edge.contents import ContentStore
from edge.problems import Problem
from infra.errors import HoldfastError
from infra.objects import ObjectStore, join_key

FOLDER: Final = "~files"  # no tenant's folder in a bucket is called so (infra/layout.py)
THREADS: Final = 8  # for bytes; apart from the host's, which a slow store must not hold up
HELD_MAX: Final = 256  # spaces whose coverage is remembered
GC_BATCH: Final = 500
GC_GRACE_MS: Final = 86_400_000  # a blob goes before its record: a young one may get one yet
TOUCH_MS: Final = 3_600_000  # how often it is noted that an unused key is asked for


class FileInfo(msgspec.Struct, frozen=True):
    """A stored object of a space."""

    key: str
    hash: str
    size: int
    content_type: str | None = None


class SpaceSettings(msgspec.Struct, frozen=True):
    """Limits. `drift_ms`: how far ahead of this server a stamp may be."""

    drift_ms: int = 86_400_000
    body_bytes_max: int = 16 << 20
    file_bytes_max: int = 16 << 30


class GcReport(msgspec.Struct):
    """What a collection found: keys without reference, and contents without key."""

    keys: list[str] = []
    contents: list[str] = []
    bytes: int = 0
    deleted: bool = False


class Spaces:
    """All spaces of a server."""

    def __init__(
        self,
        port: StatePort,
        store: ObjectStore,
        *,
        spool_dir: Path,
        now_ms: Callable[[], int],
        prefix: str = "",
        settings: SpaceSettings | None = None,
    ) -> None:
        self.settings = settings or SpaceSettings()
        self._port = port
        self._store = store
        self._spool_dir = spool_dir
        self._now_ms = now_ms
        self._prefix = prefix
        self._held: OrderedDict[tuple[Address, Channel], tuple[str, int, Held]] = OrderedDict()
        self._gates: dict[Address, _Gate] = {}
        self._pool: ThreadPoolExecutor | None = None  # most servers have no files

    async def aclose(self) -> None:
        """Wait for transfers under way, and let go of the store."""
        await self._run(self._store.close)
        assert self._pool is not None
        self._pool.shutdown()
        self._pool = None

    async def _run(self, work: Callable[[], Any]) -> Any:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="holdfast-files")
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    # -- exchange ----------------------------------------------------------------------------------

    def decode(self, body: bytes) -> Exchange:
        """The request, checked. Raises BadExchange, ClockDrift."""
        exchange = decode_exchange(body)
        check_drift(exchange, self._now_ms(), self.settings.drift_ms)
        return exchange

    async def exchange(
        self, address: Address, channel: Channel, exchange: Exchange, body: bytes
    ) -> bytes:
        """Take what the request brings and answer what the caller lacks, both as released.

        Raises Problem `wrong_channel` and what the scope refuses with; then nothing was applied.
        """
        if len(exchange):
            await self._append(address, exchange_draft(channel, exchange, body.decode()))
        elif (quick := await self._unchanged(address, channel, exchange)) is not None:
            return quick

        work = ExchangeWork(channel, exchange.watermarks, exchange.limit)
        spool = await self._port.scan(address, work)
        if spool is None:
            return encode_answer((), (), {}, has_more=False)
        spool.close()
        held, text = spool.result
        self._remember(address, channel, (spool.epoch, spool.seq, held))
        if text is None:
            raise _mismatch(held)
        return text  # type: ignore[no-any-return]

    async def _unchanged(
        self, address: Address, channel: Channel, exchange: Exchange
    ) -> bytes | None:
        """The answer to a poll that finds nothing, where the space is as it was when last read."""
        known = self._held.get((address, channel))
        if known is None:
            return None
        bounds = await self._port.bounds(address)
        epoch, seq, held = known
        if (bounds.epoch, bounds.head) != (epoch, seq):
            return None
        if held.mode is not None and held.mode != channel.mode:
            raise _mismatch(held)
        if held.ahead(exchange.watermarks) and exchange.limit:
            return None
        more = bool(held.ahead(exchange.watermarks))
        return encode_answer((), (), held.watermarks(), has_more=more)

    def _remember(self, address: Address, channel: Channel, known: tuple[str, int, Held]) -> None:
        self._held[address, channel] = known
        self._held.move_to_end((address, channel))
        while len(self._held) > HELD_MAX:
            self._held.popitem(last=False)

    # -- namespaces --------------------------------------------------------------------------------

    async def declare(self, address: Address, namespace: Namespace) -> Namespace:
        """Have the tables synced; additive. Raises BadName, Problem `bad_name`."""
        check_namespace(namespace)
        await self._append(address, declare_draft(namespace))
        found = await self.namespace(address, namespace.app_id)
        assert found is not None
        return found

    async def withdraw(self, address: Address, app_id: str) -> None:
        """Sync the app's tables no longer; rows stay for a later declaration."""
        if await self.namespace(address, app_id) is not None:
            await self._append(address, withdraw_draft(app_id))

    async def namespace(self, address: Address, app_id: str) -> Namespace | None:
        """The declared namespace of the app."""
        (row,) = await self._port.get(address, [(NAMESPACES, app_id)])
        if row is None:
            return None
        found = msgspec.convert(value_of(row), Namespace)
        return None if found.withdrawn else found

    async def namespaces(self, address: Address) -> list[Namespace]:
        """All declared namespaces."""
        spool = await self._port.scan(address, NamespacesWork())
        if spool is None:
            return []
        spool.close()
        found: list[Namespace] = spool.result
        return found

    # -- files -------------------------------------------------------------------------------------

    async def stat(self, address: Address, key: str) -> FileInfo | None:
        """What the key shows; None where it has no bytes. Raises BadName.

        A device that hears of bytes here sends their record next, without the bytes: so being asked
        keeps a key that nothing refers to from being collected.
        """
        check_object_key(key)
        (row,) = await self._port.get(address, [(BLOBS, key)])
        if row is None:
            return None
        value = value_of(row)
        version = shown(value)
        if version is None:
            return None
        if not value.get("refs") and value["at"] < self._now_ms() - TOUCH_MS:
            await self._append(address, blob_draft([BlobChange(key, "touch")]))
        return FileInfo(key, version.hash, version.size, version.mime_type)

    async def write(
        self, address: Address, key: str, chunks: AsyncIterable[bytes], content_type: str | None
    ) -> FileInfo:
        """Store the bytes and let the key map to them, durably. Raises BadName, TooLarge."""
        check_object_key(key)
        contents = self._contents(address)
        async with (
            contents.receive(chunks, size_max=self.settings.file_bytes_max) as received,
            self._gate(address).using(),
        ):
            content = await contents.keep(received)
            change = BlobChange(key, "put", content.hash, content.size, content_type)
            await self._append(address, blob_draft([change]))
        return FileInfo(key, content.hash, content.size, content_type)

    async def read(
        self, address: Address, info: FileInfo, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """The bytes, in pieces. Raises ObjectMissing where the store has lost them."""
        async for piece in self._contents(address).read(info.hash, start=start, end=end):
            yield piece

    async def delete(self, address: Address, key: str) -> None:
        """Let the key map to nothing; its bytes go with the next collection."""
        if await self.stat(address, key) is not None:
            await self._append(address, blob_draft([BlobChange(key, "remove")]))

    def _contents(self, address: Address) -> ContentStore:
        # Hashed, so that no name reaches outside and every length will do.
        where = hashlib.sha256("\0".join(address).encode()).hexdigest()[:32]
        return ContentStore(
            self._store, join_key(self._prefix, FOLDER, where), spool_dir=self._spool_dir,
            run=self._run,
        )  # fmt: skip

    # -- collecting --------------------------------------------------------------------------------

    async def collect(
        self, address: Address, *, dry_run: bool, grace_ms: int = GC_GRACE_MS
    ) -> GcReport:
        """Let go of keys that nothing has referred to for `grace_ms`, and delete contents that no
        key has mapped to for as long. With `dry_run` only tell.
        """
        before_ms = self._now_ms() - grace_ms
        report = GcReport()
        spool = await self._port.scan(address, UnusedWork(before_ms))
        if spool is None:
            return report
        spool.close()
        report.keys = spool.result
        if not dry_run:
            await self._change(address, report.keys, "collect", before_ms)
        async with self._gate(address).alone():  # no upload may take a content for stored meanwhile
            mapped, settling = await self._mapped(address, before_ms)
            if dry_run:
                mapped.update((key, mapped[key][:1]) for key in settling)
                for key in report.keys:
                    mapped.pop(key, None)
            elif settling:
                await self._change(address, settling, "settle", before_ms)
                mapped, _ = await self._mapped(address, before_ms)  # some may have been touched
            kept = {digest for digests in mapped.values() for digest in digests}
            contents = self._contents(address)
            async for digest, size in contents.older(before_ms):
                if digest not in kept:
                    report.contents.append(digest)
                    report.bytes += size
            if not dry_run:
                await contents.delete(report.contents)
                report.deleted = True
        return report

    async def _change(
        self, address: Address, keys: list[str], op: Literal["collect", "settle"], before_ms: int
    ) -> None:
        for start in range(0, len(keys), GC_BATCH):
            part = keys[start : start + GC_BATCH]
            changes = [BlobChange(key, op, before_ms=before_ms) for key in part]
            await self._append(address, blob_draft(changes))

    async def _mapped(self, address: Address, before_ms: int) -> Mapped:
        spool = await self._port.scan(address, MappedWork(before_ms))
        if spool is None:
            return {}, []
        spool.close()
        found: Mapped = spool.result
        return found

    def _gate(self, address: Address) -> _Gate:
        gate = self._gates.get(address)
        if gate is None:
            gate = self._gates[address] = _Gate(lambda: self._gates.pop(address, None))
        return gate

    # -- writing -----------------------------------------------------------------------------------

    async def _append(self, address: Address, draft: Draft) -> None:
        reply = FutureReply()
        self._port.append(address, [draft], reply, None)
        (outcome, *_), _ = await reply.future
        if isinstance(outcome, Rejected):
            if isinstance(outcome.error, HoldfastError):
                raise outcome.error
            raise Problem(outcome.code, outcome.message, retry_after_ms=outcome.retry_after_ms)


class _Gate:
    """Uploads of a space at once, or a collection alone."""

    def __init__(self, idle: Callable[[], object]) -> None:
        self._changed = asyncio.Condition()
        self._users = 0
        self._alone = False
        self._waiting = 0
        self._idle = idle

    @asynccontextmanager
    async def using(self) -> AsyncIterator[None]:
        """Beside other users."""
        await self._enter(lambda: not self._alone)
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            await self._leave()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Beside nobody."""
        await self._enter(lambda: not self._alone and self._users == 0)
        self._alone = True
        try:
            yield
        finally:
            self._alone = False
            await self._leave()

    async def _enter(self, free: Callable[[], bool]) -> None:
        self._waiting += 1
        try:
            async with self._changed:
                while not free():
                    await self._changed.wait()
        finally:
            self._waiting -= 1

    async def _leave(self) -> None:
        async with self._changed:
            self._changed.notify_all()
        if not (self._users or self._alone or self._waiting):
            self._idle()


def _mismatch(held: Held) -> HoldfastError:
    assert held.mode is not None
    return wrong_mode(held.mode)
