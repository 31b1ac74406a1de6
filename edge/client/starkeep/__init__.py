"""The Starkeep engine: a node's own data, and exchanging it with a peer."""

from actors.clocks import HLC, HybridClock
from actors.dialects.starkeep.watermarks import (
    Watermarks,
    advance_watermark,
    merge_watermarks,
    select_unseen,
    watermark_for,
)
from edge.client.starkeep.blocking import BlockingSyncEngine
from edge.client.starkeep.engine import SyncEngine
from edge.client.starkeep.files import FileSyncEngine, residency_of
from edge.client.starkeep.node import LocalNode
from edge.client.starkeep.notices import follow_notices
from edge.client.starkeep.notifier import ChangeNotifier
from edge.client.starkeep.objects import (
    ContentObjectStorage,
    MemoryObjectStorage,
    directory_storage,
)
from edge.client.starkeep.query import Filter, Query, Sort
from edge.client.starkeep.responder import Responder
from edge.client.starkeep.storage import (
    LocalFile,
    SqliteAppTables,
    SqliteRecords,
    SqliteSyncStateStore,
)
from edge.client.starkeep.transport import (
    HttpObjectStorage,
    HttpPeer,
    HttpSyncTransport,
    InProcessSyncTransport,
    hmac_signer,
)
from edge.client.starkeep.types import (
    AppSyncableApplier,
    AppSyncableNamespace,
    AppSyncableNamespaceStore,
    AppSyncableRowEntry,
    AppSyncableSource,
    AppSyncableTableInfo,
    ChangeEvent,
    ChangeEventType,
    ChangeListener,
    Database,
    ExchangeResult,
    FileEntry,
    FileRecordRow,
    FileSyncManifest,
    ObjectStorage,
    Progress,
    RecordResidency,
    ScanCapableApplier,
    ScanSinceOptions,
    ScanSincePage,
    SyncError,
    SyncExchangeRequest,
    SyncExchangeResponse,
    SyncStateStore,
    SyncTransport,
)

__all__ = [
    "HLC",
    "AppSyncableApplier",
    "AppSyncableNamespace",
    "AppSyncableNamespaceStore",
    "AppSyncableRowEntry",
    "AppSyncableSource",
    "AppSyncableTableInfo",
    "BlockingSyncEngine",
    "ChangeEvent",
    "ChangeEventType",
    "ChangeListener",
    "ChangeNotifier",
    "ContentObjectStorage",
    "Database",
    "ExchangeResult",
    "FileEntry",
    "FileRecordRow",
    "FileSyncEngine",
    "FileSyncManifest",
    "Filter",
    "HttpObjectStorage",
    "HttpPeer",
    "HttpSyncTransport",
    "HybridClock",
    "InProcessSyncTransport",
    "LocalFile",
    "LocalNode",
    "MemoryObjectStorage",
    "ObjectStorage",
    "Progress",
    "Query",
    "RecordResidency",
    "Responder",
    "ScanCapableApplier",
    "ScanSinceOptions",
    "ScanSincePage",
    "Sort",
    "SqliteAppTables",
    "SqliteRecords",
    "SqliteSyncStateStore",
    "SyncEngine",
    "SyncError",
    "SyncExchangeRequest",
    "SyncExchangeResponse",
    "SyncStateStore",
    "SyncTransport",
    "Watermarks",
    "advance_watermark",
    "directory_storage",
    "follow_notices",
    "hmac_signer",
    "merge_watermarks",
    "residency_of",
    "select_unseen",
    "watermark_for",
]
