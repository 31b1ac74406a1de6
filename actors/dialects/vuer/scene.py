"""Nodes at work: what operations read and change. Pure.

A `Scene` reads through to nodes kept elsewhere (a graph, rows of a scope) and keeps what changes
apart, so a message costs what it touches. The tree is held in the nodes: each names its parent and
its children. Always true: a key has one parent at most, is in that parent's list once, and there is
no cycle.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from actors.dialects.vuer.node import Node

Load = Callable[[str], Node | None]


class Scene:
    """`changed` holds the nodes that differ from what `load` gives; blank ones are to go."""

    __slots__ = ("_load", "changed", "root_key")

    def __init__(self, load: Load, root_key: str) -> None:
        self._load = load
        self.changed: dict[str, Node] = {}
        self.root_key = root_key

    def node(self, key: str) -> Node | None:
        """The node or empty place, to be read."""
        found = self.changed.get(key)
        return self._load(key) if found is None else found

    def live(self, key: str) -> Node | None:
        """The node, where it is inserted and not removed."""
        node = self.node(key)
        return node if node is not None and node.live else None

    def own(self, key: str) -> Node:
        """The node to be changed; an empty place where there is none."""
        found = self.changed.get(key)
        if found is not None:
            return found
        kept = self._load(key)
        if kept is None:
            node = Node(key=key)
        else:
            node = copy.copy(kept)
            node.props, node.lww, node.text = kept.props.copy(), kept.lww.copy(), kept.text.copy()
        self.changed[key] = node
        return node

    def put(self, node: Node) -> None:
        """Take a new node in place of what was there."""
        self.changed[node.key] = node

    def parent(self, key: str) -> str | None:
        """The key that a key is attached to."""
        node = self.node(key)
        return None if node is None else node.parent

    def children(self, key: str) -> list[str]:
        """The keys attached to a key, in order."""
        node = self.node(key)
        return [] if node is None else list(node.children)

    def attach(self, key: str, parent: str) -> bool:
        """Put `key` at the end of the children of `parent`, away from where it was.

        False, and nothing changes, where it is there already or would be above itself.
        """
        if self.parent(key) == parent:
            return False
        at: str | None = parent
        while at is not None:
            if at == key:
                return False
            at = self.parent(at)
        self.detach(key)
        above = self.own(parent)
        above.children = above.children.added(key)
        self.own(key).parent = parent
        return True

    def detach(self, key: str) -> bool:
        """Take `key` away from its parent, if it has one."""
        parent = self.parent(key)
        if parent is None:
            return False
        above = self.own(parent)
        above.children = above.children.without(key)
        self.own(key).parent = None
        return True
