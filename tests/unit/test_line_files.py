"""Exports as lines: they come back exactly, and what was changed on the way is refused."""

from __future__ import annotations

import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from actors.check import check_ledger
from actors.identity import copy_closed, copy_database, take_identity, whose
from actors.line_files import is_sqlite, read_database, read_lines, write_lines
from actors.lines import LINE_BYTES_MAX, BadImport
from actors.types import Address, Retention, ScopePolicy
from infra.errors import FileRefused, ScopeError
from tests.support.ledgers import ADDRESS, Bench, draft, envelope, set_patch

TABLES = ("entries", "rows", "unfolded", "dedupe", "alarms")
OTHER = Address("team", 'run:other "ü"')


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A file with something in every table, and bodies that are hard to carry."""
    bench = Bench(tmp_path / "live.db", ScopePolicy(Retention(entries=300)))
    for n in range(600):
        bench.append([draft(envelope(f"e{n}", key=f"item:{n % 7}"))])
    bench.shell.settle()
    bench.append([draft(envelope("big", set_patch("/text", "ü☃\u2028" * 20_000), key="item:1"))])
    bench.publish("tail", key="item:1")
    target = tmp_path / "s.db"
    copy_database(bench.path, target)
    bench.close()
    with closing(sqlite3.connect(target, isolation_level=None)) as db:
        db.execute("INSERT INTO alarms VALUES ('wake', 5, '{\"a\": 1}', 2, 4)")
        db.execute("INSERT INTO alarms VALUES ('bare', 5, NULL, 0, 4)")
        db.execute("INSERT INTO rows(coll, id, rev, seq, body) VALUES ('odd', 'null', 1, 1, NULL)")
        db.execute("INSERT INTO rows(coll, id, rev, seq, body) VALUES ('odd', 'text', 1, 1, 'no')")
        db.execute(
            "INSERT INTO rows VALUES ('odd', 'line', 1, 1, 'o', -3, 9007199254740993, 'g', 1,"
            " '{\"a\":\n 1.50}')"
        )
        db.execute(
            "INSERT INTO rows(coll, id, rev, seq, body) VALUES ('odd', 'raw', 1, 1,"
            " '[1.0, 1e3, 12345678901234567890, \"\\u00fc\"]')"
        )
        db.execute("INSERT INTO dedupe VALUES ('noted', 5, 0, '{\"said\":1}', 7)")
    return target


def content(path: Path) -> dict[str, Any]:
    """Every table as it is, and of the scope row what an export carries."""
    with closing(sqlite3.connect(path)) as db:
        found: dict[str, Any] = {
            table: db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in TABLES
        }
        cursor = db.execute("SELECT * FROM scope")
        names = [name[0] for name in cursor.description]
        row = dict(zip(names, cursor.fetchone(), strict=True))
        found["scope"] = {
            name: value
            for name, value in row.items()
            if name not in ("owner", "nonce", "txid", "level")
        }
        return found


def exported(path: Path) -> bytes:
    out = io.BytesIO()
    assert write_lines(path, out) == len(out.getvalue())
    return out.getvalue()


def test_a_round_trip_is_exact(ledger: Path, tmp_path: Path) -> None:
    text = exported(ledger)
    again = tmp_path / "again.db"
    told: list[int] = []
    assert read_lines(io.BytesIO(text), again, progress=lambda done, _: told.append(done)) == (
        ADDRESS
    )
    assert content(again) == content(ledger)
    assert {table for table in TABLES if content(ledger)[table]} == set(TABLES)
    assert exported(again) == text
    assert whose(again).header.txid == whose(again).header.nonce == 0
    assert list(tmp_path.glob("again.db-*")) == []


def test_lines_are_json_in_order(ledger: Path) -> None:
    lines = [json.loads(line) for line in exported(ledger).splitlines()]
    assert lines[0]["format"] == "holdfast-scope"
    kinds = [line["line"] for line in lines[1:]]
    assert list(dict.fromkeys(kinds)) == ["row", "unfolded", "entry", "dedupe", "alarm", "end"]
    assert lines[-1]["entries"] == kinds.count("entry") > 300


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda lines: lines[:-1], "the last line is missing"),
        (lambda lines: lines[:40], "the last line is missing"),
        (lambda lines: [], "line 1: not the head"),
        (lambda lines: lines[1:], "line 1: not the head"),
        (lambda lines: [*lines, lines[-1]], "more after the last line"),
        (lambda lines: [*lines[:20], *lines[21:]], "it counts"),
        (lambda lines: [*lines[:20], lines[20].replace(b"e", b"f", 1), *lines[21:]], "line 21"),
        (lambda lines: [lines[0], *lines[1:-1][::-1], lines[-1]], "after those of"),
        (lambda lines: [*lines[:30], lines[29], *lines[30:]], "UNIQUE"),
        (lambda lines: [lines[0], b"{}\n", *lines[1:]], "line 2"),
        (lambda lines: [lines[0], b"\xff\xfe\n", *lines[1:]], "line 2"),
        (lambda lines: [lines[0], b"[" * 100_000 + b"\n", *lines[1:]], "line 2"),
        (lambda lines: [lines[0].replace(b'"version":1', b'"version":2', 1)], "version 2"),
        (lambda lines: [lines[0].replace(b'"head":', b'"heat":', 1)], "line 1"),
        (lambda lines: [lines[0].replace(b'"head":', b'"head":-', 1)], "line 1"),
        (lambda lines: [lines[0], b'{"line":"row","coll":"a","id":"b"}\n'], "line 2"),
        (lambda lines: [lines[0], b'{"line":"entry","seq":1,"at":1,"kind":"k"}\n', lines[-1]],
         "NOT NULL"),
        (lambda lines: [lines[0], b'{"line":"entry","seq":1,"at":99999999999999999999,"kind":"k",'
                        b'"body":1}\n', lines[-1]], "line"),
        (lambda lines: [lines[0].replace(b'"asterql"', b'"nobody"', 1), *lines[1:]], "checksum"),
    ],
)  # fmt: skip
def test_what_is_not_whole_is_refused(ledger: Path, tmp_path: Path, change: Any, word: str) -> None:
    lines = exported(ledger).splitlines(keepends=True)
    again = tmp_path / "again.db"
    with pytest.raises(BadImport, match=word):
        read_lines(io.BytesIO(b"".join(change(lines))), again)
    assert list(tmp_path.glob("again*")) == []


def test_a_flipped_digit_is_found_by_the_checksum(ledger: Path, tmp_path: Path) -> None:
    text = exported(ledger)
    at = text.index(b'"kind":"patch"') - 8
    changed = text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]
    with pytest.raises(BadImport, match=r"checksum|line"):
        read_lines(io.BytesIO(changed), tmp_path / "again.db")


def test_a_line_without_end_is_bounded(ledger: Path, tmp_path: Path) -> None:
    head = exported(ledger).splitlines(keepends=True)[0]
    with pytest.raises(BadImport, match=f"more than {LINE_BYTES_MAX}"):
        read_lines(io.BytesIO(head + b" " * (LINE_BYTES_MAX + 1)), tmp_path / "again.db")


def test_tables_of_a_dialect_are_not_left_out(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger)) as db:
        db.execute("CREATE TABLE extra(a)")
        db.commit()
    with pytest.raises(ScopeError, match="extra: export it with --format sqlite"):
        exported(ledger)


def test_a_ledger_file_is_taken_as_it_is(ledger: Path, tmp_path: Path) -> None:
    with ledger.open("rb") as file:
        assert is_sqlite(file.read(16))
    again = tmp_path / "again.db"
    assert read_database(ledger, again) == ADDRESS
    assert content(again) == content(ledger)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM rows; END",
        "ALTER TABLE entries ADD COLUMN more TEXT",
        "DROP TABLE alarms",
        "DELETE FROM scope",
        "PRAGMA user_version=0",
        "PRAGMA user_version=99",
        "UPDATE scope SET floor=head+1",
    ],
)
def test_other_databases_are_refused(ledger: Path, tmp_path: Path, statement: str) -> None:
    with closing(sqlite3.connect(ledger)) as db:
        db.execute(statement)
        db.commit()
    with pytest.raises(BadImport):
        read_database(ledger, tmp_path / "again.db")
    assert not (tmp_path / "again.db").exists()


def test_half_of_a_database_is_refused(ledger: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.db"
    half.write_bytes(ledger.read_bytes()[: ledger.stat().st_size // 2])
    with pytest.raises(BadImport):
        read_database(half, tmp_path / "again.db")


# -- identity --------------------------------------------------------------------------------------


def test_a_new_identity_keeps_the_history(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "s.db")
    bench.publish("a", "b", key="item:1")
    bench.publish("c", key="item:2")
    bench.close()
    before = content(bench.path)
    with closing(sqlite3.connect(bench.path)) as db:
        db.execute("INSERT INTO alarms VALUES ('wake', 5, NULL, 0, 4)")
        db.execute("CREATE TABLE owners(owner INTEGER PRIMARY KEY)")
        db.execute("UPDATE scope SET owner=7, nonce=8, txid=9")
        db.commit()
    header = take_identity(bench.path, OTHER, epoch="new", level="replicated", forked_at=77)
    assert (header.owner, header.nonce, header.txid) == (0, 0, 0)
    assert (header.epoch, header.level, header.head, header.created_at) == (
        "new", "replicated", 3, 77,
    )  # fmt: skip
    found = check_ledger(bench.path)
    assert found.problems == [] and found.refolded
    assert (found.tenant, found.scope) == OTHER
    after = content(bench.path)
    assert after["rows"] == before["rows"] and after["alarms"] == []
    bodies = [json.loads(row[10]) for row in after["entries"]]
    assert [list(body.values())[:1] for body in bodies] == [[1], [2], [3]]
    assert {body["scope"] for body in bodies} == {OTHER.scope}
    assert list(tmp_path.glob("s.db-*")) == []
    with closing(sqlite3.connect(bench.path)) as db:
        assert not db.execute("SELECT 1 FROM sqlite_schema WHERE name='owners'").fetchone()


def test_the_same_name_leaves_every_byte_of_the_entries(ledger: Path) -> None:
    before = content(ledger)
    take_identity(ledger, ADDRESS, epoch=None, level="local")
    assert content(ledger) == before


def test_a_name_of_another_dialect_is_refused(ledger: Path) -> None:
    with pytest.raises(ScopeError, match="speaks starkeep") as caught:
        take_identity(ledger, Address("default", "keep:x"), epoch="e", level="local")
    assert caught.value.code == "bad_scope"
    assert whose(ledger).address == ADDRESS


def test_a_closed_file_is_copied_without_a_trace(ledger: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    copy_closed(ledger, tmp_path / "copy.db")
    assert set(tmp_path.iterdir()) == before | {tmp_path / "copy.db"}
    assert content(tmp_path / "copy.db") == content(ledger)


def test_a_copy_holds_what_stands_in_the_log(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "s.db")
    bench.publish("a")
    copy_closed(bench.path, tmp_path / "copy.db")
    assert whose(tmp_path / "copy.db").header.head == 1
    bench.close()


def test_what_is_no_ledger_belongs_to_nobody(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"x" * 5000)
    with pytest.raises(FileRefused):
        whose(tmp_path / "x.db")
