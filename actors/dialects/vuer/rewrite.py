"""What the sequencer writes over before it gives a number, so that the fold stays the same
everywhere: Euler angles become quaternions (sine and cosine differ between platforms), positions in
texts become anchors. Pure; the client's edit buffer does the same to its own edits.
"""

from __future__ import annotations

from math import cos, sin

from actors.dialects.vuer.message import Message, Op, VuerRefusal
from actors.dialects.vuer.otypes import EFFECTS, inserted, text_of
from actors.dialects.vuer.scene import Scene
from actors.dialects.vuer.text import Text
from actors.dialects.vuer.values import Number, numbers

_EULER = "vector3.applyEuler"


def needs_scene(op: Op) -> bool:
    """Whether `rewritten_op` or a check has to look at a scene for this operation."""
    return bool(op["otype"].startswith("text."))


def rewritten(message: Message, scene: Scene) -> Message:
    """The message as it is to be stored; the same where nothing had to be written over.

    `scene` is at the message's place in the order, and is used up: texts are followed through it.
    Raises VuerRefusal (text_id_conflict) for characters that are there already.
    """
    if not any(op["otype"] == _EULER or needs_scene(op) for op in message.ops):
        return message
    ops = []
    follow = any(needs_scene(op) for op in message.ops)
    for op in message.ops:
        new = rewritten_op(op, message.session_id, scene)
        if needs_scene(new):
            _check_ids(new, scene)
        if follow:
            EFFECTS[new["otype"]](scene, message, new)
        ops.append(new)
    if all(new is op for new, op in zip(ops, message.ops, strict=True)):
        return message
    return Message(
        id=message.id, session_id=message.session_id, clock=message.clock, lamport=message.lamport,
        timestamp=message.timestamp, ops=ops,
    )  # fmt: skip


def rewritten_op(op: Op, session_id: str, scene: Scene, least: int = 0) -> Op:
    """One operation without positions and angles; the same where it has none.

    New characters are numbered above those in the text, from `least` on.
    """
    if op["otype"] == _EULER:
        kept = {name: op[name] for name in op if name not in ("order", "intrinsic")}
        value = quaternion_of(op["value"], op.get("order", "XYZ"), op.get("intrinsic", True))
        return kept | {"otype": "vector3.applyQuaternion", "value": value}
    if "position" in op or (op["otype"] == "text.init" and op.get("value") and "id" not in op):
        node = scene.live(op["key"])
        text = None if node is None else text_of(node, op["path"])
        text = Text() if text is None else text
        return _anchored(op, session_id, text, max(least, text.next_of(session_id)))
    return op


def quaternion_of(angles: list[Number], order: str, intrinsic: bool) -> list[Number]:
    """[x, y, z, w] of Euler angles in radians; extrinsic angles are intrinsic ones backwards."""
    if not intrinsic:
        order = order[::-1]
    (s1, c1), (s2, c2), (s3, c3) = ((sin(a / 2), cos(a / 2)) for a in angles)
    x, y, z, w = _SIGNS[order]
    found = numbers([
        s1 * c2 * c3 + x * (c1 * s2 * s3),
        c1 * s2 * c3 + y * (s1 * c2 * s3),
        c1 * c2 * s3 + z * (s1 * s2 * c3),
        c1 * c2 * c3 + w * (s1 * s2 * s3),
    ])  # fmt: skip
    assert found is not None
    return found


# Of the second terms, by order of rotation.
_SIGNS = {
    "XYZ": (1, -1, 1, -1), "YXZ": (1, -1, -1, 1), "ZXY": (-1, 1, 1, -1),
    "ZYX": (-1, 1, -1, 1), "YZX": (1, 1, -1, -1), "XZY": (-1, -1, 1, 1),
}  # fmt: skip


def _anchored(op: Op, session_id: str, text: Text, n: int) -> Op:
    """A positional text operation against the text as it is; positions are clamped."""
    kept = {name: op[name] for name in op if name not in ("position", "length")}
    if op["otype"] == "text.init":
        return kept | {"id": f"{session_id}:{n}"}
    position = op["position"]
    if op["otype"] != "text.insert":
        ranges = text.ranges_at(position, op.get("length", 0))
        kept["rm"] = [[f"{author}:{n}", count] for author, n, count in ranges]
    if op["otype"] != "text.delete":
        content = op["value"][1] if type(op["value"]) is list else op["value"]
        anchor = text.anchor_at(position)
        name = None if anchor is None else f"{anchor[0]}:{anchor[1]}"
        kept["value"] = [name, content]
        kept["id"] = f"{session_id}:{n}"
    return kept


def _check_ids(op: Op, scene: Scene) -> None:
    fresh = inserted(op)
    node = scene.live(op["key"])
    if fresh is None or node is None:
        return
    text = node.text.get(op["path"])
    author, n, content = fresh
    if text is not None and text.overlaps(author, n, len(content)):
        raise VuerRefusal("text_id_conflict", f"{author}:{n}: such characters are there already")
