"""Sync performance as counts of work, so that it holds on any machine: a message costs what it
touches, however many nodes there are.
"""

from __future__ import annotations

import copy as copying_module
from typing import Any

import pytest

from actors.dialects.vuer.graph import Graph, graph_from_json
from actors.dialects.vuer.node import Node, to_wire
from actors.dialects.vuer.scene import Scene
from actors.dialects.vuer.tables import Table
from edge.client.vuer.store import GraphStore
from tests.support.vuer_store import Alone, add


class Work:
    """Nodes that scenes have copied or read while it was watched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loads = self.copies = 0
        self.scenes = 0
        inner = Scene.__init__

        def counting(scene: Scene, load: Any, root_key: str) -> None:
            self.scenes += 1

            def counted(key: str) -> Node | None:
                self.loads += 1
                found: Node | None = load(key)
                return found

            inner(scene, counted, root_key)

        copy = copying_module.copy

        def copying(value: Any) -> Any:
            self.copies += 1
            return copy(value)

        monkeypatch.setattr(Scene, "__init__", counting)
        monkeypatch.setattr(copying_module, "copy", copying)


def store_of(count: int) -> GraphStore:
    keys = [f"k{n}" for n in range(count)]
    nodes = [Node(key=key, props={"x": 0}, parent="root", ins=(0, "s")) for key in keys]
    graph = Graph(Table((node.key, node) for node in nodes), "root")
    store = GraphStore("a")
    store.load({"graph": graph.to_json(), "journalIndex": 0}, [], epoch="e")
    return store


@pytest.mark.parametrize("count", [10, 10_000])
def test_work_does_not_grow_with_the_scene(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    store, alone = store_of(count), Alone("b")
    work = Work(monkeypatch)
    for seq in range(1, 51):
        op = {"otype": "number.add", "key": f"k{seq % 10}", "path": "x", "value": 1}
        store.receive(alone.message(op, seq=seq))
    assert (work.scenes, work.loads, work.copies) == (50, 100, 50)
    for _ in range(20):
        store.edit({"otype": "number.add", "key": "k1", "path": "x", "value": 1})
    assert (work.scenes, work.copies) == (70, 70)
    store.commit()
    assert work.scenes == 70


def test_an_own_message_that_comes_back_changes_nothing_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = Alone()
    for _ in range(100):
        alone.store.edit(add())
        alone.store.commit()
    work = Work(monkeypatch)
    for _ in range(100):
        alone.ack()
    assert work.scenes == 100  # one each, not a hundred each for what is still pending
    assert alone.x == 100


def test_a_change_shares_all_other_nodes() -> None:
    store = store_of(1000)
    before = store.graph
    store.edit({"otype": "number.add", "key": "k1", "path": "x", "value": 1})
    after = store.graph
    changed = [key for key in before.nodes if before.nodes[key] is not after.nodes[key]]
    assert changed == ["k1"]
    shared = sum(a is b for a, b in zip(before.nodes._root, after.nodes._root, strict=True))
    assert shared == 63


def test_catching_up_folds_each_message_once(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Alone()
    journal = [alone.message(add(), seq=seq) for seq in range(2, 502)]
    work = Work(monkeypatch)
    alone.store.load(None, journal, epoch="e1")
    assert work.scenes == 500 and alone.x == 500


def test_tables_and_json() -> None:
    table: Table[int] = Table((f"k{n}", n) for n in range(5000))
    changed = table.updated({"k7": -7, "k8": None, "new": 1, "no": None})
    assert (len(table), len(changed), table["k7"], changed["k7"]) == (5000, 5000, 7, -7)
    assert "k8" in table and "k8" not in changed and changed.get("no") is None
    assert dict(table) == {f"k{n}": n for n in range(5000)}
    with pytest.raises(KeyError):
        changed["k8"]
    assert table.updated({}) is table
    graph = store_of(20).graph
    assert graph_from_json(graph.to_json()).to_json() == graph.to_json()
    assert to_wire(Node(key="p", parent="q")) == {"key": "p", "children": [], "parent": "q"}
