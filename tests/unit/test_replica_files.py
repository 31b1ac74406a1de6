"""What a replica's writer knows of its files: from a listing, when to snapshot, what may go."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from infra import replica_files
from infra.layout import ReplicaFile, file_key, plan_restore
from infra.replica_files import (
    BYTES_PER_FILE,
    OWNER_FILE_MS,
    REST_FILES,
    SNAPSHOT_BYTES,
    SNAPSHOT_FILES,
    SNAPSHOT_FILES_MAX,
    STRAYS_MAX,
    Files,
    Mark,
    after_sweep,
    from_listing,
    sweep,
)

NOW = 1_795_200_000_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def change(txid: int, *, size: int = 10, at: int = NOW, upto: int | None = None) -> ReplicaFile:
    level = 0 if upto is None else 1
    upto = txid if upto is None else upto
    return ReplicaFile(file_key("p", level, txid, upto), level, txid, upto, size, at)


def image(txid: int, *, size: int = 100, at: int = NOW) -> ReplicaFile:
    return ReplicaFile(file_key("p", 9, 1, txid), 9, 1, txid, size, at)


def changes(*txids: int) -> list[ReplicaFile]:
    return [change(txid) for txid in txids]


# -- from a listing ------------------------------------------------------------------------


def test_nothing_is_listed() -> None:
    assert from_listing([]) == Files()


def test_level_0_alone() -> None:
    assert from_listing(changes(1, 2, 3)) == Files(head=3, swept=0, count=3, size=30)


def test_a_snapshot_covers_what_is_before_it() -> None:
    found = from_listing([*changes(1, 2, 3, 4, 5), image(3, size=70, at=9)])
    assert found == Files(head=5, swept=0, count=2, size=20, snapshots=[Mark(3, 9, 70)])


def test_snapshots_come_in_order_however_they_are_listed() -> None:
    found = from_listing([image(9), *changes(9, 10), image(2), image(5)])
    assert [mark.txid for mark in found.snapshots] == [2, 5, 9]
    assert (found.head, found.count) == (10, 1)


def test_a_snapshot_without_changes_is_the_head() -> None:
    found = from_listing([image(7)])
    assert (found.head, found.count, found.swept) == (7, 0, 7)


def test_a_gap_ends_the_run() -> None:
    assert from_listing(changes(1, 2, 4, 5)).head == 2
    assert from_listing(changes(2, 3)).head == 0, "the first one is missing"
    assert from_listing([image(4), *changes(6, 7)]).head == 4


def test_a_gap_before_a_snapshot_is_none() -> None:
    found = from_listing([*changes(1, 2, 4, 6, 7), image(5)])
    assert (found.head, found.count) == (7, 2)


def test_files_of_other_levels_lead_on() -> None:
    found = from_listing([image(2), change(3, upto=6), change(7)])
    assert (found.head, found.count, found.swept) == (7, 2, 6)
    found = from_listing([image(2), change(3, upto=9), *changes(4, 5)])
    assert found.head == 9, "the level 0 files that it was made of"


def test_what_retention_has_deleted_is_not_looked_for_again() -> None:
    found = from_listing([image(10), image(12), *changes(11, 12, 13)])
    assert (found.swept, found.head) == (10, 13)


def test_first_files_of_owners_stand_apart() -> None:
    found = from_listing([image(40), *changes(3, 17, 18, 40, 41, 42)])
    assert (found.swept, found.head, found.count) == (39, 42, 2)


def test_many_files_apart_were_left_behind_and_are_looked_at_again() -> None:
    few = list(range(5, 5 + 2 * STRAYS_MAX, 2))
    run = changes(1000, 1001)
    assert from_listing([image(1000), *changes(*few), *run]).swept == 999
    assert from_listing([image(1000), *changes(3, *few), *run]).swept == 2


@pytest.mark.parametrize("shipped", [0, 1, 5])
def test_a_listing_says_what_the_writer_knew(shipped: int) -> None:
    files = Files()
    listed = []
    for txid in range(1, 6):
        files.shipped(txid, 10)
        listed.append(change(txid))
    files.snapped(Mark(5, NOW, 100))
    listed.append(image(5))
    for txid in range(6, 6 + shipped):
        files.shipped(txid, 10)
        listed.append(change(txid))
    assert from_listing(listed) == files


# -- when to write the state whole ---------------------------------------------------------


def shipped(count: int, size: int, *, last: int = 0) -> Files:
    files = Files(snapshots=[Mark(1, NOW, last)] if last else [])
    for txid in range(1, count + 1):
        files.shipped(txid, size)
    return files


def test_a_small_scope_is_written_whole_after_some_files() -> None:
    assert not shipped(SNAPSHOT_FILES - 1, 10).wants_snapshot(resting=False)
    assert shipped(SNAPSHOT_FILES, 10).wants_snapshot(resting=False)


def test_a_large_one_after_more() -> None:
    last = 100 * BYTES_PER_FILE
    assert not shipped(99, 10, last=last).wants_snapshot(resting=False)
    assert shipped(100, 10, last=last).wants_snapshot(resting=False)
    huge = 100 * SNAPSHOT_FILES_MAX * BYTES_PER_FILE
    assert shipped(SNAPSHOT_FILES_MAX, 10, last=huge).wants_snapshot(resting=False)


def test_or_when_the_changes_outweigh_it() -> None:
    assert not shipped(2, SNAPSHOT_BYTES // 2).wants_snapshot(resting=False)
    assert shipped(2, SNAPSHOT_BYTES // 2 + 1).wants_snapshot(resting=False)
    last = 10 * SNAPSHOT_BYTES
    assert not shipped(2, last // 2, last=last).wants_snapshot(resting=False)
    assert shipped(2, last // 2 + 1, last=last).wants_snapshot(resting=False)


def test_one_large_file_is_as_good_as_a_snapshot() -> None:
    assert not shipped(1, 100 * SNAPSHOT_BYTES).wants_snapshot(resting=False)


def test_at_rest_fewer_are_enough() -> None:
    assert not shipped(REST_FILES - 1, 10).wants_snapshot(resting=True)
    assert shipped(REST_FILES, 10).wants_snapshot(resting=True)
    assert not shipped(REST_FILES, 10).wants_snapshot(resting=False)


def test_a_snapshot_begins_the_count_anew() -> None:
    files = shipped(SNAPSHOT_FILES, 10_000)
    files.snapped(Mark(SNAPSHOT_FILES, NOW, 30_000))
    assert (files.count, files.size) == (0, 0)
    assert not files.wants_snapshot(resting=True)


def test_files_shipped_during_a_snapshot_do_not_call_for_the_next_one() -> None:
    # Else a busy scope, where some always are, would write snapshots and nothing else.
    files = shipped(4, SNAPSHOT_BYTES)
    assert files.wants_snapshot(resting=False)
    for txid in (5, 6):
        files.shipped(txid, 100)
    files.snapped(Mark(4, NOW, 3 * SNAPSHOT_BYTES))
    assert files.count == 2
    assert not files.wants_snapshot(resting=False)


# -- what may go ---------------------------------------------------------------------------


def swept(
    files: Files, firsts: list[tuple[int, int]] | None = None, *, keep: int = 2
) -> tuple[list[int], list[int]]:
    gone = sweep(files, firsts or [], now=NOW, history_ms=HOUR_MS, snapshots_min=keep)
    return ([], []) if gone is None else (gone.changes, gone.snapshots)


def marks(*aged: tuple[int, int]) -> list[Mark]:
    """Snapshots as (TXID, age in hours)."""
    return [Mark(txid, NOW - hours * HOUR_MS, 10) for txid, hours in aged]


def test_nothing_goes_before_a_snapshot_is_older_than_the_window() -> None:
    assert swept(Files(head=9, snapshots=marks((3, 5)))) == ([], []), "it is the newest"
    young = [Mark(3, NOW - HOUR_MS + 1, 10), Mark(6, NOW, 10)]
    assert swept(Files(head=9, snapshots=young)) == ([], [])


def test_what_an_old_snapshot_covers_goes() -> None:
    files = Files(head=9, snapshots=marks((3, 1), (6, 0)))
    assert swept(files) == ([1, 2, 3], [])


def test_a_window_of_0_keeps_everything() -> None:
    files = Files(head=9, snapshots=marks((3, 5), (6, 4), (9, 3)))
    assert sweep(files, [], now=NOW, history_ms=0, snapshots_min=2) is None


def test_snapshots_stay_as_far_as_the_window_needs_them() -> None:
    files = Files(head=9, snapshots=marks((1, 9), (2, 8), (4, 3), (6, 0), (7, 0), (9, 0)))
    assert swept(files) == ([1, 2, 3, 4], [1, 2, 6])
    assert swept(files, keep=3) == ([1, 2, 3, 4], [1, 2])
    assert swept(files, keep=0) == ([1, 2, 3, 4], [1, 2, 6]), "two at least"
    assert swept(files, keep=9) == ([1, 2, 3, 4], [])


def test_what_is_swept_is_not_deleted_twice() -> None:
    files = Files(head=9, snapshots=marks((2, 9), (4, 3), (9, 0)))
    gone = sweep(files, [], now=NOW, history_ms=HOUR_MS, snapshots_min=2)
    assert gone is not None
    after_sweep(files, gone)
    assert (files.swept, [mark.txid for mark in files.snapshots]) == (4, [4, 9])
    assert swept(files) == ([], [])


def test_the_first_file_of_an_owner_stays_for_thirty_days() -> None:
    files = Files(head=9, snapshots=marks((5, 2), (9, 0)))
    assert swept(files, [(1, NOW - OWNER_FILE_MS), (3, NOW - OWNER_FILE_MS + 1)])[0] == [1, 2, 4, 5]


def test_and_goes_after_them() -> None:
    files = Files(head=9, swept=5, snapshots=marks((5, 2), (9, 0)))
    assert swept(files, [(3, NOW - OWNER_FILE_MS + 1)]) == ([], [])
    assert swept(files, [(3, NOW - OWNER_FILE_MS)]) == ([3], [])


def test_a_sweep_takes_a_bounded_number_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_files, "DELETES_MAX", 3)
    files = Files(head=9, snapshots=marks((8, 2), (9, 0)))
    taken = []
    while (gone := sweep(files, [], now=NOW, history_ms=HOUR_MS, snapshots_min=2)) is not None:
        taken.append(gone.changes)
        after_sweep(files, gone)
    assert taken == [[1, 2, 3], [4, 5, 6], [7, 8]]


# -- by model ------------------------------------------------------------------------------


class SweepMachine(RuleBasedStateMachine):
    """A bucket as its writer leaves it, whatever becomes of deletions, and all that is promised."""

    def __init__(self) -> None:
        super().__init__()
        self.bucket: dict[str, ReplicaFile] = {}
        self.files = Files()
        self.now = NOW
        self.made: list[int] = []  # when batch n + 1 was made
        self.firsts: list[tuple[int, int]] = []
        self.due: list[int] = []  # images that were cut and are on their way
        self.history_ms = HOUR_MS

    def _put(self, file: ReplicaFile) -> None:
        self.bucket[file.key] = file

    @rule(
        steps=st.lists(st.sampled_from([1, 1_000, HOUR_MS // 2, HOUR_MS, DAY_MS]), min_size=1),
        owner=st.booleans(),
    )
    def ship(self, steps: list[int], owner: bool) -> None:
        for step in steps:
            self.now += step
            self.made.append(self.now)
            txid = len(self.made)
            if owner or txid == 1:
                self.firsts.append((txid, self.now))
                owner = False
            self._put(change(txid, at=self.now))
            self.files.shipped(txid, 10)

    @precondition(lambda self: self.made and not self.due)
    @rule()
    def cut_image(self) -> None:
        if not self.files.snapshots or self.files.snapshots[-1].txid < len(self.made):
            self.due.append(len(self.made))

    @precondition(lambda self: self.due)
    @rule()
    def put_image(self) -> None:
        txid = self.due.pop()
        made = self.made[txid - 1]
        self._put(image(txid, at=made))
        self.files.snapped(Mark(txid, made, 100))

    @rule(kept=st.integers(0, 4), deleted=st.floats(0, 1), heard=st.booleans())
    def sweep(self, kept: int, deleted: float, heard: bool) -> None:
        gone = sweep(
            self.files, self.firsts, now=self.now, history_ms=self.history_ms, snapshots_min=kept
        )
        if gone is None:
            return
        keys = [file_key("p", 0, txid, txid) for txid in gone.changes]
        keys += [file_key("p", 9, 1, txid) for txid in gone.snapshots]
        if heard:
            after_sweep(self.files, gone)
        else:  # the request failed on its way, or its answer did
            keys = keys[: int(len(keys) * deleted)]
        for key in keys:
            self.bucket.pop(key, None)

    @rule(step=st.sampled_from([HOUR_MS, DAY_MS, 29 * DAY_MS, 31 * DAY_MS]))
    def wait(self, step: int) -> None:
        self.now += step

    @rule()
    def open_anew(self) -> None:
        """Another process lists what there is; an image on its way came to nothing."""
        self.files = from_listing(list(self.bucket.values()))
        self.due.clear()

    @invariant()
    def the_head_is_known(self) -> None:
        assert self.files.head == from_listing(list(self.bucket.values())).head == len(self.made)

    @invariant()
    def every_state_of_the_window_can_be_restored(self) -> None:
        if not self.made:
            return
        files = list(self.bucket.values())
        assert plan_restore(files)[-1].max_txid == len(self.made)
        begin = self.now - self.history_ms
        for txid in range(1, len(self.made) + 1):
            replaced_at = self.made[txid] if txid < len(self.made) else self.now + 1
            if replaced_at <= begin:
                continue  # was not the state at any time within the window
            assert plan_restore(files, txid=txid)[-1].max_txid == txid
            plan = plan_restore(files, timestamp_ms=replaced_at)
            assert plan[-1].max_txid == txid

    @invariant()
    def young_first_files_of_owners_stay(self) -> None:
        for txid, at in self.firsts:
            if at > self.now - OWNER_FILE_MS:
                assert file_key("p", 0, txid, txid) in self.bucket

    def teardown(self) -> None:
        """Once all is old, a snapshot and a sweep leave what the window needs, and no more."""
        if not self.made:
            return
        self.open_anew()
        for _ in range(2):
            self.ship([HOUR_MS], owner=False)
            self.cut_image()
            self.put_image()
        self.wait(31 * DAY_MS)
        self.sweep(2, 1.0, True)
        base = len(self.made) - 1
        assert sorted(self.bucket) == sorted([
            file_key("p", 0, len(self.made), len(self.made)),
            file_key("p", 9, 1, base),
            file_key("p", 9, 1, base + 1),
        ])  # fmt: skip


@pytest.mark.parametrize("at_once", [replica_files.DELETES_MAX, 3])
def test_what_may_still_be_needed_is_never_deleted(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_files, "DELETES_MAX", at_once)
    if at_once == 3:  # then one last sweep does not reach the end
        monkeypatch.setattr(SweepMachine, "teardown", lambda self: None)
    limits = settings(max_examples=60, stateful_step_count=25, deadline=None)
    run_state_machine_as_test(SweepMachine, settings=limits)
