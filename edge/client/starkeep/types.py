"""What the parts of the Starkeep engine say to each other: values, and Protocols a host may fit.

Databases and appliers are synchronous: they are local files, and no transaction may span an await.
Objects are asynchronous streams. JSON names stay camelCase, row columns snake_case.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Literal, Protocol

import msgspec

from actors.clocks import HLC, HLCState
from actors.dialects.starkeep.namespaces import Namespace, TableInfo
from actors.dialects.starkeep.watermarks import Watermarks
from actors.dialects.starkeep.wire import Answer, Exchange, Record, RowEntry
from infra.errors import HoldfastError

PAGE_LIMIT: Final = 1000
SCAN_PAGE_SIZE: Final = 500

AppSyncableTableInfo = TableInfo
AppSyncableNamespace = Namespace
AppSyncableRowEntry = RowEntry
SyncExchangeRequest = Exchange
SyncExchangeResponse = Answer


class SyncError(HoldfastError):
    """An exchange did not succeed; nothing was saved, and repeating it is safe.

    `status` is the HTTP status of a refusal, None where there was none.
    """

    code = "SYNC_ERROR"
    retryable = True

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


# -- results and events ----------------------------------------------------------------------------


class ExchangeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one exchange did.

    `applied` counts records and rows that changed something here, `shipped` those sent.
    `has_more`: there was more to pull or to push than one page; exchange again.
    """

    applied: int
    applied_records: int
    applied_rows: int
    shipped: int
    has_more: bool


ChangeEventType = Literal["remote-update-available", "local-data-synced", "local-change-recorded"]


class ChangeEvent(msgspec.Struct, frozen=True):
    """Something changed. `record_ids` may be empty where rows or files did."""

    event_type: ChangeEventType
    record_ids: tuple[str, ...]
    timestamp: HLC
    origin_app_id: str | None = None


ChangeListener = Callable[[ChangeEvent], object]


class Progress(msgspec.Struct, frozen=True):
    """A blob on its way. `total` is what its metadata says, 0 where unknown."""

    direction: Literal["push", "pull"]
    key: str
    done: int
    total: int


# -- files -----------------------------------------------------------------------------------------


class FileSyncManifest(msgspec.Struct, frozen=True, rename="camel"):
    """A blob to transfer."""

    file_hash: str
    object_storage_key: str
    size_bytes: int
    mime_type: str | None = None


class FileEntry(msgspec.Struct, frozen=True, rename="camel"):
    """A key to compare between two storages."""

    key: str
    mime_type: str | None = None


class FileRecordRow(msgspec.Struct, frozen=True):
    """What residency is asked of: the key, and whether the record is a tombstone."""

    object_storage_key: str
    deleted_at: Any = None


RecordResidency = Literal["absent", "tombstoned", "resident", "staged"]


class StoredObject(msgspec.Struct, frozen=True):
    """What is known of a stored object; `content_hash` is its SHA-256 where known."""

    size: int
    content_type: str | None = None
    content_hash: str | None = None
    metadata: Mapping[str, str] | None = None


class ObjectData(msgspec.Struct, frozen=True):
    """An object in memory."""

    data: bytes
    size: int
    content_type: str | None = None
    metadata: Mapping[str, str] | None = None


class ObjectPage(msgspec.Struct, frozen=True):
    """Keys of a listing, in order."""

    keys: tuple[str, ...]
    next_cursor: str | None
    has_more: bool


class ObjectStorage(Protocol):
    """Blobs by key. A write replaces; nobody sees a part of one."""

    async def init(self) -> None:
        """Get ready; safe to call again."""

    async def close(self) -> None:
        """Give up what `init` and the calls took."""

    async def health_check(self) -> bool:
        """Whether the storage answers."""

    async def has(self, key: str) -> bool:
        """Whether there is an object."""

    async def stat(self, key: str) -> StoredObject | None:
        """What is known without reading it; None where there is none."""

    async def get(self, key: str) -> ObjectData | None:
        """The whole object, for small ones."""

    async def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Store bytes that are in memory."""

    def read(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes as a stream. Raises ObjectMissing with the first piece."""

    async def write(
        self,
        key: str,
        chunks: AsyncIterable[bytes],
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Store a stream; what the stream raises passes, and nothing is stored."""

    async def delete(self, key: str) -> None:
        """Remove it; none is no error."""

    async def list(
        self, prefix: str = "", *, limit: int = 1000, cursor: str | None = None
    ) -> ObjectPage:
        """Keys that start with `prefix`, after `cursor`."""


# -- databases -------------------------------------------------------------------------------------


class Database(Protocol):
    """The shared records of a node, as far as the engine needs them."""

    def transaction(self) -> AbstractContextManager[object]:
        """All or nothing; inside another one it is part of it."""

    def held(self, id: str) -> HLC | None:
        """The stamp of the held copy, tombstones included."""

    def put(self, record: Record) -> None:
        """Store it in place of the held copy."""

    def unseen(self, watermarks: Watermarks, limit: int) -> Sequence[Record]:
        """At least the `limit` oldest records above the watermarks, if so many, oldest first."""

    def get_node_watermarks(self) -> Watermarks:
        """The highest stamp ever held of each author."""


class ScanSinceOptions(msgspec.Struct, frozen=True):
    """Which page of a table: rows above the watermarks, after `cursor`."""

    watermarks: Watermarks
    limit: int = SCAN_PAGE_SIZE
    cursor: HLC | None = None


class ScanSincePage(msgspec.Struct, frozen=True):
    """Rows as wire entries, in ascending stamps."""

    rows: tuple[RowEntry, ...]
    next_cursor: HLC | None
    has_more: bool


class AppSyncableApplier(Protocol):
    """Puts entries into the tables of apps.

    One with files whose bytes change under their key should also have `held(entry)`: the stamp of
    the row that the entry is about, None for none. Without it the bytes of an entry that lost are
    fetched over later ones.
    """

    def apply(self, entry: RowEntry) -> bool:
        """Whether it changed something. Raises for an entry that cannot be applied (yet)."""


class ScanCapableApplier(AppSyncableApplier, Protocol):
    """An applier whose tables can be read as well."""

    def scan_since(self, app_id: str, table: str, options: ScanSinceOptions) -> ScanSincePage:
        """One page; an unknown table is empty."""

    def get_node_watermarks(self, app_id: str, table: str) -> Watermarks:
        """The highest stamp ever held of each author."""


class AppSyncableNamespaceStore(Protocol):
    """Which tables are synced."""

    def get(self, app_id: str) -> Namespace | None:
        """None for an app that was not declared."""

    def list(self) -> Sequence[Namespace]:
        """All declared ones."""


class AppSyncableSource(msgspec.Struct, frozen=True):
    """The rows an engine syncs beside records."""

    namespaces: AppSyncableNamespaceStore
    applier: ScanCapableApplier


class SyncStateStore(Protocol):
    """What an engine must not forget; the JSON is that of the real engine."""

    def get_watermarks(self) -> Watermarks:
        """What this node has landed."""

    def set_watermarks(self, watermarks: Watermarks) -> None: ...

    def get_peer_watermarks(self) -> Watermarks:
        """What the peer has landed, in its own word."""

    def set_peer_watermarks(self, watermarks: Watermarks) -> None: ...

    def get_hlc_clock_state(self) -> HLCState | None:
        """Where the clock stood."""

    def set_hlc_clock_state(self, state: HLCState) -> None: ...


class SyncTransport(Protocol):
    """The way to the peer."""

    async def exchange(self, request: Exchange) -> Answer:
        """One round. Raises SyncError, or what the network raises."""
