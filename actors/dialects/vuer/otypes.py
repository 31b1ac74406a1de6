"""What each operation does to a scene, by its otype. Pure: the same bits on every machine.

Every operation on a missing or removed node is without effect. `apply_ops` applies a message; an
undone one is skipped but for what it inserts into texts, which arrives unseen, so that others'
anchors hold. `register_otype` adds operations on a property's value, for server and clients alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from actors.dialects.vuer.message import REDO, UNDO, Message, Op
from actors.dialects.vuer.node import RESERVED, Node
from actors.dialects.vuer.objects import merge, merge_property, stamped_below, wins, write
from actors.dialects.vuer.properties import (
    ABSENT,
    NOTHING,
    REGISTERED,
    SETTERS,
    TRANSFORMS,
    Transform,
)
from actors.dialects.vuer.scene import Scene
from actors.dialects.vuer.tables import NO_CHILDREN, Blocks
from actors.dialects.vuer.text import Text

Effect = Callable[[Scene, Message, Op], None]


def apply_ops(scene: Scene, message: Message, *, undone: bool = False) -> None:
    """Apply a checked message to the scene."""
    for op in message.ops:
        otype = op["otype"]
        if not undone:
            EFFECTS[otype](scene, message, op)
        elif otype in _TEXTS:
            _on_text(scene, message, op, undone=True)


def touch(scene: Scene, message: Message, key: str) -> Node:
    """The node to be changed, with the message noted in its clock and times."""
    node = scene.own(key)
    node.lamport = max(node.lamport, message.lamport)
    node.clock = {message.session_id: message.clock.get(message.session_id, 0)}
    node.updated_at = message.timestamp
    return node


def _held(node: Node, path: str) -> Any:
    if path in ("name", "tag"):
        return getattr(node, path)
    return node.props.get(path, ABSENT)


def _put(node: Node, path: str, value: Any) -> None:
    if path in ("name", "tag"):
        setattr(node, path, value)
    else:
        node.props[path] = value


# -- values ----------------------------------------------------------------------------------------


def _set(scene: Scene, message: Message, op: Op) -> None:
    path, stamp = op["path"], message.stamp
    node = scene.live(op["key"])
    if node is None or path in node.text or not wins(stamp, node.lww.get(path)):
        return
    node = touch(scene, message, node.key)
    if op["otype"] == "object.set":
        write(node, path, op["value"], stamp)
        return
    for name in stamped_below(node.lww, path, node.props.get(path)):
        del node.lww[name]
    node.lww[path] = stamp
    _put(node, path, op["value"])


def transforming(transform: Transform) -> Effect:
    """The effect of a transform of values."""

    def effect(scene: Scene, message: Message, op: Op) -> None:
        path = op["path"]
        node = scene.live(op["key"])
        if node is None or path in node.text:
            return
        value = transform(_held(node, path), op)
        if value is not NOTHING:
            _put(touch(scene, message, node.key), path, value)

    return effect


def _merge(scene: Scene, message: Message, op: Op) -> None:
    path, node = op["path"], scene.live(op["key"])
    if node is None:
        return
    if path == ".":
        _merge_node(scene, message, node.key, op["value"])
    elif path not in node.text and type(node.props.get(path, {})) is dict:
        merge(touch(scene, message, node.key), path, op["value"], message.stamp)


def _merge_node(scene: Scene, message: Message, key: str, value: dict[str, Any]) -> None:
    node, stamp = touch(scene, message, key), message.stamp
    for path, item in value.items():
        if path == "name":
            if type(item) is str and wins(stamp, node.lww.get(path)):
                node.name, node.lww[path] = item, stamp
        elif path not in RESERVED and path not in node.text:
            merge_property(node, path, item, stamp)


# -- nodes -----------------------------------------------------------------------------------------


def insert_of(op: Op) -> tuple[str, str | None, str, dict[str, Any]]:
    """(key, parent, id, data) of either shape of an insert."""
    value = op["value"]
    if op["path"] == "children":
        return value["key"], _named(op["key"]), value.get("id", value["key"]), value
    key: str = op["key"]
    id = value.get("key", key)
    if id == key:
        id = value.get("id", key)
    return key, _named(op.get("parent")), id, value


def _named(parent: str | None) -> str | None:
    return None if parent in (None, "", ".") else parent


def _insert(scene: Scene, message: Message, op: Op) -> None:
    key, parent, id, data = insert_of(op)
    before, stamp = scene.node(key), message.stamp
    if before is not None and before.ins is not None:
        if before.del_ is None or stamp <= before.del_:
            return
        for child in scene.children(key):
            scene.detach(child)
    place = scene.node(key)
    scene.put(
        Node(
            key=key, id=id, tag=data.get("tag", ""), name=data.get("name", ""),
            props={path: value for path, value in data.items() if path not in RESERVED},
            children=NO_CHILDREN if place is None else place.children,
            parent=None if place is None else place.parent,
            ins=stamp, created_at=message.timestamp,
        )
    )  # fmt: skip
    touch(scene, message, key)
    if parent is not None:
        scene.attach(key, parent)
    elif not scene.root_key:
        scene.root_key = key
    for child in data.get("children", ()):
        scene.attach(child, key)


def _upsert(scene: Scene, message: Message, op: Op) -> None:
    key, _, _, data = insert_of(op)
    if scene.live(key) is None:
        _insert(scene, message, op)
    else:
        _merge_node(scene, message, key, data)


def _inset(scene: Scene, message: Message, op: Op) -> None:
    key, _, _, data = insert_of(op)
    if scene.live(key) is None:
        _insert(scene, message, op)
        return
    node = touch(scene, message, key)
    for path, value in data.items():
        if path not in RESERVED and path not in node.text:
            write(node, path, value, message.stamp)


def _remove(scene: Scene, message: Message, op: Op) -> None:
    key = op["value"] if op.get("path") == "children" and "value" in op else op["key"]
    node, stamp = scene.node(key), message.stamp
    if node is None or node.ins is None or stamp < node.ins:
        return
    node = touch(scene, message, key)
    node.del_ = stamp if node.del_ is None else max(stamp, node.del_)
    node.deleted_at = message.timestamp


def move_of(op: Op) -> tuple[Any, Any]:
    """(key, new parent) of either shape of a move."""
    value = op.get("value") or {}
    return value.get("nodeKey", op.get("key")), value.get("newParent", op.get("to"))


def _move(scene: Scene, message: Message, op: Op) -> None:
    key, to = move_of(op)
    node = scene.live(key)
    if node is None or scene.live(to) is None or not wins(message.stamp, node.par):
        return
    if node.parent == to or scene.attach(key, to):
        touch(scene, message, key).par = message.stamp


# -- the list of children --------------------------------------------------------------------------


def _attach_all(scene: Scene, message: Message, op: Op, children: list[str]) -> None:
    node = scene.live(op["key"])
    if node is not None:
        for child in children:
            scene.attach(child, node.key)
        touch(scene, message, node.key)


def _detach(scene: Scene, message: Message, op: Op) -> None:
    node = scene.live(op["key"])
    if node is not None and scene.parent(op["value"]) == node.key:
        scene.detach(op["value"])
        touch(scene, message, node.key)


def _set_children(scene: Scene, message: Message, op: Op) -> None:
    key, stamp = op["key"], message.stamp
    node = scene.live(key)
    if node is None or not wins(stamp, node.lww.get("children")):
        return
    wanted = dict.fromkeys(op["value"])
    for child in scene.children(key):
        if child not in wanted:
            scene.detach(child)
    for child in wanted:
        scene.attach(child, key)
    held = set(scene.children(key))
    node = touch(scene, message, key)
    node.children = Blocks(child for child in wanted if child in held)
    node.lww["children"] = stamp


_CHILDREN: Final[dict[str, Effect]] = {
    "array.push": lambda scene, message, op: _attach_all(scene, message, op, [op["value"]]),
    "array.union": lambda scene, message, op: _attach_all(scene, message, op, op["value"]),
    "array.remove": _detach,
    "array.set": _set_children,
}


def _or_children(otype: str, other: Effect) -> Effect:
    children = _CHILDREN[otype]
    return lambda scene, message, op: (children if op["path"] == "children" else other)(
        scene, message, op
    )


# -- text ------------------------------------------------------------------------------------------


def parse_id(id: str) -> tuple[str, int]:
    """("alice", 42) of "alice:42". Raises ValueError."""
    author, _, digits = id.rpartition(":")
    if not author or not digits.isascii() or not digits.isdigit() or digits != str(int(digits)):
        raise ValueError(f"{id!r} names no character")
    return author, int(digits)


def text_of(node: Node, path: str) -> Text | None:
    """The property as a text, a new one where it is absent or a string; else None."""
    held = node.text.get(path)
    if held is not None:
        found: Text = held
        return found
    value = node.props.get(path, "")
    return Text.of(value) if type(value) is str else None


def inserted(op: Op) -> tuple[str, int, str] | None:
    """(author, n, content) of what the operation inserts; None for nothing."""
    if op["otype"] == "text.delete":
        return None
    content = op.get("value") or ""
    if op["otype"] != "text.init":
        content = content[1]
    return (*parse_id(op["id"]), content) if content and "id" in op else None


def _on_text(scene: Scene, message: Message, op: Op, *, undone: bool = False) -> None:
    path, otype = op["path"], op["otype"]
    node = scene.live(op["key"])
    before = None if node is None else text_of(node, path)
    if node is None or before is None:
        return
    exists = path in node.text
    text = before
    if "rm" in op and not undone:
        text = text.delete([(*parse_id(id), count) for id, count in op["rm"]])
    fresh = inserted(op)
    if fresh is not None and not text.overlaps(fresh[0], fresh[1], len(fresh[2])):
        if otype == "text.init":
            anchor, visible = None, not exists and text.empty
        else:
            anchor, visible = op["value"][0], True
        place = None if anchor is None else parse_id(anchor)
        text = text.insert(*fresh, place, visible=visible and not undone)
    if text is before and (exists or undone):
        return
    node = touch(scene, message, node.key)
    node.text[path] = text
    node.props.pop(path, None)


_TEXTS: Final = frozenset(("text.init", "text.insert", "text.delete", "text.replace"))


# -- the table -------------------------------------------------------------------------------------


def _nothing(scene: Scene, message: Message, op: Op) -> None:
    """Undo and redo act on messages, not on the scene (history.py)."""


EFFECTS: Final[dict[str, Effect]] = {
    **dict.fromkeys(SETTERS, _set),
    **{otype: transforming(transform) for otype, transform in TRANSFORMS.items()},
    "object.merge": _merge,
    "node.insert": _insert, "node.upsert": _upsert, "node.inset": _inset,
    "node.remove": _remove, "node.move": _move,
    **dict.fromkeys(_TEXTS, _on_text),
    UNDO: _nothing, REDO: _nothing,
}  # fmt: skip
for _otype in _CHILDREN:
    EFFECTS[_otype] = _or_children(_otype, EFFECTS[_otype])


def register_otype(
    name: str, validate: Callable[[Op], bool], apply: Callable[[Any, Op], Any]
) -> None:
    """Add an operation on a property's value, for every scene of this process.

    `validate(op)` looks at the operation alone; `apply(current, op)` gives the new value (`current`
    is None where the property is absent), or None for no effect. Both must be pure, and registered
    alike wherever the room is written or shown. Raises ValueError for a name that is taken.
    """
    if name in EFFECTS:
        raise ValueError(f"there is an operation {name!r} already")

    def transform(current: Any, op: Op) -> Any:
        value = apply(None if current is ABSENT else current, op)
        return NOTHING if value is None else value

    EFFECTS[name] = transforming(transform)
    REGISTERED[name] = validate
