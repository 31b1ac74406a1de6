"""Nodes, peers and storages for Starkeep tests: settable clocks, counted transfers, failures on
demand.

`Node` is a device with an engine; `cloud()` gives it a peer of its own kind in this process,
`spaces_peer()` a space of a Holdfast host, spoken to without HTTP.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from actors.clocks import HLC, HybridClock
from actors.dialects.starkeep.channels import COMBINED, Channel
from actors.dialects.starkeep.namespaces import Namespace, TableInfo
from actors.dialects.starkeep.naming import ulid
from actors.dialects.starkeep.wire import (
    Answer,
    Exchange,
    Record,
    RowEntry,
    decode_answer,
    encode_request,
    record_of,
)
from actors.types import Address
from edge.client.starkeep.engine import SyncEngine
from edge.client.starkeep.notifier import ChangeNotifier
from edge.client.starkeep.objects import MemoryObjectStorage
from edge.client.starkeep.responder import Responder
from edge.client.starkeep.storage import (
    LocalFile,
    SqliteAppTables,
    SqliteRecords,
    SqliteSyncStateStore,
)
from edge.client.starkeep.types import (
    AppSyncableSource,
    ChangeEvent,
    ExchangeResult,
    Progress,
    StoredObject,
    SyncTransport,
)
from edge.dialects.starkeep.spaces import Spaces
from infra.errors import StorageError
from infra.objects import ObjectMissing

NOTES = Namespace(
    "notes", (TableInfo("note", ("id",)), TableInfo("tag", ("note", "name"))), files_enabled=True
)
NOW = 1_795_500_000_000
_ids = itertools.count(1)


def stamp(wall: int, node: str = "a", counter: int = 0) -> HLC:
    """A stamp at `wall` milliseconds."""
    return HLC(wall, counter, node)


def record_json(
    wall: int, node: str = "a", *, id: str | None = None, deleted: int | None = None,
    key: str = "", content_hash: str = "h", created: int | None = None, **members: Any,
) -> dict[str, Any]:  # fmt: skip
    """A record as a real client sends it; stamped at `deleted` where that is given."""
    at = msgspec.to_builtins(stamp(wall if deleted is None else deleted, node))
    born = msgspec.to_builtins(stamp(wall if created is None else created, node))
    return {
        "id": id or ulid(1, next(_ids)), "kind": "data", "type": "image/jpeg", "createdAt": born,
        "updatedAt": at, "deletedAt": None if deleted is None else at, "version": 1,
        "contentHash": content_hash, "objectStorageKey": key, "mimeType": "image/jpeg",
        "sizeBytes": 3, "originalFilename": "a.jpg", "originAppId": "app", "parentId": None,
        "label": None, **members,
    }  # fmt: skip


def record(wall: int, node: str = "a", **options: Any) -> Record:
    """The same, decoded."""
    return record_of(record_json(wall, node, **options))


def row(
    wall: int, node: str, op: str, columns: Mapping[str, Any] | None = None, *,
    table: str = "note", app: str = "notes", where: Mapping[str, Any] | None = None,
) -> RowEntry:  # fmt: skip
    """A wire entry."""
    data = None if columns is None else dict(columns)
    return RowEntry(stamp(wall, node), app, table, op, data, None if where is None else dict(where))  # type: ignore[arg-type]


class Clock:
    """A wall clock that a test moves."""

    def __init__(self, ms: int = NOW) -> None:
        self.ms = ms

    def __call__(self) -> int:
        return self.ms


class Storage(MemoryObjectStorage):
    """Objects in memory that fail on demand. `fails(method, key)` says whether this call does."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: Callable[[str, str], bool] = lambda _method, _key: False
        self.calls: list[tuple[str, str]] = []

    def _call(self, method: str, key: str) -> None:
        self.calls.append((method, key))
        if self.fails(method, key):
            raise StorageError(f"{method} {key} fails on demand")

    async def stat(self, key: str) -> StoredObject | None:
        self._call("stat", key)
        return await super().stat(key)

    async def read(
        self, key: str, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        self._call("read", key)
        async for piece in super().read(key, start=start, end=end):
            yield piece

    async def write(
        self, key: str, chunks: AsyncIterable[bytes], *, content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:  # fmt: skip
        self._call("write", key)
        return await super().write(key, chunks, content_type=content_type, metadata=metadata)


class Store:
    """A database and its objects, in memory."""

    def __init__(self, node_id: str, now_ms: Callable[[], int] | None = None) -> None:
        self.file = LocalFile(Path(":memory:"))
        self.records = SqliteRecords(self.file)
        self.tables = SqliteAppTables(self.file)
        self.objects = Storage()
        self.clock = HybridClock(node_id, now_ms or Clock())

    @property
    def source(self) -> AppSyncableSource:
        return AppSyncableSource(self.tables, self.tables)

    def put(self, *records: Record) -> None:
        """Records, with three bytes under the key of each that has one."""
        for item in records:
            self.records.put(item)

    def blob(self, key: str, data: bytes = b"abc") -> None:
        """Bytes under a key."""
        asyncio.run(self.objects.put(key, data))

    def all(self) -> dict[str, tuple[HLC, bool]]:
        """Every record: id to stamp and whether it is a tombstone."""
        rows = self.file.db.execute(
            "SELECT id, wall, counter, node, deleted FROM items WHERE coll='rec'"
        )
        return {id: (HLC(w, c, n), bool(d)) for id, w, c, n, d in rows}

    def state(self) -> dict[tuple[str, str], tuple[Any, ...]]:
        """Everything: (collection, id) to stamp, tombstone and body."""
        rows = self.file.db.execute(
            "SELECT coll, id, wall, counter, node, deleted, body FROM items"
        )
        return {
            (coll, id): (w, c, n, d, msgspec.json.decode(body))
            for coll, id, w, c, n, d, body in rows
        }


class Cloud(Store):
    """A peer in this process."""

    def __init__(self, *, rows: bool = True, records: bool = True, drift_ms: int = 10**15) -> None:
        super().__init__("cloud")
        self.responder = Responder(
            self.records, self.clock, source=self.source if rows else None,
            sync_shared_records=records, drift_ms=drift_ms,
        )  # fmt: skip
        self.requests: list[Exchange] = []
        self.answers: list[Answer] = []
        self.old = False  # answer as version 0.1.0 does

    async def exchange(self, request: Exchange) -> Answer:
        self.requests.append(request)
        answer = self.responder.respond(request)
        if self.old:
            answer = msgspec.structs.replace(answer, responder_watermarks=None)
        self.answers.append(answer)
        return answer


class SpaceFiles(Storage):
    """The files of a space, that fail on demand."""

    def __init__(self, spaces: Spaces, address: Address) -> None:
        super().__init__()
        self._files = spaces, address

    async def stat(self, key: str) -> StoredObject | None:
        self._call("stat", key)
        spaces, address = self._files
        info = await spaces.stat(address, key)
        return None if info is None else StoredObject(info.size, info.content_type, info.hash)

    async def read(
        self, key: str, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        self._call("read", key)
        spaces, address = self._files
        info = await spaces.stat(address, key)
        if info is None:
            raise ObjectMissing(f"no object {key!r}")
        async for piece in spaces.read(address, info, start, end):
            yield piece

    async def write(
        self, key: str, chunks: AsyncIterable[bytes], *, content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:  # fmt: skip
        self._call("write", key)
        spaces, address = self._files
        info = await spaces.write(address, key, chunks, content_type)
        return StoredObject(info.size, info.content_type, info.hash)


class SpacePeer:
    """A space of a Holdfast host, by the bytes of the wire."""

    def __init__(self, spaces: Spaces, address: Address, channel: Channel = COMBINED) -> None:
        self._spaces = spaces
        self._where = address, channel
        self.requests: list[Exchange] = []
        self.answers: list[Answer] = []
        self.objects: Storage = SpaceFiles(spaces, address)

    async def exchange(self, request: Exchange) -> Answer:
        self.requests.append(request)
        body = encode_request(request.watermarks, request.records, request.rows, request.limit)
        decoded = self._spaces.decode(body)
        answer = decode_answer(await self._spaces.exchange(*self._where, decoded, body))
        self.answers.append(answer)
        return answer


class Node(Store):
    """A device with an engine."""

    def __init__(
        self,
        node_id: str,
        transport: SyncTransport,
        remote: Storage,
        *,
        rows: bool = True,
        records: bool = True,
        state: bool = True,
        now_ms: Callable[[], int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(node_id, now_ms)
        self.sync_state = SqliteSyncStateStore(self.file)
        self.events: list[ChangeEvent] = []
        self.progress: list[Progress] = []
        notifier = ChangeNotifier()
        notifier.subscribe(self.events.append)
        self.engine = SyncEngine(
            local_database_adapter=self.records, local_object_storage=self.objects,
            remote_object_storage=remote, transport=transport, clock=self.clock,
            sync_state=self.sync_state if state else None,
            app_syncable_source=self.source if rows else None, sync_shared_records=records,
            change_notifier=notifier, on_progress=self.progress.append, **options,
        )  # fmt: skip

    def round(self) -> ExchangeResult:
        """One exchange."""
        return asyncio.run(self.engine.exchange())

    def drain(self) -> ExchangeResult:
        """Exchanges until nothing is left."""
        return asyncio.run(self.engine.drain())

    def own(self) -> dict[str, int]:
        """Own watermarks, wall only."""
        return walls(self.sync_state.get_watermarks())

    def peer(self) -> dict[str, int]:
        """Peer watermarks, wall only."""
        return walls(self.sync_state.get_peer_watermarks())


def walls(watermarks: Mapping[str, HLC]) -> dict[str, int]:
    """Node to wall milliseconds."""
    return {node: found.wall_ms for node, found in watermarks.items()}


def pair(**options: Any) -> tuple[Node, Cloud]:
    """A node and its peer in this process; both have the notes app."""
    cloud = Cloud()
    node = Node("local", cloud, cloud.objects, **options)
    for store in (cloud, node):
        store.tables.declare(NOTES)
    return node, cloud


def blobs(items: Iterable[Record], *stores: Store) -> None:
    """Give the stores the bytes of the records."""
    for item in items:
        for store in stores:
            store.blob(item.key)
