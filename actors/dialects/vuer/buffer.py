"""The edit buffer: operations of one client that are not committed yet. Pure.

A new operation may be combined with the latest buffered one on the same (key, path), if both are of
one otype and nothing between them could have changed the node as a whole. Whatever cannot be
combined is appended and nothing is dropped, so a buffer means what was done one by one (but for the
last bits of sums and products).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from actors.dialects.vuer.message import Op
from actors.dialects.vuer.otypes import parse_id
from actors.dialects.vuer.properties import NOTHING, SETTERS, TRANSFORMS

_Combine = Callable[[Op, Op], Op | None]


def merge_edit(edits: Sequence[Op], op: Op) -> list[Op]:
    """The buffer with one operation more."""
    at = _latest_on_path(edits, op)
    combine = _COMBINE.get(op["otype"])
    if at is not None and combine is not None:
        merged = combine(edits[at], op)
        if merged is not None:
            return [*edits[:at], merged, *edits[at + 1 :]]
    return [*edits, op]


def _latest_on_path(edits: Sequence[Op], op: Op) -> int | None:
    if op.get("path") == "children":
        return None  # attaching takes a child away from wherever an operation between has put it
    for at in range(len(edits) - 1, -1, -1):
        held = edits[at]
        if held["otype"].startswith("node."):
            return None  # it may be of any key: an insert may take another's children along
        same_key = held.get("key") == op.get("key")
        if same_key and held.get("path") == ".":
            return None
        if same_key and held.get("path") == op.get("path"):
            return at if held["otype"] == op["otype"] else None
    return None


def _newest(old: Op, op: Op) -> Op:
    return op


def _by_transform(old: Op, op: Op) -> Op | None:
    value = TRANSFORMS[op["otype"]](old["value"], op)
    return None if value is NOTHING else old | {"value": value}


def _concats(old: Op, op: Op) -> Op | None:
    separator = op.get("separator", "")
    # An empty text swallows the separator after it, so the sum of the two would differ.
    if old.get("separator", "") != separator or not old["value"]:
        return None
    return old | {"value": old["value"] + separator + op["value"]}


def _inserts(old: Op, op: Op) -> Op | None:
    """Typing on: the new characters stand after the last of the old ones and count on."""
    if "id" not in old or "id" not in op:
        return None
    author, n = parse_id(old["id"])
    count = len(old["value"][1])
    if op["id"] != f"{author}:{n + count}" or op["value"][0] != f"{author}:{n + count - 1}":
        return None
    return old | {"value": [old["value"][0], old["value"][1] + op["value"][1]]}


def _deletes(old: Op, op: Op) -> Op | None:
    if "rm" not in old or "rm" not in op:
        return None
    return old | {"rm": [*old["rm"], *op["rm"]]}


_COMBINE: Final[dict[str, _Combine]] = {
    **dict.fromkeys(SETTERS, _newest),
    **dict.fromkeys(
        ("number.add", "number.multiply", "number.min", "number.max", "vector3.add",
         "vector3.multiply", "euler.add", "boolean.or", "boolean.and", "quaternion.multiply",
         "array.union"), _by_transform,
    ),
    "string.concat": _concats,
    "text.insert": _inserts,
    "text.delete": _deletes,
}  # fmt: skip
