"""Vector clocks under the engine's names (section 13 of docs/vuer-rtc.md)."""

from __future__ import annotations

import itertools

import pytest

from actors.clocks import VectorClockManager as Clocks


def test_create_and_increment() -> None:
    clock = Clocks.create("a")
    assert clock == {"a": 0}
    assert Clocks.increment(clock, "a") == {"a": 1}
    assert Clocks.increment(clock, "b") == {"a": 0, "b": 1}
    assert clock == {"a": 0}


def test_merge_is_the_greatest_of_each() -> None:
    a, b = {"a": 1, "b": 5}, {"b": 2, "c": 3}
    assert Clocks.merge(a, b) == {"a": 1, "b": 5, "c": 3}
    assert (a, b) == ({"a": 1, "b": 5}, {"b": 2, "c": 3})


@pytest.mark.parametrize(
    ("a", "b", "compared", "relation"),
    [
        ({"a": 1}, {"a": 1}, 0, "equal"),
        ({"a": 0}, {}, 0, "equal"),
        ({"a": 2}, {"a": 1}, 1, "after"),
        ({"a": 1}, {"a": 1, "b": 1}, -1, "before"),
        ({"a": 2, "b": 1}, {"a": 1, "b": 2}, 0, "concurrent"),
        ({"a": 1}, {"b": 1}, 0, "concurrent"),
    ],
)
def test_compare(a: dict[str, int], b: dict[str, int], compared: int, relation: str) -> None:
    assert Clocks.compare(a, b) == compared and Clocks.compare(b, a) == -compared
    assert Clocks.relation(a, b) == relation
    assert Clocks.are_concurrent(a, b) is (compared == 0)


def test_merging_is_a_join() -> None:
    clocks = [{"a": x, "b": y} for x, y in itertools.product(range(3), repeat=2)]
    for a, b in itertools.product(clocks, repeat=2):
        merged = Clocks.merge(a, b)
        assert merged == Clocks.merge(b, a)
        assert Clocks.compare(merged, a) >= 0 and Clocks.relation(merged, b) in ("after", "equal")


@pytest.mark.parametrize("bad", [-1, 1.5, "1", None, True])
def test_counters_are_whole_numbers(bad: object) -> None:
    with pytest.raises(ValueError):
        Clocks.merge({"a": bad}, {})  # type: ignore[dict-item]
