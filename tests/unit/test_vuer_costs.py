"""What one message may cost its room: with what it says and changes, not with its square."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from actors.dialects.vuer import values
from actors.dialects.vuer.node import Node
from actors.dialects.vuer.objects import LEAF, merge, stamped_below, write
from actors.dialects.vuer.properties import REGISTERED, TRANSFORMS
from actors.dialects.vuer.values import deep_equal, identity
from tests.support.vuer_ops import tree, value

SAMPLES: list[Any] = [
    0, -0.0, 1, 1.0, 0.5, True, False, None, "", "1", "b", [], [1], [1.0], [True], [[1]], ["l", 1],
    {}, {"a": 1}, {"a": True}, {"a": 1, "b": [2]}, {"b": [2], "a": 1.0}, [{}], ["b", True], [[]],
]  # fmt: skip


def test_an_identity_is_equal_where_values_are() -> None:
    rng = random.Random(1)
    every = SAMPLES + [value(rng) for _ in range(60)] + [tree(rng) for _ in range(60)]
    for a in every:
        for b in every:
            assert (identity(a) == identity(b)) is deep_equal(a, b), (a, b)
            if deep_equal(a, b):
                assert hash(identity(a)) == hash(identity(b))


def test_a_union_compares_no_item_with_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """4,000 numbers took 1.5 s."""

    def never(a: Any, b: Any) -> bool:
        raise AssertionError("compared")

    monkeypatch.setattr(values, "deep_equal", never)
    union = TRANSFORMS["array.union"]
    assert union([1, "1"], {"value": [1.0, True, {"a": 1}, {"a": 1.0}, [1], "1"]}) == [
        1, "1", True, {"a": 1}, [1],
    ]  # fmt: skip


class Watched(dict[str, Any]):
    """Stamps that nobody may look through."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("looked through all stamps")

    def items(self) -> Any:
        raise AssertionError("looked through all stamps")


def test_a_merge_looks_for_the_stamps_of_its_own_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """4,000 members took 2 s on a node with 8,000 stamps."""
    for made in ({}, {"custom.op": lambda op: True}):
        monkeypatch.setattr("actors.dialects.vuer.objects.REGISTERED", made)
        lww = {} if made else Watched()
        node = Node(key="n", lww=lww, props={})
        merge(node, "o", {"a": {"b": 1, "c": {"d": 2}}, "e": 3}, (1, "s"))
        merge(node, "o", {"a": {"b": 5}}, (9, "s"))
        write(node, "o", {"a": {"x": 0}}, (5, "s"))
        assert node.props["o"] == {"a": {"x": 0, "b": 5}}
        kept = {name: dict.__getitem__(lww, name) for name in dict.keys(lww)}
        assert kept == {"o": (5, "s"), f"o{LEAF}a{LEAF}b": (9, "s")}


def test_stamps_below_are_those_that_a_look_through_all_finds() -> None:
    rng = random.Random(2)
    assert not REGISTERED
    for _ in range(300):
        node = Node(key="n", lww={}, props={})
        for _ in range(12):
            stamp = (rng.randrange(9), rng.choice("ab"))
            if rng.random() < 0.7:
                merge(node, "o", tree(rng), stamp)
            else:
                write(node, "o", rng.choice([tree(rng), 7, [1]]), stamp)
            for place in ["o", *node.lww]:
                old: Any = node.props.get("o")
                for name in place.split(LEAF)[1:]:
                    old = old.get(name) if type(old) is dict else None
                wanted = {name for name in node.lww if name.startswith(place + LEAF)}
                assert set(stamped_below(node.lww, place, old)) == wanted
