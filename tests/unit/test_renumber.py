"""A history under new numbers: everything is kept, and everything that names a seq is moved."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import renumber as renumber_module
from actors.dialects import dialect_named
from actors.ledger import Ledger, StaleOwner
from actors.rows import BIG_ROW_BYTES
from actors.types import Appended, Duplicate, Page, Resync, Retention, ScopePolicy
from actors.write import Write
from tests.support.ledgers import (
    ADDRESS,
    NOW,
    Bench,
    Checked,
    check_file,
    draft,
    drafts,
    envelope,
    set_patch,
)

JUMP = 2**32
RETAIN = 6


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "x.db", ScopePolicy(Retention(entries=RETAIN)))
    yield bench
    bench.close()


def table(path: Path, name: str) -> list[tuple[Any, ...]]:
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return db.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall()
    finally:
        db.close()


def fill(bench: Bench) -> None:
    """More than is retained, a row that lags behind its entries, one that is gone."""
    for n in range(10):
        bench.publish(f"e{n}", key=f"item:{n % 3}")
    big = {"op": "appendText", "path": "/t", "delta": "ä" * BIG_ROW_BYTES}
    for n in range(3):
        more = {"op": "appendText", "path": "/t", "delta": "."}
        bench.append([draft(envelope(f"big{n}", more if n else big, key="doc:1"))])
        bench.shell.settle()
    gone = {"eventId": "gone", "kind": "patch", "entities": [{"key": "item:2", "deleted": True}]}
    bench.append([draft(gone)])
    bench.shell.settle()


def move(bench: Bench, epoch: str, jump: int) -> None:
    """As after a restore: the file is moved while nobody has it, and then opened."""
    ledger = Ledger.open(bench.path, ADDRESS)
    ledger.move_epoch(epoch, jump=jump, at=NOW)
    ledger.close()
    bench.crash()


def moved(before: Checked, after: Checked, jump: int = JUMP) -> None:
    """Both files passed their check; what one says, the other says `jump` higher."""
    assert after.header["head"] == before.header["head"] + jump
    assert after.header["floor"] == before.header["floor"] + jump
    assert after.header["jump"] == before.header["jump"] + jump
    assert after.rows == before.rows
    assert after.causes == {cause: seq + jump for cause, seq in before.causes.items()}
    assert after.bodies == {
        seq + jump: {**body, "seq": seq + jump} for seq, body in before.bodies.items()
    }


# -- the file ------------------------------------------------------------------------------


def test_everything_is_kept_under_its_new_number(bench: Bench) -> None:
    fill(bench)
    before = bench.check()
    assert before.header["floor"] > 0 and bench.scope.ledger.unfolded()
    kept = {name: table(bench.path, name) for name in ("rows", "unfolded", "dedupe", "entries")}
    bench.scope.ledger.move_epoch("e2", jump=JUMP, at=NOW)
    after = bench.check()
    moved(before, after)
    assert (after.header["epoch"], after.header["floor_at"]) == ("e2", after.header["floor"])
    assert after.header["created_at"] == before.header["created_at"]
    for name, column in (("rows", 3), ("unfolded", 2), ("dedupe", 1), ("entries", 0)):
        assert [row[column] - JUMP for row in table(bench.path, name)] == [
            row[column] for row in kept[name]
        ], name
    same = [[v for i, v in enumerate(row) if i not in (0, 10)] for row in kept["entries"]]
    assert same == [
        [v for i, v in enumerate(row) if i not in (0, 10)] for row in table(bench.path, "entries")
    ], "but for seq and body"


def test_the_header_in_memory_is_the_one_in_the_file(bench: Bench) -> None:
    fill(bench)
    ledger = bench.scope.ledger
    ledger.move_epoch("e2", jump=JUMP, at=NOW)
    stored = bench.check().header
    for name in ("head", "floor", "floor_at", "jump", "bytes", "body_max", "epoch", "owner"):
        assert getattr(ledger.header, name) == stored[name], name
    longest = max(len(row[10].encode()) for row in table(bench.path, "entries"))
    assert stored["body_max"] == longest


def test_twice_in_a_row(bench: Bench) -> None:
    fill(bench)
    before = bench.check()
    for n in (2, 3):
        bench.scope.ledger.move_epoch(f"e{n}", jump=JUMP, at=NOW)
        bench.check()
    moved(before, bench.check(), 2 * JUMP)


def test_an_empty_history_moves_too(bench: Bench) -> None:
    bench.scope.ledger.move_epoch("e2", jump=JUMP, at=NOW)
    header = bench.check().header
    assert (header["head"], header["floor"], header["bytes"]) == (JUMP, JUMP, 0)


def test_a_history_longer_than_a_page_of_the_work(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renumber_module, "_PAGE", 2)
    fill(bench)
    before = bench.check()
    bench.scope.ledger.move_epoch("e2", jump=JUMP, at=NOW)
    moved(before, bench.check())


def test_the_smallest_jump_there_may_be(bench: Bench) -> None:
    fill(bench)
    before = bench.check()
    kept = before.header["head"] - before.header["floor"]
    bench.scope.ledger.move_epoch("e2", jump=kept, at=NOW)
    moved(before, bench.check(), kept)


def test_a_stale_owner_moves_nothing(bench: Bench) -> None:
    fill(bench)
    late = Ledger.open(bench.path, ADDRESS)
    bench.scope.ledger.commit(Write(NOW))
    other = Ledger.open(bench.path, ADDRESS)
    other.commit(Write(NOW))
    before = bench.check()
    with pytest.raises(StaleOwner):
        late.move_epoch("e2", jump=JUMP, at=NOW)
    assert bench.check() == before and late.header.epoch == "e1"
    late.close()
    other.close()


def test_a_body_says_its_new_number() -> None:
    body = '{"seq":7,"ts":"x","scope":"run:r1","note":"\\"seq\\":7,"}'
    assert dialect_named("asterql").renumber(body, 12345) == body.replace(
        '{"seq":7', '{"seq":12345'
    )


# -- the scope -----------------------------------------------------------------------------


def test_a_scope_goes_on_above_and_knows_its_causes(bench: Bench) -> None:
    fill(bench)
    old = bench.scope.bounds
    move(bench, "e2", JUMP)
    new = bench.scope.bounds
    assert (new.epoch, new.head, new.floor) == ("e2", old.head + JUMP, old.floor + JUMP)
    below = bench.scope.read(old.head, entries_max=9, bytes_max=9999, joined=False)
    assert isinstance(below, Resync) and below.reason == "below_floor", "no old cursor is served"
    page = bench.scope.read(new.floor, entries_max=99, bytes_max=1 << 20, joined=False)
    assert isinstance(page, Page) and (page.first, page.last) == (new.floor + 1, new.head)
    (again,) = bench.publish("big2")
    assert isinstance(again, Duplicate) and again.body is not None
    assert f'"seq":{again.seq}' in again.body and again.seq > JUMP
    (old_again,) = bench.publish("e0")
    assert isinstance(old_again, Duplicate) and old_again.seq == 1 + JUMP
    assert bench.publish("new") == [Appended(new.head + 1, new.head + 1)]
    bench.check()


def test_a_row_that_lags_is_brought_up_to_the_head(bench: Bench) -> None:
    fill(bench)
    rows = bench.rows()
    assert bench.scope.ledger.unfolded()
    move(bench, "e2", JUMP)
    assert not bench.scope.ledger.unfolded() and bench.rows() == rows


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 3)),
        st.tuples(st.just("grow"), st.sampled_from([3, BIG_ROW_BYTES + 1])),
        st.tuples(st.just("delete"), st.integers(0, 3)),
        st.tuples(st.just("snapshot"), st.just(0)),
        st.tuples(st.just("move"), st.sampled_from([64, 2**20, JUMP])),
        st.tuples(st.just("crash"), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=30, deadline=None)
@given(steps)
def test_a_moved_history_stays_whole(script: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory(prefix="holdfast-renumber-") as home:
        bench = Bench(Path(home) / "x.db", ScopePolicy(Retention(entries=RETAIN)))
        twin = Bench(Path(home) / "y.db", ScopePolicy(Retention(entries=RETAIN)))
        jump = 0
        for n, (what, arg) in enumerate(script):
            if what == "move":
                move(bench, f"m{n}", arg)
                jump += arg
                continue
            if what == "crash":
                bench.crash()
                bench.shell.settle()
                continue
            value = _envelope(what, arg, n)
            outcomes = []
            for one in (bench, twin):
                reply = one.append([draft(value), *drafts(f"e{max(0, n - 4)}")])
                one.shell.settle()
                outcomes.append([_place(found) for found in reply.outcomes])
            assert [None if seq is None else seq + jump for seq in outcomes[1]] == outcomes[0]
        found, wanted = bench.check(), twin.check()
        bench.close()
        twin.close()
    assert found.rows == wanted.rows
    assert found.causes == {cause: seq + jump for cause, seq in wanted.causes.items()}
    assert sorted(found.bodies) == [seq + jump for seq in sorted(wanted.bodies)]


def _envelope(what: str, arg: int, n: int) -> dict[str, Any]:
    if what == "snapshot":
        parts = [{"key": "item:0", "value": {"n": n}}]
        return {"eventId": f"e{n}", "kind": "snapshot", "entities": parts}
    if what == "delete":
        gone = [{"key": f"item:{arg}", "deleted": True}]
        return {"eventId": f"e{n}", "kind": "patch", "entities": gone}
    if what == "grow":
        patch = {"op": "appendText", "path": "/t", "delta": "x" * arg}
        return envelope(f"e{n}", patch, key="doc:1")
    return envelope(f"e{n}", set_patch("/n", n), key=f"item:{arg}")


def _place(outcome: object) -> int | None:
    if isinstance(outcome, Appended):
        return outcome.first
    return outcome.seq if isinstance(outcome, Duplicate) else None


def test_check_file_sees_a_body_that_was_not_moved(bench: Bench) -> None:
    fill(bench)
    db = sqlite3.connect(bench.path)
    db.execute("UPDATE entries SET seq=seq+100")
    db.execute("UPDATE scope SET head=head+100, floor=floor+100")
    db.commit()
    db.close()
    with pytest.raises(AssertionError):
        check_file(bench.path)
