"""Names of a replica's objects, and the plan of a restore as the official tool was seen to plan."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.layout import (
    COMPONENT_CHARS_MAX,
    NoBackup,
    ReplicaFile,
    ReplicaGap,
    escape,
    file_key,
    folder,
    parse_key,
    plan_restore,
    scope_prefix,
)

SAFE = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*")
names = st.one_of(
    st.text(max_size=80),
    st.text(alphabet="ab.~/0", max_size=12),  # small alphabets meet and nest where names can
    st.text(alphabet="a~.é", min_size=140, max_size=260),  # around the longest component
    st.sampled_from(["", ".", "..", "~", "~.", "0000", "0009", "lock.json", "\ud800", "/", "a/b"]),
)


@given(names)
def test_an_escape_is_one_short_component_without_meaning(name: str) -> None:
    escaped = escape(name)
    assert SAFE.fullmatch(escaped) and len(escaped) <= COMPONENT_CHARS_MAX


@given(names, names)
def test_the_escape_is_injective(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) is (one == other)


@given(st.text(alphabet="aé", min_size=197, max_size=203), st.data())
def test_long_names_that_differ_late_stay_apart(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(150, len(name) - 1))
    other = name[:place] + "b" + name[place + 1 :]
    assert escape(name) != escape(other)
    assert escape(escape(name)) != escape(name) or "~" not in escape(name)


@given(names, names, names, names, st.sampled_from(["", "p", "p/q"]))
def test_prefixes_of_scopes_never_meet_or_nest(a: str, b: str, c: str, d: str, top: str) -> None:
    one, other = scope_prefix(top, a, b), scope_prefix(top, c, d)
    assert one and one.strip("/") == one and one.count("/") == (top + "/x").count("/") + bool(top)
    if (a, b) != (c, d):
        assert not folder(other).startswith(folder(one))


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("run:1", "run~3a1"),
        ("größe: 4", "gr~c3~b6~c3~9fe~3a~204"),
        (".hidden", "~2ehidden"),
        ("..", "~2e."),
        ("a/b", "a~2fb"),
        ("a~b", "a~7eb"),
        ("Plain-1_2.3", "Plain-1_2.3"),
        ("", "~"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 150 + "~.84a0678c90937f5dcf9994d5866668da"),
    ],
)
def test_an_escape_never_changes(name: str, escaped: str) -> None:
    # Buckets out there are named so.
    assert escape(name) == escaped


def test_keys_are_those_of_the_format() -> None:
    assert scope_prefix("/backups/a/", "default", "run:1") == "backups/a/default/run~3a1"
    assert scope_prefix("", "t", "s") == "t/s"
    assert file_key("p", 9, 1, 18) == "p/0009/0000000000000001-0000000000000012.ltx"
    assert file_key("", 0, 2, 2) == "0000/0000000000000002-0000000000000002.ltx"


@given(
    st.sampled_from(["", "p", "p/q~3a1"]),
    st.integers(0, 9),
    st.integers(1, 2**63),
    st.integers(0, 2**62),
)
def test_a_key_reads_back(prefix: str, level: int, min_txid: int, more: int) -> None:
    min_txid = 1 if level == 9 else min_txid
    key = file_key(prefix, level, min_txid, min_txid + more)
    file = ReplicaFile(key, level, min_txid, min_txid + more, 5, 6)
    assert parse_key(prefix, key, 5, 6) == file
    assert parse_key(prefix + "x", key, 5, 6) is None


@pytest.mark.parametrize(
    "key",
    [
        "p/lock.json",
        "p/ltx/0009/0000000000000001-0000000000000001.ltx",
        "p/9/0000000000000001-0000000000000001.ltx",
        "p/0000/x.json",
        "p/0000/sub/0000000000000001-0000000000000001.ltx",
        "p/0000/0000000000000001-0000000000000001.ltx.tmp",
        "p/000a/0000000000000001-0000000000000001.ltx",
        "p/0010/0000000000000001-0000000000000001.ltx",
        "p/0000/000000000000000A-000000000000000A.ltx",
        "p/0000/0000000000000000-0000000000000001.ltx",
        "p/0000/0000000000000002-0000000000000001.ltx",
        "p/0009/0000000000000002-0000000000000003.ltx",
        "p2/0000/0000000000000001-0000000000000001.ltx",
        "x/p/0000/0000000000000001-0000000000000001.ltx",
        "p/0000/0000000000000001-0000000000000001.ltx\n",
    ],
)
def test_other_keys_are_no_files(key: str) -> None:
    assert parse_key("p", key, 1, 1) is None


def test_the_folders_of_an_official_directory_are_read() -> None:
    key = "p/ltx/9/0000000000000001-0000000000000012.ltx"
    assert parse_key("p", key, 5, 6) == ReplicaFile(key, 9, 1, 18, 5, 6)


def file(level: int, min_txid: int, max_txid: int = 0, at: int = 0) -> ReplicaFile:
    max_txid = max_txid or min_txid
    return ReplicaFile(
        file_key("p", level, min_txid, max_txid), level, min_txid, max_txid, 9, at or max_txid
    )


def changes(*txids: int) -> list[ReplicaFile]:
    return [file(0, txid) for txid in txids]


def spans(plan: list[ReplicaFile]) -> list[tuple[int, int, int]]:
    return [(file.level, file.min_txid, file.max_txid) for file in plan]


def test_a_chain_without_snapshot() -> None:
    assert spans(plan_restore(changes(3, 1, 2))) == [(0, 1, 1), (0, 2, 2), (0, 3, 3)]


def test_the_newest_snapshot_and_what_follows() -> None:
    files = [*changes(1, 2, 3, 4, 5, 6), file(9, 1, 2), file(9, 1, 4)]
    assert spans(plan_restore(files)) == [(9, 1, 4), (0, 5, 5), (0, 6, 6)]


def test_the_file_that_goes_furthest_wins() -> None:
    files = [file(9, 1, 2), *changes(3, 4, 5, 6, 7), file(1, 3, 4), file(1, 5, 6), file(2, 2, 6)]
    assert spans(plan_restore(files)) == [(9, 1, 2), (2, 2, 6), (0, 7, 7)]


def test_ties_go_to_the_smaller_min_then_the_higher_level_then_the_older() -> None:
    start = file(9, 1, 3)
    assert spans(plan_restore([start, file(1, 4, 6), file(3, 3, 6)]))[1:] == [(3, 3, 6)]
    assert spans(plan_restore([start, file(1, 4, 6), file(3, 4, 6), file(2, 4, 6)]))[1:] == [
        (3, 4, 6)
    ]
    twins = [file(1, 4, 6, at=8), file(1, 4, 6, at=7), file(1, 4, 6, at=9)]
    assert plan_restore([start, *twins])[1].created_ms == 7


def test_a_changes_file_of_several_txids_counts() -> None:
    assert spans(plan_restore([*changes(1, 2), file(0, 3, 5)])) == [(0, 1, 1), (0, 2, 2), (0, 3, 5)]


def test_a_gap_is_an_error() -> None:
    with pytest.raises(ReplicaGap, match=r"goes up to TXID 2, then the next file starts at 4"):
        plan_restore(changes(1, 2, 4, 5))
    with pytest.raises(ReplicaGap, match=r"goes up to TXID 0, then the next file starts at 7"):
        plan_restore(changes(7, 8))  # never "no backup": someone wrote here


def test_a_gap_that_a_snapshot_covers_is_none() -> None:
    plan = plan_restore([*changes(1, 2, 4, 5), file(9, 1, 4)])
    assert spans(plan) == [(9, 1, 4), (0, 5, 5)]


def test_superseded_files_are_not_read() -> None:
    plan = plan_restore([*changes(1, 2, 3), file(9, 1, 3), file(1, 1, 3)])
    assert spans(plan) == [(9, 1, 3)]


def test_nothing_is_no_backup() -> None:
    with pytest.raises(NoBackup, match="empty"):
        plan_restore([])
    with pytest.raises(NoBackup):
        plan_restore([], txid=3)
    with pytest.raises(NoBackup):
        plan_restore([], timestamp_ms=3)


def test_a_txid_is_reached_exactly() -> None:
    files = [*changes(1, 2, 3, 4, 5), file(9, 1, 2), file(9, 1, 4), file(1, 3, 4)]
    assert spans(plan_restore(files, txid=3)) == [(9, 1, 2), (0, 3, 3)]
    assert spans(plan_restore(files, txid=4)) == [(9, 1, 4)]
    assert spans(plan_restore(files, txid=1)) == [(0, 1, 1)]
    with pytest.raises(NoBackup, match="TXID 9; the last one kept before it is 5"):
        plan_restore(files, txid=9)


def test_a_txid_that_retention_took_is_no_backup_and_a_lost_one_a_gap() -> None:
    with pytest.raises(NoBackup, match="last one kept before it is 2"):
        plan_restore([file(9, 1, 2), file(9, 1, 9), *changes(8, 9, 10)], txid=8)
    with pytest.raises(ReplicaGap):
        plan_restore(changes(1, 2, 4), txid=4)
    assert spans(plan_restore(changes(1, 2, 4), txid=2)) == [(0, 1, 1), (0, 2, 2)]


def test_a_time_is_strictly_before() -> None:
    files = [*changes(1, 2, 3, 4), file(9, 1, 3, at=3)]
    assert spans(plan_restore(files, timestamp_ms=5)) == [(9, 1, 3), (0, 4, 4)]
    assert spans(plan_restore(files, timestamp_ms=4)) == [(9, 1, 3)]
    assert spans(plan_restore(files, timestamp_ms=3)) == [(0, 1, 1), (0, 2, 2)]
    with pytest.raises(NoBackup, match="before 1 ms"):
        plan_restore(files, timestamp_ms=1)


def test_a_time_ends_the_chain_at_the_first_later_file() -> None:
    # The second owner's clock is behind: TXID 4 looks older than TXID 3.
    files = [*changes(1, 2), file(0, 3, at=30), file(0, 4, at=5)]
    assert spans(plan_restore(files, timestamp_ms=10)) == [(0, 1, 1), (0, 2, 2)]


def test_a_time_beside_a_hole() -> None:
    with pytest.raises(ReplicaGap):  # 3 may have been before 9; nobody knows
        plan_restore(changes(1, 2, 4), timestamp_ms=9)
    retained = [file(9, 1, 2), file(9, 1, 9), *changes(7, 8, 9, 10)]
    assert spans(plan_restore(retained, timestamp_ms=8)) == [(9, 1, 2)]


def test_one_target_at_a_time() -> None:
    with pytest.raises(ValueError, match="not to both"):
        plan_restore(changes(1), txid=1, timestamp_ms=1)


@given(st.data())
def test_a_plan_is_contiguous_and_goes_as_far_as_anything_does(data: st.DataObject) -> None:
    spans_ = st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(0, 4))
    drawn = data.draw(st.lists(spans_, max_size=12))
    files = [file(level, low if level < 9 else 1, low + more) for level, low, more in drawn]
    txid = data.draw(st.none() | st.integers(1, 12))
    try:
        plan = plan_restore(files, txid=txid)
    except (NoBackup, ReplicaGap):
        return
    reached = 0
    for item in plan:
        assert item.min_txid <= reached + 1 <= item.max_txid
        reached = item.max_txid
    assert reached == (txid or max(item.max_txid for item in files))
