"""Cursors of the client: contiguous or not at all, against a plain list as the model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.client.cursors import Cursor, ScopeCursors


def test_unknown_scope_stands_at_zero_and_takes_one() -> None:
    cursors = ScopeCursors()
    assert cursors.cursor("run:r1") is None
    assert cursors.scope_last_seq("run:r1") == 0
    assert cursors.ingest_sequenced("run:r1", 2) == "gap"
    assert cursors.ingest_sequenced("run:r1", 1) == "applied"
    assert cursors.ingest_sequenced("run:r1", 1) == "duplicate"
    assert cursors.scope_last_seq("run:r1") == 1


def test_begin_scope_is_the_only_way_back() -> None:
    cursors = ScopeCursors()
    cursors.begin_scope("run:r1", 41, "e1")
    assert cursors.ingest_sequenced("run:r1", 42) == "applied"
    assert cursors.cursor("run:r1") == Cursor(42, "e1")
    cursors.begin_scope("run:r1", 7, "e2")
    assert cursors.cursor("run:r1") == Cursor(7, "e2")
    cursors.forget_scope("run:r1")
    assert cursors.cursor("run:r1") is None
    with pytest.raises(ValueError, match="negative"):
        cursors.begin_scope("run:r1", -1)


def test_cursor_advances_although_taking_raises() -> None:
    cursors = ScopeCursors()

    def fail() -> None:
        raise LookupError("no")

    with pytest.raises(LookupError):
        cursors.ingest_sequenced("run:r1", 1, fail)
    assert cursors.scope_last_seq("run:r1") == 1
    assert cursors.ingest_sequenced("run:r1", 2) == "applied"


def test_edge_case_37_ahead_of_the_cursor_is_not_taken() -> None:
    cursors = ScopeCursors()
    cursors.begin_scope("run:r1", 5)
    taken: list[int] = []
    assert cursors.ingest_sequenced("run:r1", 7, lambda: taken.append(7)) == "gap"
    assert cursors.ingest_sequenced("run:r1", 6, lambda: taken.append(6)) == "applied"
    assert cursors.ingest_sequenced("run:r1", 7, lambda: taken.append(7)) == "applied"
    assert taken == [6, 7]


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 12), st.booleans()), max_size=80)
)
def test_any_delivery_order_takes_a_prefix_once(
    deliveries: list[tuple[str, int, bool]],
) -> None:
    cursors = ScopeCursors()
    model: dict[str, list[int]] = {"a": [], "b": []}
    for scope, seq, fails in deliveries:
        expected = (
            "duplicate"
            if seq <= len(model[scope])
            else "applied"
            if seq == len(model[scope]) + 1
            else "gap"
        )

        def take(scope: str = scope, seq: int = seq, fails: bool = fails) -> None:
            model[scope].append(seq)
            if fails:
                raise ArithmeticError

        try:
            assert cursors.ingest_sequenced(scope, seq, take) == expected
        except ArithmeticError:
            assert expected == "applied"
        for name, taken in model.items():
            assert taken == list(range(1, len(taken) + 1))
            assert cursors.scope_last_seq(name) == len(taken)
