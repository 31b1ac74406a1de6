"""One ledger file: what a commit puts into it, what it refuses, what SQLite's errors become."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.ledger import Ledger, StaleOwner
from actors.rows import Row
from actors.schema import VERSION, template
from actors.types import Address, Duplicate, Entry, Retention
from actors.write import Write
from infra.errors import FileRefused, StorageError
from infra.sqlite import storage_error
from tests.support.ledgers import ADDRESS, NOW, check_file


def make(path: Path, address: Address = ADDRESS) -> Ledger:
    return Ledger.create(path, address, dialect="asterql", epoch="e1", at=NOW, materialize=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t" / "00" / "x.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = make(path)
    yield ledger
    ledger.close()


def entry(seq: int, cause: str | None = None, pad: str = "") -> Entry:
    cause = cause or f"e{seq}"
    body = (
        f'{{"seq":{seq},"at":{NOW},"scope":"run:r1","eventId":"{cause}","kind":"invalidate",'
        f'"classes":["{pad}"]}}'
    )
    return Entry(seq, NOW, "invalidate", cause, body, len(body.encode()))


def fill(ledger: Ledger, count: int, **more: str) -> None:
    head = ledger.header.head
    entries = [entry(seq, **more) for seq in range(head + 1, head + count + 1)]
    ledger.commit(Write(NOW, entries))


def raw(path: Path, sql: str) -> list[tuple[object, ...]]:
    db = sqlite3.connect(path)
    try:
        found = db.execute(sql).fetchall()
        db.commit()
        return found
    finally:
        db.close()


# -- opening -------------------------------------------------------------------------------


def test_a_ledger_is_found_as_it_was_left(ledger: Ledger, path: Path) -> None:
    fill(ledger, 3, pad="é")
    header = ledger.header
    ledger.close()
    again = Ledger.open(path, ADDRESS)
    assert again.header == header
    assert (header.head, header.floor, header.owner, header.epoch) == (3, 0, 1, "e1")
    again.close()
    assert check_file(path).causes == {"e1": 1, "e2": 2, "e3": 3}


def test_a_newer_file_is_refused_and_left_alone(ledger: Ledger, path: Path) -> None:
    ledger.close()
    raw(path, f"PRAGMA user_version={VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(FileRefused, match="newer") as caught:
        Ledger.open(path, ADDRESS)
    assert not caught.value.retryable and path.read_bytes() == before


@pytest.mark.parametrize("address", [Address("default", "run:r2"), Address("acme", "run:r1")])
def test_another_scope_s_file_is_refused(ledger: Ledger, path: Path, address: Address) -> None:
    ledger.close()
    with pytest.raises(FileRefused, match="holds default/run:r1"):
        Ledger.open(path, address)


@pytest.mark.parametrize("half", ["empty", "tables", "no version"])
def test_a_half_made_file_is_told_and_can_be_finished(path: Path, half: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(template() if half == "tables" else b"")
    with pytest.raises(FileRefused):
        Ledger.open(path, ADDRESS)
    ledger = make(path)
    fill(ledger, 2)
    ledger.close()
    assert check_file(path).header["head"] == 2


def test_damage_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database" * 900)
    before = path.read_bytes()
    with pytest.raises(FileRefused, match="damaged"):
        Ledger.open(path, ADDRESS)
    assert path.read_bytes() == before


def test_a_header_that_cannot_be_is_refused(ledger: Ledger, path: Path) -> None:
    ledger.close()
    raw(path, "UPDATE scope SET floor=9")
    with pytest.raises(FileRefused, match="floor 9 above head 0"):
        Ledger.open(path, ADDRESS)


def test_a_directory_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "t").touch()
    with pytest.raises(StorageError):
        make(tmp_path / "t" / "x.db")


# -- committing ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 127, 128, 129, 255, 512])
def test_any_number_of_entries_is_stored(ledger: Ledger, path: Path, count: int) -> None:
    fill(ledger, count)
    found = check_file(path)
    assert list(found.bodies) == list(range(1, count + 1))
    assert ledger.header.bytes == found.header["bytes"]


def test_every_column_of_an_entry_is_kept(ledger: Ledger) -> None:
    whole = entry(1)
    whole.origin, whole.ref, whole.grp, whole.stamp1, whole.stamp2, whole.flags = (
        "c1", "m:1", "g", 5, 6, 1,
    )  # fmt: skip
    ledger.commit(Write(NOW, [whole, entry(2)]))
    assert ledger.entries(0, 9) == [whole, entry(2)]


def test_a_failed_commit_leaves_file_and_header(ledger: Ledger, path: Path) -> None:
    fill(ledger, 2)
    before = ledger.header
    row = Row({"n": 1}, 1, 3, 9)
    with pytest.raises(StorageError):
        ledger.commit(Write(NOW, [entry(3), entry(3)], rows={("entity", "a"): row}))
    assert ledger.header == before and ledger.row("entity", "a") is None
    fill(ledger, 1)
    assert check_file(path).header["head"] == 3


def test_the_second_writer_takes_the_file(ledger: Ledger, path: Path) -> None:
    fill(ledger, 1)
    second = Ledger.open(path, ADDRESS)
    fill(ledger, 1)  # opening alone claims nothing
    with pytest.raises(StaleOwner):
        fill(second, 1)
    second.close()
    third = Ledger.open(path, ADDRESS)
    fill(third, 1)
    header = ledger.header
    with pytest.raises(StaleOwner):
        fill(ledger, 1)
    with pytest.raises(StaleOwner):
        ledger.begin_epoch("e2", jump=100, at=NOW)
    assert ledger.header == header
    third.close()
    assert check_file(path).header["head"] == 3


def test_rows_come_and_go(ledger: Ledger, path: Path) -> None:
    rows = {("entity", name): Row({"n": name}, 1, 1, 9) for name in ("a", "b", "c")}
    ledger.commit(Write(NOW, [entry(1)], rows=dict(rows)))
    ledger.commit(Write(NOW, [entry(2)], rows={("entity", "a"): None}))
    assert ledger.row("entity", "a") is None
    found = ledger.row("entity", "b")
    assert found is not None and (found.value, found.seq, found.stored) == ({"n": "b"}, 1, 1)
    kept = {("entity", "d"): Row({}, 1, 3, 2)}
    ledger.commit(Write(NOW, [entry(3)], rows=dict(kept), cleared={"entity"}))
    assert raw(path, "SELECT id FROM rows") == [("d",)]


# -- retention and dedupe ------------------------------------------------------------------


def test_trimming_keeps_the_causes(ledger: Ledger, path: Path) -> None:
    fill(ledger, 10, pad="é")
    ledger.commit(Write(NOW, floor=7))
    found = check_file(path)
    assert list(found.bodies) == [8, 9, 10]
    assert found.causes == {f"e{n}": n for n in range(1, 11)}
    assert (ledger.header.floor, ledger.header.floor_at) == (7, 10)
    assert ledger.causes() == [(f"e{n}", n) for n in range(1, 11)]


def test_recall_gives_the_first_answer(ledger: Ledger) -> None:
    fill(ledger, 3)
    kept = ledger.recall("e3", 3)
    assert kept == Duplicate(3, body=entry(3).body)
    ledger.commit(Write(NOW, floor=2))
    assert ledger.recall("e1", 1) == Duplicate(1)
    assert ledger.recall("e3", 3) == kept
    ledger.commit(Write(NOW, [entry(4)], dedupe=[("many", 4, 3, "made")]))
    assert ledger.recall("many", 4) == Duplicate(4, 3, "made", entry(4).body)


def test_a_forgetting_commit_drops_old_causes_only(ledger: Ledger) -> None:
    old, new = NOW - 31 * 24 * 3600 * 1000, NOW
    ledger.commit(Write(old, dedupe=[("old", 1, 1, None)]))
    ledger.commit(Write(new, dedupe=[("new", 2, 1, None)]))
    ledger.commit(Write(NOW, [entry(1)], forget=True))
    assert ledger.causes() == [("new", 2), ("e1", 1)]


def test_the_scope_s_own_retention_wins(ledger: Ledger, path: Path) -> None:
    assert ledger.header.retention(Retention(7, 8, 9)) == Retention(7, 8, 9)
    ledger.close()
    raw(path, "UPDATE scope SET retain=3, retain_bytes=0")
    again = Ledger.open(path, ADDRESS)
    assert again.header.retention(Retention(7, 8, 9)) == Retention(3, 8, 0)
    again.close()


# -- reading -------------------------------------------------------------------------------


def test_pages_are_bounded_and_hold_one_entry_at_least(ledger: Ledger) -> None:
    fill(ledger, 10)
    size = len(entry(1).body)

    def seqs(after: int, upto: int, entries_max: int, bytes_max: int) -> list[int]:
        page = ledger.page(after, upto, entries_max=entries_max, bytes_max=bytes_max)
        return [seq for seq, _ in page]

    assert seqs(0, 10, 4, 1 << 20) == [1, 2, 3, 4]
    assert seqs(4, 6, 4, 1 << 20) == [5, 6]
    assert seqs(0, 10, 9, 1) == [1]
    assert seqs(0, 10, 9, 3 * size) == [1, 2, 3]
    assert seqs(10, 10, 9, 1 << 20) == []


def test_a_joined_page_is_the_page(ledger: Ledger) -> None:
    fill(ledger, 10)
    last, text = ledger.joined_page(2, 8, entries_max=4)
    page = ledger.page(2, 8, entries_max=4, bytes_max=1 << 20)
    assert last == 6 and text == ",".join(body for _, body in page)
    assert ledger.joined_page(8, 8, entries_max=4) == (8, "")


def test_alarms_come_soonest_first_and_end_only_as_they_ran(ledger: Ledger) -> None:
    ledger.commit(Write(NOW, alarms=[("b", 20, "p", 0), ("a", 20, None, 1), ("c", 10, None, 0)]))
    assert [alarm[0] for alarm in ledger.alarms()] == ["c", "a", "b"]
    ledger.commit(Write(NOW, alarms=[("c", 30, None, 0)], alarms_done=[("c", 10), ("a", 20)]))
    assert ledger.alarms() == [("b", 20, "p", 0), ("c", 30, None, 0)]


# -- a new epoch and errors ----------------------------------------------------------------


def test_a_new_epoch_lies_above_the_old_one(ledger: Ledger, path: Path) -> None:
    fill(ledger, 3)
    ledger.commit(Write(NOW, floor=1, alarms=[("a", 1, None, 0)]))
    ledger.begin_epoch("e2", jump=2**20, at=NOW)
    h = ledger.header
    assert (h.epoch, h.head, h.floor, h.floor_at, h.jump, h.bytes) == (
        "e2", 3 + 2**20, 3 + 2**20, 3 + 2**20, 2**20, 0,
    )  # fmt: skip
    assert ledger.causes() == [] and ledger.alarms() == []
    fill(ledger, 1)
    ledger.close()
    assert list(check_file(path).bodies) == [4 + 2**20]


@pytest.mark.parametrize(
    ("name", "code", "retryable"),
    [
        ("SQLITE_FULL", "disk_full", True),
        ("SQLITE_READONLY_DIRECTORY", "read_only", True),
        ("SQLITE_CANTOPEN", "read_only", True),
        ("SQLITE_CORRUPT_INDEX", "unavailable", False),
        ("SQLITE_NOTADB", "unavailable", False),
        ("SQLITE_IOERR_WRITE", "storage", True),
        ("", "storage", True),
    ],
)
def test_sqlite_s_errors_become_ours(name: str, code: str, retryable: bool) -> None:
    error = sqlite3.OperationalError("what SQLite says")
    error.sqlite_errorname = name
    ours = storage_error(error, Path("/data/x.db"))
    assert (ours.code, ours.retryable) == (code, retryable)
    assert "x.db" in str(ours) and "/data" not in str(ours)
