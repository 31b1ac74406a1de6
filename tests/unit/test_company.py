"""Batches of writers who publish again once they are answered, over simulated time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.company import GAP_MS, WAIT_MS_MAX, Company

START = 1_000_000
PUT_MS = 25


def closed_loop(returns: list[int], *, batches: int, put_ms: int = PUT_MS) -> list[int]:
    """The sizes of batches, if writer i publishes again `returns[i]` ms after its answer."""
    company = Company()
    coming = sorted(START + ms for ms in returns)  # when each will publish
    waiting: list[int] = []  # indexes of writers, in their order of coming
    order = sorted(range(len(returns)), key=returns.__getitem__)
    events = [(START + returns[i], i) for i in order]
    now, head = coming[0], 0
    sizes: list[int] = []
    in_flight: list[int] = []
    lands = -1
    while len(sizes) < batches:
        for at, writer in sorted(event for event in events if event[0] <= now):
            events.remove((at, writer))
            waiting.append(writer)
            head += 1
            company.came(at)
        if in_flight and now >= lands:
            shipped = head - len(waiting)
            company.sent_off(now, shipped=shipped, head=head, put_ms=put_ms)
            sizes.append(len(in_flight))
            events += [(now + returns[writer], writer) for writer in in_flight]
            in_flight = []
            continue
        if waiting and not in_flight and company.wait_ms(head, now) == 0:
            in_flight, waiting = waiting, []
            lands = now + put_ms
        now += 1
    return sizes


@pytest.mark.parametrize("writers", [1, 2, 10, 100])
@pytest.mark.parametrize("spread_ms", [1, 3, 8])
def test_a_batch_carries_all_who_were_answered(writers: int, spread_ms: int) -> None:
    returns = [1 + i * spread_ms // writers for i in range(writers)]
    sizes = closed_loop(returns, batches=12)
    assert sizes[4:] == [writers] * 8, sizes


def test_halves_that_take_turns_find_each_other() -> None:
    company = Company()
    company.sent_off(START, shipped=50, head=100, put_ms=PUT_MS)
    company.came(START + 5)
    company.sent_off(START + 30, shipped=100, head=150, put_ms=PUT_MS)
    # 50 wait, and the other 50 were just answered: they come within the next milliseconds.
    assert company.wait_ms(150, START + 30) == GAP_MS
    company.came(START + 31)
    assert company.wait_ms(160, START + 31) == GAP_MS
    company.came(START + 33)
    assert company.wait_ms(199, START + 33) > 0
    assert company.wait_ms(200, START + 33) == 0, "all have come"


def test_who_stays_away_is_not_waited_for_long() -> None:
    company = Company()
    company.sent_off(START, shipped=1, head=1, put_ms=PUT_MS)
    company.sent_off(START + 100, shipped=11, head=11, put_ms=PUT_MS)
    company.came(START + 5_000)
    assert company.wait_ms(12, START + 5_000) == GAP_MS
    assert company.wait_ms(12, START + 5_000 + GAP_MS) == 0


def test_entries_without_a_pause_are_not_waited_for() -> None:
    company = Company()
    company.sent_off(START, shipped=1, head=1, put_ms=PUT_MS)
    company.came(START + 20)
    company.sent_off(START + 22, shipped=30, head=60, put_ms=PUT_MS)
    assert company.steady
    assert company.wait_ms(60, START + 22) == 0


def test_the_first_batch_and_a_quick_store_wait_for_nobody() -> None:
    company = Company()
    company.came(START)
    assert company.wait_ms(1, START) == 0
    company.sent_off(START + 1, shipped=1, head=1, put_ms=1)
    company.sent_off(START + 3, shipped=100, head=100, put_ms=1)
    company.came(START + 3)
    assert company.wait_ms(101, START + 3) == 0


@given(
    shipped=st.integers(0, 1_000),
    more=st.integers(0, 1_000),
    put_ms=st.integers(0, 100_000),
    arrivals_ms=st.lists(st.integers(0, 100), max_size=30),
)
def test_the_wait_is_short_however_they_come(
    shipped: int, more: int, put_ms: int, arrivals_ms: list[int]
) -> None:
    company = Company()
    company.sent_off(START, shipped=0, head=0, put_ms=put_ms)
    answered = START + 1_000
    company.sent_off(answered, shipped=shipped, head=shipped + more, put_ms=put_ms)
    left, now, head = sorted(arrivals_ms), answered, shipped + more
    while True:
        while left and answered + left[0] <= now:
            company.came(answered + left.pop(0))
            head += 1
        if not (wait := company.wait_ms(head, now)):
            break
        assert wait <= GAP_MS
        now += wait
    assert now - answered <= 2 * min(WAIT_MS_MAX, put_ms // 2) + GAP_MS
