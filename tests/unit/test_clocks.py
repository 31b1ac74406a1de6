"""Clocks: the vectors of the Starkeep and vuer documents, and the laws every clock keeps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.clocks import (
    COUNTER_MAX,
    HLC,
    WALL_MAX,
    ZERO_HLC,
    BadClock,
    HLCState,
    HybridClock,
    check_hlc,
    lamport_receive,
    lamport_tick,
    later,
    max_hlc,
    parse_hlc,
    vector_compare,
    vector_create,
    vector_increment,
    vector_merge,
    vector_relation,
)


class Wall:
    """A physical clock a test can set."""

    def __init__(self, ms: int) -> None:
        self.ms = ms

    def __call__(self) -> int:
        return self.ms


def test_the_vector_of_the_document() -> None:
    wall = Wall(1000)
    clock = HybridClock("n", wall)
    given: list[HLC] = [clock.now(), clock.now()]
    wall.ms = 900
    given.append(clock.now())
    wall.ms = 1500
    given += [clock.receive(HLC(w, c, "r")) for w, c in ((1400, 9), (1500, 3), (2000, 5), (1, 99))]
    wall.ms = 2000
    given.append(clock.now())
    wall.ms = 3000
    given += [clock.receive(HLC(3000, 2, "r")), clock.send()]
    assert [stamp.position for stamp in given] == [
        (1000, 0), (1000, 1), (1000, 2), (1500, 0), (1500, 4), (2000, 6), (2000, 7), (2000, 8),
        (3000, 3), (3000, 4),
    ]  # fmt: skip
    assert {stamp.node_id for stamp in given} == {"n"}


def test_a_clock_goes_on_where_an_earlier_life_ended() -> None:
    heard: list[HLCState] = []
    clock = HybridClock("n", Wall(10), state=HLCState(50, 7), on_tick=heard.append)
    assert clock.now() == HLC(50, 8, "n")
    assert heard == [HLCState(50, 8)]


def test_a_full_counter_borrows_a_millisecond() -> None:
    clock = HybridClock("n", Wall(10), state=HLCState(50, COUNTER_MAX))
    assert clock.now() == HLC(51, 0, "n")
    assert clock.receive(HLC(90, COUNTER_MAX + 5, "r")) == HLC(91, 0, "n")


def test_a_clock_at_the_end_of_time_says_so() -> None:
    clock = HybridClock("n", Wall(10), state=HLCState(WALL_MAX, COUNTER_MAX))
    with pytest.raises(BadClock):
        clock.now()


@pytest.mark.parametrize("node", ["", "a:b", "a\nb", "x" * 129, "a\x00", "\ud800"])
def test_node_ids_that_could_not_be_read_back_are_refused(node: str) -> None:
    with pytest.raises(BadClock):
        HybridClock(node, Wall(0))


def test_text_form() -> None:
    stamp = HLC(1700000000000, 42, "node-abc123")
    assert str(stamp) == "018bcfe56800:002a:node-abc123"
    assert parse_hlc(str(stamp)) == stamp
    assert str(ZERO_HLC) == "000000000000:0000:"
    assert parse_hlc(str(ZERO_HLC)) == ZERO_HLC


@pytest.mark.parametrize(
    "text", ["", "1:2", "1:2:a:b", "g:0:n", "-1:0:n", " 1:0:n", "1:0x2:n", "fffffffffffff:0:n"]
)
def test_text_that_is_no_stamp(text: str) -> None:
    with pytest.raises(BadClock, match="Invalid HLC timestamp string"):
        parse_hlc(text)


@pytest.mark.parametrize(
    "stamp",
    [
        HLC(-1, 0, "n"), HLC(WALL_MAX + 1, 0, "n"), HLC(0, -1, "n"), HLC(0, 2**53, "n"),
        HLC(1, 0, ""), HLC(1, 0, "a:b"), HLC(1, 0, "a\x00"), HLC(1, 0, "\ud800"),
        HLC(1, 0, "n" * 600),
    ],
)  # fmt: skip
def test_stamps_from_outside_that_are_refused(stamp: HLC) -> None:
    with pytest.raises(BadClock):
        check_hlc(stamp)


def test_order_is_by_numbers_then_by_utf16() -> None:
    assert later(HLC(1, 0x10000, "a"), HLC(1, 0xFFFF, "a"))  # as text it would be smaller
    astral, high = "\U0001f600", "\uff5e"
    assert astral > high  # by code point
    assert later(HLC(1, 0, high), HLC(1, 0, astral))  # by UTF-16 unit, as JavaScript has it
    assert HLC(1, 0, high).order > HLC(1, 0, astral).order
    a, b = HLC(1, 1, "n"), HLC(1, 1, "n")
    assert max_hlc(a, b) is a
    assert not later(a, b)


stamps = st.builds(
    HLC, st.integers(0, 50), st.integers(0, 3), st.sampled_from(["a", "b", "\U0001f600", "\uff5e"])
)


@given(stamps, stamps)
def test_later_agrees_with_the_sort_key(a: HLC, b: HLC) -> None:
    assert later(a, b) == (a.order > b.order)


@given(st.lists(st.tuples(st.integers(0, 30), st.none() | stamps), max_size=40))
def test_what_a_clock_gives_is_above_all_it_gave_and_saw(
    steps: list[tuple[int, HLC | None]],
) -> None:
    wall = Wall(0)
    clock = HybridClock("m", wall)
    last = (0, -1)
    for now_ms, remote in steps:
        wall.ms = now_ms
        stamp = clock.now() if remote is None else clock.receive(remote)
        assert stamp.position > last
        if remote is not None:
            assert stamp.position > remote.position
        last = stamp.position


def test_lamport() -> None:
    assert lamport_tick(lamport_receive(3, 9)) == 10
    assert lamport_tick(lamport_receive(9, 3)) == 10


def test_vector_clocks() -> None:
    start = vector_create("a")
    assert start == {"a": 0}
    assert vector_increment(start, "b") == {"a": 0, "b": 1}
    assert start == {"a": 0}
    assert vector_merge({"a": 1, "b": 5}, {"a": 3}) == {"a": 3, "b": 5}
    assert vector_relation({"a": 0}, {}) == "equal"
    assert vector_relation({"a": 1}, {"a": 2}) == "before"
    assert vector_relation({"a": 2, "b": 1}, {"a": 2}) == "after"
    assert vector_relation({"a": 1}, {"b": 1}) == "concurrent"
    assert vector_compare({"a": 1}, {"b": 1}) == vector_compare({}, {}) == 0
    assert vector_compare({"a": 1}, {}) == -vector_compare({}, {"a": 1}) == 1


@pytest.mark.parametrize("count", [-1, 1.5, True])
def test_bad_vector_counters(count: int) -> None:
    with pytest.raises(ValueError, match="whole number"):
        vector_merge({"a": count}, {})
