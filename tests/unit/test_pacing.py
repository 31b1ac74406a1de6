"""When batches are shipped, run over simulated time: a commit every so often, for as long."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.meter import Counts, Prices, monthly_cost
from infra.pacing import (
    BATCH_BYTES_MAX,
    EARLY_BYTES,
    LOCAL_FIRST_MS,
    LOCAL_MAX_MS,
    QUIET_MS,
    Pace,
)  # fmt: skip

START = 1_795_200_000_000
MINUTE_MS = 60_000


def run(
    commits: list[int],
    *,
    urgent: bool,
    interval_ms: int,
    size: int = 100,
    pace: Pace | None = None,
    put_ms: int = 0,
) -> list[int]:
    """When requests are sent, if commits of `size` bytes are made at these times.

    Each takes `put_ms`; what is committed meanwhile belongs to the next.
    """
    pace = pace or Pace()
    times = sorted(commits)
    sent: list[int] = []
    first = 0  # the oldest commit that waits
    now = START
    while first < len(times):
        now = max(now, times[first])
        while True:
            end = bisect_right(times, now)
            due = pace.due_at(
                urgent=urgent, dirty_since=times[first], dirty_bytes=(end - first) * size, now=now,
                interval_ms=interval_ms,
            )  # fmt: skip
            assert due >= now
            if due == now:
                break
            now = min(due, times[end]) if end < len(times) else due  # a commit may change it
        pace.sent(now, urgent=urgent)
        sent.append(now)
        first = end
        now += put_ms
    return sent


def every(ms: int, for_ms: int = MINUTE_MS) -> list[int]:
    return [START + at for at in range(0, for_ms, ms)]


# -- somebody waits for the bucket ---------------------------------------------------------


def test_an_urgent_batch_goes_at_once() -> None:
    assert run([START], urgent=True, interval_ms=100) == [START]
    assert run([START, START + 5_000], urgent=True, interval_ms=100) == [START, START + 5_000]


def test_urgent_batches_keep_the_interval() -> None:
    sent = run(every(1, 2_000), urgent=True, interval_ms=100)
    assert {after - before for before, after in pairwise(sent)} == {100}
    assert len(sent) == 21, "ten a second, one to begin with"


@given(st.lists(st.integers(0, 5_000), min_size=1, max_size=60), st.integers(0, 300))
def test_no_second_has_more_than_ten(commits: list[int], put_ms: int) -> None:
    sent = run([START + at for at in commits], urgent=True, interval_ms=100, put_ms=put_ms)
    for at in sent:
        assert sum(1 for other in sent if at <= other < at + 1_000) <= 10
    assert sent[-1] >= START + max(commits), "the last commit is shipped too"
    assert sent[-1] <= START + max(commits) + 100 + put_ms


def test_a_request_out_of_turn_takes_the_next_one() -> None:
    pace = Pace()
    pace.out_of_turn(START, 100)  # with none before it there is no turn to take
    assert pace.last_put_at == START
    pace.sent(START + 1_000, urgent=True)
    pace.out_of_turn(START + 1_005, 100)
    options = {"dirty_since": START + 1_001, "dirty_bytes": 1, "now": START + 1_010}
    assert pace.due_at(urgent=True, interval_ms=100, **options) == START + 1_200
    pace.out_of_turn(START + 9_000, 100)
    assert pace.last_put_at == START + 9_000


def test_an_urgent_batch_does_not_wait_out_a_local_pause() -> None:
    pace = Pace()
    run(every(100, 20_000), urgent=False, interval_ms=0, pace=pace)
    last = pace.last_put_at
    assert last is not None and pace.pause_ms == LOCAL_MAX_MS
    options = {"dirty_since": last + 10, "dirty_bytes": 1, "now": last + 10, "interval_ms": 100}
    assert pace.due_at(urgent=True, **options) == last + 100
    assert pace.due_at(urgent=False, **options) == last + LOCAL_MAX_MS


# -- nobody waits --------------------------------------------------------------------------


def test_the_first_batch_goes_a_second_after_its_first_commit() -> None:
    assert run([START, START + 900], urgent=False, interval_ms=0) == [START + LOCAL_FIRST_MS]


def test_a_busy_scope_ships_ever_more_seldom() -> None:
    sent = run(every(10, 30_000), urgent=False, interval_ms=0)
    assert [at - START for at in sent[:6]] == [1_000, 2_000, 4_000, 8_000, 13_000, 18_000]


@pytest.mark.parametrize("commit_ms", [10, 250, 1_000, 3_000, 5_000])
def test_a_minute_of_writing_costs_at_most_a_request_in_four_seconds(commit_ms: int) -> None:
    sent = run(every(commit_ms), urgent=False, interval_ms=0)
    within = [at for at in sent if at < START + MINUTE_MS]
    assert len(within) / 60 <= 0.25, within


def test_a_busy_scope_never_waits_longer_than_the_longest_pause() -> None:
    commits = every(50)
    sent = run(commits, urgent=False, interval_ms=0)
    assert max(after - before for before, after in pairwise(sent)) == LOCAL_MAX_MS


def test_a_scope_that_was_quiet_begins_anew() -> None:
    late = START + MINUTE_MS + QUIET_MS + LOCAL_MAX_MS
    sent = run([*every(100), late], urgent=False, interval_ms=0)
    assert sent[-1] == late + LOCAL_FIRST_MS


def test_after_a_rest_the_pauses_are_short_again() -> None:
    pace = Pace()
    run(every(100), urgent=False, interval_ms=0, pace=pace)
    late = MINUTE_MS + QUIET_MS + LOCAL_MAX_MS
    again = [START + late + at for at in range(0, 20_000, 100)]
    sent = run(again, urgent=False, interval_ms=0, pace=pace)
    assert [at - START - late for at in sent[:4]] == [1_000, 3_000, 7_000, 12_000]


def test_urgent_batches_do_not_make_the_others_wait_longer() -> None:
    pace = Pace()
    run(every(10, 3_000), urgent=True, interval_ms=100, pace=pace)
    last = pace.last_put_at
    assert last is not None
    due = pace.due_at(urgent=False, dirty_since=last, dirty_bytes=1, now=last, interval_ms=0)
    assert due == last + LOCAL_FIRST_MS


def test_a_commit_soon_after_the_last_batch_waits_for_its_turn() -> None:
    # Else a scope with a commit every two seconds would cost a request every three.
    pace = Pace()
    run(every(100, 20_000), urgent=False, interval_ms=0, pace=pace)
    last = pace.last_put_at
    assert last is not None
    soon = last + QUIET_MS - 1
    due = pace.due_at(urgent=False, dirty_since=soon, dirty_bytes=1, now=soon, interval_ms=0)
    assert due == soon, "its turn has long come"
    early = last + 1_000
    due = pace.due_at(urgent=False, dirty_since=early, dirty_bytes=1, now=early, interval_ms=0)
    assert due == last + LOCAL_MAX_MS


def test_a_large_first_batch_goes_early() -> None:
    commits = [START, START + 100, START + 200]
    sent = run(commits, urgent=False, interval_ms=0, size=EARLY_BYTES // 2)
    assert sent[0] == START + 100, "two of them make a MiB"


def test_a_busy_scope_is_not_hurried_by_a_mebibyte() -> None:
    pace = Pace()
    run(every(100, 20_000), urgent=False, interval_ms=0, pace=pace)
    last = pace.last_put_at
    assert last is not None
    now = last + 10
    for size, due in ((EARLY_BYTES, last + LOCAL_MAX_MS), (BATCH_BYTES_MAX, now)):
        found = pace.due_at(urgent=False, dirty_since=now, dirty_bytes=size, now=now, interval_ms=0)
        assert found == due, "only the largest batch there may be goes at once"


# -- a budget widens the interval ----------------------------------------------------------


@pytest.mark.parametrize("urgent", [True, False])
@pytest.mark.parametrize("interval_ms", [7_000, 60_000])
def test_nothing_is_sent_sooner_than_a_budget_allows(urgent: bool, interval_ms: int) -> None:
    sent = run(every(20, 200_000), urgent=urgent, interval_ms=interval_ms, size=EARLY_BYTES)
    assert len(sent) > 2
    assert min(after - before for before, after in pairwise(sent)) >= interval_ms


def test_a_budget_holds_back_the_largest_batch_too() -> None:
    sent = run(every(20, 60_000), urgent=False, interval_ms=9_000, size=BATCH_BYTES_MAX)
    assert {after - before for before, after in pairwise(sent)} == {9_000}


def test_a_budget_holds_back_a_scope_that_was_quiet() -> None:
    pace = Pace()
    pace.sent(START, urgent=False)
    now = START + QUIET_MS + 1
    due = pace.due_at(
        urgent=False, dirty_since=now, dirty_bytes=EARLY_BYTES, now=now, interval_ms=60_000
    )
    assert due == START + 60_000


def test_what_a_minute_of_writing_comes_to() -> None:
    sent = run(every(10), urgent=False, interval_ms=0)
    within = sum(1 for at in sent if at < START + MINUTE_MS)
    month = monthly_cost(Counts(put=within), 60.0, Prices())
    assert month < 3.3, "money for a scope that is written to without a pause, all month"
