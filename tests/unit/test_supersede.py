"""Whether one file's history continues another's: only where that is certain."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.ledger import Ledger
from actors.supersede import is_prefix, peek
from actors.types import Address, Retention, ScopePolicy
from infra.errors import FileRefused, StorageError
from tests.support.ledgers import ADDRESS, NOW, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "newer.db", ScopePolicy(Retention(entries=4)))
    yield bench
    bench.close()


def copy(bench: Bench, name: str = "older.db") -> Path:
    """The file as it is now, as one that nobody has open."""
    target = bench.path.with_name(name)
    for suffix in ("", "-wal"):
        shutil.copy(f"{bench.path}{suffix}", f"{target}{suffix}")
    return target


def change(path: Path, sql: str) -> None:
    db = sqlite3.connect(path)
    db.execute(sql)
    db.commit()
    db.close()


# -- is_prefix -----------------------------------------------------------------------------


def test_a_file_continues_itself_and_what_came_before(bench: Bench) -> None:
    bench.publish("a", "b")
    older = copy(bench)
    assert is_prefix(older, bench.path)
    bench.publish("c")
    assert is_prefix(older, bench.path)
    assert not is_prefix(bench.path, older), "which lacks an entry"


def test_in_doubt_it_does_not(bench: Bench) -> None:
    bench.publish("a")
    older = copy(bench)
    bench.publish("b", "c", "d", "e")
    assert not is_prefix(older, bench.path), "retention took what would prove it"


def test_an_empty_history_proves_nothing(bench: Bench) -> None:
    older = copy(bench)
    bench.publish("a")
    assert not is_prefix(older, bench.path)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE entries SET body=replace(body, 'e2', 'xx') WHERE seq=2",
        "UPDATE entries SET cause='other' WHERE seq=2",
        "UPDATE entries SET at=at+1 WHERE seq=2",
        "UPDATE entries SET kind='other' WHERE seq=2",
        "UPDATE scope SET epoch='other'",
        "DELETE FROM entries WHERE seq=2",
    ],
)
@pytest.mark.parametrize("which", ["older.db", "newer.db"])
def test_another_history_at_the_same_place(bench: Bench, sql: str, which: str) -> None:
    bench.publish("e1", "e2")
    older = copy(bench)
    bench.publish("e3")
    assert is_prefix(older, bench.path)
    change(bench.path.with_name(which), sql)
    assert not is_prefix(older, bench.path)


def test_numbers_that_were_moved_are_another_history(bench: Bench) -> None:
    bench.publish("a", "b")
    older = copy(bench)
    ledger = Ledger.open(bench.path, ADDRESS)
    ledger.move_epoch("e2", jump=2**32, at=NOW)
    ledger.close()
    assert not is_prefix(older, bench.path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a database" * 1000),
        lambda path: change(path, "DELETE FROM scope"),
        lambda path: change(path, "DROP TABLE entries"),
    ],
    ids=["missing", "empty", "other", "unfinished", "no entries"],
)
@pytest.mark.parametrize("which", ["older.db", "third.db"])
def test_a_file_that_cannot_be_read_proves_nothing(
    bench: Bench, damage: Callable[[Path], object], which: str
) -> None:
    bench.publish("a")
    older, newer = copy(bench), copy(bench, "third.db")
    for path in (older, newer):
        change(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    assert is_prefix(older, newer)
    damage(older.with_name(which))
    assert not is_prefix(older, newer)


# -- peek ----------------------------------------------------------------------------------


def test_peek_says_what_the_file_says_and_leaves_nothing_beside_it(bench: Bench) -> None:
    bench.publish("a")
    path = copy(bench)
    change(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    assert peek(path, ADDRESS) == bench.scope.ledger.header
    assert [found.name for found in path.parent.glob("older.db*")] == ["older.db"]


def test_peek_refuses_what_is_not_this_scopes_ledger(bench: Bench) -> None:
    bench.publish("a")
    path = copy(bench)
    change(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    with pytest.raises(FileRefused, match="run:r1"):
        peek(path, Address("default", "run:other"))
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(FileRefused):
        peek(path, ADDRESS)
    path.unlink()
    with pytest.raises(StorageError):
        peek(path, ADDRESS)
