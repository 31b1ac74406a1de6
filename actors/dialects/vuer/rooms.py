"""A room's rows: where nodes, the root, sessions and the base stand, and folds over them. Pure.

coll `node`   id key: the node at head; `deleted` marks an empty place
coll `base`   id key: the node at the floor, of every key touched since; null where there was none.
              Other nodes are at the floor what they are at head. Id "" holds the root at the floor.
coll `room`   id `tree`: `{rootKey, nodes}`; nodes counts those that were ever inserted
coll `session` id session: `{clock, last, marks}` (sessions.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from actors.dialects.vuer.message import Message, decode_message
from actors.dialects.vuer.node import Node, from_wire, to_wire
from actors.dialects.vuer.otypes import apply_ops
from actors.dialects.vuer.scene import Scene
from actors.dialects.vuer.undo import fold, undone_at_end
from actors.dialects.vuer.values import deep_equal
from actors.rows import Overlay, Row
from actors.types import Entry

NODES: Final = "node"
BASES: Final = "base"
ROOM: Final = "room"
TREE: Final = "tree"
META: Final = "meta"
UNDONE: Final = 1  # flag of an entry


class Held:
    """A row's value: the node itself, turned to JSON when the row is written."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node

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


def message_of(entry: Entry) -> Message:
    """The message of an entry."""
    return entry.data if isinstance(entry.data, Message) else decode_message(entry.body)


class Room:
    """A room's rows as a draft sees them."""

    def __init__(self, rows: Overlay) -> None:
        self.rows = rows
        self._tree = rows.get(ROOM, TREE)

    @property
    def root_key(self) -> str:
        return "" if self._tree is None else str(self._tree.value["rootKey"])

    @property
    def node_count(self) -> int:
        """How many nodes were ever inserted and are kept."""
        return 0 if self._tree is None else int(self._tree.value["nodes"])

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

    # -- writing -----------------------------------------------------------------------------------

    def apply(self, entry: Entry, message: Message) -> None:
        """Fold one more message into the rows."""
        scene = self.scene()
        apply_ops(scene, message)
        self._store(scene.changed, scene.root_key, entry.seq)

    def refold(self, entry: Entry, message: Message) -> None:
        """Fold an undo or redo into the rows: all messages since the floor anew."""
        history = self.rows.history(entry.seq)
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
        self._store(changed, scene.root_key, entry.seq)
        seqs = {before.cause: before.seq for before in history}
        for target, _ in message.targets:
            if target in seqs:
                self.rows.flags[seqs[target]] = UNDONE if target in undone else 0

    def _store(self, changed: dict[str, Node], root_key: str, seq: int) -> None:
        rows, count = self.rows, self.node_count
        for key, node in changed.items():
            old = rows.get(NODES, key)
            if rows.get(BASES, key) is None:
                deleted = old is not None and old.deleted
                value = None if old is None else old.value
                rows.replace(BASES, key, Row(value, 1, seq, 0, deleted=deleted))
            before = node_of(old)
            count += (node.ins is not None) - (before is not None and before.ins is not None)
            if node.blank:
                rows.remove(NODES, key)
            else:
                rev = 1 if old is None else old.rev + 1
                rows.replace(NODES, key, Row(Held(node), rev, seq, 0, deleted=node.ins is None))
        if (root_key, count) != (self.root_key, self.node_count):
            if rows.get(BASES, "") is None:
                rows.replace(BASES, "", Row({"rootKey": self.root_key}, 1, seq, 0))
            rev = 1 if self._tree is None else self._tree.rev + 1
            self._tree = Row({"rootKey": root_key, "nodes": count}, rev, seq, 0)
            rows.replace(ROOM, TREE, self._tree)


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
