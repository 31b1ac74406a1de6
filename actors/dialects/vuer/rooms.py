"""A room's rows: where nodes, the root, sessions and the base stand, and folds over them. Pure.

coll `node`   id key: the node at head; `deleted` marks an empty place. A big one may lag behind
              (actors/rows.py): it has a base then, and is the fold of base and journal
coll `base`   id key: the node at the floor, of every key touched since; null where there was none.
              Other nodes are at the floor what they are at head. Id "" holds the root at the floor.
coll `room`   id `tree`: `{rootKey, nodes, bytes}`; nodes counts those ever inserted, bytes is
              the weight (weight.py) of all of them and of the empty places
coll `session` id session: `{clock, last, marks, user}` (sessions.py)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import msgspec

from actors.dialects.vuer.message import Message, decode_message
from actors.dialects.vuer.node import Node, from_wire, to_wire
from actors.dialects.vuer.otypes import apply_ops
from actors.dialects.vuer.scene import Scene
from actors.dialects.vuer.undo import fold, undone_at_end
from actors.dialects.vuer.values import deep_equal
from actors.dialects.vuer.weight import node_weight, weight_change
from actors.rows import BIG_ROW_BYTES, Overlay, Row
from actors.types import Entry

NODES: Final = "node"
BASES: Final = "base"
ROOM: Final = "room"
TREE: Final = "tree"
META: Final = "meta"
UNDONE: Final = 1  # flag of an entry
_LINK_BYTES: Final = 24  # of a list of children, by and large: for whether a row is big
_EMPTY: Final = {"rootKey": "", "nodes": 0, "bytes": 0}


class Held:
    """A row's value: the node itself, turned to JSON when the row is written."""

    __slots__ = ("_weight", "node")

    def __init__(self, node: Node, weight: int | None = None) -> None:
        self.node = node
        self._weight = weight

    @property
    def weight(self) -> int:
        """The node's, found out once."""
        if self._weight is None:
            self._weight = node_weight(self.node)
        return self._weight

    def wire(self) -> Any:
        return to_wire(self.node)


def node_of(row: Row | None) -> Node | None:
    """The node of a row; one read from the file is decoded once."""
    if row is None or row.value is None:
        return None
    if not isinstance(row.value, Held):
        row.value = Held(from_wire(row.value))  # the same value in another form
    found: Node = row.value.node
    return found


class Change(msgspec.Struct):
    """What a message makes of a room: the nodes that differ with the weight of each (a blank one is
    to go), then the room's root and totals. `flags` are those of entries, by seq.
    """

    nodes: dict[str, tuple[Node, int]]
    root_key: str
    count: int
    bytes: int
    flags: dict[int, int] = {}


class Planned(msgspec.Struct):
    """What an entry carries from its plan to its apply."""

    message: Message
    change: Change


def message_of(entry: Entry) -> Message:
    """The message of an entry."""
    data = entry.data
    if isinstance(data, Planned):
        return data.message
    return data if isinstance(data, Message) else decode_message(entry.body)


class Room:
    """A room's rows as a draft sees them."""

    def __init__(self, rows: Overlay) -> None:
        self.rows = rows
        self._tree = rows.get(ROOM, TREE)
        self._recounted: int | None = None

    @property
    def root_key(self) -> str:
        return "" if self._tree is None else str(self._tree.value["rootKey"])

    @property
    def node_count(self) -> int:
        """How many nodes were ever inserted and are kept."""
        return 0 if self._tree is None else int(self._tree.value["nodes"])

    @property
    def bytes(self) -> int:
        """The weight of all nodes and empty places."""
        if self._tree is None:
            return 0
        found: int | None = self._tree.value.get("bytes", self._recounted)
        if found is None:  # a file from before there was a limit
            found = self._recounted = self.recount()
        return found

    def recount(self) -> int:
        """`bytes`, of the nodes themselves: reads them all."""
        return sum(map(self.weight, self.rows.ids(NODES)))

    def children(self, key: str) -> Collection[str]:
        """The keys attached to a key."""
        node = self.node(key)
        return () if node is None else node.children

    def weight(self, key: str) -> int:
        """Of one node."""
        row = self.rows.get(NODES, key)
        return 0 if row is None or node_of(row) is None else int(row.value.weight)

    def node(self, key: str) -> Node | None:
        return node_of(self.rows.get(NODES, key))

    def base(self, key: str) -> Node | None:
        """The node at the floor."""
        row = self.rows.get(BASES, key)
        return self.node(key) if row is None else node_of(row)

    @property
    def base_root(self) -> str:
        row = self.rows.get(BASES, "")
        return self.root_key if row is None else str(row.value["rootKey"])

    def scene(self) -> Scene:
        """The room at head, to apply operations over."""
        return Scene(self.node, self.root_key)

    def base_scene(self) -> Scene:
        """The room at the floor."""
        return Scene(self.base, self.base_root)

    # -- folding -----------------------------------------------------------------------------------

    def change(self, message: Message, seq: int) -> Change:
        """What one more message makes of the room; an undo or redo folds all messages since the
        floor anew.
        """
        if message.is_meta:
            return self._refolded(message, seq)
        scene = self.scene()
        apply_ops(scene, message)
        return self._weighed(scene.changed, scene.root_key)

    def _refolded(self, message: Message, seq: int) -> Change:
        history = self.rows.history(seq)
        messages = [message_of(before) for before in history]
        scene = self.base_scene()
        undone = undone_at_end([*messages, message])
        fold(scene, messages, undone)
        changed = {}
        for key in self.rows.ids(BASES) - {""} | scene.changed.keys():
            new = scene.changed.get(key) or self.base(key) or Node(key=key)
            old = self.node(key)
            if not _same(new, old or Node(key=key)):
                changed[key] = new
        change = self._weighed(changed, scene.root_key)
        seqs = {before.cause: before.seq for before in history}
        change.flags = {
            seqs[target]: UNDONE if target in undone else 0
            for target, _ in message.targets
            if target in seqs
        }
        return change

    def _weighed(self, changed: dict[str, Node], root_key: str) -> Change:
        nodes: dict[str, tuple[Node, int]] = {}
        count, total = self.node_count, self.bytes
        for key, node in changed.items():
            row = self.rows.get(NODES, key)
            before = node_of(row)
            grown = weight_change(before, node)
            total += grown
            if row is None or before is None:
                count += node.ins is not None
                nodes[key] = node, grown
            else:
                count += (node.ins is not None) - (before.ins is not None)
                nodes[key] = node, row.value.weight + grown
        return Change(nodes, root_key, count, total)

    def store(self, change: Change, seq: int) -> None:
        """Write the change into the rows."""
        rows = self.rows
        for key, (node, weight) in change.nodes.items():
            old = rows.get(NODES, key)
            if rows.get(BASES, key) is None:
                deleted = old is not None and old.deleted
                value = None if old is None else old.value
                rows.replace(BASES, key, Row(value, 1, seq, 0, deleted=deleted))
            if node.blank:
                rows.remove(NODES, key)
            else:
                rows.replace(NODES, key, _row(old, node, weight, seq))
        rows.flags |= change.flags
        known = _EMPTY if self._tree is None else self._tree.value
        new = {"rootKey": change.root_key, "nodes": change.count, "bytes": change.bytes}
        if new == known:
            return
        if change.root_key != self.root_key and rows.get(BASES, "") is None:
            rows.replace(BASES, "", Row({"rootKey": self.root_key}, 1, seq, 0))
        rev = 1 if self._tree is None else self._tree.rev + 1
        self._tree = Row(new, rev, seq, 0)
        rows.replace(ROOM, TREE, self._tree)

    def refold(self, keys: Sequence[str], head: int) -> None:
        """Write the rows of nodes as base and journal give them."""
        messages = [message_of(entry) for entry in self.rows.history(head + 1)]
        scene = self.base_scene()
        fold(scene, messages, undone_at_end(messages))
        for key in keys:
            node = scene.changed.get(key) or self.base(key)
            old = self.rows.get(NODES, key)
            if node is not None and old is not None:
                row = Row(Held(node), old.rev + 1, head, 0, deleted=old.deleted)
                self.rows.replace(NODES, key, row)


def _row(old: Row | None, node: Node, weight: int, seq: int) -> Row:
    """The node's new row, which may lag behind the file's copy where it is big."""
    row = Row(Held(node, weight), 1, seq, 0, deleted=node.ins is None)
    if old is None:
        return row
    row.rev = old.rev + 1
    size = weight + _LINK_BYTES * len(node.children)
    if size > BIG_ROW_BYTES and old.stored and old.deleted == row.deleted:
        row.size, row.stored, row.pending = size, old.stored, old.pending + 1
    return row


def _same(a: Node, b: Node) -> bool:
    """Whether two nodes of one key agree in all that is hashed."""
    if a is b:
        return True
    if (a.id, a.tag, a.name, a.parent, a.ins, a.del_, a.par, a.lamport) != (
        b.id, b.tag, b.name, b.parent, b.ins, b.del_, b.par, b.lamport,
    ):  # fmt: skip
        return False
    if a.lww != b.lww or a.children != b.children or not deep_equal(a.props, b.props):
        return False
    return a.text.keys() == b.text.keys() and all(
        a.text[path].wire() == b.text[path].wire() for path in a.text
    )


def rebased(rows: Overlay, floor: int, history: Sequence[Entry]) -> None:
    """Move the base to `floor`: the fold of what lies below, undone as of the head."""
    room = Room(rows)
    messages = [message_of(entry) for entry in history]
    undone = undone_at_end(messages)
    below = [m for m, entry in zip(messages, history, strict=True) if entry.seq <= floor]
    scene = room.base_scene()
    fold(scene, below, undone)
    base, base_root = scene.changed, scene.root_key
    above = Scene(lambda key: base[key] if key in base else room.base(key), base_root)
    fold(above, messages[len(below) :], undone)
    images = {key: base[key] if key in base else room.base(key) for key in above.changed}
    head = history[-1].seq
    rows.clear(BASES)
    for key, node in images.items():
        kept = None if node is None or node.blank else node
        value = None if kept is None else Held(kept)
        deleted = kept is not None and kept.ins is None
        rows.replace(BASES, key, Row(value, 1, head, 0, deleted=deleted))
    if above.root_key != base_root:
        rows.replace(BASES, "", Row({"rootKey": base_root}, 1, head, 0))
