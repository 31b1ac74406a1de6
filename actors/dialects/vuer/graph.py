"""A scene graph as a value: `apply_message` gives another one and leaves the first as it was. Pure.

A graph shares all nodes that a message does not touch with the one before. It remembers the
messages since it was begun (or since `settled`), because an undo leaves one of them out again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from actors.dialects.vuer.hashing import state_hash
from actors.dialects.vuer.message import Message, as_message
from actors.dialects.vuer.node import Node, from_wire, to_wire
from actors.dialects.vuer.otypes import apply_ops
from actors.dialects.vuer.scene import Scene
from actors.dialects.vuer.tables import Table
from actors.dialects.vuer.undo import fold, undone_at_end
from infra.errors import ProtocolError

_History = tuple[Any, Message] | None  # (history before, message)
_NO_IDS: Final[Table[int]] = Table()


class SequenceGap(ProtocolError):
    """A message does not follow the last one that was applied; `expected` would."""

    code = "sequence_gap"

    def __init__(self, expected: int, found: int) -> None:
        super().__init__(f"expected serverSeq {expected}, it is {found}")
        self.expected = expected


class Graph:
    """Immutable. `nodes` maps keys to nodes and empty places; `applied_seq` is the last serverSeq,
    `applied_ids` are the ids of the messages that had none.
    """

    __slots__ = ("_begin", "_history", "applied_ids", "applied_seq", "nodes", "root_key")

    def __init__(self, nodes: Table[Node], root_key: str = "", applied_seq: int = 0) -> None:
        self.nodes = nodes
        self.root_key = root_key
        self.applied_seq = applied_seq
        self.applied_ids: Table[int] = _NO_IDS
        self._begin = self
        self._history: _History = None

    def get(self, key: str) -> Node | None:
        """The node, a removed one too; None where it was never inserted."""
        node = self.nodes.get(key)
        return node if node is not None and node.ins is not None else None

    def live(self, key: str) -> Node | None:
        """The node, where it is inserted and not removed."""
        node = self.nodes.get(key)
        return node if node is not None and node.live else None

    def value(self, key: str, path: str) -> Any:
        """A property of a live node, a text as a string; None where there is none."""
        node = self.live(key)
        return None if node is None else node.value(path)

    def visible(self) -> Iterator[str]:
        """Keys that can be reached from the root over live nodes, parents first."""
        waiting = [self.root_key]
        while waiting:
            node = self.live(waiting.pop())
            if node is not None:
                yield node.key
                waiting.extend(reversed(list(node.children)))

    def hash(self) -> str:
        """See hashing.py. The cost grows with the number of nodes."""
        return state_hash(self.root_key, self.nodes.values())

    def to_json(self) -> dict[str, Any]:
        """`{nodes, rootKey}`, and `tree`: the empty places by key, where there are any."""
        nodes: dict[str, Any] = {}
        tree: dict[str, Any] = {}
        for key in sorted(self.nodes):
            node = self.nodes[key]
            (tree if node.ins is None else nodes)[key] = to_wire(node)
        made: dict[str, Any] = {"nodes": nodes, "rootKey": self.root_key}
        return made | {"tree": tree} if tree else made

    def scene(self) -> Scene:
        """To apply operations over this graph."""
        return Scene(self.nodes.get, self.root_key)

    def with_scene(self, scene: Scene) -> Graph:
        """The graph as the scene has left it; without history, at the same serverSeq."""
        changes = {key: None if node.blank else node for key, node in scene.changed.items()}
        return Graph(self.nodes.updated(changes), scene.root_key, self.applied_seq)

    def settled(self) -> Graph:
        """The same state without the messages that led to it: they cannot be undone any more."""
        graph = Graph(self.nodes, self.root_key, self.applied_seq)
        graph.applied_ids = self.applied_ids
        return graph

    def _after(self, message: Message) -> Graph:
        history = (self._history, message)
        if message.is_meta:
            graph = _refolded(self._begin, history)
        else:
            scene = self.scene()
            apply_ops(scene, message)
            graph = self.with_scene(scene)
        graph._begin, graph._history = self._begin, history
        graph.applied_seq, graph.applied_ids = self.applied_seq, self.applied_ids
        if message.server_seq is None:
            graph.applied_ids = self.applied_ids.updated({message.id: 1})
        else:
            graph.applied_seq = message.server_seq
        return graph


def _refolded(begin: Graph, history: _History) -> Graph:
    messages: list[Message] = []
    while history is not None:
        history, message = history
        messages.append(message)
    messages.reverse()
    scene = begin.scene()
    fold(scene, messages, undone_at_end(messages))
    return begin.with_scene(scene)


def create_empty_graph() -> Graph:
    """No nodes, no root."""
    return Graph(Table())


def graph_from_json(wire: dict[str, Any], applied_seq: int = 0) -> Graph:
    """The graph that `Graph.to_json` was asked of."""
    every = [*wire.get("nodes", {}).values(), *wire.get("tree", {}).values()]
    nodes = Table((node["key"], from_wire(node)) for node in every)
    return Graph(nodes, wire.get("rootKey", ""), applied_seq)


def apply_message(graph: Graph, message: Message | dict[str, Any]) -> Graph:
    """The graph after one checked message.

    With a serverSeq: at or below `applied_seq` nothing changes, one above it is applied, further
    above raises SequenceGap. Without one: nothing changes where its id was applied before.
    """
    message = as_message(message)
    seq = message.server_seq
    if seq is None:
        return graph if message.id in graph.applied_ids else graph._after(message)
    if seq <= graph.applied_seq:
        return graph
    if seq != graph.applied_seq + 1:
        raise SequenceGap(graph.applied_seq + 1, seq)
    return graph._after(message)


def apply_messages(graph: Graph, messages: Iterable[Message | dict[str, Any]]) -> Graph:
    """The graph after all of them, in the order given."""
    for message in messages:
        graph = apply_message(graph, message)
    return graph
