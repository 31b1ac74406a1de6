"""A scope and its file over time: rows that lag, crashes, retention, checkpoints in a thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.mailbox import Request
from actors.rows import BIG_ROW_BYTES, UNFOLDED_CHANGES_MAX
from actors.types import Appended, Duplicate, Page, Rejected, Resync, Retention, ScopePolicy
from infra import limits
from infra.errors import StorageError
from tests.support.ledgers import Bench, FakeReply, FakeTap, draft, drafts, envelope

BIG = "x" * (BIG_ROW_BYTES + 1000)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "x.db")
    yield bench
    bench.close()


def kept(tmp_path: Path, **retention: int) -> Bench:
    return Bench(tmp_path / "r.db", ScopePolicy(Retention(**retention)))


def append_text(event_id: str, text: str, key: str = "doc:1") -> dict[str, object]:
    return envelope(event_id, {"op": "appendText", "path": "/t", "delta": text}, key=key)


def publish(bench: Bench, *envelopes: dict[str, object]) -> None:
    reply = bench.append([draft(value) for value in envelopes])
    bench.shell.settle()
    assert all(isinstance(outcome, Appended) for outcome in reply.outcomes), reply.outcomes


def unfolded(bench: Bench) -> dict[str, int]:
    db = sqlite3.connect(f"file:{bench.path}?mode=ro", uri=True)
    try:
        return dict(db.execute("SELECT id, seq FROM unfolded").fetchall())
    finally:
        db.close()


# -- big rows
# ----------------------------------------------------------------------------------------


def test_a_small_row_never_lags(bench: Bench) -> None:
    for n in range(10):
        publish(bench, append_text(f"e{n}", "ab"))
        assert unfolded(bench) == {}
    assert bench.rows() == {"doc:1": {"t": "ab" * 10}}


def test_a_big_row_lags_and_the_file_still_tells_all(bench: Bench) -> None:
    publish(bench, append_text("e0", BIG))
    for n in range(1, 6):
        publish(bench, append_text(f"e{n}", str(n)))
    assert unfolded(bench) == {"doc:1": 1}
    assert bench.rows() == {"doc:1": {"t": BIG + "12345"}}


def test_a_big_row_is_stored_after_a_bounded_tail(bench: Bench) -> None:
    publish(bench, append_text("e0", BIG))
    lags = []
    for n in range(1, UNFOLDED_CHANGES_MAX + 2):
        publish(bench, append_text(f"e{n}", "."))
        lags.append(unfolded(bench).get("doc:1", 0))
    assert lags == [1] * (UNFOLDED_CHANGES_MAX - 1) + [0, UNFOLDED_CHANGES_MAX + 1]
    assert bench.rows() == {"doc:1": {"t": BIG + "." * (UNFOLDED_CHANGES_MAX + 1)}}


def test_a_big_row_others_leave_behind_is_stored_too(bench: Bench) -> None:
    publish(bench, append_text("e0", BIG), append_text("f", BIG, "doc:2"))
    publish(bench, append_text("e1", "1"))
    for n in range(3):
        bench.append(drafts(*(f"{n}.{m}" for m in range(400))))
        bench.shell.settle()
    assert unfolded(bench) == {}
    assert bench.rows()["doc:1"] == {"t": BIG + "1"}


def test_a_crash_with_tails_loses_nothing(bench: Bench) -> None:
    publish(bench, append_text("e0", BIG), append_text("f0", BIG, "doc:2"))
    publish(bench, append_text("e1", "1"))
    publish(bench, append_text("f1", "2", "doc:2"), append_text("e2", "3"))
    before = bench.rows()
    assert len(unfolded(bench)) == 2
    bench.crash()
    assert unfolded(bench) == {}
    assert bench.rows() == before
    publish(bench, append_text("e3", "4"))
    assert bench.rows()["doc:1"] == {"t": BIG + "134"}


def test_tails_that_began_at_different_times_fold_once(bench: Bench) -> None:
    publish(bench, append_text("e0", BIG))
    publish(bench, append_text("e1", "1"))
    publish(bench, append_text("f0", BIG, "doc:2"), append_text("e2", "2"))
    publish(bench, append_text("f1", "3", "doc:2"))
    bench.crash()
    assert bench.rows() == {"doc:1": {"t": BIG + "12"}, "doc:2": {"t": BIG + "3"}}


def test_a_snapshot_ends_tails(bench: Bench) -> None:
    publish(bench, append_text("e0", BIG))
    publish(bench, append_text("e1", "1"))
    entities = [{"key": "doc:1", "value": {"t": BIG}}]
    publish(bench, {"eventId": "s", "kind": "snapshot", "entities": entities})
    assert unfolded(bench) == {}
    publish(bench, append_text("e2", "2"))
    bench.crash()
    assert bench.rows() == {"doc:1": {"t": BIG + "2"}}


def test_a_deleted_big_row_leaves_no_tail(bench: Bench) -> None:
    publish(bench, append_text("e0", BIG))
    publish(bench, append_text("e1", "1"))
    gone = {"key": "doc:1", "deleted": True}
    publish(bench, {"eventId": "d", "kind": "patch", "entities": [gone]})
    assert unfolded(bench) == {} and bench.rows() == {}
    bench.crash()
    assert bench.rows() == {}


def test_folding_before_close_leaves_no_tail(bench: Bench) -> None:
    publish(bench, append_text("e0", BIG))
    publish(bench, append_text("e1", "1"))
    bench.scope.fold_tails()
    assert unfolded(bench) == {}
    publish(bench, append_text("e2", "2"))
    assert bench.rows() == {"doc:1": {"t": BIG + "12"}}


def test_a_failed_commit_does_not_count_as_stored(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(bench, append_text("e0", BIG))
    publish(bench, append_text("e1", "1"))
    ledger, written = bench.scope.ledger, []

    def refuse(_write: object) -> None:
        written.append(True)
        raise StorageError("no room", code="disk_full")

    value = {"eventId": "v", "kind": "patch", "entities": [{"key": "doc:1", "value": {"t": "v"}}]}
    with monkeypatch.context() as patched:
        patched.setattr(ledger, "_write_rest", refuse)  # after the rows were written
        reply = bench.append([draft(value)])
        bench.shell.settle()
    assert written and isinstance(reply.outcomes[0], Rejected)
    publish(bench, append_text("e2", "2"))
    assert unfolded(bench) == {"doc:1": 1}
    assert bench.rows() == {"doc:1": {"t": BIG + "12"}}


def test_a_record_has_its_limit_in_bytes(bench: Bench) -> None:
    part = "é" * 100_000  # two bytes each
    for n in range(5):
        publish(bench, append_text(f"e{n}", part))
    reply = bench.append([draft(append_text("over", part))])
    bench.shell.settle()
    refused = reply.outcomes[0]
    assert isinstance(refused, Rejected) and refused.code == "too_large"
    bench.crash()
    reply = bench.append([draft(append_text("over", part))])
    bench.shell.settle()
    assert isinstance(reply.outcomes[0], Rejected)
    size = len(bench.rows()["doc:1"]["t"].encode())
    assert size == 1_000_000 <= limits.RECORD_BYTES_MAX


# -- crash
# -------------------------------------------------------------------------------------------


def test_what_was_committed_is_there_after_a_crash(bench: Bench) -> None:
    bench.append(drafts("a", "b"))
    bench.shell.turns()
    bench.crash()
    assert bench.scope.head == 2
    again = bench.publish("a", "c")
    assert isinstance(again[0], Duplicate) and again[0].seq == 1
    assert again[1] == Appended(3, 3)
    assert bench.check().causes == {"a": 1, "b": 2, "c": 3}


def test_the_old_owner_can_write_no_more(bench: Bench) -> None:
    bench.publish("a")
    old, shell = bench.scope, bench.shell
    bench.crash()
    bench.publish("b")
    reply = FakeReply()
    old.append(Request(drafts("c"), reply, None))
    shell.turns()
    assert isinstance(reply.outcomes[0], Rejected) and reply.outcomes[0].code == "fenced"
    assert sorted(bench.check().causes) == ["a", "b"]


# -- retention
# ---------------------------------------------------------------------------------------


def test_retention_by_count(tmp_path: Path) -> None:
    bench = kept(tmp_path, entries=20)
    for n in range(100):
        bench.publish(f"e{n}")
    found = bench.check()
    assert 20 <= len(found.bodies) <= 22
    assert len(found.causes) == 100, "causes outlive their entries"
    assert found.rows == {"item:1": {"n": "e99"}}
    again = bench.publish("e0", "e99")
    assert [(type(o), o.seq) for o in again if isinstance(o, Duplicate)] == [
        (Duplicate, 1), (Duplicate, 100),
    ]  # fmt: skip
    first, last = again
    assert isinstance(first, Duplicate) and first.body is None
    assert isinstance(last, Duplicate) and last.body is not None
    bench.close()


def test_retention_by_age(tmp_path: Path) -> None:
    bench = kept(tmp_path, entries=0, seconds=10)
    bench.publish(*(f"old{n}" for n in range(5)))
    bench.shell.now += 11_000
    bench.publish("new")
    assert list(bench.check().bodies) == [6]
    bench.shell.now += 60_000
    bench.publish("newer")
    assert list(bench.check().bodies) == [7], "one entry always stays"
    bench.close()


def test_retention_by_bytes(tmp_path: Path) -> None:
    bench = kept(tmp_path, entries=0, bytes=3000)
    for n in range(60):
        bench.shell.now += 2000
        bench.publish(f"e{n}", pad="é" * 100)
    found = bench.check()
    assert 2000 < found.header["bytes"] <= 3400
    bench.close()


@pytest.mark.parametrize("retention", [{"entries": 1}, {"entries": 0, "bytes": 1}])
def test_one_entry_always_stays(tmp_path: Path, retention: dict[str, int]) -> None:
    bench = kept(tmp_path, **retention)
    for n in range(5):
        bench.shell.now += 2000
        bench.publish(f"e{n}", f"f{n}")
        found = bench.check()
        assert found.header["head"] in found.bodies and len(found.bodies) <= 3
    bench.close()


def test_a_cursor_below_the_floor_is_told(tmp_path: Path) -> None:
    bench = kept(tmp_path, entries=4)
    for n in range(10):
        bench.publish(f"e{n}")
    floor = bench.scope.bounds.floor
    assert floor > 0
    options = {"entries_max": 512, "bytes_max": 1 << 20, "joined": False}
    below = bench.scope.read(floor - 1, **options)  # type: ignore[arg-type]
    assert isinstance(below, Resync) and below.reason == "below_floor"
    found = bench.scope.read(floor, **options)  # type: ignore[arg-type]
    assert isinstance(found, Page) and (found.first, found.last) == (floor + 1, 10)
    bench.close()


def test_retention_never_passes_a_tail(tmp_path: Path) -> None:
    bench = kept(tmp_path, entries=8)
    publish(bench, append_text("e0", BIG))
    publish(bench, append_text("e1", "1"))
    for n in range(40):
        bench.publish(f"n{n}")
        bench.check()  # a tail below the floor would show here
    bench.crash()
    assert bench.rows()["doc:1"] == {"t": BIG + "1"}
    bench.close()


def test_a_long_excess_is_taken_off_in_steps(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "r.db")
    for n in range(8):
        bench.append(drafts(*(f"{n}.{m}" for m in range(500))))
        bench.shell.settle()
    bench.policy = ScopePolicy(Retention(entries=100))
    bench.crash()
    bench.publish("one more")
    assert 100 <= len(bench.check().bodies) < 1000
    bench.close()


# -- the file in a thread
# ----------------------------------------------------------------------------


def test_the_mailbox_waits_while_the_file_is_lent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.scope._wal, "limit", 1)
    first = bench.append(drafts("a"))
    bench.shell.turns()
    assert bench.scope.lent and bench.scope.busy
    second = bench.append(drafts("b"))
    bench.shell.turns()
    assert bench.scope.head == 1, "the handle is in a thread's hands"
    bench.shell.barrier()
    assert first.outcomes == [Appended(1, 1)] and second.answers == []
    bench.shell.finish_lent()
    bench.shell.settle()
    assert second.outcomes == [Appended(2, 2)]


def test_a_long_history_is_recalled_in_a_thread(bench: Bench) -> None:
    for n in range(9):
        bench.append(drafts(*(f"{n}.{m}" for m in range(512))))
    bench.shell.settle()
    bench.crash()
    tap = FakeTap()
    bench.scope.taps.append(tap)
    reply = bench.append(drafts("0.0", "new"))
    bench.shell.turns()
    assert bench.scope.lent and reply.answers == []
    bench.shell.finish_lent()
    bench.shell.settle()
    first, second = reply.outcomes
    assert isinstance(first, Duplicate) and first.seq == 1
    assert second == Appended(9 * 512 + 1, 9 * 512 + 1)
    assert tap.seqs == [9 * 512 + 1]


def test_damage_found_while_recalling_leaves_nobody_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise StorageError("cannot read")

    with monkeypatch.context() as patched:
        patched.setattr(bench.scope.ledger, "causes", refuse)
        (outcome,) = bench.publish("a")
    assert isinstance(outcome, Rejected) and outcome.code == "storage"
    assert bench.publish("a") == [Appended(1, 1)]
