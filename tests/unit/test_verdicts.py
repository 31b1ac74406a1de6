"""The judge of the network tests: each fault it is there for, and none where all is well."""

from __future__ import annotations

import pytest

from tests.support.verdicts import Acked, Batch, Shown, Verdict, judge, percentile

HISTORY = {"a": 1, "b": 2, "c": 3}
ACKED = [Acked(e, n, "E", "edge", 0.0, 0.1) for e, n in HISTORY.items()]
SHOWN = [Shown(n, e, "E") for e, n in HISTORY.items()]
BATCHES = [Batch(1, 1, 11), Batch(2, 1, 11), Batch(3, 2, 22)]


def verdict(
    *,
    acked: list[Acked] = ACKED,
    shown: list[Shown] = SHOWN,
    history: dict[str, int] = HISTORY,
    batches: list[Batch] = BATCHES,
) -> Verdict:
    return judge(acked, {"f": shown}, history, batches)


def test_all_is_well() -> None:
    assert verdict().clean
    assert verdict(acked=ACKED[:1]).clean  # stored, and its acknowledgement was lost


@pytest.mark.parametrize("history", [{"a": 1, "c": 3}, {"a": 1, "b": 4, "c": 3}])
def test_a_lost_write(history: dict[str, int]) -> None:
    (line,) = verdict(history=history).lost
    assert line.startswith("b acknowledged as 2 by edge, history has ")


@pytest.mark.parametrize(
    ("shown", "word"),
    [
        ([SHOWN[0], SHOWN[2]], "seq 3 after 1: a gap"),
        ([*SHOWN, SHOWN[2]], "seq 3 again after 3"),
        (SHOWN[1:], "seq 2 after 0: a gap"),
        (SHOWN[:2], "ends at 2 of 3: a gap"),
        ([SHOWN[0], Shown(2, "c", "E"), SHOWN[2]], "seq 2 was c, which history has at 3"),
        ([SHOWN[0], Shown(2, "x", "E"), SHOWN[2]], "seq 2 was x, which history has at None"),
        ([*SHOWN[:2], Shown(3, "c", "F")], "epoch E became F at seq 3"),
    ],
)
def test_a_follower_that_strayed(shown: list[Shown], word: str) -> None:
    assert f"f: {word}" in verdict(shown=shown).strayed


def test_two_acknowledgements_that_cannot_both_be_true() -> None:
    assert verdict(acked=[*ACKED, Acked("a", 4, "E", "edge", 0, 0)]).doubled
    assert verdict(acked=[*ACKED, Acked("x", 1, "E", "edge", 0, 0)]).doubled


@pytest.mark.parametrize(
    ("batches", "word"),
    [
        ([*BATCHES, Batch(4, 1, 11)], "txid 4: owner 1 after 2"),
        ([*BATCHES, Batch(4, 2, 33)], "txid 4: a second writer as owner 2"),
        ([*BATCHES, Batch(5, 2, 22)], "txid 5 after 3"),
        ([*BATCHES, Batch(3, 2, 22)], "txid 3 after 3"),
    ],
)
def test_two_owners(batches: list[Batch], word: str) -> None:
    assert word in verdict(batches=batches).owners


def test_percentile() -> None:
    assert percentile([], 0.99) == 0
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(range(1, 101), 0.99) == 100
