"""The public names of Holdfast, and nothing else: what is not here may change without notice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actors.dialects.asterql.canonical import (
    hash_record_version,
    snapshot_hash,
)
from actors.dialects.asterql.keys import (
    create_entity_key,
    create_scope_key,
    parse_entity_key,
    parse_scope_key,
)
from actors.dialects.asterql.patches import (
    PatchError,
    apply_entity_patches,
)
from actors.dialects.stratasync.ids import (
    create_composite_sync_id,
)
from actors.dialects.stratasync.models import (
    MODEL_ID,
    Actor,
    Bootstrap,
    Change,
    Composite,
    CompositeCursor,
    Field,
    SimpleCursor,
    Standard,
    SyncModel,
)
from edge.application import (
    Alarm,
    Application,
)
from edge.auth import (
    Action,
    Allow,
    Credentials,
    Decision,
    Deny,
    Grant,
    Principal,
    PublishLimits,
)
from edge.client import (
    Cursor,
    EntityStore,
    PublishResult,
    ScopeCursors,
    SnapshotInfo,
    Subscription,
    SyncClient,
    SyncError,
    follow_scope,
    starkeep,
    vuer,
)
from edge.config import (
    Config,
)
from edge.dialects.asterql.bus import (
    InProcessBus,
    SyncBus,
)
from edge.dialects.asterql.hub import (
    HubConnection,
    SyncHub,
)
from edge.dialects.asterql.ledgers import (
    ActorSyncLedger,
    BelowFloor,
    InMemorySyncLedger,
    Published,
    PublishError,
    ScopeView,
    SqliteSyncLedger,
    SyncScopeLedger,
)
from edge.dialects.asterql.views import (
    View,
    ViewContext,
    ViewResult,
    view_id,
)
from edge.dialects.stratasync.auth import (
    StrataAuth,
    User,
    auth,
)
from edge.dialects.stratasync.database import (
    StrataDatabase,
    StrataRefused,
)
from edge.dialects.stratasync.declared import (
    SocketContext,
    SocketHooks,
    StrataSocket,
)
from edge.dialects.vuer.actor_broker import (
    ActorBroker,
)
from edge.dialects.vuer.broker import (
    InMemoryBroker,
    RoomBroker,
)
from edge.dialects.vuer.journal import (
    JournalService,
    Processed,
)
from edge.dialects.vuer.repositories import (
    Document,
    DocumentRepository,
    InMemoryRepository,
    JournalRepository,
    LedgerRepository,
    SessionRecord,
    SessionRepository,
)
from edge.dialects.vuer.roster import (
    MemberState,
)
from edge.dialects.vuer.server import (
    RTCServer,
)
from edge.embed import (
    embed,
)
from edge.version import VERSION as __version__
from infra.errors import (
    AuthError,
    ConfigError,
    HoldfastError,
)

if TYPE_CHECKING:
    from edge.dialects.starkeep.embedding import HttpSyncHandler, sync_application


def __getattr__(name: str) -> Any:
    # Late: who only speaks to a server shall not pay for importing one.
    if name in ("HttpSyncHandler", "sync_application"):
        from edge.dialects.starkeep import embedding

        return getattr(embedding, name)
    raise AttributeError(f"module 'holdfast' has no attribute {name!r}")


__all__ = [
    "MODEL_ID",
    "Action",
    "Actor",
    "ActorBroker",
    "ActorSyncLedger",
    "Alarm",
    "Allow",
    "Application",
    "AuthError",
    "BelowFloor",
    "Bootstrap",
    "Change",
    "Composite",
    "CompositeCursor",
    "Config",
    "ConfigError",
    "Credentials",
    "Cursor",
    "Decision",
    "Deny",
    "Document",
    "DocumentRepository",
    "EntityStore",
    "Field",
    "Grant",
    "HoldfastError",
    "HttpSyncHandler",
    "HubConnection",
    "InMemoryBroker",
    "InMemoryRepository",
    "InMemorySyncLedger",
    "InProcessBus",
    "JournalRepository",
    "JournalService",
    "LedgerRepository",
    "MemberState",
    "PatchError",
    "Principal",
    "Processed",
    "PublishError",
    "PublishLimits",
    "PublishResult",
    "Published",
    "RTCServer",
    "RoomBroker",
    "ScopeCursors",
    "ScopeView",
    "SessionRecord",
    "SessionRepository",
    "SimpleCursor",
    "SnapshotInfo",
    "SocketContext",
    "SocketHooks",
    "SqliteSyncLedger",
    "Standard",
    "StrataAuth",
    "StrataDatabase",
    "StrataRefused",
    "StrataSocket",
    "Subscription",
    "SyncBus",
    "SyncClient",
    "SyncError",
    "SyncHub",
    "SyncModel",
    "SyncScopeLedger",
    "User",
    "View",
    "ViewContext",
    "ViewResult",
    "__version__",
    "apply_entity_patches",
    "auth",
    "create_composite_sync_id",
    "create_entity_key",
    "create_scope_key",
    "embed",
    "follow_scope",
    "hash_record_version",
    "parse_entity_key",
    "parse_scope_key",
    "snapshot_hash",
    "starkeep",
    "sync_application",
    "view_id",
    "vuer",
]
