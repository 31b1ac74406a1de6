"""Pages as runs: what is merged, where each part lies, and how runs are split for reading."""

from __future__ import annotations

import pytest

from infra.cut import FILE, ZERO, Cut, Places, Run, groups

STEP = 512 + 24
LOCK = 0x40000000 // 512 + 1


def test_neighbours_in_one_place_are_one_run() -> None:
    in_wal = {2: 56, 3: 56 + STEP, 4: 9000, 6: 56 + 2 * STEP}
    places = Places(512, in_wal, stored=9)
    assert places.of([1, 2, 3, 4, 6, 7, 8]) == (
        Run(1, 1, FILE),
        Run(2, 2, 56),
        Run(4, 1, 9000),
        Run(6, 1, 56 + 2 * STEP),
        Run(7, 2, FILE),
    )


def test_all_pages_of_a_database() -> None:
    in_wal = {2: 56, 3: 56 + STEP, 12: 9000}  # it was larger once
    assert Places(512, in_wal, stored=6).of_all(9) == (
        Run(1, 1, FILE),
        Run(2, 2, 56),
        Run(4, 3, FILE),
        Run(7, 3, ZERO),
    )
    assert Places(512, {}, stored=6).of_all(6) == (Run(1, 6, FILE),)
    assert Places(512, {1: 56}, stored=0).of_all(1) == (Run(1, 1, 56),)


@pytest.mark.parametrize("stored", [LOCK - 2, LOCK, LOCK + 5])
def test_lock_page_splits_runs(stored: int) -> None:
    def pages(runs: tuple[Run, ...]) -> list[int]:
        return [page for run in runs for page in range(run.first, run.first + run.pages)]

    near = [*range(LOCK - 3, LOCK), *range(LOCK + 1, LOCK + 4)]
    places = Places(512, {}, stored)
    assert pages(places.of(range(LOCK - 3, LOCK + 4))) == near
    assert pages(places.of_all(LOCK + 3))[-6:] == near


def test_groups_split_long_runs_and_gather_short_ones() -> None:
    runs = (Run(1, 1, FILE), Run(2, 7, 56), Run(9, 1, ZERO), Run(10, 1, FILE))
    cut = Cut(
        page_size=512, commit=10, runs=runs, salts=b"", whole=True, shrunk=False, filled=0
    )  # fmt: skip
    assert list(groups(cut, 3)) == [
        [Run(1, 1, FILE), Run(2, 2, 56)],
        [Run(4, 3, 56 + 2 * STEP)],
        [Run(7, 2, 56 + 5 * STEP), Run(9, 1, ZERO)],
        [Run(10, 1, FILE)],
    ]
    assert cut.pages == 10 and cut.pgnos == list(range(1, 11))
