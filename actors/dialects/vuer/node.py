"""A node of the scene and its wire form. Pure.

A `Node` that a graph holds is never changed; `Scene.own` (scene.py) gives a copy to change. A key
that is only named by others (a child before its insert) has a Node too, with `ins` None: an empty
place that keeps its links.

Wire form: properties flat beside the reserved members; a text stands there as a string, its runs
in `_crdt.text`. A place on the wire has nothing but key, children and parent.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from actors.dialects.vuer.tables import NO_CHILDREN, Blocks
from actors.dialects.vuer.text import Text

RESERVED: Final = frozenset(("key", "id", "tag", "name", "children", "parent", "_crdt"))
Stamp = tuple[int, str]  # (lamportTime, sessionId): by number, then by bytes; sessions are ASCII


class Node(msgspec.Struct, kw_only=True):
    """`lww` holds stamps by path, of leaves by path NUL name; `ins` the insert's stamp (None: an
    empty place), `del_` the removal's, `par` the last move's. `clock` and the times are for show.
    """

    key: str
    id: str = ""
    tag: str = ""
    name: str = ""
    props: dict[str, Any] = {}
    lww: dict[str, Stamp] = {}
    text: dict[str, Any] = {}  # path to Text
    children: Any = NO_CHILDREN  # Blocks[str]
    parent: str | None = None
    ins: Stamp | None = None
    del_: Stamp | None = None
    par: Stamp | None = None
    lamport: int = 0
    clock: dict[str, int] = {}
    created_at: int | float = 0
    updated_at: int | float = 0
    deleted_at: int | float | None = None

    @property
    def live(self) -> bool:
        """Inserted and not removed."""
        return self.ins is not None and self.del_ is None

    @property
    def blank(self) -> bool:
        """An empty place without links: nothing to keep."""
        return self.ins is None and self.parent is None and not len(self.children)

    def value(self, path: str) -> Any:
        """The property as a reader sees it, a text as a string; None where it is absent."""
        if path == "name":
            return self.name
        if path == "tag":
            return self.tag
        text = self.text.get(path)
        return self.props.get(path) if text is None else str(text)

    def shown(self) -> dict[str, Any]:
        """`{key, id, tag, name, parent, children, ...properties}`."""
        texts = {path: str(text) for path, text in self.text.items()}
        own = {
            "key": self.key, "id": self.id, "tag": self.tag, "name": self.name,
            "children": list(self.children), "parent": self.parent,
        }  # fmt: skip
        return self.props | texts | own


def hashed_part(node: Node) -> dict[str, Any]:
    """The wire form without times and clock: what replicas must agree on."""
    shown = node.shown()
    shown["_crdt"] = {
        "lamportTime": node.lamport,
        "ins": _listed(node.ins),
        "del": _listed(node.del_),
        "par": _listed(node.par),
        "lww": {path: list(stamp) for path, stamp in node.lww.items()},
        "text": {path: {"runs": text.wire()} for path, text in node.text.items()},
    }
    return shown


def to_wire(node: Node) -> dict[str, Any]:
    """JSON of the node."""
    if node.ins is None:
        return {"key": node.key, "children": list(node.children), "parent": node.parent}
    wire = hashed_part(node)
    wire["_crdt"] |= {
        "clock": node.clock, "createdAt": node.created_at, "updatedAt": node.updated_at,
        "deletedAt": node.deleted_at,
    }  # fmt: skip
    return wire


def from_wire(wire: dict[str, Any]) -> Node:
    """The node that `to_wire` was given."""
    children: Blocks[str] = Blocks(wire["children"]) if wire["children"] else NO_CHILDREN
    crdt = wire.get("_crdt")
    if crdt is None:
        return Node(key=wire["key"], children=children, parent=wire["parent"])
    texts = {path: Text.from_wire(held["runs"]) for path, held in crdt["text"].items()}
    return Node(
        key=wire["key"], id=wire["id"], tag=wire["tag"], name=wire["name"],
        props={
            path: value for path, value in wire.items()
            if path not in RESERVED and path not in texts
        },
        lww={path: _stamp(stamp) for path, stamp in crdt["lww"].items()},
        text=texts, children=children, parent=wire["parent"],
        ins=_stamp(crdt["ins"]), del_=_stamp_or_none(crdt["del"]), par=_stamp_or_none(crdt["par"]),
        lamport=crdt["lamportTime"], clock=crdt["clock"], created_at=crdt["createdAt"],
        updated_at=crdt["updatedAt"], deleted_at=crdt["deletedAt"],
    )  # fmt: skip


def _listed(stamp: Stamp | None) -> list[Any] | None:
    return None if stamp is None else list(stamp)


def _stamp(held: list[Any]) -> Stamp:
    return held[0], held[1]


def _stamp_or_none(held: list[Any] | None) -> Stamp | None:
    return None if held is None else _stamp(held)
