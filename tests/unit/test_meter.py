"""Requests counted and priced, and the interval that keeps to a budget."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from infra.meter import (
    MONTH_S,
    Counts,
    Meter,
    Prices,
    cost,
    monthly_cost,
    put_requests,
    widened_interval_ms,
)
from infra.objects import PART_BYTES, ObjectMissing, StoreUnavailable
from infra.stores.directory import DirectoryStore
from infra.stores.metered import MeteredStore
from tests.support.faulty_store import Fault, FaultyStore


def test_prices() -> None:
    counts = Counts(put=1000, list=2000, get=10_000, delete=99_999, bytes_up=1 << 40)
    assert cost(counts, Prices()) == pytest.approx(0.005 + 0.010 + 0.004)
    assert cost(counts, Prices(delete=0.001, put=1)) == pytest.approx(1.114 + 0.099999 - 0.1)


def test_a_scope_that_never_pauses() -> None:
    # A put each second, and one each five.
    for seconds, money in ((1, 12.96), (5, 2.592)):
        monthly = monthly_cost(Counts(put=600 // seconds), 600, Prices())
        assert monthly == pytest.approx(money)


def test_no_time_no_money() -> None:
    assert monthly_cost(Counts(put=5), 0, Prices()) == 0.0
    assert monthly_cost(Counts(), 3600, Prices()) == 0.0


def test_what_came_since() -> None:
    meter = Meter()
    meter.add("put", up=10)
    earlier = meter.counts
    meter.add("put", up=5)
    meter.add("get", requests=2, down=7)
    assert meter.counts.since(earlier) == Counts(put=1, get=2, bytes_up=5, bytes_down=7)
    assert meter.counts.requests == 4


@pytest.mark.parametrize(
    ("size", "requests"),
    [(0, 1), (PART_BYTES, 1), (PART_BYTES + 1, 4), (3 * PART_BYTES, 5)],
)
def test_a_large_file_takes_more_requests(size: int, requests: int) -> None:
    assert put_requests(size) == requests


@pytest.mark.parametrize(
    ("interval_ms", "monthly", "budget", "wanted_ms"),
    [
        (1000, 5.0, None, 1000),
        (1000, 5.0, 10.0, 1000),
        (1000, 10.0, 10.0, 1000),
        (1000, 12.0, 10.0, 1200),
        (1000, 10.001, 10.0, 1001),
        (1000, 1000.0, 10.0, 60_000),
        (1000, 5.0, 0.0, 60_000),
        (90_000, 1000.0, 1.0, 90_000),  # configured above the maximum: stays
        (0, 5.0, 10.0, 0),
        (0, 20.0, 10.0, 20),
    ],
)
def test_the_interval_widens_with_the_cost(
    interval_ms: int, monthly: float, budget: float | None, wanted_ms: int
) -> None:
    assert widened_interval_ms(interval_ms, monthly, budget, 60_000) == wanted_ms


@pytest.mark.parametrize("configured_ms", [0, 100, 1000])
def test_the_interval_settles_at_the_budget_and_comes_back(configured_ms: int) -> None:
    prices = Prices()
    current_ms = configured_ms

    def month_at(puts_per_s: float) -> float:
        pace = min(puts_per_s, 1000 / current_ms if current_ms else puts_per_s)
        return monthly_cost(Counts(put=round(pace * MONTH_S)), MONTH_S, prices)

    for _ in range(20):
        current_ms = widened_interval_ms(
            configured_ms, month_at(50), 1.0, 600_000, current_ms=current_ms
        )
    assert month_at(50) == pytest.approx(1.0, rel=0.01)
    for _ in range(40):
        current_ms = widened_interval_ms(
            configured_ms, month_at(0.01), 1.0, 600_000, current_ms=current_ms
        )
    assert current_ms == configured_ms


def test_a_store_counts_what_it_is_asked(tmp_path: Path) -> None:
    meter = Meter()
    store = MeteredStore(DirectoryStore(tmp_path), meter)
    store.put("a/1", b"12345", if_absent=True)
    store.put("a/2", io.BytesIO(b"123"))
    store.get("a/1", end=2)
    with store.open("a/1") as file:
        assert file.read(2) == b"12"
        buffer = bytearray(9)
        assert file.readinto(buffer) == 3  # type: ignore[attr-defined]
    store.list("a/")
    store.delete(["a/1", "a/2"])
    store.delete([])
    store.delete([f"none/{number}" for number in range(1001)])
    assert meter.counts == Counts(put=2, list=1, get=2, delete=3, bytes_up=8, bytes_down=7)


def test_what_fails_counts_too(tmp_path: Path) -> None:
    faulty = FaultyStore(DirectoryStore(tmp_path))
    meter = Meter()
    store = MeteredStore(faulty, meter)
    faulty.arm("put", Fault.BEFORE)
    with pytest.raises(StoreUnavailable):
        store.put("a", b"x")
    with pytest.raises(ObjectMissing):
        store.get("a")
    with pytest.raises(ObjectMissing):
        store.open("a")
    assert meter.counts == Counts(put=1, get=2, bytes_up=1)


def test_each_scope_may_have_a_meter(tmp_path: Path) -> None:
    meters = {"t/one": Meter(), "t/two": Meter()}
    everything = Meter()
    store = MeteredStore(
        DirectoryStore(tmp_path), everything, lambda key: meters.get(key.rpartition("/")[0])
    )
    store.put("t/one/a", b"xx")
    store.put("t/two/a", b"x")
    store.put("t/other/a", b"x")
    store.get("t/two/a")
    store.delete(["t/one/a"])
    assert meters["t/one"].counts == Counts(put=1, delete=1, bytes_up=2)
    assert meters["t/two"].counts == Counts(put=1, get=1, bytes_up=1, bytes_down=1)
    assert everything.counts.requests == 5
