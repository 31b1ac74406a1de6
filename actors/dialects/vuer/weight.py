"""How much a node takes: what the limits of a room are counted in. Pure.

The weight of a node is at least the bytes of its JSON: each name and value as JSON, and a constant
for the node, for each property and stamp, and for each run of a text. It is a sum over the parts,
so a message costs what it changes however big the node is, and the same state weighs the same
whatever led to it. A link is counted with the child: the list of children is not the parent's.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from actors.dialects.vuer.node import Node, Stamp

NODE: Final = 512  # names of members, three stamps, clock and times
MEMBER: Final = 64  # of a property, a stamp or a text: memory beside the JSON
_ABSENT: Final = object()
_encoder: Final = msgspec.json.Encoder()


def json_bytes(value: Any) -> int:
    """Length of the JSON of a value, in bytes."""
    return len(_encoder.encode(value))


def node_weight(node: Node | None) -> int:
    """Of the node or empty place; 0 for none. The cost grows with the node."""
    if node is None or node.blank:
        return 0
    members = sum([_member(path, value) for path, value in node.props.items()])
    stamps = sum([_stamp(path, stamp) for path, stamp in node.lww.items()])
    texts = sum([_text(path, text) for path, text in node.text.items()])
    return NODE + _names(node) + _link(node) + members + stamps + texts


def weight_change(before: Node | None, after: Node) -> int:
    """`node_weight(after) - node_weight(before)`; what both share is not looked into."""
    if before is None or before.blank or after.blank:
        return node_weight(after) - node_weight(before)
    change = 0
    if (before.id, before.tag, before.name) != (after.id, after.tag, after.name):
        change += _names(after) - _names(before)
    if before.parent != after.parent:
        change += _link(after) - _link(before)
    return (
        change
        + _changed(before.props, after.props, _member)
        + _changed(before.lww, after.lww, _stamp)
        + _changed(before.text, after.text, _text)
    )  # fmt: skip


def _changed(before: dict[str, Any], after: dict[str, Any], weigh: Any) -> int:
    change, kept = 0, 0
    for path, value in after.items():
        old = before.get(path, _ABSENT)
        if old is value:
            kept += 1
        elif old is _ABSENT:
            change += weigh(path, value)
        else:
            kept += 1
            change += weigh(path, value) - weigh(path, old)
    if kept != len(before):
        change -= sum([weigh(path, old) for path, old in before.items() if path not in after])
    return change


def _names(node: Node) -> int:
    return sum(map(json_bytes, (node.key, node.id, node.tag, node.name)))


def _link(node: Node) -> int:
    """With the comma, what stands in the parent's list too."""
    if node.parent is None:
        return 0
    return json_bytes(node.parent) + json_bytes(node.key) + 1


def _member(path: str, value: Any) -> int:
    return MEMBER + json_bytes(path) + json_bytes(value)


def _stamp(path: str, stamp: Stamp) -> int:
    return MEMBER + json_bytes(path) + len(stamp[1])


def _text(path: str, text: Any) -> int:
    # A text stands in the JSON as a string and in its runs.
    return 2 * (MEMBER + json_bytes(path)) + int(text.weight)
