"""Removals: tombstones, incarnations and what hangs below them, alike in every order of arrival."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from actors.dialects.vuer.graph import Graph, apply_message, create_empty_graph
from actors.dialects.vuer.validate import check_message
from tests.support.vuer import sequenced
from tests.unit.test_vuer_reconciliation import apart


def remove(lamport: int, key: str = "n") -> dict[str, Any]:
    return {"lamportTime": lamport, "ops": [{"otype": "node.remove", "key": key, "path": "-"}]}


def insert(lamport: int, key: str = "n", **value: Any) -> dict[str, Any]:
    data = {"key": f"u{lamport}", **value}
    return {
        "lamportTime": lamport,
        "ops": [{"otype": "node.insert", "key": key, "path": "-", "parent": "root", "value": data}],
    }


def after(*messages: dict[str, Any]) -> Graph:
    graph = create_empty_graph()
    for message in sequenced({"messages": []}):
        graph = apply_message(graph, message)
    for number, raw in enumerate(messages, 2):
        message = check_message({"id": f"m{number}", "sessionId": "a", **raw})
        message.server_seq = number
        graph = apply_message(graph, message)
    return graph


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_removals_commute(order: tuple[int, ...]) -> None:
    removals = [remove(3), remove(7), remove(5)]
    node = after(*[removals[at] for at in order]).get("n")
    assert node is not None and node.del_ == (7, "a")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_highest_insert_after_a_removal_lives(order: tuple[int, ...]) -> None:
    work = [remove(2), insert(3, y=3), remove(4)]
    node = after(*[work[at] for at in order]).get("n")
    assert node is not None and not node.live


def test_a_new_incarnation_knows_nothing_of_the_old() -> None:
    old = {"lamportTime": 1, "ops": [
        {"otype": "number.set", "key": "n", "path": "x", "value": 9},
        {"otype": "text.insert", "key": "n", "path": "t", "id": "a:0", "value": [None, "old"]},
        {"otype": "array.push", "key": "n", "path": "children", "value": "kid"},
    ]}  # fmt: skip
    graph = after(old, remove(2), insert(3, y=1))
    node = graph.live("n")
    assert node is not None
    assert (node.props, node.text, node.lww, list(node.children)) == ({"y": 1}, {}, {}, [])
    assert graph.nodes.get("kid") is None  # neither inserted nor attached: nothing to keep
    below = {
        "lamportTime": 1,
        "ops": [{"otype": "number.set", "key": "n", "path": "y", "value": 5}],
    }
    assert after(old, remove(2), insert(3, y=1), below).value("n", "y") == 5


def test_what_hangs_below_a_removed_node_comes_back_with_its_undo() -> None:
    child = insert(2, "kid")
    child["ops"][0]["parent"] = "n"
    undo = {"lamportTime": 4, "ops": [{"otype": "meta.undo", "targetMsgId": "m3"}]}
    gone = after(child, remove(3))
    assert list(gone.visible()) == ["root"] and gone.live("kid") is not None
    assert list(after(child, remove(3), undo).visible()) == ["root", "n", "kid"]


@pytest.mark.parametrize("first", [
    {"otype": "number.set", "value": 5}, {"otype": "number.add", "value": 5},
    {"otype": "object.merge", "path": ".", "value": {"x": 5}},
    {"otype": "text.insert", "path": "t", "position": 0, "value": "text"},
])  # fmt: skip
def test_a_removal_meets_an_edit(first: dict[str, Any]) -> None:
    removal = {"otype": "node.remove", "path": "-"}
    for pair in ([first], [removal]), ([removal], [first]):
        net = apart(*pair)
        node = net.peers[0].store.graph.get("n")
        assert node is not None and not node.live


def test_a_removal_meets_an_insert_of_the_same_key() -> None:
    again = {"otype": "node.insert", "path": "-", "value": {"key": "new", "z": 1}}
    removal = {"otype": "node.remove", "path": "-"}
    apart([removal, again], [removal])
    apart([removal], [removal, again])
