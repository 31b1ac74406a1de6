"""The window of causes a scope remembers: bounded, and never less than it promises."""

from __future__ import annotations

import pytest

from actors import dedupe
from actors.dedupe import DedupeWindow


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    share = dedupe.WINDOW_MAX // dedupe.GENERATION
    monkeypatch.setattr(dedupe, "WINDOW_MAX", 20)
    monkeypatch.setattr(dedupe, "GENERATION", 20 // share)


def known(count: int) -> list[tuple[str, int]]:
    return [(f"e{n}", n) for n in range(1, count + 1)]


@pytest.mark.parametrize("loaded", [0, 1, 9, 10, 11, 19, 20, 35])
def test_the_newest_are_remembered_always(loaded: int) -> None:
    window = DedupeWindow(known(loaded))
    for n in range(loaded + 1, loaded + 200):
        window.add({f"e{n}": n})
        kept = range(max(1, n - 19), n + 1)
        assert all(window.get(f"e{m}") == m for m in kept)
        assert len(window) <= 2 * 20


def test_what_was_not_seen_is_not_known() -> None:
    assert DedupeWindow(known(5)).get("other") is None
    assert DedupeWindow([]).get("e1") is None


def test_dropping_is_told_so_that_the_file_forgets_too() -> None:
    window = DedupeWindow([])
    told = [n for n in range(1, 100) if window.add({f"e{n}": n})]
    assert told and len(told) <= 99 // dedupe.GENERATION
    assert window.get("e1") is None
    # What the file may then drop is older than anything the window must know.
    assert all(window.get(f"e{n}") is None or n > 99 - 2 * 20 for n in range(1, 100))


def test_many_at_once_are_remembered() -> None:
    window = DedupeWindow([])
    window.add({f"e{n}": n for n in range(1, 51)})
    assert all(window.get(f"e{n}") == n for n in range(31, 51))
