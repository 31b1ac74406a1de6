"""vuer-rtc rooms for clients: scenes as values, the store of one session, and what carries it."""

from actors.clocks import VectorClockManager
from actors.dialects.vuer.graph import (
    Graph,
    SequenceGap,
    apply_message,
    apply_messages,
    create_empty_graph,
    graph_from_json,
)
from actors.dialects.vuer.message import Message, VuerRefusal
from actors.dialects.vuer.otypes import register_otype
from actors.dialects.vuer.validate import check_message
from edge.client.vuer.client import RTCClient
from edge.client.vuer.store import GraphStore, create_graph

__all__ = [
    "Graph",
    "GraphStore",
    "Message",
    "RTCClient",
    "SequenceGap",
    "VectorClockManager",
    "VuerRefusal",
    "apply_message",
    "apply_messages",
    "check_message",
    "create_empty_graph",
    "create_graph",
    "graph_from_json",
    "register_otype",
]
