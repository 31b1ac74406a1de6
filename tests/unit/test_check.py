"""The checker of ledger files: what the product writes passes, and each kind of damage is named."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from actors import check
from actors.check import Checked, check_ledger
from actors.identity import copy_database
from actors.types import Retention, ScopePolicy
from infra.errors import FileRefused
from tests.support.ledgers import Bench, check_file, draft, envelope, set_patch


def written(path: Path, policy: ScopePolicy | None = None, count: int = 12) -> Path:
    """A closed ledger with some history: two entities, one of them removed and made again."""
    bench = Bench(path, policy)
    for n in range(1, count + 1):
        bench.publish(f"e{n}", key=f"item:{n % 3}")
    gone = {"eventId": "gone", "kind": "patch", "entities": [{"key": "item:1", "deleted": True}]}
    bench.append([draft(gone)])
    bench.shell.settle()
    bench.publish("again", key="item:1")
    bench.close()
    return path


def damaged(path: Path, *statements: str) -> Checked:
    db = sqlite3.connect(path)
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()
    return check_ledger(path)


def test_a_good_file_has_no_problems(tmp_path: Path) -> None:
    path = written(tmp_path / "s.db")
    found = check_ledger(path)
    assert found.problems == []
    assert (found.head, found.floor, found.entries, found.rows) == (14, 0, 14, 3)
    assert found.refolded
    assert (found.tenant, found.scope) == ("default", "run:r1")
    assert check_file(path).rows.keys() == {"item:0", "item:1", "item:2"}


def test_small_batches_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "s.db", count=40)
    monkeypatch.setattr(check, "BATCH_ENTRIES", 3)
    told: list[tuple[int, int]] = []
    found = check_ledger(path, progress=lambda done, total: told.append((done, total)))
    assert found.problems == [] and found.refolded
    assert told[-1][0] == told[-1][1] and len(told) == 14


def test_after_retention_rows_are_not_folded_anew(tmp_path: Path) -> None:
    path = written(tmp_path / "s.db", ScopePolicy(Retention(entries=4)), count=600)
    found = check_ledger(path)
    assert found.problems == []
    assert found.floor > 0 and not found.refolded


def test_rows_that_lag_behind_are_folded_with_their_tails(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "s.db")
    bench.append([draft(envelope("big", set_patch("/text", "x" * 40_000)))])
    bench.shell.settle()
    bench.publish("e1", "e2")
    copy = tmp_path / "copy.db"
    copy_database(bench.path, copy)
    bench.close()
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute("SELECT id, seq FROM unfolded").fetchall() == [("item:1", 1)]
    found = check_ledger(copy)
    assert found.problems == [] and found.refolded
    other = "UPDATE rows SET body=replace(body, 'xxx', 'yyy') WHERE id='item:1'"
    assert damaged(copy, other).problems == ["I2: row entity/item:1 is not the fold of the entries"]


def test_a_jumped_history_is_folded_whole(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "s.db")
    bench.publish("a", "b")
    bench.scope.ledger.move_epoch("e2", jump=2**32, at=1)
    bench.close()
    found = check_ledger(tmp_path / "s.db")
    assert found.problems == [] and found.refolded
    assert found.head == 2**32 + 2


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("DELETE FROM entries WHERE seq=5", "I1: entry 5 is missing"),
        ("DELETE FROM entries WHERE seq=14", "I1: entries end at 13"),
        ("UPDATE scope SET head=15", "I1: entries end at 14"),
        ("UPDATE scope SET floor=2", "I5: entry 1 is at or below the floor 2"),
        ("UPDATE scope SET bytes=bytes+1", "the scope row says"),
        ("UPDATE scope SET body_max=1", "body_max is 1"),
        ("UPDATE entries SET cause='e1' WHERE seq=3", "I3: cause 'e1' stands at 1 and at 3"),
        ("INSERT INTO dedupe VALUES ('e2', 9, 1, NULL, 1)", "I3: cause 'e2' stands at 2"),
        ("INSERT INTO dedupe VALUES ('x', 99, 1, NULL, 1)", "above the head 14"),
        ("UPDATE rows SET body='{\"n\":0}' WHERE id='item:2'", "I2: row entity/item:2"),
        ("UPDATE rows SET rev=9 WHERE id='item:2'", "I2: row entity/item:2"),
        ("UPDATE rows SET stamp1=9 WHERE id='item:2'", "I2: row entity/item:2"),
        ("DELETE FROM rows WHERE id='item:2'", "I2: entity/item:2 is only in the fold"),
        ("UPDATE rows SET id='item:9' WHERE id='item:2'", "I2: entity/item:9 is only in rows"),
        ("UPDATE rows SET seq=77 WHERE id='item:2'", "its seq 77 is above the head"),
        ("INSERT INTO unfolded VALUES ('entity', 'item:2', 3)", "I5: tail of entity/item:2"),
        ("INSERT INTO unfolded VALUES ('entity', 'nothing', 3)", "its row is of None"),
        ("UPDATE entries SET body=replace(body, 'run:r1', 'run:r2') WHERE seq=4", "says 'run:r2'"),
        ("UPDATE entries SET body=replace(body, '\"seq\":4', '\"seq\":5') WHERE seq=4", "seq 5"),
        ("UPDATE entries SET body='no JSON' WHERE seq=4", "entry 4: its body cannot be read"),
    ],
)
def test_damage_is_named(tmp_path: Path, statement: str, word: str) -> None:
    found = damaged(written(tmp_path / "s.db"), statement)
    assert any(word in problem for problem in found.problems), found.problems


def test_a_cause_may_come_again_beyond_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "s.db")
    monkeypatch.setattr(check, "WINDOW_MAX", 2)
    reuse = "UPDATE entries SET cause='e1' WHERE seq=4"
    assert damaged(path, reuse).problems == []


def test_damaged_pages_are_found(tmp_path: Path) -> None:
    path = written(tmp_path / "s.db", count=400)
    data = bytearray(path.read_bytes())
    data[8 * 4096 : 8 * 4096 + 64] = bytes(64)
    path.write_bytes(data)
    try:
        problems = check_ledger(path).problems
    except FileRefused:
        return
    assert any(problem.startswith("integrity_check") for problem in problems)


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE t(a)")
    db.commit()
    db.close()
    (tmp_path / "text").write_text("not a database, but long enough to be looked at " * 40)
    for name in ("other.db", "text"):
        with pytest.raises(FileRefused):
            check_ledger(tmp_path / name)


def test_problems_are_bounded(tmp_path: Path) -> None:
    path = written(tmp_path / "s.db", count=100)
    found = damaged(path, "UPDATE entries SET body='x'")
    assert len(found.problems) == check.PROBLEMS_MAX
