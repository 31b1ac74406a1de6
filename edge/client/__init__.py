"""The Python client: follow scopes, publish, fold entities."""

from edge.client.client import Subscription, SyncClient
from edge.client.cursors import Cursor, ScopeCursors
from edge.client.effects import SnapshotInfo, SyncError
from edge.client.follow import follow_scope
from edge.client.outbox import PublishResult
from edge.client.store import Change, EntityStore, Update
from edge.client.views import ScopeView

__all__ = [
    "Change",
    "Cursor",
    "EntityStore",
    "PublishResult",
    "ScopeCursors",
    "ScopeView",
    "SnapshotInfo",
    "Subscription",
    "SyncClient",
    "SyncError",
    "Update",
    "follow_scope",
]
