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
    para,
    starkeep,
    vuer,
)
from edge.config import (
    Config,
)
from edge.dialects.asterql.bus import (
    InProcessBus,
    SharedBus,
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
from edge.dialects.para.access import (
    Allowed,
)
from edge.dialects.para.authority import (
    DELETE,
    CrossScope,
    PutResult,
    SyncedAuthority,
)
from edge.dialects.para.kinds import (
    Intent,
    IntentRejected,
    ParseGateError,
    SchemaSkew,
    SyncedKind,
)
from edge.dialects.para.query_authority import (
    QueryAuthority,
    create_query_authority,
)
from edge.dialects.para.seeding import (
    seed_script,
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
    from infra.bus.nats import nats_connection
    from infra.bus.redis import RedisBus


def __getattr__(name: str) -> Any:
    # Late: who only speaks to a server shall not pay for importing one.
    if name in ("HttpSyncHandler", "sync_application"):
        from edge.dialects.starkeep import embedding

        return getattr(embedding, name)
    if name == "nats_connection":  # which needs the extra `nats`
        from infra.bus.nats import nats_connection

        return nats_connection
    if name == "RedisBus":  # and this one the extra `redis`
        from infra.bus.redis import RedisBus

        return RedisBus
    raise AttributeError(f"module 'holdfast' has no attribute {name!r}")


__all__ = [
    "DELETE",
    "MODEL_ID",
    "Action",
    "Actor",
    "ActorBroker",
    "ActorSyncLedger",
    "Alarm",
    "Allow",
    "Allowed",
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
    "CrossScope",
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
    "Intent",
    "IntentRejected",
    "JournalRepository",
    "JournalService",
    "LedgerRepository",
    "MemberState",
    "ParseGateError",
    "PatchError",
    "Principal",
    "Processed",
    "PublishError",
    "PublishLimits",
    "PublishResult",
    "Published",
    "PutResult",
    "QueryAuthority",
    "RTCServer",
    "RedisBus",
    "RoomBroker",
    "SchemaSkew",
    "ScopeCursors",
    "ScopeView",
    "SessionRecord",
    "SessionRepository",
    "SharedBus",
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
    "SyncedAuthority",
    "SyncedKind",
    "User",
    "View",
    "ViewContext",
    "ViewResult",
    "__version__",
    "apply_entity_patches",
    "auth",
    "create_composite_sync_id",
    "create_entity_key",
    "create_query_authority",
    "create_scope_key",
    "embed",
    "follow_scope",
    "hash_record_version",
    "nats_connection",
    "para",
    "parse_entity_key",
    "parse_scope_key",
    "seed_script",
    "snapshot_hash",
    "starkeep",
    "sync_application",
    "view_id",
    "vuer",
]
