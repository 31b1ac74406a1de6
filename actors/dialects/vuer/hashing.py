"""The hash of a scene: equal where two scenes are, whatever led there. Pure.

node hash: SHA-256 of the canonical JSON of the node's wire form without `_crdt.clock`, `createdAt`,
`updatedAt`, `deletedAt`. State hash: "h1_" and 32 hex digits of SHA-256 over the line `rootKey LF`
and, for each node that was ever inserted, `key SPACE node-hash LF`, sorted by key as code points.
So a hash that was computed of a node holds for as long as the node stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from actors.dialects.asterql.canonical import canonical
from actors.dialects.vuer.node import Node, hashed_part


def node_hash(node: Node) -> str:
    """64 hex digits."""
    return sha256(canonical(hashed_part(node)).encode()).hexdigest()


def wire_hash(wire: dict[str, Any]) -> str:
    """`node_hash` of a node in its wire form, without making a Node of it."""
    shown = wire["_crdt"]
    kept = {name: shown[name] for name in ("lamportTime", "ins", "del", "par", "lww", "text")}
    return sha256(canonical(wire | {"_crdt": kept}).encode()).hexdigest()


def state_hash_of(root_key: str, hashes: Iterable[tuple[str, str]]) -> str:
    """The state hash of (key, node hash) pairs in any order."""
    lines = "".join([f"{key} {digest}\n" for key, digest in sorted(hashes)])
    return "h1_" + sha256(f"{root_key}\n{lines}".encode()).hexdigest()[:32]


def state_hash(root_key: str, nodes: Iterable[Node]) -> str:
    """The state hash of nodes; empty places do not count."""
    return state_hash_of(
        root_key, ((node.key, node_hash(node)) for node in nodes if node.ins is not None)
    )
