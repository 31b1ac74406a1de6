"""Reconciliation: what two did apart, together again."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.vuer_room import Network, disagreements


def apart(first: list[dict[str, Any]], second: list[dict[str, Any]], **start: Any) -> Network:
    """Two peers with one node `n`, then each alone, then together."""
    net = Network(1, 2, faults=False)
    for peer in net.peers:
        peer.join()
        net.hear(peer)
    node = {"key": "u", "x": 0, **start}
    net.peers[0].store.edit({"otype": "node.insert", "key": "n", "path": "-", "value": node})
    net.peers[0].store.commit()
    net.settle()
    for peer, ops in zip(net.peers, (first, second), strict=True):
        peer.leave()
        for op in ops:
            peer.store.edit({"key": "n", "path": "x", **op})
            peer.store.commit()
    net.settle()
    assert disagreements(net) == []
    return net


def shown(net: Network, path: str = "x") -> Any:
    return net.peers[1].store.graph.value("n", path)


def test_sets_and_adds_of_two() -> None:
    add = {"otype": "number.add", "value": 3}
    assert shown(apart([add, add], [add])) == 9
    sets = [{"otype": "number.set", "value": 1}], [{"otype": "number.set", "value": 2}]
    assert shown(apart(*sets)) == 2  # equal lamport: the greater session


# The pairs on which replicas of the original end apart.
def two(path: str, first: tuple[str, Any], second: tuple[str, Any]) -> Any:
    """Two operations on one path."""
    ops = [{"otype": otype, "path": path, "value": value} for otype, value in (first, second)]
    return tuple(ops)


PAIRS = [
    two("x", ("number.set", 5), ("number.add", 3)),
    two("x", ("number.add", 5), ("number.multiply", 3)),
    two("x", ("number.multiply", 5), ("number.max", 3)),
    two("x", ("number.min", -5), ("number.max", 3)),
    two("l", ("array.push", 1), ("array.push", 2)),
    two("l", ("array.push", 1), ("array.set", [])),
    two("l", ("array.push", 1), ("array.remove", 1)),
    two("l", ("array.union", [1, 2]), ("array.union", [2, 1])),
    two("q", ("quaternion.multiply", [1, 0, 0, 0]), ("quaternion.multiply", [0, 1, 0, 0])),
    two("s", ("string.concat", "a"), ("string.concat", "b")),
    two("o", ("object.merge", {"k": 1}), ("object.merge", {"k": 2})),
    two("o", ("object.set", {"k": 1}), ("object.merge", {"m": 2})),
    two("b", ("boolean.or", True), ("boolean.and", False)),
    two("b", ("boolean.set", True), ("boolean.and", False)),
    two("c", ("color.blend", "#ff0000"), ("color.blend", "#0000ff")),
    two("x", ("number.add", 0.1), ("number.add", 0.7)),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]['otype']}-{pair[1]['otype']}")
@pytest.mark.parametrize("turned", [False, True])
def test_pairs_that_do_not_commute_end_alike(
    pair: tuple[dict[str, Any], dict[str, Any]], turned: bool
) -> None:
    first, second = reversed(pair) if turned else pair
    apart([first], [second])


def test_an_undo_meets_later_work_of_another() -> None:
    net = apart([{"otype": "number.set", "value": 10}], [{"otype": "number.add", "value": 1}])
    net.peers[0].leave()
    net.peers[0].store.undo()
    net.peers[1].store.edit({"otype": "number.add", "key": "n", "path": "x", "value": 5})
    net.settle()
    assert disagreements(net) == [] and shown(net) == 6


def test_a_long_absence_ends_with_a_snapshot() -> None:
    net = apart([], [])
    away, busy = net.peers
    away.leave()
    away.store.edit({"otype": "number.add", "key": "n", "path": "x", "value": 1000})
    away.store.commit()
    for _ in range(1200):
        busy.store.edit({"otype": "number.add", "key": "n", "path": "x", "value": 1})
        busy.store.commit()
        net.deliver(busy)
    net.settle()
    assert net.server.header.floor > 0 and away.store.floor_seq > 0
    assert disagreements(net) == [] and shown(net) == 2200


def test_a_crash_is_filled_up_by_the_authors() -> None:
    net = apart([{"otype": "number.add", "value": 1}], [{"otype": "number.add", "value": 2}])
    net.saved = net.server.copy()
    for peer in net.peers:
        peer.store.edit({"otype": "number.add", "key": "n", "path": "x", "value": 10})
        peer.store.commit()
        net.deliver(peer)
        while peer.inbox:
            net.hear(peer)
    net.crash()
    assert len(net.server.journal) == 3
    net.settle()
    assert disagreements(net) == [] and shown(net) == 23
