"""The fault-injecting store does what its tests believe it does."""

from __future__ import annotations

import io
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from infra.objects import ObjectExists, ObjectMissing, StoreUnavailable
from infra.stores.directory import DirectoryStore
from tests.support.faulty_store import Fault, Faults, FaultyStore


@pytest.fixture
def store(tmp_path: Path) -> FaultyStore:
    return FaultyStore(DirectoryStore(tmp_path))


def keys(store: FaultyStore) -> list[str]:
    return [info.key for info in store._store.list("").objects]


def outcomes(store: FaultyStore, count: int = 60) -> list[bool]:
    """Whether each of so many creates was answered."""
    answered = []
    for number in range(count):
        try:
            store.put(f"k/{number}", b"x", if_absent=True)
            answered.append(True)
        except StoreUnavailable:
            answered.append(False)
    return answered


def test_before(store: FaultyStore) -> None:
    store.arm("put", Fault.BEFORE)
    with pytest.raises(StoreUnavailable, match="before"):
        store.put("a", b"x")
    assert keys(store) == []
    store.put("a", b"x")
    assert store.counts == {"put": 2, "put.before": 1}


def test_a_lost_reply_was_applied(store: FaultyStore) -> None:
    store.arm("put", Fault.LOST_REPLY, Fault.LOST_REPLY)
    for _ in range(2):  # the second time it is a refusal that is lost
        with pytest.raises(StoreUnavailable, match="lost_reply"):
            store.put("a", b"x", if_absent=True)
    assert keys(store) == ["a"]
    with pytest.raises(ObjectExists):
        store.put("a", b"y", if_absent=True)


def test_a_late_write_lands_after_some_requests(tmp_path: Path) -> None:
    store = FaultyStore(DirectoryStore(tmp_path), Faults(late_requests_max=3))
    store.arm("put", Fault.LATE)
    with pytest.raises(StoreUnavailable, match="late"):
        store.put("a", io.BytesIO(b"x"))
    assert keys(store) == []
    for _ in range(3):
        store.list("")
    assert keys(store) == ["a"] and store.counts["landed"] == 1


def test_late_writes_land_on_demand_and_in_order(store: FaultyStore) -> None:
    store.arm("put", Fault.LATE, Fault.LATE)
    for body in (b"first", b"second"):
        with pytest.raises(StoreUnavailable):
            store.put("a", body, if_absent=True)
    assert store.land() == 2 and store.land() == 0
    assert store.get("a") == b"first"
    assert (store.counts["landed"], store.counts["landed.refused"]) == (1, 1)


def test_a_stall_waits_for_release(store: FaultyStore) -> None:
    store.arm("put", Fault.STALL)
    done = threading.Event()

    def put() -> None:
        store.put("a", b"x")
        done.set()

    thread = threading.Thread(target=put)
    thread.start()
    store.wait_stalled()
    assert keys(store) == [] and not done.is_set()
    store.put("b", b"x")  # others go on
    store.release()
    thread.join()
    assert keys(store) == ["a", "b"] and store.stalled == 0


def test_a_stall_nobody_ends_goes_on(tmp_path: Path) -> None:
    store = FaultyStore(DirectoryStore(tmp_path), Faults(stall=1.0, stall_s=0.0))
    store.put("a", b"x")
    assert keys(store) == ["a"]
    with pytest.raises(TimeoutError):
        store.wait_stalled(timeout_s=0)


def test_closing_leaves_nothing_behind(store: FaultyStore) -> None:
    store.arm("put", Fault.LATE)
    with pytest.raises(StoreUnavailable):
        store.put("a", b"x")
    store.close()
    assert keys(store) == ["a"]


def test_plain_puts_overwrite(tmp_path: Path) -> None:
    store = FaultyStore(DirectoryStore(tmp_path), Faults(plain_put=True))
    store.put("a", b"one", if_absent=True)
    store.put("a", b"two", if_absent=True)
    assert store.get("a") == b"two"


def test_reads_fail_too(tmp_path: Path) -> None:
    store = FaultyStore(DirectoryStore(tmp_path), Faults(before=1.0))
    for read in (
        lambda: store.get("a"),
        lambda: store.open("a"),
        lambda: store.list(""),
        lambda: store.delete(["a"]),
    ):
        with pytest.raises(StoreUnavailable):
            read()
    store.faults = Faults(late=1.0)  # a read has nothing that could land
    with pytest.raises(ObjectMissing):
        store.get("a")


def test_a_seed_repeats(tmp_path: Path) -> None:
    faults = Faults(before=0.2, lost_reply=0.2, late=0.2)
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        store = FaultyStore(DirectoryStore(tmp_path / name), faults, seed=seed)
        runs.append((outcomes(store), keys(store), dict(store.counts)))
    assert runs[0] == runs[1] != runs[2]
    assert 20 < runs[0][0].count(False) < 50
    counts = runs[0][2]
    assert all(counts[f"put.{fault}"] > 3 for fault in ("before", "lost_reply", "late"))


def test_the_order_of_requests_changes_nothing(tmp_path: Path) -> None:
    # So threads cannot either.
    found = []
    for name, order in (("a", range(60)), ("b", reversed(range(60)))):
        (tmp_path / name).mkdir()
        faults = Faults(before=0.3, lost_reply=0.3)
        store = FaultyStore(DirectoryStore(tmp_path / name), faults, seed=5)
        for number in order:
            with suppress(StoreUnavailable):
                store.put(f"k/{number}", b"x")
        found.append(keys(store))
    assert found[0] == found[1] and 20 < len(found[0]) < 60
