"""Replicas of any history against a plain list of images: restored exactly, or a typed error.

Histories grow, shrink, are snapshotted, compacted to any level, and thinned out as retention does;
the store may have received each file late.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from infra import restore
from infra.layout import NoBackup, ReplicaFile, ReplicaGap
from infra.ltx import LtxError
from infra.objects import ObjectInfo
from infra.restore import list_replica, restore_to
from infra.stores.directory import DirectoryStore
from tests.support.replicas import PAGE, START_MS, ReplicaWriter, WatchedStore, keys_of, rewrite

PAGES_MAX = 6
edits = st.dictionaries(st.integers(0, PAGES_MAX - 1), st.integers(1, 9), max_size=3)
pauses_ms = st.sampled_from([0, 1, 400, 60_000, 3_600_000])
delays_ms = st.sampled_from([0, 0, 700, 120_000, 7_200_000])
steps = st.one_of(
    st.tuples(st.just("write"), edits, st.integers(1, PAGES_MAX), pauses_ms),
    st.tuples(st.just("write"), edits, st.integers(1, PAGES_MAX), pauses_ms),
    st.tuples(st.just("snapshot"), st.integers(0, 3)),
    st.tuples(st.just("compact"), st.integers(1, 8), st.integers(0, 6), st.integers(1, 5)),
    st.tuples(st.just("thin"), st.integers(0, 2**12 - 1)),
)


class History:
    """A replica in a directory of its own and the images it should hold."""

    def __init__(self, folder: Path, steps: list[tuple[Any, ...]]) -> None:
        self.store = DirectoryStore(folder / "bucket")
        self.writer = ReplicaWriter(self.store)
        self._now = START_MS
        self._write({0: 1}, 2, 0)
        for name, *values in steps:
            getattr(self, f"_{name}")(*values)

    @property
    def files(self) -> list[ReplicaFile]:
        return list_replica(self.store, "p")

    def reachable(self, wanted: list[ReplicaFile]) -> set[int]:
        """TXIDs that some chain of these files ends at, found by trying all."""
        reached = {0}
        for file in sorted(wanted, key=lambda file: file.max_txid):
            if any(file.min_txid - 1 <= txid < file.max_txid for txid in reached):
                reached.add(file.max_txid)
        return reached

    def _write(self, edits: dict[int, int], pages: int, pause_ms: int) -> None:
        self._now += pause_ms
        image = bytearray(self.writer.images[-1][: pages * PAGE].ljust(pages * PAGE, b"\x0f"))
        for number, fill in edits.items():
            if number < pages:
                image[number * PAGE : (number + 1) * PAGE] = bytes([fill]) * PAGE
        self.writer.write(bytes(image), at=self._now)

    def _snapshot(self, back: int) -> None:
        self.writer.snapshot(max(1, self.writer.txid - back))

    def _compact(self, level: int, back: int, length: int) -> None:
        max_txid = max(1, self.writer.txid - back)
        self.writer.pack(max(1, max_txid - length), max_txid, level=level)

    def _thin(self, which: int) -> None:
        """Drop changes that a snapshot covers, as chosen by the bits of `which`."""
        files = self.files
        covered = max((file.max_txid for file in files if file.level == 9), default=0)
        gone = [file.key for file in files if file.level < 9 and file.max_txid <= covered]
        self.store.delete([key for bit, key in enumerate(gone) if which >> bit % 12 & 1])


@contextmanager
def history(steps: list[tuple[Any, ...]]) -> Iterator[tuple[History, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "out").mkdir()
        yield History(Path(folder), steps), Path(folder) / "out" / "x.db"


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=14), st.data())
def test_restored_states_are_those_that_were_written(
    steps: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    with history(steps) as (made, target), pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, "WHOLE_BYTES_MAX", data.draw(st.sampled_from([-1, 300, 1 << 20])))
        store = WatchedStore(made.store, page=data.draw(st.sampled_from([2, 5, 1000])))
        images, head = made.writer.images, made.writer.txid
        assert restore_to(store, "p", target).txid == head
        assert target.read_bytes() == images[head]
        files = made.files
        txid = data.draw(st.integers(1, head + 1))
        if txid in made.reachable([file for file in files if file.max_txid <= txid]):
            restore_to(store, "p", target, txid=txid)
            assert target.read_bytes() == images[txid]
        else:
            with pytest.raises(NoBackup):
                restore_to(store, "p", target, txid=txid)
        assert os.listdir(target.parent) == ["x.db"]


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=14), st.data())
def test_a_time_means_the_last_batch_made_before_it(
    steps: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    delay_of = data.draw(st.lists(delays_ms, min_size=7, max_size=7))

    def received(info: ObjectInfo) -> int:
        made_ms = info.modified_ms
        return (made_ms + delay_of[sum(info.key.encode()) % 7]) // 1000 * 1000

    with history(steps) as (made, target):
        writer = made.writer
        page = data.draw(st.sampled_from([2, 5, 1000]))
        store = WatchedStore(made.store, page=page, received=received)
        moment = data.draw(st.sampled_from(writer.times[1:])) + data.draw(st.sampled_from([0, 1]))
        before = [file for file in made.files if writer.times[file.max_txid] < moment]
        expected = max(made.reachable(before))
        if expected:
            found = restore_to(store, "p", target, timestamp_ms=moment)
            assert found.txid == expected and target.read_bytes() == writer.images[expected]
        else:
            with pytest.raises(NoBackup):
                restore_to(store, "p", target, timestamp_ms=moment)


@settings(max_examples=100, deadline=None)
@given(st.lists(steps, max_size=10), st.data())
def test_damage_is_an_error_or_makes_no_difference(
    steps: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    with history(steps) as (made, target):
        images, head = made.writer.images, made.writer.txid
        target.write_bytes(b"old")
        key = data.draw(st.sampled_from(keys_of(made.store)))
        size = len(made.store.get(key))
        at = data.draw(st.integers(0, size - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "drop"]))
        if kind == "flip":
            bit = 1 << data.draw(st.integers(0, 7))
            rewrite(made.store, key, lambda b: b[:at] + bytes([b[at] ^ bit]) + b[at + 1 :])
        elif kind == "cut":
            rewrite(made.store, key, lambda body: body[:at])
        else:
            made.store.delete([key])
        try:
            found = restore_to(made.store, "p", target)
        except (LtxError, ReplicaGap, NoBackup) as error:
            event(f"{kind}: {type(error).__name__}")
            assert os.listdir(target.parent) == ["x.db"] and target.read_bytes() == b"old"
            assert isinstance(error, LtxError) is (kind != "drop")
            assert not isinstance(error, NoBackup) or not keys_of(made.store)
        else:
            event(f"{kind}: no difference")
            # Nothing tells that the newest file was ever there.
            assert found.txid == head or kind == "drop"
            assert target.read_bytes() == images[found.txid]
