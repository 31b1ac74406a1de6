"""para-sync: replicas of server-owned objects, and the transports they listen to."""

from actors.dialects.para.envelope import SyncEnvelope
from edge.client.effects import SyncError
from edge.client.para.bus_transport import BusTransport, NatsTransport, RedisTransport
from edge.client.para.cell import Cell, Signal
from edge.client.para.codecs import Codec, IdentityCodec, JsonCodec, MsgpackCodec
from edge.client.para.feed_client import ObjectFeedClient, Ticket
from edge.client.para.intent_store import IntentStore, MemoryIntentStore, SqliteIntentStore
from edge.client.para.peers import PresenceChannel
from edge.client.para.reconciler import ReplicaMeta, ReplicaStats
from edge.client.para.replica import ClientReplica, create_client_replica
from edge.client.para.schema import PASSTHROUGH, Err, Ok, SyncSchema, msgspec_schema
from edge.client.para.synced import SyncedObject, synced
from edge.client.para.transport import (
    FollowedTransport,
    Follower,
    InProcessTransport,
    LossyTransport,
    SyncTransport,
)

__all__ = [
    "PASSTHROUGH",
    "BusTransport",
    "Cell",
    "ClientReplica",
    "Codec",
    "Err",
    "FollowedTransport",
    "Follower",
    "IdentityCodec",
    "InProcessTransport",
    "IntentStore",
    "JsonCodec",
    "LossyTransport",
    "MemoryIntentStore",
    "MsgpackCodec",
    "NatsTransport",
    "ObjectFeedClient",
    "Ok",
    "PresenceChannel",
    "RedisTransport",
    "ReplicaMeta",
    "ReplicaStats",
    "Signal",
    "SqliteIntentStore",
    "SyncEnvelope",
    "SyncError",
    "SyncSchema",
    "SyncTransport",
    "SyncedObject",
    "Ticket",
    "create_client_replica",
    "msgspec_schema",
    "synced",
]
