"""What may be said: a message is checked before it is sequenced, whatever the scene is. Pure.

So the same message is valid for everyone and always. What is refused has a code of
docs/vuer-rtc.md; the whole message is refused, never a part of it.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from actors.dialects.vuer.message import REDO, UNDO, Message, Op, VuerRefusal
from actors.dialects.vuer.otypes import EFFECTS, insert_of, move_of, parse_id
from actors.dialects.vuer.properties import GUARDS, REGISTERED
from actors.dialects.vuer.text import INIT
from actors.dialects.vuer.values import INTEGER_MAX, is_number, normal

SESSION: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")
EULER_ORDERS: Final = frozenset(("XYZ", "YXZ", "ZXY", "ZYX", "YZX", "XZY"))
KEY_CHARS_MAX: Final = 128
PATH_CHARS_MAX: Final = 256
ID_CHARS_MAX: Final = 128
OPS_MAX: Final = 1000
MESSAGE_BYTES_MAX: Final = 64 << 10
CLOCK_ENTRIES_MAX: Final = 1000
LAMPORT_LEAD_MAX: Final = 1_000_000

_ALIASES: Final = {"client": "sessionId", "lt": "lamportTime", "ts": "timestamp"}
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_POSITIONAL: Final = ("text.insert", "text.delete", "text.replace")


def is_session(value: Any) -> bool:
    """Whether it may name a session."""
    return type(value) is str and value != INIT and SESSION.fullmatch(value) is not None


def check_message(
    raw: Any, *, session_id: str | None = None, size: int | None = None, positional: bool = True
) -> Message:
    """The message of decoded JSON or msgpack, long or short names, ready to be sequenced.

    `session_id`: whose it has to be; `size`: its bytes on the wire, where known. `positional`:
    whether text positions are taken, for `rewritten` (rewrite.py) to turn into anchors.
    Raises VuerRefusal: invalid_message, invalid_op, unknown_otype, session_mismatch, too_large.
    """
    if type(raw) is not dict:
        raise VuerRefusal("invalid_message", "a message is an object")
    raw = {_ALIASES.get(name, name): value for name, value in raw.items()}
    raw.pop("serverSeq", None)
    if size is not None and size > MESSAGE_BYTES_MAX:
        raise _too_large(size)
    session = raw.get("sessionId")
    if not is_session(session):
        raise VuerRefusal("invalid_message", "sessionId: 1 to 64 of A-Z a-z 0-9 . _ @ -")
    if session_id is not None and session != session_id:
        raise VuerRefusal("session_mismatch", f"this connection speaks for {session_id}")
    _check_envelope(raw)
    ops = [_checked_op(op, session, positional) for op in raw["ops"]]
    metas = sum(op["otype"] in (UNDO, REDO) for op in ops)
    if 0 < metas < len(ops):
        raise VuerRefusal("invalid_op", "undo and other operations do not mix")
    message = Message(
        id=raw["id"], session_id=session, clock=dict(raw.get("clock", {})),
        lamport=raw["lamportTime"], timestamp=raw.get("timestamp", 0), ops=ops,
    )  # fmt: skip
    try:
        stored = len(msgspec.json.encode(message))
    except (UnicodeEncodeError, TypeError, ValueError, RecursionError) as error:
        raise VuerRefusal("invalid_message", f"not JSON: {error}") from error
    if stored > MESSAGE_BYTES_MAX:
        raise _too_large(stored)
    return message


def _too_large(size: int) -> VuerRefusal:
    return VuerRefusal("too_large", f"a message of {size} bytes; at most {MESSAGE_BYTES_MAX}")


def _check_envelope(raw: dict[str, Any]) -> None:
    if not is_named(raw.get("id"), ID_CHARS_MAX):
        raise VuerRefusal("invalid_message", f"id: 1 to {ID_CHARS_MAX} characters")
    if not is_count(raw.get("lamportTime")):
        raise VuerRefusal("invalid_message", "lamportTime: a whole number from 0")
    timestamp = raw.get("timestamp", 0)
    if not is_number(timestamp):
        raise VuerRefusal("invalid_message", "timestamp: milliseconds")
    clock = raw.get("clock", {})
    if type(clock) is not dict or len(clock) > CLOCK_ENTRIES_MAX:
        raise VuerRefusal("invalid_message", "clock: an object of counters by session")
    for name, count in clock.items():
        if not is_session(name) or not is_count(count):
            raise VuerRefusal("invalid_message", "clock: an object of counters by session")
    ops = raw.get("ops")
    if type(ops) is not list or not 1 <= len(ops) <= OPS_MAX:
        raise VuerRefusal("invalid_message", f"ops: 1 to {OPS_MAX} operations")


def is_count(value: Any) -> bool:
    """A whole number from 0 to 2^53."""
    return type(value) is int and 0 <= value <= INTEGER_MAX


def is_named(value: Any, chars_max: int) -> bool:
    """Text of 1 to `chars_max` characters, none of them control characters or half surrogates."""
    return type(value) is str and 0 < len(value) <= chars_max and not _CONTROL.search(value)


def is_key(value: Any) -> bool:
    """Whether it may be the key of a node."""
    return is_named(value, KEY_CHARS_MAX)


# -- operations ------------------------------------------------------------------------------------


def check_op(raw: Any, session_id: str, *, positional: bool = True) -> Op:
    """One operation in its long names, numbers as they are kept. Raises VuerRefusal."""
    return _checked_op(raw, session_id, positional)


def _checked_op(raw: Any, session: str, positional: bool) -> Op:
    if type(raw) is not dict:
        raise VuerRefusal("invalid_op", "an operation is an object")
    otype = raw.get("otype", raw.get("ot"))
    if type(otype) is not str:
        raise VuerRefusal("invalid_op", "an operation has an otype")
    if otype not in EFFECTS and otype != "vector3.applyEuler":
        raise VuerRefusal("unknown_otype", f"no operation is called {otype[:100]!r}")
    try:
        op: Op = {"otype": otype}
        op |= normal({name: raw[name] for name in raw if name not in ("ot", "otype")})
        _check_op(op, session, positional)
    except (ValueError, RecursionError) as error:
        raise VuerRefusal("invalid_op", f"{otype}: {error}") from error
    return op


def _check_op(op: Op, session: str, positional: bool) -> None:
    otype: str = op["otype"]
    if otype in (UNDO, REDO):
        _need(is_named(op.get("targetMsgId"), ID_CHARS_MAX), "targetMsgId: the id of a message")
    elif otype.startswith("node."):
        _check_node_op(op)
    else:
        _need(is_key(op.get("key")), f"key: 1 to {KEY_CHARS_MAX} characters, no control characters")
        path = op.get("path")
        _need(
            is_named(path, PATH_CHARS_MAX),
            f"path: 1 to {PATH_CHARS_MAX} characters, no control characters",
        )
        if otype.startswith("text."):
            _check_path(op)
            _check_text_op(op, session, positional)
        elif otype in REGISTERED:
            _check_path(op)
            _need(REGISTERED[otype](op), "not what it takes")
        else:
            _check_value_op(op)


def _need(valid: bool, problem: str) -> None:
    if not valid:
        raise ValueError(problem)


def _check_path(op: Op) -> None:
    path, otype = op["path"], op["otype"]
    if path in ("name", "tag"):
        _need(otype in ("string.set", "string.concat"), f"{path} takes string.set")
    elif path == "children":
        _need(otype in ("array.set", "array.push", "array.union", "array.remove"),
              "children take the array operations")  # fmt: skip
    elif path == ".":
        _need(otype == "object.merge", "path: . takes object.merge")
    else:
        _need(path not in ("key", "id", "parent", "_crdt"), f"path: {path} is no property")


def _check_value_op(op: Op) -> None:
    otype, path = op["otype"], op["path"]
    _check_path(op)
    _need("value" in op and GUARDS[otype](op["value"]), "value: not of the type it takes")
    value = op["value"]
    if path == "children":
        one = otype in ("array.push", "array.remove")
        _need(is_key(value) if one else all(map(is_key, value)), "children are keys")
    if otype in ("object.set", "object.merge"):
        _check_names(value)
        if path == ".":
            _check_properties(value)
    elif otype == "color.blend":
        alpha = op.get("alpha", 0.5)
        _need(is_number(alpha) and 0 <= alpha <= 1, "alpha: from 0 to 1")
    elif otype == "string.concat":
        _need(type(op.get("separator", "")) is str, "separator: a text")
    elif otype == "vector3.applyEuler":
        _need(op.get("order", "XYZ") in EULER_ORDERS, "order: a permutation of XYZ")
        _need(type(op.get("intrinsic", True)) is bool, "intrinsic: true or false")


def _check_names(value: Any) -> None:
    if type(value) is dict:
        for name, item in value.items():
            _need("\0" not in name, "the name of a member holds NUL")
            _check_names(item)


def _check_properties(value: dict[str, Any]) -> None:
    for path in value:
        _need(is_named(path, PATH_CHARS_MAX), f"{path[:100]!r} is no path")
    _need(type(value.get("name", "")) is str, "name: a text")


def _check_node_op(op: Op) -> None:
    otype, path, value = op["otype"], op.get("path"), op.get("value")
    if otype == "node.remove":
        key = value if path == "children" and "value" in op else op.get("key")
        _need(is_key(key), "key: of the node to remove")
    elif otype == "node.move":
        _need(value is None or type(value) is dict, "value: nodeKey and newParent")
        key, to = move_of(op)
        _need(is_key(key) and is_key(to), "the key of a node, and of its new parent")
    else:
        _need(type(value) is dict, "value: the node")
        assert type(value) is dict
        op.setdefault("path", "")
        _need(is_key(value.get("key") if op["path"] == "children" else op.get("key")),
              "key: of the node")  # fmt: skip
        parent = op.get("key") if op["path"] == "children" else op.get("parent")
        _need(parent in (None, "", ".") or is_key(parent), "parent: the key of a node")
        _need(is_named(insert_of(op)[2], KEY_CHARS_MAX), "id: text")
        for name in ("tag", "name"):
            _need(type(value.get(name, "")) is str, f"{name}: a text")
        children = value.get("children", [])
        _need(type(children) is list and all(map(is_key, children)), "children: a list of keys")
        _check_names(value)
        for name in value:
            _need(is_named(name, PATH_CHARS_MAX), f"{name[:100]!r} is no path")


# -- text ------------------------------------------------------------------------------------------


def _check_text_op(op: Op, session: str, positional: bool) -> None:
    otype, value = op["otype"], op.get("value")
    if "position" in op:
        _need(positional and otype in _POSITIONAL, "it takes no position")
        _check_positional(op)
        return
    if otype == "text.init":
        _need(value is None or type(value) is str, "value: a text")
        content = value or ""
    elif otype == "text.delete":
        content = ""
    else:
        _need(
            type(value) is list and len(value) == 2 and type(value[1]) is str,
            "value: [anchor or null, text]",
        )
        assert type(value) is list
        content = value[1]
        if value[0] is not None:
            _need(type(value[0]) is str, "value: [anchor or null, text]")
            parse_id(value[0])
    if otype in ("text.delete", "text.replace"):
        _check_ranges(op.get("rm"))
    else:
        _need("rm" not in op, "it removes nothing")
    if "id" in op or (content and otype != "text.init"):
        _check_id(op.get("id"), session, len(content))


def _check_id(id: Any, session: str, count: int) -> None:
    _need(type(id) is str, "id: session:number")
    author, n = parse_id(id)
    _need(author == session, f"id: characters of {session} alone")
    _need(n + count <= INTEGER_MAX, "id: beyond 2^53")


def _check_ranges(ranges: Any) -> None:
    _need(type(ranges) is list, "rm: a list of [id, count]")
    for one in ranges:
        _need(
            type(one) is list and len(one) == 2 and type(one[0]) is str, "rm: a list of [id, count]"
        )
        parse_id(one[0])
        _need(is_count(one[1]) and one[1] > 0, "rm: a count above 0")


def _check_positional(op: Op) -> None:
    value = op.get("value")
    _need(is_count(op["position"]), "position: a whole number from 0")
    _need(is_count(op.get("length", 0)), "length: a whole number from 0")
    if op["otype"] == "text.delete":
        return
    if type(value) is list:
        _need(len(value) == 2 and value[0] is None, "value: a text, or [null, text]")
        value = value[1]
    _need(type(value) is str, "value: a text, or [null, text]")
