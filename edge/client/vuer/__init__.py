"""The Python client of vuer-rtc rooms: the store without I/O (`store`), and what carries it."""

from edge.client.vuer.store import GraphStore, create_graph

__all__ = ["GraphStore", "create_graph"]
