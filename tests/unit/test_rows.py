"""The cache of committed rows and the overlay a batch is planned in."""

from __future__ import annotations

from typing import Any

import pytest

from actors import rows as rows_module
from actors.rows import (
    BIG_ROW_BYTES,
    UNFOLDED_CHANGES_MAX,
    UNFOLDED_ENTRIES_MAX,
    Key,
    Overlay,
    Row,
    RowCache,
    must_store,
)  # fmt: skip

A, B = ("entity", "a"), ("entity", "b")


class File:
    """Rows as the file holds them; counts reads."""

    def __init__(self, *names: str) -> None:
        self.rows = {("entity", name): Row({"n": name}, 1, 1, 9, 1) for name in names}
        self.reads: list[Key] = []

    def load(self, coll: str, id: str) -> Row | None:
        self.reads.append((coll, id))
        return self.rows.get((coll, id))


def value(overlay: Overlay, key: Key) -> Any:
    row = overlay.get(*key)
    return None if row is None else row.value


def test_a_row_is_read_once() -> None:
    file = File("a")
    cache = RowCache(file.load)
    assert cache.get(A) is cache.get(A) is not None
    assert file.reads == [A]


def test_an_absent_row_is_looked_for_once_until_it_comes_to_be() -> None:
    file = File()
    cache = RowCache(file.load)
    assert cache.get(A) is cache.get(A) is None
    assert file.reads == [A]
    row = Row({"n": 1}, 1, 1, 9, 1)
    cache.commit({A: row}, set())
    assert cache.get(A) is row
    cache.commit({A: None}, set())  # gone again: only the file knows, and is asked once more
    assert cache.get(A) is cache.get(A) is None
    assert file.reads == [A, A]


def test_the_memory_of_absent_rows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "ABSENT_MAX", 2)
    file = File()
    cache = RowCache(file.load)
    for name in "abcab":
        cache.get(("entity", name))
    assert [id for _, id in file.reads] == ["a", "b", "c", "a", "b"]


def test_a_draft_sees_itself_then_the_batch_then_the_file() -> None:
    overlay = Overlay(RowCache(File("a", "b").load), at=0)
    overlay.put(*A, {"n": 1}, seq=2, grown=5)
    overlay.accept()
    overlay.put(*A, {"n": 2}, seq=3, grown=5)
    assert (value(overlay, A), value(overlay, B)) == ({"n": 2}, {"n": "b"})
    overlay.refuse()
    assert value(overlay, A) == {"n": 1}
    assert list(overlay.batch) == [A]


def test_revisions_and_bounds_go_on_from_the_row_before() -> None:
    overlay = Overlay(RowCache(File("a").load), at=0)
    first = overlay.put(*A, {"n": 1}, seq=2, grown=5)
    second = overlay.put(*A, {"n": 2}, seq=3, grown=7)
    assert (first.rev, first.size, first.stored, first.pending) == (2, 14, 1, 1)
    assert (second.rev, second.size, second.stored, second.pending) == (3, 21, 1, 2)
    fresh = overlay.put(*B, {}, seq=3, grown=4)
    assert (fresh.rev, fresh.stored) == (1, 0)


def test_a_removed_row_is_gone_until_it_is_made_anew() -> None:
    overlay = Overlay(RowCache(File("a").load), at=0)
    overlay.remove(*A)
    assert value(overlay, A) is None
    overlay.accept()
    assert value(overlay, A) is None and overlay.batch == {A: None}
    assert overlay.put(*A, {}, seq=5, grown=2).rev == 1


def test_clearing_hides_the_file_and_the_batch() -> None:
    overlay = Overlay(RowCache(File("a", "b").load), at=0)
    overlay.put(*A, {"n": 1}, seq=2, grown=5)
    overlay.accept()
    overlay.clear("entity")
    overlay.put(*B, {"n": 2}, seq=3, grown=5)
    assert (value(overlay, A), value(overlay, B)) == (None, {"n": 2})
    overlay.accept()
    assert overlay.batch.keys() == {B} and overlay.cleared == {"entity"}
    assert value(overlay, A) is None


def test_a_refused_clear_clears_nothing() -> None:
    overlay = Overlay(RowCache(File("a").load), at=0)
    overlay.clear("entity")
    overlay.refuse()
    assert value(overlay, A) == {"n": "a"} and not overlay.cleared


def test_the_cache_takes_over_what_was_committed() -> None:
    file = File("a", "b")
    cache = RowCache(file.load)
    lagging = Row({"n": 9}, 2, 4, 99, 1, 3)
    cache.commit({A: lagging, B: None}, set())
    assert cache.get(A) is lagging and cache.lagging == {A: lagging}
    cache.commit({A: Row({"n": 9}, 2, 4, 9, 4, 0)}, set())
    assert cache.lagging == {}


def test_clearing_takes_lagging_rows_along() -> None:
    cache = RowCache(File().load)
    cache.commit({A: Row({}, 2, 4, 99, 1, 3)}, set())
    cache.commit({B: Row({}, 1, 5, 9, 5, 0)}, {"entity"})
    assert cache.lagging == {} and cache.get(A) is None and cache.get(B) is not None


def test_the_cache_is_bounded_but_keeps_what_the_file_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rows_module, "CACHE_BYTES_MAX", 1000)
    file = File()
    cache = RowCache(file.load)
    cache.commit({A: Row({}, 1, 1, 900, 1, 2)}, set())
    for n in range(50):
        cache.commit({("entity", f"k{n}"): Row({}, 1, 1, 100, 1, 0)}, set())
    kept = [key for key in cache._rows if key != A]
    assert len(kept) <= 2 and cache.get(A) is not None and file.reads == []
    assert cache._bytes == sum(row.size for row in cache._rows.values())


def test_the_cache_is_bounded_by_reading_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "CACHE_BYTES_MAX", 1000)
    cache = RowCache(lambda _coll, _id: Row({}, 1, 1, 100, 1))
    for n in range(50):
        cache.get(("entity", f"k{n}"))
    assert cache._bytes <= 1100 and len(cache._rows) <= 11


@pytest.mark.parametrize(
    ("size", "stored", "pending", "head", "now"),
    [
        (BIG_ROW_BYTES, 5, 1, 6, True),
        (BIG_ROW_BYTES + 1, 5, 1, 6, False),
        (BIG_ROW_BYTES + 1, 0, 1, 6, True),
        (BIG_ROW_BYTES + 1, 5, UNFOLDED_CHANGES_MAX, 6, True),
        (BIG_ROW_BYTES + 1, 5, 1, 5 + UNFOLDED_ENTRIES_MAX, True),
        (BIG_ROW_BYTES + 1, 5, 1, 4 + UNFOLDED_ENTRIES_MAX, False),
    ],
)
def test_when_a_row_must_be_stored(
    size: int, stored: int, pending: int, head: int, now: bool
) -> None:
    assert must_store(Row({}, 1, head, size, stored, pending), head) is now
